"""Metered billing over the official SDK: the meter event stream, cancellations, and invoices with their lines.

Invariant: a session's token is renewed before it ends, and once more if Stripe says that it has ended (it refuses the
whole call then, before it looks at an event), so a call of `stream` reaches Stripe's stream at most once. What goes
wrong before the events left, the opening of a session above all, is told as never sent.

The stream takes the session's token and no API key, so it needs a client of its own for each token
(https://docs.stripe.com/billing/subscriptions/usage-based/recording-usage-api).
"""

import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal

import stripe

from billing.errors import StripeError
from billing.stripe_sync.port import MeteredInvoice, MeteredLine, MeterEvent
from billing.stripe_sync.retry import Answer
from billing.stripe_sync.sdk import PAGE_ROWS, answer, id_of, listed

SESSION_EXPIRED = "billing_meter_event_session_expired"
SESSION_S = 12 * 60
"""How long a session is used: Stripe ends it after 15 minutes."""


class SdkMetered:
    """The part of `StripePort` that is about usage; safe to use from several threads."""

    def __init__(self, client: stripe.StripeClient, base: str, timeouts_s: tuple[float, float]) -> None:
        self._client = client
        self._base = base
        self._timeouts_s = timeouts_s
        self._lock = threading.Lock()
        self._session: tuple[stripe.StripeClient, int] | None = None

    def stream(self, events: Sequence[MeterEvent], key: str) -> Answer:
        """See StripePort; a session that Stripe ended early is renewed once."""
        first = self._stream_once(events, key)
        if first.code != SESSION_EXPIRED:
            return first
        with self._lock:
            self._session = None
        again = self._stream_once(events, key)
        return again if again.code != SESSION_EXPIRED else Answer(None, code=SESSION_EXPIRED, has_left=False)

    def _stream_once(self, events: Sequence[MeterEvent], key: str) -> Answer:
        try:
            session = self._opened()
        except stripe.StripeError as error:
            return _never_sent(answer(error))
        try:
            self._send(session, events, key)
        except stripe.StripeError as error:
            said = answer(error)
            return _never_sent(said) if said.status is not None and said.status < 500 else said
        return Answer(200)

    def cancel(self, event_name: str, identifier: str, key: str) -> Answer:
        """See StripePort."""
        try:
            self._client.v1.billing.meter_event_adjustments.create(
                {"event_name": event_name, "type": "cancel", "cancel": {"identifier": identifier}},
                {"idempotency_key": key, "max_network_retries": 0},
            )
        except stripe.StripeError as error:
            return answer(error)
        return Answer(200)

    def invoices(self, customer_id: str, since_s: int) -> list[MeteredInvoice]:
        """See StripePort."""
        found = listed(
            lambda: self._client.v1.invoices.list(
                {"customer": customer_id, "created": {"gte": since_s}, "limit": PAGE_ROWS}
            ),
            self._invoice,
        )
        return sorted(found, key=lambda invoice: (invoice.period_end_s, invoice.id))

    def _invoice(self, row: stripe.Invoice) -> MeteredInvoice:
        """Convert with all lines; the invoice itself names the first ten."""
        if not row.lines.has_more:
            return _invoice(row, row.lines.data)
        return _invoice(row, list(self._client.v1.invoices.line_items.list(row.id, {"limit": 100}).auto_paging_iter()))

    def _opened(self) -> stripe.StripeClient:
        """Return the client of a session that has not ended, by the machine's steady clock."""
        with self._lock:
            second = time.monotonic_ns() // 1_000_000_000
            if self._session is None or self._session[1] <= second:
                made = self._client.v2.billing.meter_event_session.create({})
                client = stripe.StripeClient(
                    made.authentication_token,
                    base_addresses={"meter_events": self._base, "api": self._base},
                    max_network_retries=0,
                    http_client=stripe.RequestsClient(timeout=self._timeouts_s),
                )
                self._session = (client, second + SESSION_S)
            return self._session[0]

    def _send(self, client: stripe.StripeClient, events: Sequence[MeterEvent], key: str) -> None:
        client.v2.billing.meter_event_stream.create(
            {
                "events": [
                    {
                        "event_name": event.event_name,
                        "identifier": event.identifier,
                        "payload": {"stripe_customer_id": event.customer_id, "value": str(event.units)},
                        "timestamp": _rfc3339(event.timestamp_s),
                    }
                    for event in events
                ]
            },
            {"idempotency_key": key, "max_network_retries": 0},
        )


def _never_sent(said: Answer) -> Answer:
    """A refusal of the session, or of the call as a whole: no event was looked at."""
    return said if said.status in (401, 403, 409, 429) else replace(said, status=None, has_left=False)


def _invoice(row: stripe.Invoice, lines: Sequence[stripe.InvoiceLineItem]) -> MeteredInvoice:
    """Reduce an invoice to what it bills; lines without a price (plain amounts) are left out."""
    details = None if row.parent is None else row.parent.subscription_details
    subscription = "" if details is None else details.subscription
    return MeteredInvoice(
        id=row.id,
        customer_id=id_of(row.customer) if row.customer else "",
        subscription_id=id_of(subscription) if subscription else "",
        status=str(row.status),
        finalized_at_s=row.status_transitions.finalized_at,
        period_end_s=row.period_end,
        lines=tuple(line for each in lines if (line := _line(each)) is not None),
    )


def _line(row: stripe.InvoiceLineItem) -> MeteredLine | None:
    details = None if row.pricing is None else row.pricing.price_details
    if details is None:
        return None
    return MeteredLine(id_of(details.price), _units(row), row.period.start, row.period.end)


def _units(row: stripe.InvoiceLineItem) -> int:
    exact = getattr(row, "quantity_decimal", None)
    if exact is None:
        return row.quantity or 0
    units = int(Decimal(exact))
    if units != Decimal(exact):
        raise StripeError(f"{row.id} bills {exact} units; Weir only sends whole ones")
    return units


def _rfc3339(unix_s: int) -> str:
    return datetime.fromtimestamp(unix_s, UTC).isoformat().replace("+00:00", "Z")
