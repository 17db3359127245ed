"""Lines of a byte stream, whole and unchanged: newline-delimited JSON, as Ollama streams it.

A line ends with LF; a CR before it is white space of the JSON text. Cost is linear in the bytes, however they are cut.
"""

from billing.limits import STREAM_EVENT_BYTES_MAX
from proxy.meter.framing import StreamError


class LineFramer:
    """Cuts a stream of reads into whole lines."""

    __slots__ = ("_pieces", "_size")

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._size = 0

    @property
    def is_empty(self) -> bool:
        """Whether no unfinished line is kept."""
        return not self._size

    def feed(self, data: bytes) -> list[bytes]:
        """Return the lines that are whole now, each with its LF. Raises StreamError."""
        end = data.rfind(b"\n") + 1
        if not end:
            self._keep(data)
            return []
        whole = b"".join((*self._pieces, data[:end]))
        self._pieces, self._size = [], 0
        self._keep(data[end:])
        return [line + b"\n" for line in whole.split(b"\n")[:-1]]

    def _keep(self, data: bytes) -> None:
        if data:
            self._pieces.append(data)
            self._size += len(data)
            if self._size > STREAM_EVENT_BYTES_MAX:
                raise StreamError("a line of the stream is too long")

    def rest(self) -> bytes:
        """Return and forget the unfinished line, at the end of the stream."""
        rest = b"".join(self._pieces)
        self._pieces, self._size = [], 0
        return rest
