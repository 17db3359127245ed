"""Heads that are known again: exactly the bytes that were parsed, whatever the body's length."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.limits import HEAD_BYTES_KEPT_MAX, HEADS_KEPT_MAX
from proxy.edge.heads import Head, Heads

SECRET = b"s" * 32
FIELDS = [(b"host", b"weir"), (b"content-type", b"application/json"), (b"content-length", b"2")]
HEAD = Head("/v1/chat/completions", FIELDS, SECRET, keep_alive=True)


def read(body: bytes, *, length: bytes | None = None, more: bytes = b"") -> bytes:
    """One request as it comes in one read."""
    size = b"%d" % len(body) if length is None else length
    start = b"POST /v1/chat/completions HTTP/1.1\r\nHost: weir\r\nContent-Type: application/json\r\n"
    return start + more + b"Content-Length: " + size + b"\r\n\r\n" + body


def heads(*learned: bytes) -> Heads:
    """Heads that were learned from these reads."""
    made = Heads()
    for data in learned:
        made.learn(data, HEAD)
    return made


@given(st.binary(max_size=300))
def test_a_head_is_known_again_with_a_body_of_any_length(body: bytes) -> None:
    """Without the length of the body it was learned with, which is another one now."""
    found = heads(read(b"{}")).find(read(body), 1_000)
    assert found == (HEAD._replace(headers=FIELDS[:2]), body)


@given(st.integers(0, len(read(b"{}")) - 3), st.integers(0, 255))
def test_a_head_that_differs_in_a_byte_is_not_known(at: int, value: int) -> None:
    """Unless it is a digit of the length, and says the truth."""
    good = read(b"{}")
    changed = good[:at] + bytes([value]) + good[at + 1 :]
    found = heads(good).find(changed, 1_000)
    assert (found is not None) == (changed == good)


@given(st.integers(0, len(read(b"[1, 2]"))))
def test_a_request_in_two_reads_is_left_to_the_parser(at: int) -> None:
    """And so is one that has more behind it."""
    whole = read(b"[1, 2]")
    known = heads(read(b"{}"))
    assert (known.find(whole[:at], 1_000) is None) == (at < len(whole))
    assert known.find(whole + whole[:at], 1_000) is None or at == 0


@pytest.mark.parametrize("length", [b"1", b"3", b"", b"+2", b"0x2", b"2 ", b"2, 2", b"-2", b"9" * 13])
def test_a_length_that_is_not_the_bodys_is_left_to_the_parser(length: bytes) -> None:
    """It knows what to refuse."""
    assert heads(read(b"{}")).find(read(b"{}", length=length), 1_000) is None


def test_two_lengths_are_never_one() -> None:
    """The second one's digits are another byte for byte."""
    good = read(b"{}")
    assert heads(good).find(read(b"{}", more=b"Content-Length: 2\r\n"), 1_000) is None
    assert heads(good).find(read(b"{}", more=b"Content-Length: \r\n"), 1_000) is None


def test_a_body_above_the_limit_is_left_to_the_parser() -> None:
    known = heads(read(b"{}"))
    assert known.find(read(b"x" * 1_000), 1_000) is not None
    assert known.find(read(b"x" * 1_001), 1_000) is None


@pytest.mark.parametrize("name", [b"transfer-encoding", b"upgrade", b"expect", b"trailer"])
def test_what_asks_for_more_is_not_kept(name: bytes) -> None:
    data = read(b"{}", more=b"X: y\r\n")
    made = Heads()
    made.learn(data, HEAD._replace(headers=[*FIELDS, (name, b"y")]))
    assert made.find(data, 1_000) is None


def test_what_is_kept_is_bounded() -> None:
    """Above the number of heads it starts over; a long head is not kept at all."""
    made = Heads()
    for number in range(HEADS_KEPT_MAX + 1):
        made.learn(read(b"{}", more=b"X: %d\r\n" % number), HEAD)
    assert made.find(read(b"{}", more=b"X: 0\r\n"), 1_000) is None
    assert made.find(read(b"{}", more=b"X: %d\r\n" % HEADS_KEPT_MAX), 1_000) is not None
    long = read(b"{}", more=b"X: " + b"y" * HEAD_BYTES_KEPT_MAX + b"\r\n")
    made.learn(long, HEAD)
    assert made.find(long, 1_000) is None
