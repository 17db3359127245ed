"""One metered request on its connection: its key, its body, and its turn to answer.

A `Turn` stands in uvicorn's queue of cycles like one of uvicorn's own. It judges the key before it reads the body, so
that nothing of a stranger's is kept, and runs an `Exchange` once the request is whole. A refusal before that waits for
its turn as well: answers leave in the order of their requests.
"""

import asyncio
import logging
from typing import Protocol

from uvicorn.protocols.http.flow_control import FlowControl

from billing import clock, ids
from billing.errors import DatabaseAwayError
from billing.ledger.accounts import Principal
from proxy.admit.decide import BAD_KEY, refuse_key
from proxy.relay.exchange import Exchange
from proxy.relay.headers import Headers, credential
from proxy.relay.refusals import Refusal, retry_after
from proxy.relay.services import Services

log = logging.getLogger("weir.edge")

_AWAY = Refusal("recording_unavailable", "this key can not be checked now; try again", headers=(retry_after(1),))
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

QUEUED_BODY_BYTES_MAX = 64 * 2**10
"""How much of the body of a request that waits is read."""


class Wire(Protocol):
    """What a turn needs of its connection."""

    transport: asyncio.Transport
    flow: FlowControl

    def on_response_complete(self) -> None:
        """Go on with the next request."""

    def hang_up(self, *, is_whole: bool) -> None:
        """End the connection; `is_whole`: nothing of the request is still to come."""


class Turn:
    """One metered request in uvicorn's queue; it has the attributes that uvicorn asks of a cycle."""

    __slots__ = (
        "_body",
        "_bytes",
        "_bytes_max",
        "_expects_continue",
        "_is_begun",
        "_is_waiting",
        "_refusal",
        "_services",
        "_wire",
        "disconnected",
        "endpoint",
        "exchange",
        "has_chunks",
        "is_whole",
        "keep_alive",
        "response_complete",
        "secret",
    )

    def __init__(
        self,
        wire: Wire,
        services: Services,
        endpoint: str,
        headers: Headers,
        *,
        keep_alive: bool,
        has_chunks: bool,
    ) -> None:
        self._wire = wire
        self._services = services
        self._body: list[bytes] = []
        self._bytes = 0
        self._bytes_max = services.body_bytes_max
        self._is_begun = False
        self._is_waiting = False
        self._expects_continue = False
        self._refusal: Refusal | None = None
        self.secret = b""
        self.endpoint = endpoint
        self.keep_alive = keep_alive
        self.has_chunks = has_chunks
        self.is_whole = False
        self.response_complete = False
        self.disconnected = False
        self.exchange = Exchange(services, self, endpoint, headers)

    @property
    def message_event(self) -> "Turn":
        """What uvicorn sets when the connection is lost: this turn itself."""
        return self

    def set(self) -> None:
        """The connection is lost."""
        if self._is_begun and not self.response_complete:
            self.exchange.client_gone()

    # receiving

    def head(self, headers: Headers) -> None:
        """Look at what needs no body: the key, the size. A body is neither read nor kept for a stranger."""
        key = credential(headers)
        if key is None or not key.startswith(b"wk_"):
            self.reject(BAD_KEY)
            return
        self.secret = ids.key_hash(key)
        for name, value in headers:
            if name == b"content-length" and int(value) > self._bytes_max:
                self.reject(_too_large(self._bytes_max))
                return
            if name == b"expect" and value.lower() == b"100-continue":
                self._expects_continue = self.has_chunks
        if self._is_begun:
            self._find_key()

    def known(self, secret: bytes, body: bytes) -> None:
        """Take a whole request whose head is known: there is nothing in it to look at."""
        self.secret = secret
        self._body.append(body)
        self.is_whole = True

    @property
    def is_plain(self) -> bool:
        """Whether the request came whole with a customer's key, and nothing in its head asked for more than usual."""
        is_usual = self.is_whole and self.has_chunks and self._refusal is None and not self._expects_continue
        return is_usual and self._services.directory.snapshot.principals.get(self.secret) is not None

    def body(self, data: bytes) -> None:
        """Take a part of the body."""
        if self._refusal is not None:
            return
        self._bytes += len(data)
        if self._bytes > self._bytes_max:
            self._body.clear()
            self.reject(_too_large(self._bytes_max))
            return
        self._body.append(data)
        if not self._is_begun and self._bytes > QUEUED_BODY_BYTES_MAX:
            self._wire.flow.pause_reading()

    def reject(self, refusal: Refusal) -> None:
        """Refuse, when it is this turn's; what is left of the body is not waited for, so the connection closes."""
        self._refusal = refusal
        if self._is_begun and not self.response_complete:
            self.keep_alive = self.keep_alive and self.is_whole
            self.exchange.refuse(refusal)

    def begin(self, *, is_client_slow: bool = False) -> None:
        """It is this turn's: answer may be written from now on."""
        self._is_begun = True
        if is_client_slow:
            self.exchange.pause()
        if self._refusal is not None:
            self.reject(self._refusal)
        elif self.secret:
            self._find_key()

    def _find_key(self) -> None:
        """Judge the key before the body is read: at once if it is known here, else when the database has told."""
        principals = self._services.directory.snapshot.principals
        if self.secret in principals:
            self._judge(principals[self.secret])
            return
        self._is_waiting = True
        self._wire.flow.pause_reading()
        loop = self._services.loop
        future = loop.run_in_executor(None, self._services.directory.lookup, self.secret)
        future.add_done_callback(self._found)

    def _found(self, future: "asyncio.Future[Principal | None]") -> None:
        self._is_waiting = False
        error = future.exception()
        if self.disconnected or self.response_complete:
            return
        self._wire.flow.resume_reading()
        if error is None:
            self._judge(future.result())
        elif not isinstance(error, DatabaseAwayError):
            log.error("key.lookup_failed", exc_info=error)
        if error is not None:
            self.reject(_AWAY)

    def _judge(self, principal: Principal | None) -> None:
        refusal = refuse_key(principal, clock.now())
        if refusal is not None:
            self.reject(refusal)
        elif self.is_whole:
            self._admit(principal)
        elif self._expects_continue:
            self.send(_CONTINUE)

    def run(self) -> None:
        """The request is whole: admit it, if its key is known already."""
        if self.response_complete or not self._is_begun or self._is_waiting:
            return
        principals = self._services.directory.snapshot.principals
        if self.secret in principals:
            self._admit(principals[self.secret])
        else:  # the ledger's epoch advanced while the body came
            self._find_key()

    def _admit(self, principal: Principal | None) -> None:
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        self._body.clear()
        exchange = self.exchange
        try:
            exchange.admit(principal, body)
        except Exception:  # a fault of ours: the client must not wait for ever, and its place must be given back
            log.exception("request.failed", extra={"request": exchange.request_id})
            self._wire.transport.abort()

    # the exchange's client

    def send(self, data: bytes) -> None:
        """Write to the client."""
        if not self.disconnected:
            self._wire.transport.write(data)

    def give_up(self) -> None:
        """Break the connection: the client has read nothing for too long."""
        self._wire.transport.abort()

    def finish(self) -> None:
        """The response is complete."""
        if self.response_complete:
            return
        self.response_complete = True
        if not self.keep_alive:
            self._wire.hang_up(is_whole=self.is_whole)
        self._wire.on_response_complete()
        del self.exchange  # it knows this turn: without a cycle both are freed now, and not by the collector


def _too_large(limit: int) -> Refusal:
    return Refusal("request_too_large", f"the body is larger than {limit // 2**20} MB")
