"""Billing periods as far as usage needs them: what is invoiced for good, who has usage from before that, what is late.

`customers.billed_until` is the end of the last period whose invoice Stripe has finalized, as far as we were told: usage
timed before it would be counted by the meter and stand on no invoice. It only grows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from billing.clock import MINUTE_US, SECOND_US, Instant
from billing.ledger import outbox, schema

_BATCHES = schema.meter_batches
_CUSTOMERS = schema.customers
_ROLLUPS = schema.usage_hourly
_CHECKS = schema.invoice_checks

OPEN_US = 50 * MINUTE_US
"""For so long after a period's end its invoice is certainly a draft: Stripe keeps it one for about an hour at least."""

ROWS_MAX = 1_000


@dataclass(frozen=True, slots=True)
class Boundary:
    """A linked customer, and the last end of one of its periods that has passed."""

    customer_id: str
    stripe_customer_id: str
    at: Instant


def late(conn: sa.Connection, now: Instant) -> list[Boundary]:
    """Return who has usage to send from before a boundary, of which it is not known whether it is invoiced."""
    boundary = _boundary(now)
    unassigned = sa.exists().where(
        _ROLLUPS.c.customer_id == _CUSTOMERS.c.id, outbox.IS_UNASSIGNED, _ROLLUPS.c.window_start < boundary
    )
    states = [str(outbox.State.PENDING)]
    unsent = sa.exists().where(
        _BATCHES.c.customer_id == _CUSTOMERS.c.id,
        _BATCHES.c.state.in_(states),
        _BATCHES.c.timestamp_s * SECOND_US < boundary,
    )
    return _boundaries(conn, now, sa.or_(unassigned, unsent))


def unchecked(conn: sa.Connection, now: Instant, since: Instant, after: str, only: str | None) -> list[Boundary]:
    """Return whose last passed boundary is not before `since`, and whose invoice for it was not found to be right yet.

    A thousand at most, by id, behind `after`; `only` asks for one customer.
    """
    boundary = _boundary(now)
    of_period = (_CHECKS.c.customer_id == _CUSTOMERS.c.id, _CHECKS.c.period_end == boundary)
    is_right = sa.and_(
        sa.exists().where(*of_period, _CHECKS.c.is_explained == 1),
        ~sa.exists().where(*of_period, _CHECKS.c.is_explained == 0),
    )
    condition = sa.and_(boundary >= since, ~is_right, _CUSTOMERS.c.id > after)
    if only is not None:
        condition = sa.and_(condition, _CUSTOMERS.c.id == only)
    return _boundaries(conn, now, condition, is_billed_too=True)


def boundary_of(conn: sa.Connection, stripe_customer_id: str, now: Instant) -> Boundary | None:
    """Return the customer of Stripe's with the last end of a period that has passed; None if we know no period."""
    boundary = _boundary(now)
    query = sa.select(_CUSTOMERS.c.id, boundary).where(_CUSTOMERS.c.stripe_customer_id == stripe_customer_id)
    row = conn.execute(query).one_or_none()
    return None if row is None or row[1] is None else Boundary(row[0], stripe_customer_id, Instant(row[1]))


def _boundary(now: Instant) -> sa.ColumnElement[int]:
    is_over = _CUSTOMERS.c.period_end <= now
    return sa.case((is_over, _CUSTOMERS.c.period_end), else_=_CUSTOMERS.c.period_start)


def _boundaries(
    conn: sa.Connection, now: Instant, condition: sa.ColumnElement[bool], *, is_billed_too: bool = False
) -> list[Boundary]:
    boundary = _boundary(now)
    query = sa.select(_CUSTOMERS.c.id, _CUSTOMERS.c.stripe_customer_id, boundary).where(
        _CUSTOMERS.c.stripe_customer_id.is_not(None), boundary <= now - OPEN_US, condition
    )
    if not is_billed_too:
        query = query.where(sa.func.coalesce(_CUSTOMERS.c.billed_until, 0) < boundary)
    rows = conn.execute(query.order_by(_CUSTOMERS.c.id).limit(ROWS_MAX).suffix_with("/* weir:periods.late */"))
    return [Boundary(row[0], row[1], Instant(row[2])) for row in rows]


def billed_until(conn: sa.Connection, customer_ids: Sequence[str]) -> dict[str, Instant]:
    """Return until when these customers' usage is invoiced for good; who is left out has no such invoice yet."""
    query = sa.select(_CUSTOMERS.c.id, _CUSTOMERS.c.billed_until).where(
        _CUSTOMERS.c.id.in_(customer_ids), _CUSTOMERS.c.billed_until.is_not(None)
    )
    return {row[0]: Instant(row[1]) for row in conn.execute(query)}


def set_billed_until(conn: sa.Connection, customer_id: str, until: Instant) -> None:
    """Record that all before `until` is invoiced; an earlier instant than the known one changes nothing."""
    query = sa.update(_CUSTOMERS).where(
        _CUSTOMERS.c.id == customer_id, sa.func.coalesce(_CUSTOMERS.c.billed_until, 0) < until
    )
    conn.execute(query.values(billed_until=until))


def start_of_present(conn: sa.Connection, customer_id: str, now: Instant) -> Instant | None:
    """Return the start of the customer's running period, None if it has no subscription that we know of."""
    row = conn.execute(
        sa.select(_CUSTOMERS.c.period_start, _CUSTOMERS.c.period_end).where(_CUSTOMERS.c.id == customer_id)
    ).one()
    if row[0] is None or row[1] is None:
        return None
    return Instant(row[1]) if row[1] <= now else Instant(row[0])
