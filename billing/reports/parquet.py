"""Parquet files, written as rows come, in memory that does not grow with them.

Written here because the five kinds of columns that Weir has take two hundred lines, and pyarrow takes 170 MB. The
format is https://parquet.apache.org/docs/file-format/ : row groups of gzipped PLAIN pages, one page for each column,
then the footer in Thrift's compact protocol. Every column may hold nulls. Money is DECIMAL(38, 12) and never a float.
"""

import gzip
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import BinaryIO

MAGIC = b"PAR1"
ROWS_PER_GROUP = 20_000
DECIMAL_BYTES = 16
DECIMAL_DIGITS = 38

_INT64, _BYTE_ARRAY, _FIXED = 2, 6, 7
_UTF8, _DECIMAL, _TIMESTAMP_MICROS = 0, 5, 10
_OPTIONAL, _PLAIN, _RLE, _GZIP, _DATA_PAGE = 1, 0, 3, 2, 0
_I32, _I64, _BINARY, _LIST, _STRUCT = 5, 6, 8, 9, 12


class Kind(Enum):
    """What a column holds: its Parquet type, the converted type, and the decimals of a number."""

    TEXT = (_BYTE_ARRAY, _UTF8, None)
    INTEGER = (_INT64, None, None)
    INSTANT = (_INT64, _TIMESTAMP_MICROS, None)
    MONEY = (_FIXED, _DECIMAL, 12)
    PERCENT = (_FIXED, _DECIMAL, 2)


@dataclass(frozen=True, slots=True)
class Column:
    """A column's name and kind."""

    name: str
    kind: Kind


class ParquetWriter:
    """Rows into a binary stream; what was written is a file only after `close`.

    A text is a str, an instant the microseconds since 1970, a decimal the integer of its smallest unit; None is null.
    """

    def __init__(self, stream: BinaryIO, columns: Sequence[Column]) -> None:
        assert columns, "a table has columns"
        self._stream, self._columns = stream, tuple(columns)
        self._rows: list[Sequence[object]] = []
        self._groups: list[bytes] = []
        self._offset = self._rows_written = 0
        self._put(MAGIC)

    def write(self, row: Sequence[object]) -> None:
        """Add a row, its values in the order of the columns."""
        assert len(row) == len(self._columns), "a row has a value for each column"
        self._rows.append(row)
        if len(self._rows) >= ROWS_PER_GROUP:
            self._end_group()

    def close(self) -> None:
        """Write what is left, and the footer; the stream stays open."""
        if self._rows:
            self._end_group()
        root = _struct((4, _BINARY, _text("weir")), (5, _I32, _number(len(self._columns))))
        footer = _struct(
            (1, _I32, _number(1)),
            (2, _LIST, _list(_STRUCT, [root, *map(_schema, self._columns)])),
            (3, _I64, _number(self._rows_written)),
            (4, _LIST, _list(_STRUCT, self._groups)),
            (6, _BINARY, _text("tokenweir")),
        )
        self._put(footer + struct.pack("<I", len(footer)) + MAGIC)

    def _put(self, data: bytes) -> None:
        self._stream.write(data)
        self._offset += len(data)

    def _end_group(self) -> None:
        """Write the rows at hand as one row group."""
        rows, self._rows = self._rows, []
        chunks, whole = [], 0
        for index, column in enumerate(self._columns):
            chunk, size = self._chunk(column, [row[index] for row in rows])
            chunks.append(chunk)
            whole += size
        self._rows_written += len(rows)
        count = _number(len(rows))
        self._groups.append(
            _struct((1, _LIST, _list(_STRUCT, chunks)), (2, _I64, _number(whole)), (3, _I64, count)),
        )

    def _chunk(self, column: Column, values: Sequence[object]) -> tuple[bytes, int]:
        """Write one column of a group as one page; return what the footer says of it, and its size unpacked."""
        page = _levels(values) + _plain(column.kind, [value for value in values if value is not None])
        packed = gzip.compress(page, compresslevel=1, mtime=0)
        count, at = _number(len(values)), self._offset
        encoded = ((1, _I32, count), (2, _I32, _number(_PLAIN)), (3, _I32, _number(_RLE)), (4, _I32, _number(_RLE)))
        header = _struct(
            (1, _I32, _number(_DATA_PAGE)),
            (2, _I32, _number(len(page))),
            (3, _I32, _number(len(packed))),
            (5, _STRUCT, _struct(*encoded)),
        )
        self._put(header + packed)
        size = len(header) + len(page)
        meta = _struct(
            (1, _I32, _number(column.kind.value[0])),
            (2, _LIST, _list(_I32, [_number(_PLAIN), _number(_RLE)])),
            (3, _LIST, _list(_BINARY, [_text(column.name)])),
            (4, _I32, _number(_GZIP)),
            (5, _I64, count),
            (6, _I64, _number(size)),
            (7, _I64, _number(len(header) + len(packed))),
            (9, _I64, _number(at)),
        )
        return _struct((2, _I64, _number(at)), (3, _STRUCT, meta)), size


def _levels(values: Sequence[object]) -> bytes:
    """Say which values are there, a bit each: one run where all are, else packed eight to a byte."""
    if None not in values:
        run = _varint(len(values) << 1) + b"\x01"
    else:
        bits = sum(1 << index for index, value in enumerate(values) if value is not None)
        size = (len(values) + 7) // 8
        run = _varint(size << 1 | 1) + bits.to_bytes(size, "little")
    return struct.pack("<I", len(run)) + run


def _plain(kind: Kind, values: Sequence[object]) -> bytes:
    match kind:
        case Kind.TEXT:
            texts = (str(value).encode() for value in values)
            return b"".join(struct.pack("<I", len(text)) + text for text in texts)
        case Kind.INTEGER | Kind.INSTANT:
            return struct.pack(f"<{len(values)}q", *values)
        case Kind.MONEY | Kind.PERCENT:
            return b"".join(_whole(value).to_bytes(DECIMAL_BYTES, "big", signed=True) for value in values)


def _whole(value: object) -> int:
    assert isinstance(value, int), "a decimal is the integer of its smallest unit"
    assert abs(value) < 10**DECIMAL_DIGITS, "it has at most 38 digits"
    return value


def _schema(column: Column) -> bytes:
    physical, converted, scale = column.kind.value
    fields = [(1, _I32, _number(physical)), (3, _I32, _number(_OPTIONAL)), (4, _BINARY, _text(column.name))]
    if converted is not None:
        fields.append((6, _I32, _number(converted)))
    if scale is not None:
        fields.insert(1, (2, _I32, _number(DECIMAL_BYTES)))
        fields += [(7, _I32, _number(scale)), (8, _I32, _number(DECIMAL_DIGITS))]
    return _struct(*fields)


def _struct(*fields: tuple[int, int, bytes]) -> bytes:
    """Write numbered fields of a type each, in ascending order; numbers are at most 15 apart."""
    parts, last = [], 0
    for number, kind, data in fields:
        parts += [bytes([(number - last) << 4 | kind]), data]
        last = number
    return b"".join(parts) + b"\x00"


def _list(kind: int, items: Iterable[bytes]) -> bytes:
    items = list(items)
    head = bytes([len(items) << 4 | kind]) if len(items) < 15 else bytes([0xF0 | kind]) + _varint(len(items))
    return head + b"".join(items)


def _text(text: str) -> bytes:
    data = text.encode()
    return _varint(len(data)) + data


def _number(value: int) -> bytes:
    """Write a number that is not negative, as Thrift does: twice it, for the sign."""
    return _varint(value << 1)


def _varint(value: int) -> bytes:
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)
