"""The inbox: Stripe's webhook events, stored before they are answered with 200, and worked off in the background.

Invariant: an event is stored once (its id is the key) and never deleted; `pending` means that its effect may be
missing here. Events only say that something changed: what is true now is fetched from Stripe, so neither their order
nor a repetition matters.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from billing.clock import Instant
from billing.ledger import schema

_EVENTS = schema.stripe_events


class State(StrEnum):
    """What became of an event."""

    PENDING = "pending"
    DONE = "done"
    IGNORED = "ignored"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """One row of `stripe_events`; `payload` is the body as it was signed."""

    id: str
    type: str
    object_id: str | None
    stripe_customer_id: str | None
    created_at: Instant
    received_at: Instant
    state: State
    attempts: int
    next_attempt_at: Instant
    settled_at: Instant | None
    last_error: str | None
    payload: str


def store(conn: sa.Connection, event: StoredEvent) -> bool:
    """Insert an event; False if its id is there already (Stripe repeats deliveries)."""
    insert = sqlite.insert if conn.dialect.name == "sqlite" else postgresql.insert
    values = {name: getattr(event, name) for name in StoredEvent.__slots__} | {"state": str(event.state)}
    stored = conn.execute(insert(_EVENTS).values(values).on_conflict_do_nothing().returning(_EVENTS.c.id))
    return stored.one_or_none() is not None


def has_due(conn: sa.Connection, now: Instant) -> bool:
    """Tell whether an event waits to be processed now: one look at an index, asked twice a second."""
    query = sa.select(sa.literal(1)).where(_is_due(now)).limit(1).suffix_with("/* weir:inbox.has_due */")
    return conn.execute(query).first() is not None


def due(conn: sa.Connection, now: Instant, rows_max: int) -> list[StoredEvent]:
    """Return the events that wait to be processed now, the longest waiting first."""
    query = sa.select(_EVENTS).where(_is_due(now)).order_by(_EVENTS.c.next_attempt_at, _EVENTS.c.id)
    return [_event(row) for row in conn.execute(query.limit(rows_max).suffix_with("/* weir:inbox.due */")).mappings()]


def settle(conn: sa.Connection, ids: Sequence[str], state: State, note: str | None, now: Instant) -> None:
    """Record that these events are done, ignored or given up; those settled meanwhile stay as they are."""
    conn.execute(
        sa.update(_EVENTS)
        .where(_EVENTS.c.id.in_(ids), _EVENTS.c.state == str(State.PENDING))
        .values(state=str(state), attempts=_EVENTS.c.attempts + 1, settled_at=now, last_error=note)
    )


def postpone(conn: sa.Connection, event: StoredEvent, error: str, next_attempt_at: Instant) -> None:
    """Record a failure and when to try again."""
    conn.execute(
        sa.update(_EVENTS)
        .where(_EVENTS.c.id == event.id, _EVENTS.c.state == str(State.PENDING))
        .values(attempts=_EVENTS.c.attempts + 1, next_attempt_at=next_attempt_at, last_error=error)
    )


def replay(conn: sa.Connection, event_id: str, now: Instant) -> bool:
    """Make an event pending again, whatever became of it; False if there is none with this id."""
    changed = conn.execute(
        sa.update(_EVENTS)
        .where(_EVENTS.c.id == event_id)
        .values(state=str(State.PENDING), next_attempt_at=now, settled_at=None)
    )
    return changed.rowcount == 1


def replay_since(conn: sa.Connection, since: Instant, now: Instant) -> int:
    """Make all events that were received since an instant pending again; return how many."""
    changed = conn.execute(
        sa.update(_EVENTS)
        .where(_EVENTS.c.received_at >= since)
        .values(state=str(State.PENDING), next_attempt_at=now, settled_at=None)
    )
    return changed.rowcount


def counts(conn: sa.Connection) -> dict[str, int]:
    """Return how many events are in each state; states without an event are left out."""
    query = sa.select(_EVENTS.c.state, sa.func.count()).group_by(_EVENTS.c.state).order_by(_EVENTS.c.state)
    return {row[0]: row[1] for row in conn.execute(query)}


def listed(conn: sa.Connection, state: State | None, rows_max: int) -> list[StoredEvent]:
    """Return the newest events, or the newest in a state."""
    query = sa.select(_EVENTS).order_by(_EVENTS.c.received_at.desc(), _EVENTS.c.id.desc()).limit(rows_max)
    if state is not None:
        query = query.where(_EVENTS.c.state == str(state))
    return [_event(row) for row in conn.execute(query).mappings()]


def overdue_customers(conn: sa.Connection, before: Instant) -> list[str]:
    """Return the linked customers with an invoice unpaid since `before` or longer, and not suspended for it."""
    customers, suspensions = schema.customers, schema.suspensions
    is_suspended = sa.exists().where(suspensions.c.customer_id == customers.c.id, suspensions.c.cause == "unpaid")
    query = (
        sa.select(customers.c.id)
        .where(
            customers.c.past_due_since <= before,
            customers.c.stripe_customer_id.is_not(None),
            ~is_suspended,
        )
        .order_by(customers.c.past_due_since, customers.c.id)
    )
    return list(conn.execute(query).scalars())


def _is_due(now: Instant) -> sa.ColumnElement[bool]:
    return sa.and_(_EVENTS.c.state == str(State.PENDING), _EVENTS.c.next_attempt_at <= now)


def _event(row: sa.RowMapping) -> StoredEvent:
    return StoredEvent(**{**row, "state": State(row["state"])})
