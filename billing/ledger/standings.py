"""Where each customer stands with Stripe: units sent and unsent, the carry, and what no batch holds yet.

Read by `weir stripe status` only; it sums over all batches, so nothing periodic calls it.
"""

from dataclasses import dataclass

import sqlalchemy as sa

from billing.ledger import outbox, schema
from billing.money import Pico, join

_BATCHES = schema.meter_batches
_ROLLUPS = schema.usage_hourly
_CUSTOMERS = schema.customers


def counts(conn: sa.Connection) -> dict[str, int]:
    """Return how many batches are in each state; states without a batch are left out."""
    query = sa.select(_BATCHES.c.state, sa.func.count()).group_by(_BATCHES.c.state).order_by(_BATCHES.c.state)
    return {row[0]: row[1] for row in conn.execute(query)}


@dataclass(frozen=True, slots=True)
class Standing:
    """One linked customer's units and carry, and the amount that no batch holds yet (negative: a credit)."""

    customer_id: str
    name: str
    stripe_customer_id: str | None
    units_sent: int
    units_unsent: int
    carry: Pico
    unassigned: Pico


def standings(conn: sa.Connection) -> list[Standing]:
    """Return the standing of every customer that is or was linked to Stripe, by name."""
    is_sent = _BATCHES.c.state.in_([str(state) for state in outbox.DELIVERED])
    units = (
        sa.select(
            _BATCHES.c.customer_id,
            sa.func.sum(sa.case((is_sent, _BATCHES.c.units), else_=0)).label("sent"),
            sa.func.sum(sa.case((is_sent, 0), else_=_BATCHES.c.units)).label("unsent"),
        )
        .group_by(_BATCHES.c.customer_id)
        .subquery()
    )
    open_ = (
        sa.select(
            _ROLLUPS.c.customer_id,
            sa.func.sum(_ROLLUPS.c.amount_micro - _ROLLUPS.c.assigned_micro).label("micro"),
            sa.func.sum(_ROLLUPS.c.amount_pico - _ROLLUPS.c.assigned_pico).label("pico"),
        )
        .where(outbox.IS_UNASSIGNED)
        .group_by(_ROLLUPS.c.customer_id)
        .subquery()
    )
    columns = (_CUSTOMERS.c.id, _CUSTOMERS.c.name, _CUSTOMERS.c.stripe_customer_id)
    query = (
        sa.select(*columns, units.c.sent, units.c.unsent, open_.c.micro, open_.c.pico)
        .select_from(_CUSTOMERS)
        .outerjoin(units, units.c.customer_id == _CUSTOMERS.c.id)
        .outerjoin(open_, open_.c.customer_id == _CUSTOMERS.c.id)
        .where(sa.or_(_CUSTOMERS.c.stripe_customer_id.is_not(None), units.c.customer_id.is_not(None)))
        .order_by(_CUSTOMERS.c.name)
    )
    rows = conn.execute(query).all()
    ends = outbox.tails(conn, [row[0] for row in rows])
    return [
        Standing(
            customer_id=row[0],
            name=row[1],
            stripe_customer_id=row[2],
            units_sent=int(row[3] or 0),
            units_unsent=int(row[4] or 0),
            carry=ends[row[0]].carry,
            unassigned=join(int(row[5] or 0), int(row[6] or 0)),
        )
        for row in rows
    ]
