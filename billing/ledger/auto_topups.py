"""Which customers' credit is topped up by itself, and how that went: below which balance, by how much.

Amounts are in the currency's minor unit. Invariant: at most one automatic payment of a customer is in flight (a unique
index on `topups`), and one whose card fails is tried again after days, then paused until somebody acts: a failing card
is never charged in a loop.
"""

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from billing.clock import DAY_US, Instant
from billing.ledger import audit, schema
from billing.ledger.topups import RUNNING

RETRY_DAYS = (1, 3)
"""Days until a declined card is tried again; after the last of them the automatic top-up is paused."""

_AUTO = schema.auto_topups
_TOPUPS = schema.topups


@dataclass(frozen=True, slots=True)
class AutoTopup:
    """One row of `auto_topups`; `failures` in a row, `paused_at` if nothing is tried until somebody acts."""

    customer_id: str
    below: int
    amount: int
    currency: str
    failures: int
    next_attempt_at: Instant
    paused_at: Instant | None
    note: str | None


def find(conn: sa.Connection, customer_id: str) -> AutoTopup | None:
    """Return a customer's setting, None if it has none."""
    row = conn.execute(sa.select(_AUTO).where(_AUTO.c.customer_id == customer_id)).one_or_none()
    return None if row is None else _setting(row)


def put(
    conn: sa.Connection, customer_id: str, below: int, amount: int, currency: str, at: Instant, actor: str
) -> AutoTopup:
    """Set or change it; what was paused begins anew. The caller has locked the customer."""
    conn.execute(sa.delete(_AUTO).where(_AUTO.c.customer_id == customer_id))
    row = {"customer_id": customer_id, "below": below, "amount": amount, "currency": currency}
    conn.execute(sa.insert(_AUTO), {**row, "failures": 0, "next_attempt_at": at})
    audit.record(conn, at=at, actor=actor, action="topup.auto", subject=customer_id, details=row)
    found = find(conn, customer_id)
    assert found is not None, "it was written above"
    return found


def remove(conn: sa.Connection, customer_id: str, at: Instant, actor: str) -> bool:
    """Forget it; False if there was none."""
    gone = conn.execute(sa.delete(_AUTO).where(_AUTO.c.customer_id == customer_id)).rowcount > 0
    if gone:
        audit.record(conn, at=at, actor=actor, action="topup.auto", subject=customer_id, details={"off": True})
    return gone


def due(conn: sa.Connection, at: Instant, rows_max: int) -> list[AutoTopup]:
    """Return the settings that may be acted on now: not paused, not waiting, nothing in flight."""
    is_busy = sa.exists().where(
        _TOPUPS.c.customer_id == _AUTO.c.customer_id,
        _TOPUPS.c.origin == "auto",
        _TOPUPS.c.state.in_([str(state) for state in RUNNING]),
    )
    query = sa.select(_AUTO).where(_AUTO.c.paused_at.is_(None), _AUTO.c.next_attempt_at <= at, ~is_busy)
    return [_setting(row) for row in conn.execute(query.order_by(_AUTO.c.customer_id).limit(rows_max))]


def has_any(conn: sa.Connection) -> bool:
    """Tell whether anybody is topped up by itself: usually nobody, and then this is all a round costs."""
    return conn.execute(sa.select(sa.literal(1)).select_from(_AUTO).limit(1)).first() is not None


def failed(conn: sa.Connection, customer_id: str, note: str, at: Instant, *, is_final: bool) -> None:
    """Write down a failure: again in some days, or paused; nothing if it was switched off meanwhile."""
    setting = find(conn, customer_id)
    if setting is None:
        return
    failures = setting.failures + 1
    is_paused = is_final or failures > len(RETRY_DAYS)
    wait_us = 0 if is_paused else RETRY_DAYS[failures - 1] * DAY_US
    values = {"failures": failures, "next_attempt_at": at + wait_us, "note": note[:300]}
    values["paused_at"] = at if is_paused else None
    conn.execute(sa.update(_AUTO).where(_AUTO.c.customer_id == setting.customer_id).values(values))
    details = {"failures": failures, "is_paused": is_paused, "note": note[:300]}
    audit.record(conn, at=at, actor="stripe", action="topup.declined", subject=setting.customer_id, details=details)


def succeeded(conn: sa.Connection, customer_id: str) -> None:
    """A payment arrived, by whichever way: the customer's card works, so what was paused goes on."""
    values = {"failures": 0, "paused_at": None, "note": None, "next_attempt_at": 0}
    conn.execute(sa.update(_AUTO).where(_AUTO.c.customer_id == customer_id).values(values))


def _setting(row: sa.Row[Any]) -> AutoTopup:
    return AutoTopup(**dict(zip(AutoTopup.__slots__, row, strict=True)))
