"""A GGUF file's tokenizer, read from its metadata with the standard library alone.

The reference reader (gguf-py's GGUFReader) takes 15.6 s for this vocabulary, since it makes an array object
of every string; a start-up can not afford that. Invariant: no byte past the end of the buffer is read,
nothing is allocated by a length that the file merely claims, and whatever is malformed is a VocabularyError.

Layout (ggml's docs/gguf.md, version 3): magic, version u32, tensor count u64, pair count u64, then pairs of
key string, type u32, value; a string is a u64 length and bytes; an array is an item type u32, a u64 count and
the items. Little-endian.
"""

import struct
from dataclasses import dataclass
from mmap import mmap
from types import MappingProxyType
from typing import Final, TypeAlias

from billing.tokens.errors import VocabularyError
from billing.tokens.ranks import TOKENS_MAX

NORMAL: Final = 1
CONTROL: Final = 3
USER_DEFINED: Final = 4
"""Token kinds (llama.cpp's llama_token_type) that occur in text; the others are unknown, unused or raw
bytes."""

TEXT_BYTES_MAX: Final = 1_048_576
"""The longest single string that is read."""

_STRING: Final = 8
_ARRAY: Final = 9
_BOOL: Final = 7
_WIDTH: Final = MappingProxyType({0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8})
_INTEGER: Final = MappingProxyType({0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 10: "Q", 11: "q"})
_VERSIONS: Final = (2, 3)
_PREFIX: Final = "tokenizer.ggml."
_WANTED: Final = ("model", "pre", "tokens", "token_type", "merges", "add_bos_token", "add_eos_token")

Value: TypeAlias = str | bool | int | list[str] | list[int]


@dataclass(frozen=True, slots=True)
class GgufTokenizer:
    """The tokenizer keys of one file. `kinds` is as long as `tokens`; what a flag that is absent means is not
    decided here."""

    pre: str
    tokens: list[str]
    kinds: list[int]
    merges: list[str]
    adds_bos: bool | None
    adds_eos: bool | None


def read_tokenizer(data: mmap | bytes) -> GgufTokenizer:
    """The tokenizer that a GGUF file describes; VocabularyError if it is malformed or not a byte-level
    BPE."""
    try:
        found = _read_pairs(_Cursor(data))
    except struct.error:
        raise VocabularyError("the GGUF metadata ends in the middle of a value") from None
    model = _text(found, "model")
    if model != "gpt2":
        raise VocabularyError(f"tokenizer model {model!r} is not a byte-level BPE ('gpt2'): it can not be counted with")
    tokens = _texts(found, "tokens")
    kinds = found.get("token_type", [NORMAL] * len(tokens))
    if not isinstance(kinds, list) or len(kinds) != len(tokens):
        raise VocabularyError("tokenizer.ggml.token_type does not have one number for each token")
    return GgufTokenizer(
        pre=_text(found, "pre"),
        tokens=tokens,
        kinds=[kind if isinstance(kind, int) else NORMAL for kind in kinds],
        merges=_texts(found, "merges"),
        adds_bos=_flag(found, "add_bos_token"),
        adds_eos=_flag(found, "add_eos_token"),
    )


class _Cursor:
    """A place in the buffer that can only move forward, and not past the end."""

    __slots__ = ("at", "data", "end")

    def __init__(self, data: mmap | bytes) -> None:
        self.data, self.end, self.at = data, len(data), 0

    def take(self, length: int) -> int:
        """Moves past `length` bytes and says where they begin."""
        if length > self.end - self.at:
            raise VocabularyError("the GGUF metadata is longer than the file")
        begin, self.at = self.at, self.at + length
        return begin

    def number(self, code: str) -> int:
        """The next integer, by its struct code."""
        value: int = struct.unpack_from("<" + code, self.data, self.take(struct.calcsize("<" + code)))[0]
        return value

    def text(self) -> str:
        """The next string."""
        length = self.number("Q")
        if length > TEXT_BYTES_MAX:
            raise VocabularyError(f"a string of {length} bytes in the GGUF metadata")
        begin = self.take(length)
        return str(self.data[begin : begin + length], "utf-8", "replace")


def _read_pairs(cursor: _Cursor) -> dict[str, Value]:
    """The wanted keys, without their prefix; the others are stepped over."""
    cursor.take(4)
    if cursor.data[:4] != b"GGUF":
        raise VocabularyError("not a GGUF file")
    version = cursor.number("I")
    if version not in _VERSIONS:
        raise VocabularyError(f"GGUF version {version} is not supported (little-endian 2 or 3 is)")
    cursor.number("Q")
    found: dict[str, Value] = {}
    for _ in range(cursor.number("Q")):
        key, kind = cursor.text(), cursor.number("I")
        name = key.removeprefix(_PREFIX)
        if key.startswith(_PREFIX) and name in _WANTED:
            found[name] = _read_value(cursor, kind, key)
        else:
            _skip_value(cursor, kind)
    return found


def _read_value(cursor: _Cursor, kind: int, key: str) -> Value:
    if kind == _STRING:
        return cursor.text()
    if kind == _BOOL:
        return cursor.number("B") != 0
    if kind in _INTEGER:
        return cursor.number(_INTEGER[kind])
    if kind != _ARRAY:
        raise VocabularyError(f"{key} has an unexpected type")
    item, count = cursor.number("I"), cursor.number("Q")
    if count > TOKENS_MAX:
        raise VocabularyError(f"{key} claims {count} entries; no vocabulary has more than {TOKENS_MAX}")
    if item == _STRING:
        return [cursor.text() for _ in range(count)]
    if item not in _INTEGER:
        raise VocabularyError(f"{key} has an unexpected type")
    begin = cursor.take(count * _WIDTH[item])
    return list(struct.unpack_from(f"<{count}{_INTEGER[item]}", cursor.data, begin))


def _skip_value(cursor: _Cursor, kind: int) -> None:
    if kind != _ARRAY:
        _skip_items(cursor, kind, 1)
        return
    item, count = cursor.number("I"), cursor.number("Q")
    _skip_items(cursor, item, count)


def _skip_items(cursor: _Cursor, kind: int, count: int) -> None:
    if kind == _STRING:
        for _ in range(count):
            cursor.take(cursor.number("Q"))
    elif kind in _WIDTH:
        cursor.take(count * _WIDTH[kind])
    else:
        # llama.cpp refuses arrays of arrays and unknown types, too: such a file serves nobody.
        raise VocabularyError(f"value type {kind} in the GGUF metadata is not known")


def _text(found: dict[str, Value], name: str) -> str:
    value = found.get(name)
    if not isinstance(value, str):
        raise VocabularyError(f"the GGUF file has no {_PREFIX}{name}")
    return value


def _texts(found: dict[str, Value], name: str) -> list[str]:
    value = found.get(name)
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise VocabularyError(f"the GGUF file has no {_PREFIX}{name}")
    return [text for text in value if isinstance(text, str)]


def _flag(found: dict[str, Value], name: str) -> bool | None:
    value = found.get(name)
    return value if isinstance(value, bool) else None
