"""The socket side: HTTP/1.1 with keep-alive on loopback, a thread per connection, nothing about Stripe.

Written on a plain socket server because a dropped connection, a cut body and an answer in one packet are what
the double is for, and the standard library's handler hides all three.
"""

from __future__ import annotations

import contextlib
import socket
import socketserver
import threading
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from .dispatch import Reply, Request

BODY_BYTES_MAX = 4 * 1024 * 1024
Answerer = Callable[[Request], Reply]


class _Listener(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False
    request_queue_size = 256

    def __init__(self, address: tuple[str, int], answer: Answerer) -> None:
        self.answer = answer
        self.open_sockets: set[socket.socket] = set()
        self.guard = threading.Lock()
        super().__init__(address, _Connection)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no news; the dispatcher records its own failures."""


class _Connection(socketserver.StreamRequestHandler):
    server: _Listener
    disable_nagle_algorithm = True

    def setup(self) -> None:
        super().setup()
        with self.server.guard:
            self.server.open_sockets.add(self.connection)

    def finish(self) -> None:
        with self.server.guard:
            self.server.open_sockets.discard(self.connection)
        with contextlib.suppress(OSError):
            super().finish()

    def handle(self) -> None:
        """Requests until either side has enough."""
        with contextlib.suppress(ConnectionError):
            while (request := self._read()) is not None:
                reply = self.server.answer(request)
                if not self._write(reply) or request.headers.get("connection", "").lower() == "close":
                    return

    def _read(self) -> Request | None:
        line = self.rfile.readline(65_536).decode("latin-1").split()
        if len(line) != 3:
            return None
        headers: dict[str, str] = {}
        while (raw := self.rfile.readline(65_536)) not in (b"\r\n", b"\n", b""):
            name, _, value = raw.decode("latin-1").partition(":")
            headers[name.strip().lower()] = value.strip()
        length = int(headers.get("content-length", "0"))
        if length > BODY_BYTES_MAX:
            return None
        body = self.rfile.read(length) if length else b""
        if len(body) < length or "transfer-encoding" in headers:
            return None  # A client that died while it sent; half a request must never become an event.
        return Request(line[0], line[1], headers, body)

    def _write(self, reply: Reply) -> bool:
        """Sends head and body together; says whether the connection lives on."""
        if reply.is_dropped:
            return False
        headers = {
            "Content-Type": "application/json",
            "Content-Length": str(len(reply.body)),
            **reply.headers,
        }
        phrase = HTTPStatus(reply.status).phrase
        head = f"HTTP/1.1 {reply.status} {phrase}\r\n" + "".join(f"{k}: {v}\r\n" for k, v in headers.items()) + "\r\n"
        body = reply.body[: len(reply.body) // 2] if reply.is_cut else reply.body
        self.connection.sendall(head.encode("latin-1", "replace") + body)
        return not reply.is_cut


class HttpServer:
    """Listens on loopback; can go away and come back on the same port, as a server behind a broken line."""

    def __init__(self, answer: Answerer, port: int = 0) -> None:
        self._answer = answer
        self._port = port
        self._listener: _Listener | None = None
        self._thread: threading.Thread | None = None

    @property
    def port(self) -> int:
        """The port, known once the server has started for the first time."""
        return self._port

    def start(self) -> None:
        """Accepts connections, on the same port as before if there was one."""
        assert self._listener is None, "the server runs already"
        self._listener = _Listener(("127.0.0.1", self._port), self._answer)
        self._port = self._listener.server_address[1]
        self._thread = threading.Thread(
            target=self._listener.serve_forever, args=(0.01,), name="stripe-double-http", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Refuses new connections and closes those that are open."""
        if self._listener is None or self._thread is None:
            return
        self._listener.shutdown()
        self._listener.server_close()
        self._thread.join(5)
        with self._listener.guard:
            for each in self._listener.open_sockets:
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
        self._listener = None
