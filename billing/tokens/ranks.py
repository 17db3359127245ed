"""Byte ranks, the form of a vocabulary that tiktoken merges by, from a ranks file or from token texts and
merges.

Invariant: a token that no merge can build has no rank, unless the tokenizer takes whole pieces without
merging. tiktoken looks a whole piece up before it merges anything; Hugging Face, vLLM and llama.cpp merge
only. Qwen3.5 has 201 tokens for which the two differ (' явля', '加拿大'); with them dropped, 5,314 hard
strings count the same.
"""

import base64
import binascii
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType
from typing import Final

from billing.tokens.errors import VocabularyError

TOKENS_MAX: Final = 4_194_304
"""More entries than any vocabulary has (Qwen3.5: 248,320; the largest seen: about 1,000,000)."""


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-in for each byte: visible Latin-1 is itself, the others follow from U+0100
    on."""
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(256 + nth): byte for nth, byte in enumerate(hidden)}


BYTE_OF: Final[Mapping[str, int]] = MappingProxyType(_byte_alphabet())


@dataclass(frozen=True, slots=True)
class Ranks:
    """Token bytes by merge priority; `ids` translates a rank to the model's token id where the two differ."""

    by_token: dict[bytes, int]
    ids: tuple[int, ...] | None = None


def parse_ranks_file(raw: bytes) -> dict[bytes, int]:
    """The content of a `.tiktoken` file: lines of a token in base64, a space, its rank."""
    ranks = {}
    for number, line in enumerate(raw.splitlines(), start=1):
        if not line:
            continue
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error):
            raise VocabularyError(f"line {number} is not 'base64 rank'") from None
    if len(ranks) > TOKENS_MAX:
        raise VocabularyError(f"more than {TOKENS_MAX} tokens")
    return ranks


def without(ranks: Mapping[bytes, int], dropped: Iterable[int]) -> dict[bytes, int]:
    """`ranks` less the tokens of these ids."""
    gone = frozenset(dropped)
    return {token: rank for token, rank in ranks.items() if rank not in gone}


def unbuildable(ranks: Mapping[bytes, int]) -> list[int]:
    """Ids of the tokens that merging by rank never yields, ascending. Takes 1.7 s for 248,044 tokens."""
    return sorted(rank for token, rank in ranks.items() if len(token) > 2 and not _is_buildable(token, ranks))


def _is_buildable(token: bytes, ranks: Mapping[bytes, int]) -> bool:
    parts = [token[at : at + 1] for at in range(len(token))]
    while len(parts) > 1:
        joins = [(ranks[pair], at) for at in range(len(parts) - 1) if (pair := parts[at] + parts[at + 1]) in ranks]
        if not joins:
            return False
        _, at = min(joins)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return True


def from_merges(ids: Mapping[str, int], products: Iterable[str], *, keeps_whole_pieces: bool) -> Ranks:
    """Ranks of a byte-level BPE.

    `ids`: ordinary tokens in the byte alphabet → id. `products`: what each merge joins to, in order of
    priority. Where ids do not rise with the merges' order (no model that we met), ranks are made from that
    order instead.
    """
    order = list(dict.fromkeys(product for product in products if product in ids))
    built = frozenset(order)
    singles = [text for text in ids if len(text) == 1 and text not in built]
    whole = [text for text in ids if len(text) > 1 and text not in built] if keeps_whole_pieces else []
    if all(ids[before] < ids[after] for before, after in pairwise(order)):
        return Ranks({_to_bytes(text): ids[text] for text in (*singles, *order, *whole)})
    texts = [*singles, *order, *whole]
    by_token = {_to_bytes(text): rank for rank, text in enumerate(texts)}
    return Ranks(by_token, ids=tuple(ids[text] for text in texts))


def _to_bytes(text: str) -> bytes:
    try:
        return bytes(map(BYTE_OF.__getitem__, text))
    except KeyError as error:
        raise VocabularyError(f"not a byte-level vocabulary: token with character {error.args[0]!r}") from None
