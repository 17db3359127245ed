"""A client on a bare socket: sends what no HTTP library would, and sees each byte of what comes back.

It parses answers by RFC 9112 and forgives nothing: a byte too many or a length that does not fit fails the test.
"""

import json
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

from tests.acceptance.harness import LIMIT_S, MODEL, Gateway, Key

CHAT: Final = "/v1/chat/completions"
COMPLETIONS: Final = "/v1/completions"
_HEAD_END: Final = b"\r\n\r\n"


class CutError(Exception):
    """The connection ended inside an answer; `args` hold what had come."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One whole answer."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes
    chunks: tuple[bytes, ...] = ()

    def header(self, name: str) -> str | None:
        """The value of a header, or None; the header must not be there twice."""
        values = [value for key, value in self.headers if key == name]
        assert len(values) <= 1, f"{name} is there {len(values)} times"
        return values[0] if values else None

    @property
    def id(self) -> str:
        """Its `x-request-id`."""
        found = self.header("x-request-id")
        assert found is not None
        return found

    @property
    def json(self) -> Any:
        """The body, parsed."""
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """The code of an error of Weir's own."""
        error = self.json["error"]
        assert set(error) == {"message", "type", "param", "code"}
        return str(error["code"])

    @property
    def events(self) -> list[bytes]:
        """The data of each event of a stream."""
        lines = self.body.split(b"\n\n")
        assert lines[-1] == b"", "the last event is whole"
        return [line.removeprefix(b"data: ") for line in lines[:-1] if line.startswith(b"data: ")]


def body(text: str = "hi", **fields: object) -> dict[str, object]:
    """A chat request's body; a field that is None is left out."""
    whole = {"model": MODEL, "messages": [{"role": "user", "content": text}], **fields}
    return {name: value for name, value in whole.items() if value is not None}


def request(
    key: Key | None,
    content: object = None,
    *,
    path: str = CHAT,
    method: str = "POST",
    headers: Mapping[str, str] | None = None,
    version: str = "1.1",
) -> bytes:
    """The bytes of a request; `content` is JSON, or bytes as they are."""
    raw = content if isinstance(content, bytes) else json.dumps(body() if content is None else content).encode()
    lines = [f"{method} {path} HTTP/{version}", "Host: weir"]
    if key is not None:
        lines.append(f"Authorization: {key.header}")
    own = {"Content-Type": "application/json", "Content-Length": str(len(raw)), **(headers or {})}
    lines += [f"{name}: {value}" for name, value in own.items() if value != ""]
    return "\r\n".join((*lines, "", "")).encode("latin-1") + raw


class Raw:
    """One connection; a context manager."""

    def __init__(self, gateway: Gateway, *, receive_buffer: int | None = None) -> None:
        """Connect."""
        self._socket = socket.socket()
        if receive_buffer is not None:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self._socket.settimeout(LIMIT_S)
        try:
            self._socket.connect(("127.0.0.1", gateway.port))
        except OSError:
            self._socket.close()
            raise
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._received = bytearray()

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Hang up."""
        self.close()

    def send(self, data: bytes) -> None:
        """Send all of it."""
        self._socket.sendall(data)

    def ask(self, data: bytes) -> Answer:
        """Send a request, and read its answer."""
        self.send(data)
        return self.answer()

    def close(self) -> None:
        """Hang up in good order."""
        self._socket.close()

    def reset(self) -> None:
        """Hang up with RST."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._socket.close()

    def half_close(self) -> None:
        """Say that nothing more will be sent, and go on listening."""
        self._socket.shutdown(socket.SHUT_WR)

    def quiet_for(self, seconds: float) -> bool:
        """Whether nothing comes for so long."""
        self._socket.settimeout(seconds)
        try:
            self._received += self._socket.recv(65_536)
        except TimeoutError:
            return True
        finally:
            self._socket.settimeout(LIMIT_S)
        return False

    def is_closed(self) -> bool:
        """Whether the gateway has hung up, or does so soon; it must not send anything before."""
        assert not self._received, bytes(self._received)
        try:
            data = self._socket.recv(65_536)
        except ConnectionResetError:
            return True
        assert not data, data
        return True

    def until(self, mark: bytes) -> bytes:
        """All bytes up to and with the mark."""
        while (at := self._received.find(mark)) < 0:
            self._more()
        return self._take(at + len(mark))

    def rest(self) -> bytes:
        """All that comes until the gateway hangs up."""
        try:
            while data := self._socket.recv(65_536):
                self._received += data
        except ConnectionResetError:
            pass
        return self._take(len(self._received))

    def head(self) -> Answer:
        """The status and the headers of the next answer; its body is not read."""
        status_line, *lines = self.until(_HEAD_END).decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
        version, status, _ = status_line.split(" ", 2)
        assert version == "HTTP/1.1"
        pairs = (line.partition(":") for line in lines)
        return Answer(int(status), tuple((name.lower(), value.strip()) for name, _, value in pairs), b"")

    def answer(self) -> Answer:
        """The next answer, whole. Raises CutError."""
        head = self.head()
        if head.header("transfer-encoding") is not None:
            assert head.header("content-length") is None, "one framing only"
            chunks = self._chunks()
            return Answer(head.status, head.headers, b"".join(chunks), tuple(chunks))
        length = head.header("content-length")
        if length is None and head.header("connection") == "close":
            return Answer(head.status, head.headers, self.rest())
        assert length is not None, "no framing at all"
        return Answer(head.status, head.headers, self._exactly(int(length)))

    def chunk(self) -> bytes:
        """The next chunk of a chunked body; empty is the last. Raises CutError."""
        size = int(self.until(b"\r\n"), 16)
        data = self._exactly(size + 2)
        assert data.endswith(b"\r\n")
        return data[:-2]

    def rest_of_body(self) -> bytes:
        """What is left of a chunked body."""
        return b"".join(self._chunks())

    def _chunks(self) -> list[bytes]:
        chunks = []
        while data := self.chunk():
            chunks.append(data)
        return chunks

    def _exactly(self, count: int) -> bytes:
        while len(self._received) < count:
            self._more()
        return self._take(count)

    def _take(self, count: int) -> bytes:
        taken = bytes(self._received[:count])
        del self._received[:count]
        return taken

    def _more(self) -> None:
        data = self._socket.recv(65_536)
        if not data:
            raise CutError(bytes(self._received))
        self._received += data


def ask(gateway: Gateway, data: bytes) -> Answer:
    """One request on a connection of its own."""
    with Raw(gateway) as client:
        return client.ask(data)
