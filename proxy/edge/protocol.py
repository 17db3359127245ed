"""The data plane inside uvicorn's HTTP protocol: `POST` on a metered endpoint never becomes an ASGI call.

uvicorn keeps what it is good at: sockets, TLS, the parser, keep-alive, pipelining, graceful shutdown, FastAPI for the
control plane. A metered request becomes a `Turn`, which stands in uvicorn's queue of cycles like one of its own,
collects the body and runs an `Exchange` in callbacks. This costs half of a plain ASGI route (facts/performance.md: 26
to 29 µs against 54 to 76). It leans on uvicorn's internals, so uvicorn is pinned exactly and `tests/acceptance`
drives every one of them.
"""

import asyncio
import logging
from typing import Any

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from billing import ids
from billing.limits import HEADER_BYTES_MAX
from proxy.edge.heads import Head, Heads
from proxy.edge.turn import Turn
from proxy.meter import endpoints
from proxy.relay.refusals import Refusal
from proxy.relay.services import Services

log = logging.getLogger("weir.edge")

_HEADS = Heads()
_ENDPOINT_BYTES = {endpoint.encode(): endpoint for endpoint in endpoints.ALL}
_NOT_HTTP = Refusal("invalid_request", "this is not a valid HTTP/1.1 request")

KEEP_ALIVE_S = 75
"""How long a connection may be without a request."""

PIPELINE_MAX = 16
"""How many requests may wait for the answer to the one before, before no more is read."""

RECEIVE_TIMEOUT_S = 60
"""How long nothing may come in the middle of a request."""

LEFTOVERS_S = 10
"""How long a client may go on sending after its connection's last answer."""


class BadRequestError(Exception):
    """What a parser's callback refuses; the parser wraps it into an error of its own."""


class GatewayProtocol(HttpToolsProtocol):
    """uvicorn's protocol, with metered endpoints taken out."""

    services: Services

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._running: Turn | None = None
        self._header_bytes = 0
        self._unseen_bytes = 0
        self._is_in_head = False
        self._is_receiving = False
        self._is_over = False
        self.idle_since = self.loop.time()

    # the parser's callbacks

    def on_message_begin(self) -> None:
        """Forget the request before; uvicorn's scope is made only if it is needed."""
        if self._is_over:
            raise BadRequestError("nothing may follow")
        self.url = b""
        self.expect_100_continue = False
        self.headers = []
        self._header_bytes = 0
        self._is_in_head = self._is_receiving = True

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a field; names in lower case. Trailers are dropped: they must not become headers (RFC 9110 §6.5.1)."""
        self._header_bytes += len(name) + len(value)
        if self._header_bytes > HEADER_BYTES_MAX:
            raise BadRequestError("the header is too long")
        if self._is_in_head:
            self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """Take a metered request, or leave it to uvicorn."""
        self._unseen_bytes = 0
        if self.parser.should_upgrade():
            return  # this head is parsed again, see `_without_upgrade`
        self._is_in_head = False
        endpoint = _ENDPOINT_BYTES.get(self.url.partition(b"?")[0])
        if endpoint is None or self.parser.get_method() != b"POST":
            self._to_control_plane()
            return
        is_modern = self.parser.get_http_version() != "1.0"
        keep_alive = is_modern and self.parser.should_keep_alive()
        turn = Turn(self, self.services, endpoint, self.headers, keep_alive=keep_alive, has_chunks=is_modern)
        before = self.cycle
        self.cycle = turn  # type: ignore[assignment]
        if before is None or before.response_complete:
            self._start(turn)
        else:
            self.pipeline.appendleft((turn, self.app))  # type: ignore[arg-type]
            self._pause_if_many()
        turn.head(self.headers)

    def _to_control_plane(self) -> None:
        """Let uvicorn make its ASGI scope now: it is spared for metered requests."""
        headers, url = self.headers, self.url
        if not url.isascii() or httptools.parse_url(url).path is None:
            raise BadRequestError("no path")
        super().on_message_begin()
        self.url = url
        self.headers.extend(headers)
        self.expect_100_continue = any(n == b"expect" and v.lower() == b"100-continue" for n, v in headers)
        super().on_headers_complete()
        if self.pipeline:
            self._pause_if_many()

    def _pause_if_many(self) -> None:
        """Hold a client back that sends request upon request; but read on while few wait, to see whether it leaves."""
        if len(self.pipeline) > PIPELINE_MAX:
            self.flow.pause_reading()
        else:
            self.flow.resume_reading()

    def on_body(self, body: bytes) -> None:
        """Give a part of the body to whom it belongs."""
        self._unseen_bytes = 0
        cycle = self.cycle
        if isinstance(cycle, Turn):
            if not cycle.response_complete:
                cycle.body(body)
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """Run a metered request that is whole."""
        self._unseen_bytes = 0
        if self._is_in_head:
            return  # of a head that is parsed again
        self._is_receiving = False
        cycle = self.cycle
        if isinstance(cycle, Turn):
            cycle.is_whole = True
            cycle.run()
        else:
            super().on_message_complete()

    # uvicorn's queue

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        if isinstance(cycle, Turn):
            self._start(cycle)
        else:
            assert isinstance(cycle, RequestResponseCycle)
            self._running = None
            super()._start_asgi_task(cycle, app)

    def _start(self, turn: Turn) -> None:
        self._running = turn
        turn.begin(is_client_slow=self.flow.write_paused)

    def on_response_complete(self) -> None:
        """Go on with the next request of this connection.

        It starts in a callback of its own: started here, a thousand refusals in one packet would end the stack. Idle
        connections are closed by `check_time`, in one sweep a second: a timer per response costs 5 µs.
        """
        self._running = None
        self.server_state.total_requests += 1
        if self.transport.is_closing() or self._is_over:
            return
        if self.pipeline:
            self.loop.call_soon(self._start_next)
        else:
            self.flow.resume_reading()
            self.idle_since = self.loop.time()

    def _start_next(self) -> None:
        if self.transport.is_closing() or not self.pipeline:
            return
        cycle, app = self.pipeline.pop()
        if not self.pipeline:
            self.flow.resume_reading()
        self._start_asgi_task(cycle, app)

    def check_time(self, now: float) -> None:
        """Close a connection without a request, or in the middle of one, on which nothing has come for long."""
        if self._is_receiving:
            if now - self.idle_since > RECEIVE_TIMEOUT_S and not self.flow.read_paused:
                self.transport.abort()
        elif now - self.idle_since > KEEP_ALIVE_S and (self.cycle is None or self.cycle.response_complete):
            self.transport.close()

    def stop_receiving(self) -> None:
        """Break the connection if its request is not whole yet: the gateway stops."""
        if self._is_receiving:
            self.transport.abort()

    def hang_up(self, *, is_whole: bool) -> None:
        """End the connection after its last answer.

        With unread bytes of a request in the socket a close would be a reset, which destroys the answer on its way
        (RFC 9112 §9.6): then the rest is read, and thrown away.
        """
        self._is_over = True
        self.pipeline.clear()
        if is_whole:
            self.transport.close()
        elif not self.transport.is_closing():
            self.flow.resume_reading()
            self.transport.set_protocol(_Leftovers(self))

    # asyncio's side

    def data_received(self, data: bytes) -> None:
        """Parse a read; uvicorn's own does the same after it has cancelled its timer.

        `_unseen_bytes` counts what the parser has taken without telling us of it: a field, a target or an extension
        without end, which it would collect for ever.
        """
        is_start = not self._is_receiving and self._is_free
        if is_start:
            found = _HEADS.find(data, self.services.body_bytes_max)
            if found is not None:
                self._take_known(*found)
                return
        read = data
        self._unseen_bytes += len(data)
        try:
            while data:
                try:
                    self.parser.feed_data(data)
                    break
                except httptools.HttpParserUpgrade as upgrade:
                    data = self._without_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            if isinstance(error, httptools.HttpParserCallbackError) and not isinstance(
                error.__context__, BadRequestError | httptools.HttpParserError
            ):
                log.exception("request.failed")
            self._refuse()
            return
        if self._is_receiving:
            self.idle_since = self.loop.time()
            if self._unseen_bytes > 2 * HEADER_BYTES_MAX:
                self._refuse()
        elif is_start:
            self._learn_head(read)

    @property
    def _is_free(self) -> bool:
        """Whether the next byte begins a request that may be answered at once."""
        cycle = self.cycle
        return (cycle is None or cycle.response_complete) and not self.pipeline and not self._is_over

    def _take_known(self, head: Head, body: bytes) -> None:
        """Run a request whose head was parsed before; the parser, which is between two messages, never sees it."""
        turn = Turn(self, self.services, head.endpoint, head.headers, keep_alive=head.keep_alive, has_chunks=True)
        turn.known(head.secret, body)
        self.cycle = turn  # type: ignore[assignment]
        self._start(turn)

    def _learn_head(self, read: bytes) -> None:
        """Remember the head of the one request that this read was, if it was a customer's."""
        turn = self.cycle
        if isinstance(turn, Turn) and turn.is_plain and not self.pipeline:
            _HEADS.learn(read, Head(turn.endpoint, self.headers, turn.secret, turn.keep_alive))

    def _without_upgrade(self, rest: bytes) -> bytes:
        """Return the request again as if it asked for no other protocol, which a server may ignore (RFC 9110 §7.8).

        httptools takes all that follows such a head for the other protocol, the body too. Java's HttpClient asks for
        h2c with its first request to any server in plain text.
        """
        method = self.parser.get_method()
        if method == b"CONNECT":
            raise httptools.HttpParserError("this is no proxy")
        version = self.parser.get_http_version().encode()
        lines = [b"%b %b HTTP/%b" % (method, self.url, version)]
        lines += [b"%b: %b" % field for field in self.headers if field[0] != b"upgrade"]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        return b"\r\n".join((*lines, b"", b"")) + rest

    def _refuse(self) -> None:
        """Answer what is no HTTP; while another answer is under way, a 400 would be taken for a part of it."""
        cycle = self.cycle
        if self._is_over or self.transport.is_closing():
            return
        if cycle is None or cycle.response_complete:
            head = b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\nconnection: close\r\n"
            body = _NOT_HTTP.body("")
            self.transport.write(
                b"%bx-request-id: %b\r\ncontent-length: %d\r\n\r\n%b" % (head, ids.uuid7().encode(), len(body), body)
            )
            self.hang_up(is_whole=False)
        elif isinstance(cycle, Turn) and cycle is self._running and not cycle.is_whole:
            cycle.reject(_NOT_HTTP)
        else:
            self.transport.abort()

    def eof_received(self) -> None:
        """Tell the exchange at once: from now on the transport is closing, and what is written to it is thrown away."""
        self._tell_running()

    def _tell_running(self) -> None:
        running = self._running
        if running is not None and not running.disconnected:
            running.disconnected = True
            running.set()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the exchange that its client has left."""
        self._tell_running()
        if isinstance(self.cycle, Turn):
            self.cycle.response_complete = True
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The client reads slowly."""
        super().pause_writing()
        if self._running is not None:
            self._running.exchange.pause()

    def resume_writing(self) -> None:
        """The client reads again."""
        super().resume_writing()
        if self._running is not None:
            self._running.exchange.resume()


class _Leftovers(asyncio.Protocol):
    """What a client still sends after its connection's last answer: read for a while, and thrown away."""

    def __init__(self, before: GatewayProtocol) -> None:
        self._before = before
        self._transport = before.transport
        if self._transport.can_write_eof():
            self._transport.write_eof()
        self._ending = before.loop.call_later(LEFTOVERS_S, self._transport.abort)

    def data_received(self, data: bytes) -> None:
        """Throw it away."""

    def eof_received(self) -> None:
        """The client has read the answer and hung up; the transport closes by itself."""

    def connection_lost(self, exc: Exception | None) -> None:
        """Let uvicorn forget the connection."""
        self._ending.cancel()
        self._before.connection_lost(exc)

    def pause_writing(self) -> None:
        """Nothing is written any more."""

    def resume_writing(self) -> None:
        """Nothing is written any more."""
