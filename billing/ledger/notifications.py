"""The outbox of webhooks to the operator: what is to be told, and what became of it.

A row's `once` is unique, so that a threshold is told once in a period by however many processes that see it; its id is
the message's, the same at every attempt.
"""

from dataclasses import dataclass
from typing import NamedTuple

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from billing import ids
from billing.clock import Instant
from billing.ledger import schema

_TABLE = schema.notifications
_PENDING = "pending"


class Active(NamedTuple):
    """A customer with usage of late, or a budget that was set of late."""

    id: str
    name: str
    has_budget: bool
    has_credit: bool


@dataclass(frozen=True, slots=True)
class Notification:
    """A message that waits to be sent; `attempts` were made."""

    id: str
    body: str
    attempts: int


def add(conn: sa.Connection, once: str, customer_id: str, kind: str, body: str, at: Instant) -> bool:
    """Write a message down to be sent; False if it was already."""
    insert = sqlite.insert if conn.dialect.name == "sqlite" else postgresql.insert
    row = {
        "id": ids.new_id("msg"),
        "once": once,
        "customer_id": customer_id,
        "type": kind,
        "body": body,
        "state": _PENDING,
        "attempts": 0,
        "created_at": at,
        "next_attempt_at": at,
    }
    return conn.execute(insert(_TABLE).values(row).on_conflict_do_nothing(index_elements=["once"])).rowcount == 1


def are_known(conn: sa.Connection, onces: list[str]) -> set[str]:
    """Return those of which a message was written."""
    return set(conn.execute(sa.select(_TABLE.c.once).where(_TABLE.c.once.in_(onces))).scalars())


def due(conn: sa.Connection, at: Instant, rows_max: int) -> list[Notification]:
    """Return what is to be sent now, the oldest first."""
    query = sa.select(_TABLE.c.id, _TABLE.c.body, _TABLE.c.attempts)
    query = query.where(_TABLE.c.state == _PENDING, _TABLE.c.next_attempt_at <= at).order_by(_TABLE.c.id)
    return [Notification(*row) for row in conn.execute(query.limit(rows_max))]


def settle(conn: sa.Connection, message_id: str, answer: str, at: Instant, next_attempt_at: int | None) -> None:
    """Keep what came of an attempt: again then, or (None) never: delivered, or given up, as the answer says."""
    values: dict[str, object] = {"attempts": _TABLE.c.attempts + 1, "last_answer": answer}
    if next_attempt_at is None:
        is_delivered = answer.startswith("2")
        values |= {"state": "delivered" if is_delivered else "failed", "settled_at": at}
    else:
        values["next_attempt_at"] = next_attempt_at
    conn.execute(sa.update(_TABLE).where(_TABLE.c.id == message_id, _TABLE.c.state == _PENDING).values(values))


def active(conn: sa.Connection, since: int) -> list[Active]:
    """Return the customers whose budgets or balance may have crossed a threshold since an instant."""
    hourly, customers = schema.usage_hourly, schema.customers
    of_budgets, entries = schema.budgets, schema.credit_entries
    used = sa.select(hourly.c.customer_id).where(hourly.c.window_start >= since)
    changed = sa.select(of_budgets.c.customer_id).where(of_budgets.c.set_at >= since)
    has_budget = sa.exists().where(of_budgets.c.customer_id == customers.c.id)
    has_credit = sa.exists().where(entries.c.customer_id == customers.c.id)
    query = sa.select(customers.c.id, customers.c.name, has_budget, has_credit).where(
        sa.or_(customers.c.id.in_(used), customers.c.id.in_(changed)), sa.or_(has_budget, has_credit)
    )
    return [Active(row[0], row[1], bool(row[2]), bool(row[3])) for row in conn.execute(query.order_by(customers.c.id))]


def given_seq(conn: sa.Connection, customer_id: str) -> int:
    """Return the number of the last entry that gave a customer credit; 0 if none did."""
    entries = schema.credit_entries
    is_giving = entries.c.id == entries.c.grant_id
    found = sa.select(sa.func.max(entries.c.seq)).where(entries.c.customer_id == customer_id, is_giving)
    return conn.execute(found).scalar_one() or 0
