"""Compressed answers: the same bytes for any cut, in bounded pieces, and an end that can be told from a cut."""

import gzip
import zlib
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.relay.decoding import PIECE_BYTES_MAX, DecodingError, Inflater, inflater_of


def bare(data: bytes) -> bytes:
    """Deflate without zlib's head and sum, as some servers send it."""
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


def members(data: bytes) -> bytes:
    """Two gzip members for one body."""
    half = len(data) // 2
    return gzip.compress(data[:half], mtime=0) + gzip.compress(data[half:], mtime=0)


PACKERS: dict[str, tuple[bytes, Callable[[bytes], bytes]]] = {
    "gzip": (b"gzip", lambda data: gzip.compress(data, mtime=0)),
    "x-gzip": (b"X-Gzip", lambda data: gzip.compress(data, mtime=0)),
    "two members": (b"gzip", members),
    "zlib": (b"deflate", zlib.compress),
    "bare": (b"deflate", bare),
}


def made(coding: bytes) -> Inflater:
    """The inflater of a coding that is known."""
    inflater = inflater_of(coding)
    assert inflater is not None
    return inflater


def drained(inflater: Inflater) -> bytes:
    """All that can be read now."""
    pieces = []
    while piece := inflater.read():
        assert len(piece) <= PIECE_BYTES_MAX
        pieces.append(piece)
    return b"".join(pieces)


texts = st.binary(max_size=300) | st.builds(
    lambda part, times: part * times, st.binary(max_size=9), st.integers(0, 60_000)
)


@pytest.mark.parametrize(("coding", "pack"), PACKERS.values(), ids=PACKERS.keys())
@given(plain=texts, places=st.lists(st.integers(0, 3_000), max_size=20))
def test_any_cut_gives_the_same_bytes(
    coding: bytes, pack: Callable[[bytes], bytes], plain: bytes, places: list[int]
) -> None:
    packed = pack(plain)
    edges = sorted({0, len(packed), *(place for place in places if place < len(packed))})
    inflater = made(coding)
    assert inflater.is_whole, "nothing at all is a whole empty body"
    got = b""
    for start, end in pairwise(edges):
        inflater.feed(packed[start:end])
        got += drained(inflater)
    assert got == plain
    assert inflater.is_whole


@pytest.mark.parametrize(("coding", "pack"), PACKERS.values(), ids=PACKERS.keys())
@given(plain=st.binary(max_size=200), share=st.integers(1, 99))
def test_what_was_cut_is_not_whole(coding: bytes, pack: Callable[[bytes], bytes], plain: bytes, share: int) -> None:
    packed = pack(plain)
    at = max(1, len(packed) * share // 100)
    if pack is members and at == len(gzip.compress(plain[: len(plain) // 2], mtime=0)):
        return  # a cut between members can not be told from the end
    inflater = made(coding)
    inflater.feed(packed[:at])
    assert plain.startswith(drained(inflater))
    assert not inflater.is_whole


def test_each_event_comes_out_when_its_bytes_are_in() -> None:
    packer = zlib.compressobj(wbits=16 + zlib.MAX_WBITS)
    inflater = made(b"gzip")
    for number in range(50):
        event = b'data: {"n":%d}\n\n' % number
        inflater.feed(packer.compress(event) + packer.flush(zlib.Z_SYNC_FLUSH))
        assert drained(inflater) == event
        assert not inflater.is_whole
    inflater.feed(packer.flush())
    assert drained(inflater) == b""
    assert inflater.is_whole


def test_a_bomb_comes_in_pieces_and_only_as_many_as_are_taken() -> None:
    packed = gzip.compress(bytes(64 * 2**20), mtime=0)
    assert len(packed) < 70_000
    inflater = made(b"gzip")
    inflater.feed(packed)
    for _ in range(5):
        assert len(inflater.read()) == PIECE_BYTES_MAX
    assert not inflater.is_whole
    assert len(drained(inflater)) == 64 * 2**20 - 5 * PIECE_BYTES_MAX


@pytest.mark.parametrize(
    ("coding", "data"),
    [
        (b"gzip", b"plain text"),
        (b"gzip", gzip.compress(b"a", mtime=0) + b"garbage"),
        (b"gzip", gzip.compress(b"a", mtime=0)[:-8] + bytes(8)),
        (b"deflate", zlib.compress(b"a") + b"garbage"),
        (b"deflate", zlib.compress(b"a")[:-4] + b"oops"),
        (b"deflate", b"\xff\xff\xff\xff"),
    ],
)
def test_what_is_not_what_it_says_is_an_error(coding: bytes, data: bytes) -> None:
    inflater = made(coding)
    inflater.feed(data)
    with pytest.raises(DecodingError):
        drained(inflater)


@pytest.mark.parametrize("coding", [b"br", b"zstd", b"compress", b"gzip, br", b"", b"identity"])
def test_other_codings_are_not_known(coding: bytes) -> None:
    assert inflater_of(coding) is None
