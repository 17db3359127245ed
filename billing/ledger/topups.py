"""Money that customers pay in for credit: each payment with what Stripe says of it, and what it has credited.

Amounts are in the currency's minor unit, as at Stripe. Invariant: `credited` is what this payment has added to the
customer's credit until now, given and taken back; it changes only in the transaction that writes the credit entries,
under the customer's lock, so that a payment is credited once however often and in whatever order it is looked at. The
row, with its id, is there before Stripe is asked for anything.
"""

from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any

import sqlalchemy as sa

from billing import ids
from billing.clock import Instant
from billing.errors import NotFoundError
from billing.ledger import audit, schema

_TOPUPS = schema.topups


class Origin(StrEnum):
    """Who asked for it: a person on Stripe's page, or the automatic top-up."""

    CHECKOUT = "checkout"
    AUTO = "auto"


class State(StrEnum):
    """What is known of the payment; `processing`: a delayed method, `refused`: another currency than the credit's."""

    OPEN = "open"
    PROCESSING = "processing"
    PAID = "paid"
    FAILED = "failed"
    EXPIRED = "expired"
    REFUSED = "refused"


RUNNING = (State.OPEN, State.PROCESSING)


@dataclass(frozen=True, slots=True)
class Topup:
    """One row of `topups`; `moves` counts the changes of `credited`, `grant_id` is the credit that it gave first."""

    id: str
    customer_id: str
    origin: Origin
    amount: int
    currency: str
    checkout_session_id: str | None
    payment_intent_id: str | None
    stripe_customer_id: str | None
    payment_method_id: str | None
    state: State
    received: int
    refunded: int
    withdrawn: int
    credited: int
    moves: int
    grant_id: str | None
    created_at: Instant
    checked_at: Instant
    note: str | None


def begin(
    conn: sa.Connection,
    customer_id: str,
    origin: Origin,
    amount: int,
    currency: str,
    at: Instant,
    actor: str,
    *,
    stripe_customer_id: str | None = None,
    payment_method_id: str | None = None,
) -> Topup:
    """Write down that a payment is asked for, before it is; nothing is credited by that."""
    row = {
        "id": ids.new_id("topup"),
        "customer_id": customer_id,
        "origin": origin.value,
        "amount": amount,
        "currency": currency,
        "stripe_customer_id": stripe_customer_id,
        "payment_method_id": payment_method_id,
        "state": State.OPEN.value,
        "received": 0,
        "refunded": 0,
        "withdrawn": 0,
        "credited": 0,
        "moves": 0,
        "created_at": at,
        "checked_at": at,
    }
    conn.execute(sa.insert(_TOPUPS), row)
    details = {"id": row["id"], "origin": origin.value, "amount_minor": amount, "currency": currency}
    audit.record(conn, at=at, actor=actor, action="topup.begin", subject=customer_id, details=details)
    return get(conn, str(row["id"]))


def get(conn: sa.Connection, topup_id: str) -> Topup:
    """Return a payment. Raises NotFoundError."""
    row = conn.execute(sa.select(_TOPUPS).where(_TOPUPS.c.id == topup_id)).one_or_none()
    if row is None:
        raise NotFoundError(f"there is no top-up {topup_id!r}")
    return _topup(row)


def find(
    conn: sa.Connection, *, topup_id: str | None = None, session_id: str | None = None, intent_id: str | None = None
) -> Topup | None:
    """Return the payment with one of these ids: ours, the Checkout session's, the payment intent's."""
    named = (
        (_TOPUPS.c.id, topup_id),
        (_TOPUPS.c.checkout_session_id, session_id),
        (_TOPUPS.c.payment_intent_id, intent_id),
    )
    for column, value in named:
        if value is not None:
            row = conn.execute(sa.select(_TOPUPS).where(column == value)).one_or_none()
            if row is not None:
                return _topup(row)
    return None


def record(conn: sa.Connection, topup_id: str, at: Instant, **changes: Any) -> None:
    """Write what Stripe says of a payment; the names are those of `Topup`."""
    assert changes.keys() <= {field.name for field in fields(Topup)}, "these are columns"
    values = {name: str(value) if isinstance(value, StrEnum) else value for name, value in changes.items()}
    changed = conn.execute(sa.update(_TOPUPS).where(_TOPUPS.c.id == topup_id).values(**values, checked_at=at))
    assert changed.rowcount == 1, "it was begun"


def running(conn: sa.Connection, before: Instant, rows_max: int) -> list[Topup]:
    """Return the payments of which nothing final is known, and that were not looked at since `before`."""
    query = sa.select(_TOPUPS).where(
        _TOPUPS.c.state.in_([str(state) for state in RUNNING]), _TOPUPS.c.checked_at < before
    )
    return [_topup(row) for row in conn.execute(query.order_by(_TOPUPS.c.checked_at, _TOPUPS.c.id).limit(rows_max))]


def has_auto_in_flight(conn: sa.Connection, customer_id: str) -> bool:
    """Tell whether an automatic payment of a customer has no final outcome yet."""
    is_auto = sa.and_(_TOPUPS.c.customer_id == customer_id, _TOPUPS.c.origin == Origin.AUTO.value)
    is_running = _TOPUPS.c.state.in_([str(state) for state in RUNNING])
    return conn.execute(sa.select(sa.literal(1)).where(is_auto, is_running).limit(1)).first() is not None


def of_customer(conn: sa.Connection, customer_id: str, rows_max: int) -> list[Topup]:
    """Return a customer's last payments, newest first."""
    query = sa.select(_TOPUPS).where(_TOPUPS.c.customer_id == customer_id)
    return [_topup(row) for row in conn.execute(query.order_by(_TOPUPS.c.id.desc()).limit(rows_max))]


def payer(conn: sa.Connection, customer_id: str) -> tuple[str, str] | None:
    """Return the customer of Stripe's and the payment method that paid last, and may be charged again."""
    query = sa.select(_TOPUPS.c.stripe_customer_id, _TOPUPS.c.payment_method_id).where(
        _TOPUPS.c.customer_id == customer_id,
        _TOPUPS.c.state == State.PAID.value,
        _TOPUPS.c.stripe_customer_id.is_not(None),
        _TOPUPS.c.payment_method_id.is_not(None),
    )
    row = conn.execute(query.order_by(_TOPUPS.c.id.desc()).limit(1)).one_or_none()
    return None if row is None else (row[0], row[1])


def _topup(row: sa.Row[Any]) -> Topup:
    values = dict(zip(Topup.__slots__, row, strict=True))
    return Topup(**{**values, "origin": Origin(row.origin), "state": State(row.state)})
