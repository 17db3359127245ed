"""One request, told from its event to the batches that took it to Stripe: what was used, at which prices, why."""

from dataclasses import dataclass

import sqlalchemy as sa

from billing.errors import NotFoundError
from billing.ledger import adjustments, outbox, schema, versions
from billing.ledger.adjustments import Note
from billing.ledger.outbox import Batch
from billing.pricing.quote import Quote
from billing.usage import UsageEvent


@dataclass(frozen=True, slots=True)
class Trace:
    """An event, whose it is, the quote that priced it, and the batches that hold it once it is assigned.

    It is one batch, or in tokens mode one for each type of its tokens.
    `adjustments` are the corrections of it; if it is one itself, `reason` says why it was made.
    """

    event: UsageEvent
    customer: str
    quote: Quote
    batches: tuple[Batch, ...]
    adjustments: tuple[Note, ...]
    reason: str | None


def load(conn: sa.Connection, request_id: str) -> Trace:
    """Return all that is known of a request. Raises NotFoundError."""
    events, customers = schema.usage_events, schema.customers
    of_customer = events.outerjoin(customers, customers.c.id == events.c.customer_id)
    query = sa.select(events, customers.c.name.label("customer")).select_from(of_customer)
    row = conn.execute(query.where(events.c.id == request_id)).mappings().one_or_none()
    if row is None:
        raise NotFoundError(
            f"no usage is recorded for the request {request_id!r}; a refused request leaves none (x-request-id)"
        )
    event = UsageEvent(**{name: row[name] for name in UsageEvent._fields})
    batches = outbox.batches_of(
        conn,
        event.customer_id,
        event.window_start,
        event.api_key_id,
        event.model,
        row["shard"],
        row["window_seq"],
    )
    quote = versions.load_quote(conn, event.price_ref)
    corrections = tuple(adjustments.of_request(conn, event.id))
    reason = None if event.adjusts is None else adjustments.note_of(conn, event.id)
    return Trace(event, row["customer"] or event.customer_id, quote, tuple(batches), corrections, reason)
