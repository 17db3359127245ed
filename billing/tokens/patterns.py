r"""How text is split into pieces before any merge: the regexes of the model families that Weir knows.

Invariant: each regex matches any text without gaps (it ends in `\s+` or covers every class), because tiktoken
drops what a regex does not match where Hugging Face and llama.cpp keep it.

A GGUF file does not carry its regex, only a name (`tokenizer.ggml.pre`), and what is written here for a name
is what llama.cpp does for it, since llama.cpp or Ollama will serve that file. For gpt-4o and tekken that is
not the regex of the model's own tokenizer.json: llama.cpp has no classes for upper and lower case beyond
ASCII and takes every other letter for both (src/llama-vocab.cpp, llm_tokenizer_bpe). Names whose rule is a
chain of regexes (deepseek, starcoder, falcon, ...) can not be said in one and are refused rather than counted
wrongly.
"""

from dataclasses import dataclass
from typing import Final

from billing.tokens.errors import VocabularyError

_CONTRACTION = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_ENDINGS = r"\s*[\r\n]+|\s+(?!\S)|\s+"

QWEN35: Final = _CONTRACTION + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|" + _ENDINGS
"""Qwen3.5 and 3.6: marks belong to letters, each digit stands alone."""

QWEN2: Final = _CONTRACTION + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + _ENDINGS
"""Qwen2, 2.5 and 3."""

LLAMA3: Final = _CONTRACTION + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + _ENDINGS
"""Llama 3 and GLM-4: digits in threes."""

GPT2: Final = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""GPT-2, and Hugging Face's ByteLevel with `use_regex`."""

_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
O200K: Final = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTION}?|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTION}?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|" + _ENDINGS
)
"""gpt-4o and gpt-oss, as OpenAI and tokenizer.json files say it."""

_NOT_LOWER = r"[\p{L}&&[^a-z]]"
_NOT_UPPER = r"[\p{L}&&[^A-Z]]"
_CASED = r"[^\r\n\p{{L}}\p{{N}}]?{first}*{then}+{end}|[^\r\n\p{{L}}\p{{N}}]?{first}+{then}*{end}"
O200K_LLAMACPP: Final = (
    _CASED.format(first=_NOT_LOWER, then=_NOT_UPPER, end=_CONTRACTION + "?")
    + r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|"
    + _ENDINGS
)
"""gpt-4o as llama.cpp splits it."""

TEKKEN_LLAMACPP: Final = (
    _CASED.format(first=_NOT_LOWER, then=_NOT_UPPER, end="") + r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|" + _ENDINGS
)
"""Mistral's tekken as llama.cpp splits it."""

CUTTABLE: Final = frozenset({QWEN35, QWEN2, LLAMA3, GPT2, O200K, O200K_LLAMACPP, TEKKEN_LLAMACPP})
"""Regexes for which the cut rule of `cuts.py` was proven; an unknown regex is never cut."""


@dataclass(frozen=True, slots=True)
class PreTokenizer:
    """What a tokenizer does around its merges.

    `keeps_whole_pieces`: a piece that is a token as a whole is taken without merging (Hugging Face's
    `ignore_merges`). `adds_bos`: llama.cpp's default for the name, which the file may override.
    """

    regex: str
    normalizes_nfc: bool = False
    keeps_whole_pieces: bool = False
    adds_bos: bool = False


_GGUF: Final = (
    (("qwen35",), PreTokenizer(QWEN35, normalizes_nfc=True)),
    (("qwen2", "deepseek-r1-qwen", "megrez"), PreTokenizer(QWEN2, normalizes_nfc=True)),
    (
        ("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral"),
        PreTokenizer(LLAMA3, keeps_whole_pieces=True, adds_bos=True),
    ),
    (("glm4", "chatglm-bpe"), PreTokenizer(LLAMA3)),
    (("gpt-2", "phi-2"), PreTokenizer(GPT2)),
    (("gpt-4o", "llama4"), PreTokenizer(O200K_LLAMACPP)),
    (("tekken",), PreTokenizer(TEKKEN_LLAMACPP, keeps_whole_pieces=True, adds_bos=True)),
)
"""`tokenizer.ggml.pre` → behaviour, read in llama.cpp's llama_vocab::impl::load (2026) and compared with its
/tokenize."""


def pre_tokenizer(name: str) -> PreTokenizer:
    """The behaviour behind a GGUF file's `tokenizer.ggml.pre`; VocabularyError for a name that is not
    known."""
    for names, found in _GGUF:
        if name in names:
            return found
    known = ", ".join(name for names, _ in _GGUF for name in names)
    raise VocabularyError(f"unknown pre-tokenizer {name!r}: use the model's tokenizer.json instead (known: {known})")
