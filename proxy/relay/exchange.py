"""One request, from its first byte to its last: where the parts meet.

An exchange is a listener of an upstream connection and a writer to a client. It does what `lifecycle` says: it never
sends the bytes that end a response before the recorder has made its event durable (I1), and when anything breaks it
bills what was generated for the client until then (I2). There are no tasks and no awaits between a read and a write:
each callback parses, meters and writes.
"""

import logging

from billing import clock, ids
from billing.ledger.accounts import Principal
from billing.limits import RESPONSE_BODY_BYTES_MAX
from billing.money import Pico, amount_number, format_amount
from billing.pricing.quote import Quote
from billing.tokens.counting import OutputTally
from billing.usage import CountSource, Outcome, Usage, UsageEvent
from proxy.admit import decide, limits
from proxy.meter import choose, endpoints
from proxy.meter.framing import StreamError
from proxy.meter.reading import with_cost
from proxy.meter.steps import Settle
from proxy.relay import asks
from proxy.relay import headers as fields
from proxy.relay import request as requests
from proxy.relay.catalog import Server
from proxy.relay.client import Client
from proxy.relay.connection import UpstreamConnection
from proxy.relay.counting import Cut
from proxy.relay.holding import Holding
from proxy.relay.lifecycle import MESSAGES, Cause, Phase, ending
from proxy.relay.refusals import Refusal
from proxy.relay.services import Services
from proxy.relay.shapes import error_body, error_event
from proxy.settle import Entry, judged, window_start

log = logging.getLogger("weir.relay")

_CLIENT_CLOSED_STATUS = 499
_LAST_CHUNK = b"0\r\n\r\n"
_UNRECORDED = Refusal("recording_unavailable", "the usage of this request could not be recorded; it is not billed")


class Exchange:
    """One request and its response."""

    __slots__ = (
        "_active_at",
        "_answer_headers",
        "_answer_status",
        "_ask",
        "_body",
        "_body_bytes",
        "_client",
        "_connection",
        "_event",
        "_finished_at",
        "_first_token_at",
        "_forwarded",
        "_has_client",
        "_head_sent",
        "_holding",
        "_is_paused",
        "_meter",
        "_outcome",
        "_path",
        "_phase",
        "_principal",
        "_quote",
        "_refusal",
        "_request_headers",
        "_server",
        "_services",
        "_settled",
        "_started_at",
        "_tried",
        "request_id",
    )

    def __init__(self, services: Services, client: Client, path: str, request_headers: fields.Headers) -> None:
        self._services = services
        self._client = client
        self._path = path
        self._request_headers = request_headers
        self._phase = Phase.RECEIVING
        self._has_client = True
        self._head_sent = False
        self._is_paused = False
        self._principal: Principal | None = None
        self._quote: Quote | None = None
        self._holding: Holding | None = None
        self._server: Server | None = None
        self._tried: list[Server] = []
        self._connection: UpstreamConnection | None = None
        self._meter: choose.Meter | None = None
        self._answer_status = 0
        self._answer_headers: fields.Headers = []
        self._body: list[bytes] = []
        self._body_bytes = 0
        self._first_token_at: int | None = None
        self._settled: Settle | None = None
        self._refusal: Refusal | None = None
        self._outcome = Outcome.COMPLETED
        self._active_at = 0.0
        self._started_at = self._finished_at = 0
        self._ask: requests.Ask
        self._forwarded: requests.Forwarded
        self._event: UsageEvent
        self.request_id = ids.uuid7()

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
        limits.take_request(self._services.directory.buckets_of(principal.key_id), principal.rpm, now)
        self._phase = Phase.ADMITTED
        self._services.exchanges.add(self)
        if principal.is_prepaid and self._path not in endpoints.FREE:
            self._holding = Holding(self._services.terms, principal.customer_id, self._quote, ask)
            self._holding.begin(len(body), self._held)
        else:
            self._dial()

    def _held(self, refusal: Refusal | None) -> None:
        """The credit is held, or does not cover the request."""
        self._dial() if refusal is None else self.refuse(refusal)

    def _decide(self, principal: Principal, ask: requests.Ask, now: clock.Instant) -> Refusal | None:
        directory = self._services.directory
        self._quote = directory.snapshot.book.quote(ask.model, principal.customer_id, now)
        buckets = directory.buckets_of(principal.key_id)
        exceeded = limits.check(buckets, principal.rpm, principal.tpm, principal.concurrency, now)
        is_served = self._services.catalog.serves(ask.model)
        refusal = decide.refuse(principal, decide.Facts(ask.model, is_served, self._quote, exceeded))
        if refusal is None and not self._services.catalog.serves(ask.model, self._path):
            return Refusal("not_found", f"no model server of {ask.model!r} serves this path")
        return refusal

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
        self._forwarded = asks.forward(self._ask, upstream_model, reports_each_output=server.reports_each_output)
        server.pool.request(self)

    def refuse(self, refusal: Refusal) -> None:
        """Answer with an error of Weir's own; nothing is billed."""
        self._services.refusals[refusal.code] += 1
        self._release(tokens=0)
        self._phase = Phase.DELIVERED
        if self._has_client:
            lines = [(b"content-type", b"application/json"), *refusal.headers]
            self._send_whole(refusal.status, lines, error_body(refusal, self._path))

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
        self._active_at = self._services.loop.time()
        pool, raw = self._server.pool, self._forwarded.raw
        path = pool.path_prefix + self._path.encode()
        head = fields.upstream_head(path, pool.fixed_lines, self.request_id.encode(), self._request_headers, len(raw))
        connection.write(head)
        connection.write(raw)

    def head(self, status: int, headers: fields.Headers) -> None:
        """Begin the response: a stream at once, anything else when it is recorded."""
        assert self._server is not None, "it answers"
        self._server.answered()
        self._phase = Phase.RELAYING
        self._answer_status, self._answer_headers = status, headers
        assert self._connection is not None, "it answers"
        if self._connection.is_encoded and status < 300:  # its usage can not be seen
            log.error("upstream.compresses", extra={"upstream": self._server.config.name, "do": "turn it off there"})
            self._end(Cause.UPSTREAM_DIED)
            return
        if self._ask.outputs.total > 1:
            self._server.recognise(headers)
        content_type = fields.content_type(headers)
        if status != 200 or not choose.is_stream(self._path, content_type):
            return
        plan = choose.Plan(
            endpoint=self._path,
            cost_of=self._cost_of if self._ask.wants_usage else None,
            has_stop_texts=self._ask.has_stop_texts,
            outputs=self._ask.outputs,
            hides_usage=self._forwarded.hides_usage,
            reports_each_output=self._server.reports_each_output,
            gathers=self._forwarded.gathers,
        )
        self._meter = choose.stream_meter(plan, content_type)
        if self._forwarded.gathers:
            return
        self._head_sent = True
        framing = b"transfer-encoding: chunked\r\n" if self._client.has_chunks else b""
        self._client.send(fields.response_head(status, headers, self._added(framing)))

    def data(self, data: bytes) -> None:
        """Meter a part of the answer and pass it on."""
        self._active_at = self._services.loop.time()
        meter = self._meter
        if meter is None:
            self._body.append(data)
            self._body_bytes += len(data)
            if self._body_bytes > RESPONSE_BODY_BYTES_MAX:
                self._end(Cause.UPSTREAM_DIED)
            return
        try:
            passed = meter.receive(data)
        except StreamError:
            self._end(Cause.UPSTREAM_DIED)
            return
        if passed:
            if self._first_token_at is None and not passed.startswith(b":"):
                self._first_token_at = clock.now()
            self._client.send(self._framed(passed))
        if meter.is_complete and self._phase is Phase.RELAYING:
            if self._connection is not None:
                self._connection.leave()
                self._connection = None
            self._settle(meter.finish())

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
        settled = choose.whole_reader(self._path).settle(b"".join(self._body))
        assert self._server is not None, "it answers"
        if self._ask.outputs.total > 1 and self._server.reports_each_output:
            return settled._replace(usage=None)  # that is the first output's alone; it was not known to be llama.cpp
        return settled

    def died(self, *, could_retry: bool) -> None:
        """Dial again where nothing has happened yet; end otherwise."""
        self._connection = None
        if self._phase is Phase.WAITING and could_retry:
            assert self._server is not None, "it was dialled"
            self._phase = Phase.ADMITTED
            self._server.pool.request(self, fresh=True)
        elif self._phase is Phase.ADMITTED:
            assert self._server is not None, "it was dialled"
            self._server.failed(self._services.loop.time())
            self._leave_server()
            self._dial()
        else:
            self._end(Cause.UPSTREAM_DIED)

    # the client's side

    def client_gone(self) -> None:
        """Stop the upstream at once, and bill what was generated until now."""
        self._has_client = False
        self._end(Cause.CLIENT_CLOSED)

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
        self._end(Cause.SHUTDOWN)

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

    # settlement

    def _settle(self, settled: Settle) -> None:
        """The answer is complete: record its usage, then send its last bytes."""
        self._phase = Phase.SETTLING
        self._settled = settled
        if settled.is_error and self._forwarded.gathers and self._meter is not None:
            # Nothing was delivered, whatever was generated.
            self._services.upstream_errors[502] += 1
            self._answer_status, self._answer_headers = 502, fields.as_json(self._answer_headers)
            self._pass_unbilled(settled.raw)
            return
        if settled.is_error and self._delivered().is_empty:
            self._pass_unbilled(settled.raw)
            return
        self._finish_with(Outcome.UPSTREAM_ERROR if settled.is_error else Outcome.COMPLETED, settled.usage)

    def _finish_with(self, outcome: Outcome, usage: Usage | None) -> None:
        self._outcome = outcome
        self._finished_at = clock.now()
        if usage is not None:
            self._record(usage, CountSource.UPSTREAM)
            return
        assert self._server is not None, "it was dialled"
        cut = Cut(self._ask, self._server, self._delivered())
        self._services.counting.count(cut, lambda counted: self._record(counted, CountSource.COUNTED))

    def _delivered(self) -> OutputTally:
        if self._meter is not None:
            return self._meter.delivered()
        reader = choose.whole_reader(self._path)
        return reader.delivered(b"".join(self._body), has_stop_texts=self._ask.has_stop_texts)

    def _record(self, reported: Usage, source: CountSource) -> None:
        quote, principal, server = self._quote, self._principal, self._server
        assert quote is not None, "admitted"
        assert principal is not None, "admitted"
        assert server is not None, "dialled"
        usage, anomaly = judged(reported, self._ask.limit_on(server.kind))
        event = self._event = UsageEvent(
            id=self.request_id,
            customer_id=principal.customer_id,
            api_key_id=principal.key_id,
            model=self._ask.model,
            upstream=server.config.name,
            upstream_model=server.models.get(self._ask.model, self._ask.model),
            endpoint=self._path,
            started_at=self._started_at,
            first_token_at=self._first_token_at,
            finished_at=self._finished_at,
            outcome=self._outcome.value,
            http_status=self._answer_status or _CLIENT_CLOSED_STATUS,
            count_source=source.value,
            input_tokens=usage.input_tokens,
            cached_input_tokens=usage.cached_input_tokens,
            output_tokens=usage.output_tokens,
            reasoning_tokens=usage.reasoning_tokens,
            cost_pico=quote.cost.charge(usage),
            amount_pico=quote.price.charge(usage),
            price_ref=quote.ref,
            window_start=window_start(principal, self._finished_at),
            anomaly=anomaly,
        )
        credit = self._holding.settle(event.amount_pico) if self._holding is not None else None
        self._release(tokens=usage.input_tokens + usage.output_tokens)
        self._services.recorder.submit(Entry(event, quote, self._recorded, credit))

    def _recorded(self, is_durable: bool) -> None:  # noqa: FBT001 -- the recorder's only news
        """Send the last bytes: the event that bills them is durable now."""
        self._phase = Phase.DELIVERED
        if is_durable:
            self._services.count_event(self._event)
        if not self._has_client:
            return
        if not is_durable:
            self._refusal = _UNRECORDED
        if self._head_sent:
            self._close_stream(self._refusal)
        elif self._refusal is not None:
            self.refuse(self._refusal)
        else:
            self._deliver_whole()

    def _close_stream(self, refusal: Refusal | None) -> None:
        """Send what ends a stream: the upstream's own last event, or an error event of ours."""
        if not self._has_client:
            return
        if refusal is not None:
            last = error_event(refusal, self._path)
        else:
            last = self._settled.raw if self._settled is not None else b""
        framed = self._framed(last) if last else b""
        self._client.send(framed + _LAST_CHUNK if self._client.has_chunks else framed)
        self._client.finish()

    def _deliver_whole(self) -> None:
        assert self._settled is not None, "a whole answer"
        assert self._quote is not None, "admitted"
        amount = Pico(self._event.amount_pico)
        raw = self._settled.raw
        body = with_cost(raw, amount_number(amount), self._settled.reported)
        paid = b"x-weir-amount: %s\r\n" % format_amount(amount, self._quote.currency).encode()
        lines = fields.as_json(self._answer_headers) if self._forwarded.gathers else self._answer_headers
        self._send_whole(self._answer_status, lines, body, paid)

    def _pass_unbilled(self, raw: bytes) -> None:
        self._release(tokens=0)
        self._phase = Phase.DELIVERED
        if self._head_sent:
            self._close_stream(None)
        elif self._has_client:
            self._send_whole(self._answer_status, self._answer_headers, raw)

    # small parts

    def _cost_of(self, usage: Usage) -> str:
        assert self._quote is not None, "admitted"
        assert self._server is not None, "it answers"
        return amount_number(self._quote.price.charge(judged(usage, self._ask.limit_on(self._server.kind))[0]))

    def _added(self, framing: bytes) -> bytes:
        close = b"" if self._client.keep_alive else b"connection: close\r\n"
        return b"x-request-id: %s\r\n%s%s" % (self.request_id.encode(), framing, close)

    def _framed(self, data: bytes) -> bytes:
        return b"%x\r\n%b\r\n" % (len(data), data) if self._client.has_chunks else data

    def _send_whole(self, status: int, lines: fields.Headers, body: bytes, more: bytes = b"") -> None:
        added = self._added(b"content-length: %d\r\n%b" % (len(body), more))
        self._client.send(fields.response_head(status, lines, added) + body)
        self._client.finish()

    def _release(self, *, tokens: int) -> None:
        """Give back what admission took: the key's place, the upstream's, this worker's."""
        if self not in self._services.exchanges:
            return
        self._services.exchanges.discard(self)
        assert self._principal is not None, "admitted"
        buckets = self._services.directory.buckets_of(self._principal.key_id)
        limits.give_back(buckets, self._principal.tpm, tokens, clock.now())
        if self._holding is not None:
            self._holding.close()
        self._leave_server()

    def _leave_server(self) -> None:
        if self._server is not None:
            self._server.in_flight -= 1
            self._server = None if self._phase is Phase.ADMITTED else self._server
