"""How a request is paid and its client gets the last of it: usage becomes an event, then the bytes that end it leave.

`Settlement` is the half of an exchange (`exchange.py`) that knows the bill and the client; the other half knows the
upstream. They are one object, because a request has no microsecond to spare for two.

Invariant (I1): `_recorded`, which the recorder calls when the event is durable, is the only way to the last bytes of an
answer that costs something. What admission took (the key's place, the upstream's, credit) is given back exactly once.
"""

from billing import clock, ids
from billing.ledger.accounts import Principal
from billing.ledger.due import Due
from billing.money import Pico, amount_number, amount_text, shortest
from billing.pricing.quote import Quote
from billing.tokens.counting import OutputTally
from billing.usage import Anomaly, CountSource, Outcome, Usage, UsageEvent
from proxy.checkpoints import Progress
from proxy.meter import choose
from proxy.meter.reading import with_cost
from proxy.meter.steps import Settle
from proxy.relay import busy, doubt
from proxy.relay import headers as fields
from proxy.relay import request as requests
from proxy.relay.busy import NEVER
from proxy.relay.catalog import Server
from proxy.relay.client import Client
from proxy.relay.counting import Claim, Cut
from proxy.relay.holding import Holding
from proxy.relay.lifecycle import MESSAGES, Phase
from proxy.relay.refusals import Refusal
from proxy.relay.services import Services
from proxy.relay.shapes import error_body, error_event
from proxy.settle import Entry, judged, window_start

_CLIENT_CLOSED_STATUS = 499
_UPSTREAM, _COUNTED = CountSource.UPSTREAM.value, CountSource.COUNTED.value
_LAST_CHUNK = b"0\r\n\r\n"
_SIZES_MAX = 2_048
_SIZES = [b"%x\r\n" % size for size in range(_SIZES_MAX)]
"""The lines that begin chunks of usual sizes: to write one anew takes as long as to look at the event."""

_BROKE_OFF = Refusal("upstream_error", MESSAGES["upstream_error"])
_UNRECORDED = Refusal("recording_unavailable", "the usage of this request could not be recorded; it is not billed")


class Settlement:
    """A request's bill and its client."""

    __slots__ = (
        "_answer_headers",
        "_answer_status",
        "_ask",
        "_body",
        "_body_bytes",
        "_client",
        "_entered_us",
        "_event",
        "_finished_at",
        "_first_token_at",
        "_first_us",
        "_forwarded",
        "_has_client",
        "_head_sent",
        "_holding",
        "_left_us",
        "_limit_lines",
        "_meter",
        "_outcome",
        "_path",
        "_phase",
        "_principal",
        "_quote",
        "_refusal",
        "_server",
        "_services",
        "_settled",
        "_started_at",
        "request_id",
    )

    def __init__(self, services: Services, client: Client, path: str) -> None:
        self._services = services
        self._client = client
        self._path = path
        self._phase = Phase.RECEIVING
        self._has_client = True
        self._head_sent = False
        self._principal: Principal | None = None
        self._quote: Quote | None = None
        self._holding: Holding | None = None
        self._limit_lines = b""
        self._server: Server | None = None
        self._meter: choose.Meter | None = None
        self._answer_status = 0
        self._answer_headers: fields.Headers = []
        self._body: list[bytes] = []
        self._body_bytes = 0
        self._first_token_at: clock.Instant | None = None
        self._settled: Settle | None = None
        self._refusal: Refusal | None = None
        self._entered_us = self._first_us = self._left_us = NEVER
        self._outcome = Outcome.COMPLETED
        self._started_at = self._finished_at = clock.Instant(0)
        self._ask: requests.Ask
        self._forwarded: requests.Forwarded
        self._event: UsageEvent
        self.request_id = ids.uuid7()

    def refuse(self, refusal: Refusal) -> None:
        """Answer with an error of Weir's own; nothing is billed."""
        self._services.refusals[refusal.code] += 1
        self._release(tokens=0)
        self._phase = Phase.DELIVERED
        if self._has_client:
            lines = [(b"content-type", b"application/json"), *refusal.headers]
            self._send_whole(refusal.status, lines, error_body(refusal, self._path))

    def _settle(self, settled: Settle) -> None:
        """The answer is complete: record its usage, then send its last bytes."""
        self._phase = Phase.SETTLING
        self._settled = settled
        if settled.broke_off and self._head_sent:
            self._refusal = _BROKE_OFF
        if settled.is_error and self._forwarded.gathers and self._meter is not None:
            # Nothing was delivered, whatever was generated.
            self._services.upstream_errors[502] += 1
            self._answer_status, self._answer_headers = 502, fields.as_json(self._answer_headers)
            self._pass_unbilled(settled.raw)
            return
        if settled.is_error and self._delivered().is_empty:
            self._pass_unbilled(settled.raw)
            return
        ended_well = Outcome.COMPLETED if self._has_client else Outcome.CLIENT_CLOSED  # the latter was drained
        self._finish_with(Outcome.UPSTREAM_ERROR if settled.is_error else ended_well, settled.usage)

    def _finish_with(self, outcome: Outcome, usage: Usage | None) -> None:
        self._outcome = outcome
        self._finished_at = clock.now()
        self._leave_service()
        assert self._server is not None, "it was dialled"
        if usage is not None:
            audit = self._services.audit
            if audit is not None and outcome is Outcome.COMPLETED and audit.picks():
                size = len(self._forwarded.raw) + self._body_bytes
                audit.take(Claim(self._ask, self._server, usage, self._delivered), size)
            if self._is_doubtful(usage):
                claim = Claim(self._ask, self._server, usage, self._delivered)
                self._services.counting.verify(claim, self._record_judged)
            else:
                self._record(usage, _UPSTREAM)
            return
        prompt = self._meter.known_prompt() if self._meter is not None else None
        cut = Cut(self._ask, self._server, self._delivered(), prompt)
        self._services.counting.count(cut, lambda counted: self._record(counted, _COUNTED))

    def _delivered(self) -> OutputTally:
        if self._meter is not None:
            return self._meter.delivered()
        reader = choose.whole_reader(self._path)
        return reader.delivered(b"".join(self._body), has_stop_texts=self._ask.has_stop_texts)

    def _is_doubtful(self, usage: Usage) -> bool:
        if doubt.doubts_input(usage, self._ask, len(self._forwarded.raw)):
            return True
        return doubt.doubts_output(usage, self._body_bytes, is_stream=self._meter is not None)

    def _record_judged(self, usage: Usage, found: tuple[Anomaly, ...]) -> None:
        """Record a report that was doubtful and has been compared with a count."""
        self._record(usage, _UPSTREAM, found)

    def _record(self, reported: Usage, source: str, found: tuple[Anomaly, ...] = ()) -> None:
        event = self._event = self._bill(reported, source, self._outcome, self._finished_at, found)
        payment = self._holding.settle(event.amount_pico) if self._holding is not None else None
        self._release(tokens=event.input_tokens + event.output_tokens)
        is_checkpointed = self.request_id in self._services.checkpointed
        assert self._quote is not None, "admitted"
        self._services.recorder.submit(Entry(event, self._quote, self._recorded, payment, is_checkpointed))

    def _bill(
        self,
        reported: Usage,
        source: str,
        outcome: Outcome,
        at: clock.Instant,
        found: tuple[Anomaly, ...] = (),
    ) -> UsageEvent:
        quote, principal, server = self._quote, self._principal, self._server
        assert quote is not None, "admitted"
        assert principal is not None, "admitted"
        assert server is not None, "dialled"
        ask = self._ask
        usage, anomaly = judged(reported, ask.limit_on(server.kind), found)
        prompt_us, generation_us = self._times(usage)
        # In the order of the fields: by their names this one call would take as long as reading the request.
        return UsageEvent(
            self.request_id,
            principal.customer_id,
            principal.key_id,
            ask.model,
            server.config.name,
            server.models.get(ask.model, ask.model),
            self._path,
            self._started_at,
            self._first_token_at,
            at,
            outcome.value,
            self._answer_status or _CLIENT_CLOSED_STATUS,
            source,
            usage.input_tokens,
            usage.cached_input_tokens,
            usage.output_tokens,
            usage.reasoning_tokens,
            quote.cost.charge(usage),
            quote.price.charge(usage),
            quote.ref,
            window_start(principal, at, self._services.days.start_of(at)),
            anomaly,
            None,
            None,
            usage.image_input_tokens,
            usage.audio_input_tokens,
            prompt_us,
            generation_us,
        )

    # the upstream's time (`proxy/relay/busy.py`)

    def _now_us(self) -> int:
        return int(self._services.loop.time() * 1_000_000)

    def _enter_service(self, now: float) -> None:
        """The upstream works on this from now on."""
        assert self._server is not None, "it was dialled"
        self._entered_us, self._left_us = self._server.busy.enter(int(now * 1_000_000)), NEVER

    def _leave_service(self) -> None:
        """The upstream works on this no more, if it did."""
        if self._entered_us != NEVER and self._left_us == NEVER:
            assert self._server is not None, "it was dialled"
            self._left_us = self._server.busy.leave(self._now_us())

    def _times(self, usage: Usage) -> tuple[int, int]:
        """Return the share of its upstream's time that is the prompt's and the output's; that so far, if it goes on."""
        if self._entered_us == NEVER:
            return 0, 0
        assert self._server is not None, "it was dialled"
        left = self._left_us if self._left_us != NEVER else self._server.busy.so_far(self._now_us())
        first = NEVER if self._first_us == NEVER else self._first_us - self._entered_us
        told = self._settled.times if self._settled is not None else None
        computed = usage.input_tokens - usage.cached_input_tokens
        return busy.divided(max(0, left - self._entered_us), first, told, computed, usage.output_tokens)

    # checkpoints (`proxy/checkpoints.py`)

    @property
    def is_over(self) -> bool:
        """Whether nothing more becomes of this request: it is recorded, or costs nothing."""
        return self._phase is Phase.DELIVERED

    def progress(self) -> Progress | None:
        """Return what a stream has delivered so far; None before its first token, and for what is no stream."""
        meter, since = self._meter, self._first_token_at
        if self._phase is not Phase.RELAYING or meter is None or since is None:
            return None
        known, delivered = meter.known_usage(), meter.delivered()
        return None if known is None and delivered.is_empty else Progress(self._ask, since, known, delivered)

    def checkpoint(self, usage: Usage, source: CountSource, at: clock.Instant) -> Due:
        """Return what is recorded if this worker dies now. Any thread may call it, once there is progress."""
        event = self._bill(usage, source.value, Outcome.INTERRUPTED, at)
        assert self._quote is not None, "admitted"
        payment = self._holding.payment_of(event.amount_pico) if self._holding is not None else None
        return Due(event, self._quote, payment)

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
            if refusal is _BROKE_OFF and self._settled is not None and self._settled.raw:
                last = self._settled.raw + b"\n\n" + last  # an event that was cut short of its end
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
        text = amount_text(amount)
        body = with_cost(raw, shortest(text), self._settled.reported)
        paid = f"x-weir-amount: {text} {self._quote.currency}\r\n".encode()
        lines = fields.as_json(self._answer_headers) if self._forwarded.gathers else self._answer_headers
        self._send_whole(self._answer_status, lines, body, paid)

    def _pass_unbilled(self, raw: bytes) -> None:
        self._release(tokens=0)
        self._phase = Phase.DELIVERED
        if self._head_sent:
            self._close_stream(self._refusal)
        elif self._has_client:
            self._send_whole(self._answer_status, self._answer_headers, raw)

    # small parts

    def _cost_of(self, usage: Usage) -> str:
        """Return the number for `usage.cost`: null where nobody can say before the prompt has been counted."""
        assert self._quote is not None, "admitted"
        assert self._server is not None, "it answers"
        believed, body_bytes = usage, len(self._forwarded.raw)
        if doubt.doubts_input(usage, self._ask, body_bytes):
            claim = Claim(self._ask, self._server, usage, self._delivered)
            counted = self._services.counting.believed(claim, body_bytes)
            if counted is None:
                return "null"
            believed = counted
        return amount_number(self._quote.price.charge(judged(believed, self._ask.limit_on(self._server.kind))[0]))

    def _added(self, framing: bytes) -> bytes:
        close = b"" if self._client.keep_alive else b"connection: close\r\n"
        return b"x-request-id: " + self.request_id.encode() + b"\r\n" + self._limit_lines + framing + close

    def _framed(self, data: bytes) -> bytes:
        if not self._client.has_chunks:
            return data
        size = len(data)
        return (_SIZES[size] if size < _SIZES_MAX else b"%x\r\n" % size) + data + b"\r\n"

    def _send_whole(self, status: int, lines: fields.Headers, body: bytes, more: bytes = b"") -> None:
        added = self._added(b"content-length: %d\r\n" % len(body) + more)
        self._client.send(fields.response_head(status, lines, added) + body)
        self._client.finish()

    def _release(self, *, tokens: int) -> None:
        """Give back what admission took: the key's place, the upstream's, this worker's."""
        exchanges = self._services.exchanges
        if self not in exchanges:
            return
        exchanges.remove(self)
        assert self._principal is not None, "admitted"
        rates = self._principal.rates
        if rates is not None and self._server is not None:
            self._services.throttle.end(rates, tokens)
        elif rates is not None:
            self._limit_lines = self._services.throttle.undo(rates)
        if self._holding is not None:
            self._holding.close()
        self._leave_service()
        self._leave_server()

    def _leave_server(self) -> None:
        if self._server is not None:
            self._server.in_flight -= 1
            self._server = None if self._phase is Phase.ADMITTED else self._server
