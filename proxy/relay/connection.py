"""One upstream HTTP/1.1 connection, parsed by httptools, and the pool of idle ones: the only upstream client.

Callbacks and no tasks: a read of the socket is parsed, metered and written to the client within one callback, which
is where Python's time goes otherwise (facts: 30 µs a request for this shape, 54 to 76 for an awaiting client, 3,000
for httpx). The listener is an `Exchange`; tests drive it with a listener of their own.

Reuse: an idle connection is kept for less than the shortest keep-alive of the known servers (5 s), never after a
stream of llama.cpp, which closes although it promised not to (measured). A reused connection may have been closed by
the server just now; if it dies before a single byte of the answer, the request goes out once more on a fresh one.

Invariant: bytes that no request of this connection asked for reach nobody. A server that sends an answer too many loses
the connection, lest it be taken for the answer to the next customer's request.
"""

import asyncio
import logging
from collections import deque
from typing import Protocol, cast

import httptools

from billing.address import parse
from billing.asking import tls_context
from billing.config import Upstream
from billing.limits import HEADER_BYTES_MAX
from proxy.relay.decoding import DecodingError, Inflater, inflater_of
from proxy.relay.headers import Headers, is_event_stream, plain

IDLE_S = 4.0
IDLE_CONNECTIONS_MAX = 256
PIECES_AT_ONCE = 16
"""Of a compressed answer: after these, others have their turn on the event loop."""

LEFT_S = 2.0
"""How long an answer may go on after its last event."""


log = logging.getLogger("weir.relay")


class BadAnswerError(Exception):
    """What a parser's callback refuses; the parser wraps it into an error of its own."""


class Listener(Protocol):
    """Who waits for an answer; every call happens on the event loop, none after `died` or `ended`."""

    def started(self, connection: "UpstreamConnection") -> None:
        """The request's bytes may be written now."""

    def head(self, status: int, headers: Headers) -> None:
        """The answer's status and fields have arrived."""

    def data(self, data: bytes) -> None:
        """A part of the answer's body has arrived; never empty."""

    def ended(self) -> None:
        """The answer is complete."""

    def died(self, *, could_retry: bool) -> None:
        """The connection failed or broke; `could_retry`: it was a reused one, and no byte had arrived."""


class UpstreamConnection(asyncio.Protocol):
    """One connection; it serves one listener at a time."""

    __slots__ = (
        "_answered",
        "_has_more",
        "_headers",
        "_headers_bytes",
        "_inflater",
        "_is_broken",
        "_is_complete",
        "_is_head_complete",
        "_is_paused",
        "_keeps_alive",
        "_listener",
        "_parser",
        "_pieces",
        "_pool",
        "_transport",
        "has_length",
        "idle_since",
        "is_encoded",
        "is_reused",
    )

    def __init__(self, pool: "Pool") -> None:
        self._pool = pool
        self._transport: asyncio.Transport | None = None
        self._listener: Listener | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._headers: Headers = []
        self._headers_bytes = 0
        self._pieces: list[bytes] = []
        self._inflater: Inflater | None = None
        self._has_more = False
        self._is_head_complete = False
        self._is_complete = False
        self._is_broken = False
        self._is_paused = False
        self._answered = False
        self._keeps_alive = False
        self.has_length = False
        self.is_encoded = False
        self.is_reused = False
        self.idle_since = 0.0

    # the listener's side

    def serve(self, listener: Listener) -> None:
        """Take a listener; it is told `started` at once, or `died` if the connection is lost already."""
        assert self._listener is None, "one at a time"
        if self._transport is None or self._transport.is_closing():
            listener.died(could_retry=False)
            return
        self._listener = listener
        self._answered = False
        self._is_head_complete = False
        self._is_complete = False
        listener.started(self)

    def write(self, data: bytes) -> None:
        """Send a part of the request."""
        assert self._transport is not None
        self._transport.write(data)

    def pause(self) -> None:
        """Read no more until `resume`: the client is slow."""
        if self._transport is not None and not self._transport.is_closing():
            self._is_paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        """Read again."""
        if self._transport is not None and not self._transport.is_closing():
            self._is_paused = False
            if self._has_more:
                self._pool.loop.call_soon(self._go_on)
            else:
                self._transport.resume_reading()

    def leave(self) -> None:
        """The listener has the last event: what follows is told it all the same, and the connection broken unless it
        ends soon."""
        if not self._is_complete or self._has_more:
            self._pool.loop.call_later(LEFT_S, self._abort_if_left, self._listener)

    def _abort_if_left(self, listener: Listener | None) -> None:
        if self._listener is listener:
            self.abort()

    def abort(self) -> None:
        """Break the connection at once: a generation that nobody waits for has to stop."""
        self._listener = None
        if self._transport is not None:
            self._transport.abort()

    # asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the socket."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's has no such base class

    def data_received(self, data: bytes) -> None:
        """Parse a read and tell the listener."""
        if self._listener is None:  # nobody asked
            self.abort()
            return
        self._answered = True
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._is_broken = True
            is_ours = isinstance(error, httptools.HttpParserCallbackError)
            if is_ours and not isinstance(error.__context__, BadAnswerError):
                log.exception("upstream.failed")  # the parser wraps what our callbacks raise
        listener = self._listener
        if self._pieces and listener is not None:
            pieces, self._pieces = self._pieces, []
            data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
            if self._inflater is not None:
                self._inflater.feed(data)
                self._inflate(self._inflater)
                return
            listener.data(data)
        self._end_if_over()

    def _end_if_over(self) -> None:
        if self._has_more:
            return  # the listener gets that first
        if self._is_complete:
            self._finish()
        elif self._is_broken:
            self._break()

    def _inflate(self, inflater: Inflater) -> None:
        """Tell the listener what compressed bytes hold, until it is slow; read no more before it has all of them."""
        self._has_more = True
        for _ in range(PIECES_AT_ONCE):
            if self._listener is None or self._is_paused:
                break
            try:
                piece = inflater.read()
            except DecodingError:
                self._is_broken, self._is_complete, piece = True, False, b""
            if not piece:
                self._has_more = False
                break
            self._listener.data(piece)
        transport = self._transport
        if self._listener is None or transport is None or transport.is_closing():
            return
        if self._has_more:
            transport.pause_reading()
            if not self._is_paused:
                self._pool.loop.call_soon(self._go_on)
        else:
            transport.resume_reading()
            self._end_if_over()

    def _go_on(self) -> None:
        if self._has_more and not self._is_paused and self._inflater is not None:
            self._inflate(self._inflater)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the listener."""
        listener, self._listener = self._listener, None
        self._pool.forget(self)
        if listener is None:
            return
        is_whole = self._inflater is None or (self._inflater.is_whole and not self._has_more)
        if self._is_head_complete and not self.has_length and exc is None and is_whole:
            listener.ended()  # a body that the close delimits (RFC 9112 §6.3, case 8)
        else:
            listener.died(could_retry=self.is_reused and not self._answered)

    def _break(self) -> None:
        listener, self._listener = self._listener, None
        if self._transport is not None:
            self._transport.abort()
        if listener is not None:
            listener.died(could_retry=False)

    def _finish(self) -> None:
        if self._inflater is not None and not self._inflater.is_whole:
            self._break()
            return
        listener, self._listener = self._listener, None
        keeps = self._keeps_alive and not self._is_broken and self._pool.keep(self)
        if not keeps and self._transport is not None:
            self._transport.close()
        elif self._is_paused:
            self.resume()
        if listener is not None:
            listener.ended()

    # httptools' side

    def on_message_begin(self) -> None:
        """Forget the interim answer before; after the final one nothing may come."""
        if self._is_complete:
            raise BadAnswerError("an answer too many")
        self._headers = []
        self._headers_bytes = 0
        self.has_length = False
        self.is_encoded = False
        self._inflater = None
        self._has_more = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a field; trailers are dropped."""
        if self._is_head_complete:
            return
        name = name.lower()
        self._headers_bytes += len(name) + len(value)
        if self._headers_bytes > HEADER_BYTES_MAX:
            raise BadAnswerError("the header is too long")
        if name in (b"content-length", b"transfer-encoding"):
            self.has_length = True
        elif name == b"content-encoding" and value.lower() != b"identity":
            self._inflater = None if self._inflater is not None or self.is_encoded else inflater_of(value)
            self.is_encoded = self._inflater is None
        self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        """Tell the listener the answer's head."""
        status = self._parser.get_status_code()
        if status < 200:  # an interim answer, such as 100 Continue
            return
        self._is_head_complete = True
        self._keeps_alive = self._parser.should_keep_alive()
        if self._inflater is not None:
            self._headers = plain(self._headers)
        if self._listener is not None:
            self._listener.head(status, self._headers)

    def on_body(self, body: bytes) -> None:
        """Keep a part of the body until the read is parsed."""
        self._pieces.append(body)

    def on_message_complete(self) -> None:
        """Note that the answer is complete."""
        if self._is_head_complete:
            self._is_complete = True

    @property
    def is_stream(self) -> bool:
        """Whether the answer is a stream of events."""
        return is_event_stream(self._headers)


class Pool:
    """The connections to one upstream: idle ones are reused, the newest first."""

    def __init__(self, upstream: Upstream, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._upstream = upstream
        self._address = parse(upstream.url)
        self.tls = tls_context(upstream)
        self._idle: deque[UpstreamConnection] = deque()
        self._opening: set[asyncio.Task[None]] = set()
        self._fault = ""
        self.keeps_after_stream = True
        self.path_prefix = self._address.path_prefix.encode("ascii")
        credentials = f"authorization: Bearer {upstream.api_key}\r\n" if upstream.api_key else ""
        self.fixed_lines = f"host: {self._address.host_line}\r\n{credentials}".encode("ascii")

    def request(self, listener: Listener, *, fresh: bool = False) -> None:
        """Give the listener a connection, now if one is idle; it is told `started`, or `died`."""
        deadline = self.loop.time() - IDLE_S
        while self._idle and not fresh:
            connection = self._idle.pop()
            transport = connection._transport  # noqa: SLF001 -- the pool and its connections are one subject
            if connection.idle_since > deadline and transport is not None and not transport.is_closing():
                connection.is_reused = True
                connection.serve(listener)
                return
            if transport is not None:
                transport.close()
        task = self.loop.create_task(self._open(listener), name=f"weir-connect-{self._upstream.name}")
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _open(self, listener: Listener) -> None:
        try:
            async with asyncio.timeout(self._upstream.connect_timeout_s):
                connection = await self._connected()
        except (OSError, TimeoutError, UnicodeError) as error:  # the last: a host name that can not be one
            self._note(str(error) or type(error).__name__)
            listener.died(could_retry=False)
            return
        self._note("")
        connection.serve(listener)

    async def _connected(self) -> UpstreamConnection:
        """Connect. Raises OSError (also where a certificate does not hold), UnicodeError."""
        where = self._address
        if where.socket_path is not None:
            _, made = await self.loop.create_unix_connection(lambda: UpstreamConnection(self), where.socket_path)
        else:
            _, made = await self.loop.create_connection(
                lambda: UpstreamConnection(self), where.host, where.port, ssl=self.tls
            )
        return made

    def _note(self, fault: str) -> None:
        """Log why no connection can be made, once for each reason; a wrong certificate would be guessed at for long."""
        if fault and fault != self._fault:
            log.warning("upstream.unreachable", extra={"upstream": self._upstream.name, "error": fault})
        self._fault = fault

    def keep(self, connection: UpstreamConnection) -> bool:
        """Take back a connection whose answer is complete; False: it has to be closed."""
        if len(self._idle) >= IDLE_CONNECTIONS_MAX or not connection.has_length:
            return False
        if not self.keeps_after_stream and connection.is_stream:
            return False
        connection.idle_since = self.loop.time()
        self._idle.append(connection)
        return True

    def forget(self, connection: UpstreamConnection) -> None:
        """Drop a connection that was lost while idle."""
        if connection in self._idle:
            self._idle.remove(connection)

    def close(self) -> None:
        """Close what is idle, stop what is opening."""
        for task in self._opening:
            task.cancel()
        while self._idle:
            self._idle.pop().abort()
