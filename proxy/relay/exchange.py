"""One request, from its first byte to its last: where the parts meet.

An exchange is a listener of an upstream connection and a writer to a client. It does what `lifecycle` says: it never
sends the bytes that end a response before the recorder has made its event durable (I1), and when anything breaks it
bills what was generated for the client until then (I2). There are no tasks and no awaits between a read and a write:
each callback parses, meters and writes.
"""

import logging

from billing import clock
from billing.ledger.accounts import Principal
from billing.limits import RESPONSE_BODY_BYTES_MAX
from proxy.admit import decide
from proxy.admit.limits import Exceeded
from proxy.admit.throttle import Rates
from proxy.meter import choose, endpoints
from proxy.meter.framing import StreamError
from proxy.meter.steps import Settle
from proxy.meter.stream import KEPT_BYTES_MAX
from proxy.relay import asks
from proxy.relay import headers as fields
from proxy.relay import request as requests
from proxy.relay.busy import NEVER
from proxy.relay.catalog import Server
from proxy.relay.client import Client
from proxy.relay.connection import UpstreamConnection
from proxy.relay.holding import Holding
from proxy.relay.lifecycle import MESSAGES, Cause, Phase, ending
from proxy.relay.refusals import Refusal
from proxy.relay.services import Services
from proxy.relay.settlement import Settlement

log = logging.getLogger("weir.relay")

_ONE_WRITE_BYTES_MAX = 64 * 2**10
"""Up to here copying a body costs less than the system call, and the packet, that it saves."""


class Exchange(Settlement):
    """One request and its response; `Settlement` has its bill and its client."""

    __slots__ = (
        "_active_at",
        "_connection",
        "_is_paused",
        "_request_headers",
        "_tokens_max",
        "_tried",
    )

    def __init__(self, services: Services, client: Client, path: str, request_headers: fields.Headers) -> None:
        super().__init__(services, client, path)
        self._request_headers = request_headers
        self._is_paused = False
        self._tried: list[Server] = []
        self._connection: UpstreamConnection | None = None
        self._active_at = 0.0
        self._tokens_max: int | None = None

    # admission

    def admit(self, principal: Principal | None, body: bytes) -> None:
        """Decide on the whole request, and dial an upstream if it may run."""
        now = self._started_at = clock.now()
        refusal = decide.refuse_key(principal, now) or self._services.refusal()
        if refusal is not None:
            self.refuse(refusal)
            return
        assert principal is not None, "refused otherwise"
        ask = asks.read(self._path, body)
        if isinstance(ask, Refusal):
            self.refuse(ask)
            return
        refusal = self._decide(principal, ask, now)
        if refusal is not None:
            self.refuse(refusal)
            return
        self._principal, self._ask = principal, ask
        self._phase = Phase.ADMITTED
        self._services.exchanges.add(self)
        if principal.purses is not None and self._path not in endpoints.FREE:
            self._holding = Holding(self._services.terms, principal, self._quote, ask)
            self._holding.begin(len(body), self._held)
        else:
            self._dial()

    def _held(self, refusal: Refusal | None) -> None:
        """The credit is held, or does not cover the request."""
        self._dial() if refusal is None else self.refuse(refusal)

    def _decide(self, principal: Principal, ask: requests.Ask, now: clock.Instant) -> Refusal | None:
        directory = self._services.directory
        self._quote = directory.snapshot.book.quote(ask.model, principal.customer_id, now)
        is_served = self._services.catalog.serves(ask.model)
        refusal = decide.refuse(principal, decide.Facts(ask.model, is_served, self._quote))
        if refusal is not None:
            return refusal
        if self._path in endpoints.OLLAMA and not self._services.catalog.serves(ask.model, self._path):
            return Refusal("not_found", f"no model server of {ask.model!r} serves this path")
        return None if principal.rates is None else self._throttled(principal.rates)

    def _throttled(self, rates: Rates) -> Refusal | None:
        admitted = self._services.throttle.admit(rates)
        if isinstance(admitted, Exceeded):
            self._limit_lines = admitted.lines
            return decide.too_fast(admitted)
        self._limit_lines = admitted
        return None

    def _dial(self) -> None:
        server = self._services.catalog.choose(self._ask.model, self._services.loop.time(), self._tried, self._path)
        if server is None:
            self._end(Cause.UPSTREAM_DIED)
            return
        self._tried.append(server)
        self._server = server
        server.in_flight += 1
        if self._holding is not None:
            self._ask = self._holding.clamped(server.kind)
        upstream_model = server.models[self._ask.model]
        self._forwarded = asks.forward(
            self._ask, upstream_model, reports_each_output=server.reports_each_output, is_vllm=server.kind == "vllm"
        )
        server.pool.request(self)

    # the upstream's side

    def started(self, connection: UpstreamConnection) -> None:
        """Send the request."""
        if self._phase is not Phase.ADMITTED:
            connection.abort()
            return
        assert self._server is not None, "it was dialled"
        self._connection = connection
        if self._is_paused:
            connection.pause()
        self._phase = Phase.WAITING
        now = self._active_at = self._services.loop.time()
        if not self._waits_for_slot():
            self._enter_service(now)
        pool, raw = self._server.pool, self._forwarded.raw
        path = pool.path_prefix + self._path.encode()
        head = fields.upstream_head(path, pool.fixed_lines, self.request_id.encode(), self._request_headers, len(raw))
        if len(raw) <= _ONE_WRITE_BYTES_MAX:
            connection.write(head + raw)
        else:
            connection.write(head)
            connection.write(raw)

    def _waits_for_slot(self) -> bool:
        """Tell whether the upstream may keep this waiting, and will send a head when it takes it up (llama.cpp)."""
        assert self._server is not None, "it was dialled"
        return self._server.kind == "llamacpp" and (self._forwarded.gathers or self._ask.streams)

    def head(self, status: int, headers: fields.Headers) -> None:
        """Begin the response: a stream at once, anything else when it is recorded."""
        assert self._server is not None, "it answers"
        now = self._services.loop.time()
        self._server.answered(status, now)
        self._phase = Phase.RELAYING
        if self._entered_us == NEVER or self._left_us != NEVER:
            self._enter_service(now)
        self._answer_status, self._answer_headers = status, headers
        assert self._connection is not None, "it answers"
        if self._connection.is_encoded and status < 300:  # its usage can not be seen
            log.error("upstream.compresses", extra={"upstream": self._server.config.name, "do": "turn it off there"})
            self._end(Cause.UPSTREAM_DIED)
            return
        if self._ask.outputs.total > 1:
            self._server.recognise(headers)
        content_type = fields.content_type(headers)
        if not 200 <= status < 300 or not choose.is_stream(self._path, content_type):
            return
        self._meter = choose.stream_meter(self._plan(), content_type)
        if self._forwarded.gathers:
            return
        self._head_sent = True
        framing = b"transfer-encoding: chunked\r\n" if self._client.has_chunks else b""
        self._client.send(fields.response_head(status, headers, self._added(framing)))

    def _plan(self) -> choose.Plan:
        assert self._server is not None, "it answers"
        return choose.Plan(
            endpoint=self._path,
            cost_of=self._cost_of if self._ask.wants_usage else None,
            has_stop_texts=self._ask.has_stop_texts,
            outputs=self._ask.outputs,
            hides_usage=self._forwarded.hides_usage,
            reports_each_output=self._server.reports_each_output,
            gathers=self._forwarded.gathers,
            hides_running=self._forwarded.hides_running,
        )

    def data(self, data: bytes) -> None:
        """Meter a part of the answer and pass it on."""
        if self._phase is not Phase.RELAYING:
            self._follow(data)
            return
        self._active_at = self._services.loop.time()
        meter = self._meter
        self._body_bytes += len(data)
        if meter is None:
            self._body.append(data)
            if self._body_bytes > RESPONSE_BODY_BYTES_MAX:
                self._end(Cause.UPSTREAM_DIED)
            return
        try:
            passed = meter.receive(data)
        except StreamError:
            self._end(Cause.UPSTREAM_DIED)
            return
        if passed:
            if self._first_token_at is None and not meter.delivered().is_empty:
                self._first_token_at = clock.now()
                assert self._server is not None, "it answers"
                self._first_us = self._server.busy.mark(int(self._active_at * 1_000_000))
            self._client.send(self._framed(passed))
        if meter.is_complete:
            if self._connection is not None:
                self._connection.leave()
                self._connection = None
            self._settle(meter.finish())
        elif not self._has_client and self._is_drained():
            self._end(Cause.DRAINED)

    def _follow(self, data: bytes) -> None:
        """Take what comes after the terminal event: it leaves with it, if that has not left yet."""
        settled = self._settled
        if (
            self._phase is Phase.SETTLING
            and self._head_sent
            and settled is not None
            and len(settled.raw) < KEPT_BYTES_MAX
        ):
            self._settled = settled._replace(raw=settled.raw + data)

    def ended(self) -> None:
        """Settle: the answer is complete."""
        connection, self._connection = self._connection, None
        if self._phase is not Phase.RELAYING:
            return
        is_failed = not 200 <= self._answer_status < 300
        if self._meter is None and (is_failed or self._path in endpoints.FREE):
            # An upstream's own error passes unchanged and costs nothing; so does counting.
            if is_failed:
                self._services.upstream_errors[self._answer_status] += 1
            self._pass_unbilled(b"".join(self._body))
            return
        settled = self._meter.finish() if self._meter is not None else self._settled_whole()
        if settled.usage is None and connection is not None and not connection.has_length:
            self._end(Cause.UPSTREAM_DIED)  # only the close ended it: nothing tells it from one that was cut
        else:
            self._settle(settled)

    def _settled_whole(self) -> Settle:
        body = b"".join(self._body)
        settled = choose.whole_reader(self._path).settle(body)
        if settled.usage is None and (self._ask.streams or self._forwarded.gathers):
            meter = choose.unnamed_stream(self._plan(), body)
            if meter is not None:  # the official SDKs read what they asked for, whatever its content type says
                self._meter = meter
                settled = meter.finish()
                return settled if self._forwarded.gathers else settled._replace(raw=body)
        assert self._server is not None, "it answers"
        if self._ask.outputs.total > 1 and self._server.reports_each_output:
            return settled._replace(usage=None)  # that is the first output's alone; it was not known to be llama.cpp
        return settled

    def died(self, *, could_retry: bool) -> None:
        """Dial again where nothing has happened yet and somebody waits for it; end otherwise."""
        self._connection = None
        if self._phase is Phase.WAITING and could_retry and self._has_client:
            assert self._server is not None, "it was dialled"
            self._phase = Phase.ADMITTED
            self._leave_service()
            self._entered_us = NEVER  # what the first try took is nobody's: it came to nothing
            self._server.pool.request(self, fresh=True)
        elif self._phase is Phase.ADMITTED:
            assert self._server is not None, "it was dialled"
            self._server.failed(self._services.loop.time(), is_unreachable=True)
            self._leave_server()
            self._dial()
        else:
            self._end(Cause.UPSTREAM_DIED)

    # the client's side

    def client_gone(self) -> None:
        """Stop the upstream at once, and bill what was generated until now; or go on, where the key says so."""
        self._has_client = False
        if self._phase in (Phase.WAITING, Phase.RELAYING) and self._may_drain():
            self.resume()
        else:
            if not self._head_sent:
                self._meter = None  # of what was gathered the client saw nothing
            self._end(Cause.CLIENT_CLOSED)

    def _may_drain(self) -> bool:
        """Tell whether the answer goes on without its client, and note until when.

        Of an answer that comes whole nobody sees how far it is: it goes on if all of it is within what is allowed.
        """
        assert self._principal is not None, "admitted"
        assert self._server is not None, "it was dialled"
        more = self._principal.on_disconnect.tokens_more
        if not more:
            return more is None
        if self._ask.streams or self._forwarded.gathers:
            self._tokens_max = self._generated() + more
            return True
        limit = self._ask.limit_on(self._server.kind)
        return limit is not None and limit <= more

    def _is_drained(self) -> bool:
        return self._tokens_max is not None and self._generated() >= self._tokens_max

    def _generated(self) -> int:
        """Return how many tokens there are so far: by the upstream's own count, else by its deltas."""
        if self._meter is None:
            return 0
        usage = self._meter.known_usage()
        return usage.output_tokens if usage is not None else self._meter.delivered().deltas

    def pause(self) -> None:
        """The client reads slowly: so does Weir."""
        self._is_paused = True
        if self._connection is not None:
            self._connection.pause()

    def resume(self) -> None:
        """The client reads again."""
        self._is_paused = False
        self._active_at = self._services.loop.time()
        if self._connection is not None:
            self._connection.resume()

    # endings before the upstream's own

    def shut_down(self) -> None:
        """End: the gateway stops and its grace is over."""
        self._end(Cause.SHUTDOWN if self._has_client else Cause.DRAINED)

    def check_time(self, now: float) -> None:
        """End if the upstream has been silent for too long, or the client has read nothing for as long."""
        if self._server is None or self._phase not in (Phase.WAITING, Phase.RELAYING):
            return
        config = self._server.config
        is_idle = self._first_token_at is not None or self._is_paused
        allowed = config.idle_timeout_s if is_idle else config.first_byte_timeout_s
        if now - self._active_at <= allowed:
            return
        if self._is_paused:
            self._client.give_up()
        else:
            self._end(Cause.UPSTREAM_TIMEOUT)

    def _end(self, cause: Cause) -> None:
        if self._phase in (Phase.SETTLING, Phase.DELIVERED):
            return
        if self._phase is Phase.WAITING and cause in (Cause.UPSTREAM_DIED, Cause.UPSTREAM_TIMEOUT):
            assert self._server is not None, "it was dialled"
            self._server.failed(self._services.loop.time())
        has_tokens = self._head_sent and not self._delivered().is_empty
        decided = ending(self._phase, cause, has_tokens=has_tokens)
        if self._connection is not None:
            self._connection.abort()
            self._connection = None
        refusal = Refusal(decided.code, MESSAGES[decided.code]) if decided.code is not None else None
        if decided.outcome is not None and self._answer_status < 300:  # an upstream's own error costs nothing
            self._phase = Phase.SETTLING
            self._refusal = refusal
            self._finish_with(decided.outcome, self._meter.known_usage() if self._meter is not None else None)
        elif refusal is not None and not self._head_sent:
            self.refuse(refusal)
        else:
            self._release(tokens=0)
            self._phase = Phase.DELIVERED
            self._close_stream(refusal)
