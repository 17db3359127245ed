"""A model's vocabulary: text → number of tokens, as the model's server would make them. The only home of
tiktoken.

Sources: the name "qwen3.5", or a path to a `.tiktoken` ranks file, a Hugging Face `tokenizer.json`, or a
`.gguf`.

Decision: special-token text inside a text counts as the special token, in prompts and in answers alike. That
is what servers do: llama.cpp tokenizes the templated chat prompt, /v1/completions prompts and /tokenize with
specials parsed, and Hugging Face tokenizers (vLLM, SGLang) always split added tokens out of a text. A
newcomer would count a customer's "<|im_end|>" as ordinary text, for safety; but there is nothing to protect
here (these ids go to no model), and the count would be six times the server's, enough to make a true report
look implausible.
"""

import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Final

import tiktoken

from billing.tokens import cuts, qwen35
from billing.tokens.errors import VocabularyError
from billing.tokens.gguf_metadata import CONTROL, NORMAL, USER_DEFINED, GgufTokenizer, read_tokenizer
from billing.tokens.normal_form import nfc as compose
from billing.tokens.patterns import CUTTABLE, LLAMA3, O200K, QWEN2, QWEN35, PreTokenizer, pre_tokenizer
from billing.tokens.ranks import Ranks, from_merges, parse_ranks_file, unbuildable, without
from billing.tokens.tokenizer_json import parse_tokenizer_json

TEXT_FILE_BYTES_MAX: Final = 268_435_456
"""The largest ranks file or tokenizer.json that is read; real ones are below 40 MB."""

SUFFIXES: Final = (".tiktoken", ".json", ".gguf")


class Dialect(Enum):
    """How the model's chat template writes a conversation, as far as the vocabulary tells."""

    QWEN35 = "qwen3.5"
    CHATML = "chatml"
    OTHER = "other"


@dataclass(frozen=True, slots=True, eq=False)
class Vocabulary:
    """One model's tokens. Safe to use from several threads; encoding releases the GIL.

    `normalizes_nfc`: the tokenizer's definition composes characters first, which not every server does.
    `prompt_extra`: tokens that are put around each prompt (a BOS). `ids`: rank → id, where they differ.
    """

    name: str
    encoding: tiktoken.Encoding
    normalizes_nfc: bool
    specials: Mapping[str, int]
    prompt_extra: int
    dialect: Dialect
    can_cut: bool
    ids: tuple[int, ...] | None = None

    def count(self, text: str, *, nfc: bool = False) -> int:
        """Tokens of `text`; never raises, on any text of any length.

        `nfc`: whether the server normalises as the tokenizer's definition says: true of vLLM, SGLang and
        transformers for prompts (see `server_normalizes`), never of answers, which are counted as they were
        generated.
        """
        text = compose(text) if nfc and self.normalizes_nfc else text
        return sum(len(self._encode(part)) for part in cuts.segments(text, can_cut=self.can_cut))

    def encode(self, text: str, *, nfc: bool = False) -> list[int]:
        """Token ids of `text`, with special tokens parsed. For checks and audits of texts of ordinary
        length."""
        ranks = self._encode(compose(text) if nfc and self.normalizes_nfc else text)
        return ranks if self.ids is None else [self.ids[rank] for rank in ranks]

    def _encode(self, text: str) -> list[int]:
        return self.encoding.encode(text, allowed_special="all", disallowed_special=())


def server_normalizes(kind: str) -> bool:
    """Whether a server of this kind applies the tokenizer's NFC to prompts.

    Measured: vLLM does and llama.cpp does not ('e\u0301cole' is 1 token on vLLM and 3 on llama.cpp); Ollama
    and LM Studio run llama.cpp. Of an unknown server it is assumed: composed text nearly always
    has fewer tokens, and whoever can not know should bill less.
    """
    return kind not in ("llamacpp", "ollama", "lmstudio")


def load(source: str) -> Vocabulary:
    """The vocabulary behind a built-in name or a path; VocabularyError says what is wrong. Takes 0.3 to 2 s.

    A ranks file says nothing of how text is split: `PATH.tiktoken#NAME` names it (as GGUF does: qwen2,
    llama-bpe, ...). Without a name it is known by the number of ranks for Qwen2 to 3, Qwen3.5, Llama 3 and
    gpt-4o.
    """
    try:
        return _load(source)
    except VocabularyError as error:
        raise VocabularyError(f"tokenizer {source}: {error}") from error


def _load(source: str) -> Vocabulary:
    if source == qwen35.NAME:
        return _built_in()
    location, _, hint = source.partition("#")
    path = Path(location)
    try:
        match path.suffix.lower():
            case ".tiktoken":
                return _from_ranks_file(path, hint)
            case ".json":
                return _from_tokenizer_json(path)
            case ".gguf":
                return _from_gguf(path)
    except OSError as error:
        raise VocabularyError(f"can not be read: {error.strerror}") from None
    raise VocabularyError(f"neither {qwen35.NAME!r} nor a path that ends in {', '.join(SUFFIXES)}")


@cache
def _built_in() -> Vocabulary:
    """Read it once a process: half a second of CPU, and as large as it is for each who has it."""
    pre = PreTokenizer(QWEN35, normalizes_nfc=True)
    return build(qwen35.NAME, qwen35.load_ranks(), pre, qwen35.SPECIALS, 0)


def _from_ranks_file(path: Path, hint: str) -> Vocabulary:
    ranks = parse_ranks_file(_read(path))
    known, specials = _KNOWN_RANKS.get(len(ranks), (None, {}))
    pre = pre_tokenizer(hint) if hint else known
    if pre is None:
        raise VocabularyError(f"how text is split is not known for {len(ranks)} ranks: add #NAME, e.g. #qwen2")
    if not pre.keeps_whole_pieces:
        ranks = without(ranks, unbuildable(ranks))
    return build(path.stem, Ranks(ranks), pre, specials, int(pre.adds_bos))


def _from_tokenizer_json(path: Path) -> Vocabulary:
    read = parse_tokenizer_json(_read(path))
    name = path.parent.name if path.stem == "tokenizer" and path.parent.name else path.stem
    return build(name, read.ranks, read.pre_tokenizer, read.specials, read.prompt_extra)


def _from_gguf(path: Path) -> Vocabulary:
    with path.open("rb") as file:
        if path.stat().st_size == 0:
            raise VocabularyError("the file is empty")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            read = read_tokenizer(data)
    pre = pre_tokenizer(read.pre)
    adds_bos = pre.adds_bos if read.adds_bos is None else read.adds_bos
    return build(path.stem, _gguf_ranks(read, pre), pre, _gguf_specials(read), int(adds_bos) + int(bool(read.adds_eos)))


def _gguf_ranks(read: GgufTokenizer, pre: PreTokenizer) -> Ranks:
    ids = {text: nth for nth, (text, kind) in enumerate(zip(read.tokens, read.kinds, strict=True)) if kind == NORMAL}
    products = (merge.replace(" ", "", 1) for merge in read.merges)
    return from_merges(ids, products, keeps_whole_pieces=pre.keeps_whole_pieces)


def _gguf_specials(read: GgufTokenizer) -> dict[str, int]:
    pairs = enumerate(zip(read.tokens, read.kinds, strict=True))
    return {text: nth for nth, (text, kind) in pairs if kind in (CONTROL, USER_DEFINED) and text}


def _read(path: Path) -> bytes:
    if path.stat().st_size > TEXT_FILE_BYTES_MAX:
        raise VocabularyError(f"larger than {TEXT_FILE_BYTES_MAX} bytes")
    return path.read_bytes()


def build(name: str, ranks: Ranks, pre: PreTokenizer, specials: Mapping[str, int], prompt_extra: int) -> Vocabulary:
    """Checks what tiktoken would panic on or answer at random, and makes the encoding."""
    missing = [byte for byte in range(256) if bytes((byte,)) not in ranks.by_token]
    if missing:
        raise VocabularyError(f"{len(missing)} of the 256 single bytes are not tokens")
    for one, other in pairwise(sorted(specials)):
        if other.startswith(one):
            raise VocabularyError(f"the added tokens {one!r} and {other!r} begin alike, which is not supported")
    ids, special_tokens = ranks.ids, dict(specials)
    if ids is not None:
        special_tokens = {text: len(ids) + nth for nth, text in enumerate(specials)}
        ids = (*ids, *specials.values())
    try:
        encoding = tiktoken.Encoding(
            name, pat_str=pre.regex, mergeable_ranks=ranks.by_token, special_tokens=special_tokens
        )
    except (ValueError, OverflowError) as error:
        raise VocabularyError(f"tiktoken refuses it: {error}") from None
    return Vocabulary(
        name=name,
        encoding=encoding,
        normalizes_nfc=pre.normalizes_nfc,
        specials=MappingProxyType(dict(specials)),
        prompt_extra=prompt_extra,
        dialect=_dialect(pre, specials),
        can_cut=pre.regex in CUTTABLE and not any(cuts.CUT_BEFORE & set(text) for text in specials),
        ids=ids,
    )


def _dialect(pre: PreTokenizer, specials: Mapping[str, int]) -> Dialect:
    if "<|im_start|>" not in specials:
        return Dialect.OTHER
    return Dialect.QWEN35 if pre.regex == QWEN35 and "<think>" in specials else Dialect.CHATML


_QWEN2_TOKENS: Final = 151_643
_KNOWN_RANKS: Final[Mapping[int, tuple[PreTokenizer, Mapping[str, int]]]] = MappingProxyType(
    {
        qwen35.TOKENS: (PreTokenizer(QWEN35, normalizes_nfc=True), qwen35.SPECIALS),
        # Qwen2 to 3 have the first 26 of the same special tokens, in the same order.
        _QWEN2_TOKENS: (
            PreTokenizer(QWEN2, normalizes_nfc=True),
            {text: _QWEN2_TOKENS + nth for nth, text in enumerate(list(qwen35.SPECIALS)[:26])},
        ),
        128_000: (PreTokenizer(LLAMA3, keeps_whole_pieces=True, adds_bos=True), {}),
        199_998: (PreTokenizer(O200K, keeps_whole_pieces=True), {}),
    }
)
"""Ranks files known by their number of tokens, and their special tokens as far as they matter."""
