"""Lines come out whole and unchanged, at any cut, in linear time and bounded memory."""

import time

import pytest

from billing.limits import STREAM_EVENT_BYTES_MAX
from proxy.meter.framing import StreamError
from proxy.meter.ndjson import LineFramer


def test_lines_keep_their_ends_and_the_tail_is_kept() -> None:
    """A CR belongs to the line before it; an empty line is a line."""
    framer = LineFramer()
    assert framer.feed(b'{"a":1}\n\r\n{"b"') == [b'{"a":1}\n', b"\r\n"]
    assert not framer.is_empty
    assert framer.feed(b":2") == []
    assert framer.feed(b"}\n") == [b'{"b":2}\n']
    assert framer.is_empty
    assert framer.feed(b"tail") == []
    assert framer.rest() == b"tail"
    assert (framer.is_empty, framer.rest()) == (True, b"")


def test_only_a_line_feed_ends_a_line() -> None:
    """Not what Python's `splitlines` takes for an end: JSON texts may hold those bytes."""
    framer = LineFramer()
    assert framer.feed("a\u2028b\x0b\x0c\x1c\x85c\rd\n".encode()) == ["a\u2028b\x0b\x0c\x1c\x85c\rd\n".encode()]


def test_a_line_without_end_is_refused_when_it_is_too_long() -> None:
    """A stream of one line can't fill the memory."""
    framer = LineFramer()
    piece = b"x" * (STREAM_EVENT_BYTES_MAX // 4)
    for _ in range(4):
        assert framer.feed(piece) == []
    with pytest.raises(StreamError):
        framer.feed(b"x")


def test_a_line_in_single_bytes_costs_linear_time() -> None:
    """Four times the bytes, far less than sixteen times the work; the best of three of each."""

    def work(size: int) -> int:
        best = []
        for _ in range(3):
            framer, began = LineFramer(), time.process_time_ns()
            for _ in range(size):
                framer.feed(b"x")
            assert framer.feed(b"\n") == [b"x" * size + b"\n"]
            best.append(time.process_time_ns() - began)
        return min(best)

    assert work(160_000) < 9 * work(40_000)
