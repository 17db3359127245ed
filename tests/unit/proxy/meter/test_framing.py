"""Events come out whole and unchanged: known answers of the WHATWG rules, and the cost of getting them."""

import re

import pytest

from billing.limits import STREAM_EVENT_BYTES_MAX
from proxy.meter import framing
from proxy.meter.framing import Framer, StreamError, event_data
from tests.unit.proxy.meter.streams import dispatched, every

# The examples of html.spec.whatwg.org, section 9.2.6, and what their text says is fired.
SPECIFIED = [
    (b"data: YHOO\ndata: +2\ndata: 10\n\n", [b"YHOO\n+2\n10"]),
    (
        b": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n\n",
        [b"", b"first event", b"second event", b" third event"],
    ),
    (b"data\n\ndata\ndata\n\ndata:", [b"", b"\n"]),
    (b"data:test\n\ndata: test\n\n", [b"test", b"test"]),
]
ENDINGS = [
    (b"data: a\n\ndata: b\n\n", [b"data: a\n\n", b"data: b\n\n"]),
    (b"data: a\r\n\r\ndata: b\r\n\r\n", [b"data: a\r\n\r\n", b"data: b\r\n\r\n"]),
    (b"data: a\r\rdata: b\r\r", [b"data: a\r\r", b"data: b\r\r"]),
    (b"data: a\n\r\ndata: b\r\n\n", [b"data: a\n\r\n", b"data: b\r\n\n"]),
    (b"data: a\r\n\rdata: b\n\rdata: c\n\n", [b"data: a\r\n\r", b"data: b\n\r", b"data: c\n\n"]),
    (b"data: a\ndata: b\rdata: c\r\ndata: d\n\n", [b"data: a\ndata: b\rdata: c\r\ndata: d\n\n"]),
    (b":\n\ndata: a\n\n", [b":\n\n", b"data: a\n\n"]),
    (b"data: a\n", []),
    (b"data: a\r\n\r", []),
    (b"", []),
]


@pytest.mark.parametrize(("stream", "data"), SPECIFIED)
@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_the_examples_of_the_specification_are_read_as_it_says(
    stream: bytes, data: list[bytes], line_end: bytes, mark: bytes
) -> None:
    """Each with every line ending, with and without a byte order mark, in one read and byte by byte."""
    stream = mark + stream.replace(b"\n", line_end)
    assert [event_data(event) for event in Framer().feed(stream)] == data
    framer = Framer()
    assert [event_data(event) for read in every(stream, 1) for event in framer.feed(read)] == data
    assert dispatched(stream) == [one for one in data if one], "the judge of the property tests agrees"


@pytest.mark.parametrize(("stream", "events"), ENDINGS)
def test_an_event_keeps_its_bytes_and_its_end(stream: bytes, events: list[bytes]) -> None:
    """Whatever ends the lines, and however they are mixed; what is unfinished stays behind."""
    framer = Framer()
    assert framer.feed(stream) == events
    assert framer.is_empty == (b"".join(events) == stream)
    assert framer.rest() == stream[len(b"".join(events)) :]
    assert framer.is_empty
    assert framer.rest() == b""


def test_a_line_feed_that_comes_late_belongs_to_its_carriage_return() -> None:
    """CR LF may be torn by a read: the event ends once, and no byte is lost."""
    framer = Framer()
    assert framer.feed(b"data: a\r\n\r") == []
    assert framer.feed(b"\ndata: b\r\n\r") == [b"data: a\r\n\r\n"]
    assert framer.feed(b"\n") == [b"data: b\r\n\r\n"]
    assert framer.is_empty


@pytest.mark.parametrize(
    ("event", "data"),
    [
        (b'data: {"a":1}\n\n', b'{"a":1}'),
        (b'data:{"a":1}\r\n\r\n', b'{"a":1}'),
        (b'id: 7\nevent: x\ndata: {"a":1}\nretry: 5\n\n', b'{"a":1}'),
        (b'data: {"a":\ndata: 1}\n\n', b'{"a":\n1}'),
        (b'data: {"a":1}\rdata: }\n\n', b'{"a":1}\n}'),
        (b'data: {"a":1}\n: }\n\n', b'{"a":1}'),
        (b"data: {\n: x}\n\n", b"{"),
        (b"dataset: {}\n\n", b""),
        (b" data: {}\n\n", b""),
        (b"DATA: {}\n\n", b""),
        (b"data : {}\n\n", b""),
        (b"data:\n\n", b""),
        (b"data:  x \n\n", b" x "),
        (b": ping\n\n", b""),
        (b"data: \xe2\x80\xa8{\xc2\x85}\x0b\x0c\n\n", b"\xe2\x80\xa8{\xc2\x85}\x0b\x0c"),
        (b"data: \xff\x00\n\n", b"\xff\x00"),
    ],
)
def test_data_is_what_its_lines_say(event: bytes, data: bytes) -> None:
    """One leading blank goes; only CR and LF end a line, not what Python's splitlines takes for an end."""
    assert event_data(event) == data
    assert dispatched(event) == ([data] if data else [])


def test_an_event_that_never_ends_breaks_the_protocol() -> None:
    """The limit holds however the bytes arrive, and an event of just that size passes."""
    framer = Framer()
    framer.feed(b"x" * (STREAM_EVENT_BYTES_MAX - 2))
    assert [len(event) for event in framer.feed(b"\n\n")] == [STREAM_EVENT_BYTES_MAX]
    framer.feed(b"y" * STREAM_EVENT_BYTES_MAX)
    with pytest.raises(StreamError):
        framer.feed(b"y")
    with pytest.raises(StreamError):
        Framer().feed(b"data: a\n\n" + b"x" * (STREAM_EVENT_BYTES_MAX + 1))


class Counting:
    """A compiled pattern that counts the bytes it is made to look at."""

    def __init__(self, pattern: re.Pattern[bytes]) -> None:
        self._pattern = pattern
        self.looked_at = 0

    def search(self, text: bytes) -> re.Match[bytes] | None:
        self.looked_at += len(text)
        return self._pattern.search(text)

    def finditer(self, text: bytes, start: int = 0) -> object:
        self.looked_at += len(text)  # joining it cost as much
        return self._pattern.finditer(text, start)


@pytest.mark.parametrize(("size", "reads_of"), [(200_000, 1), (2_000_000, 1_000), (2_000_000, 65_536)])
def test_the_cost_of_an_event_is_linear_in_its_bytes(size: int, reads_of: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """No byte is searched more than a few times; a framer that starts over with each read would need billions."""
    counting = Counting(framing._EVENT_END)
    monkeypatch.setattr(framing, "_EVENT_END", counting)
    framer, events = Framer(), 0
    for read in every(b"data: " + b"x" * size + b"\n\n", reads_of):
        events += len(framer.feed(read))
    assert events == 1
    assert counting.looked_at < 8 * size


def test_the_cost_of_many_events_in_one_read_is_linear(monkeypatch: pytest.MonkeyPatch) -> None:
    """A read full of small events, and of small reads full of nothing."""
    counting = Counting(framing._EVENT_END)
    monkeypatch.setattr(framing, "_EVENT_END", counting)
    stream = b"data: x\n\n" * 20_000
    assert len(Framer().feed(stream)) == 20_000
    framer = Framer()
    assert sum(len(framer.feed(read)) for read in every(stream, 7)) == 20_000
    assert counting.looked_at < 8 * 2 * len(stream)
