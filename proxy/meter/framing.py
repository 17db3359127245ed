"""Events of a byte stream, whole and unchanged: the framing of WHATWG server-sent events.

Lines end with CRLF, LF or CR, an empty line ends an event, a leading byte order mark is ignored
(https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream). `Framer` never changes or
drops a byte: what goes in comes out as whole events, the unfinished tail is kept. Cost is linear in the bytes, however
they are cut: the search for an end resumes where it stopped.
"""

import re

from billing.limits import STREAM_EVENT_BYTES_MAX

_EVENT_END = re.compile(rb"\n\n|\r\r|\n\r\n|\n\r(?=[^\n])")
_LINE_END = re.compile(rb"\r\n|\n|\r")
_BOM = b"\xef\xbb\xbf"
_LOOK_BACK = 2


class StreamError(Exception):
    """The upstream broke the protocol; the client is told `upstream_error`."""


class Framer:
    """Cuts a stream of reads into whole events."""

    __slots__ = ("_pieces", "_size", "_tail")

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._size = 0
        self._tail = b""

    @property
    def is_empty(self) -> bool:
        """Whether no unfinished event is kept."""
        return not self._size

    def feed(self, data: bytes) -> list[bytes]:
        """Return the events that are whole now, each with the empty line that ends it. Raises StreamError."""
        look = self._tail + data
        offset = len(self._tail)
        if _EVENT_END.search(look) is None:
            self._keep(data)
            return []
        whole = b"".join(self._pieces) + data
        start, events = 0, []
        for match in _EVENT_END.finditer(whole, max(0, len(whole) - len(data) - offset)):
            events.append(whole[start : match.end()])
            start = match.end()
        self._pieces, self._size, self._tail = [], 0, b""
        if start < len(whole):
            self._keep(whole[start:])
        return events

    def _keep(self, data: bytes) -> None:
        self._pieces.append(data)
        self._size += len(data)
        self._tail = (self._tail + data)[-_LOOK_BACK:]
        if self._size > STREAM_EVENT_BYTES_MAX:
            raise StreamError("an event of the stream is too long")

    def rest(self) -> bytes:
        """Return and forget the unfinished tail, at the end of the stream."""
        rest = b"".join(self._pieces)
        self._pieces, self._size, self._tail = [], 0, b""
        return rest


def event_data(event: bytes) -> bytes:
    """Return the data of one event: its `data` lines joined by LF, b"" if it has none (a comment, a ping)."""
    if event.startswith(b"data: {") and event.endswith(b"}\n\n") and event.count(b"\n") == 2 and b"\r" not in event:
        return event[6:-2]
    values = []
    for line in _LINE_END.split(event.removeprefix(_BOM)):
        name, colon, value = line.partition(b":")
        if name == b"data":
            values.append(value.removeprefix(b" ") if colon else b"")
    return b"\n".join(values)
