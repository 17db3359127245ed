"""Read what `billing/reports/parquet.py` writes, by the format's own specification and none of its code.

It knows only what is needed: flat columns that may be null, PLAIN pages, gzip. The slow suite has pyarrow read them.
"""

import gzip
import struct
from typing import Any

Struct = dict[int, Any]
Row = dict[str, Any]


class _Thrift:
    """Structs of Thrift's compact protocol, as numbered fields."""

    def __init__(self, data: bytes, at: int = 0) -> None:
        self.data, self.at = data, at

    def struct(self) -> Struct:
        found: Struct = {}
        number = 0
        while (head := self._byte()) != 0:
            number = number + (head >> 4) if head >> 4 else self._zigzag()
            found[number] = self._value(head & 15)
        return found

    def _value(self, kind: int) -> Any:
        if kind in {1, 2}:
            return kind == 1
        if kind in {4, 5, 6}:
            return self._zigzag()
        if kind == 8:
            length = self._varint()
            self.at += length
            return self.data[self.at - length : self.at].decode()
        if kind == 9:
            head = self._byte()
            length = head >> 4 if head >> 4 < 15 else self._varint()
            return [self._value(head & 15) for _ in range(length)]
        assert kind == 12, f"type {kind} is not known here"
        return self.struct()

    def _byte(self) -> int:
        self.at += 1
        return self.data[self.at - 1]

    def _varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    def _zigzag(self) -> int:
        value = self._varint()
        return value >> 1 if value & 1 == 0 else -(value >> 1) - 1


def footer(data: bytes) -> Struct:
    """The file's metadata."""
    assert data[:4] == data[-4:] == b"PAR1"
    length = struct.unpack("<I", data[-8:-4])[0]
    reader = _Thrift(data, len(data) - 8 - length)
    found = reader.struct()
    assert reader.at == len(data) - 8, "the footer ends where its length says"
    return found


def rows(data: bytes) -> list[Row]:
    """All rows; decimals as the integers of their smallest unit, instants as microseconds."""
    meta = footer(data)
    root, *leaves = meta[2]
    assert root[5] == len(leaves)
    names = [leaf[4] for leaf in leaves]
    found: list[Row] = []
    for group in meta[4]:
        columns = [_column(data, chunk[3], leaf) for chunk, leaf in zip(group[1], leaves, strict=True)]
        assert {len(column) for column in columns} == {group[3]}
        found += [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]
    assert len(found) == meta[3]
    return found


def _column(data: bytes, meta: Struct, leaf: Struct) -> list[Any]:
    assert (meta[1], meta[3], meta[4]) == (leaf[1], [leaf[4]], 2)
    reader = _Thrift(data, meta[9])
    header = reader.struct()
    assert header[1] == 0
    assert meta[7] == reader.at - meta[9] + header[3]
    page = gzip.decompress(data[reader.at : reader.at + header[3]])
    assert len(page) == header[2]
    count, encoding, levels_encoding = (header[5][number] for number in (1, 2, 3))
    assert (count, encoding, levels_encoding) == (meta[5], 0, 3)
    length = struct.unpack("<I", page[:4])[0]
    present = _levels(page[4 : 4 + length], count)
    values = iter(_plain(page[4 + length :], leaf, sum(present)))
    return [next(values) if there else None for there in present]


def _levels(run: bytes, count: int) -> list[bool]:
    """Definition levels of width 1, in one run of either sort."""
    reader = _Thrift(run)
    head = reader._varint()
    if head & 1 == 0:
        assert head >> 1 == count
        return [bool(run[reader.at])] * count
    bits = int.from_bytes(run[reader.at :], "little")
    assert len(run) - reader.at == head >> 1
    return [bool(bits >> index & 1) for index in range(count)]


def _plain(data: bytes, leaf: Struct, count: int) -> list[Any]:
    if leaf[1] == 2:
        return list(struct.unpack(f"<{count}q", data))
    if leaf[1] == 7:
        size = leaf[2]
        assert len(data) == size * count
        return [int.from_bytes(data[at : at + size], "big", signed=True) for at in range(0, len(data), size)]
    assert leaf[1] == 6
    found, at = [], 0
    for _ in range(count):
        length = struct.unpack_from("<I", data, at)[0]
        found.append(data[at + 4 : at + 4 + length].decode())
        at += 4 + length
    assert at == len(data)
    return found
