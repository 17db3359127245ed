"""Payments that a cardholder disputes, as Stripe last told: what froze which customer.

Invariant: a dispute freezes its customer once, when it is first seen open or lost, and thaws it when it was won; an
admin who lifts the suspension of a lost one is not overruled by the same event coming again.
"""

import sqlalchemy as sa

from billing.clock import Instant
from billing.ledger import schema

_DISPUTES = schema.disputes


def note(
    conn: sa.Connection,
    dispute_id: str,
    customer_id: str,
    status: str,
    amount: int,
    currency: str,
    at: Instant,
    *,
    is_freezing: bool,
) -> bool:
    """Write down what Stripe says of a dispute; return whether its freezing began or ended by that."""
    query = sa.select(_DISPUTES.c.is_freezing).where(_DISPUTES.c.id == dispute_id)
    known = conn.execute(query.with_for_update()).scalar_one_or_none()
    values = {"status": status, "amount": amount, "is_freezing": int(is_freezing), "seen_at": at}
    if known is None:
        row = {"id": dispute_id, "customer_id": customer_id, "currency": currency, **values}
        conn.execute(sa.insert(_DISPUTES), row)
        return is_freezing
    conn.execute(sa.update(_DISPUTES).where(_DISPUTES.c.id == dispute_id).values(values))
    return bool(known) != is_freezing


def is_frozen(conn: sa.Connection, customer_id: str) -> bool:
    """Tell whether any dispute still freezes a customer."""
    query = sa.select(sa.literal(1)).where(_DISPUTES.c.customer_id == customer_id, _DISPUTES.c.is_freezing == 1)
    return conn.execute(query.limit(1)).first() is not None
