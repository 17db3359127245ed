"""What leads out of `accepted`, `rejected` and `held`: confirmed, or sent again; and the history of such repairs.

Invariant: every transition here is one conditional statement on (state, attempts, resend) as they were when it was
decided, in one transaction with the row of `meter_repairs` that says why. An identifier that is given up stays written
there with its units and its time, so that what Stripe counts under it later is recognised and not taken for a
stranger's. `meter_repairs` is only appended to; `settled_at` says when Stripe answered a cancellation, and `refusal`
why it did not take one.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum

import sqlalchemy as sa

from billing import ids
from billing.clock import Instant
from billing.ledger import outbox, schema
from billing.ledger.outbox import Batch, State, identifier_of

_BATCHES = schema.meter_batches
_REPAIRS = schema.meter_repairs


class Kind(StrEnum):
    """Why an identifier was given up, or taken back."""

    RESEND = "resend"
    REPORT = "report"
    CARRY = "carry"
    CANCEL = "cancel"


@dataclass(frozen=True, slots=True)
class Repair:
    """One row of `meter_repairs`: the identifier that no longer stands for the batch, and its units and time then."""

    id: str
    batch_id: str
    at: Instant
    kind: Kind
    stripe_customer_id: str
    identifier: str
    units: int
    timestamp_s: int
    reason: str
    actor: str
    settled_at: Instant | None
    refusal: str | None


def between(conn: sa.Connection, stripe_customer_ids: Sequence[str], since_s: int, until_s: int) -> list[Batch]:
    """Return the batches of these customers of Stripe's that are timed in [since, until) and hold units, by seq."""
    query = sa.select(_BATCHES).where(
        _BATCHES.c.stripe_customer_id.in_(stripe_customer_ids),
        _BATCHES.c.timestamp_s >= since_s,
        _BATCHES.c.timestamp_s < until_s,
        _BATCHES.c.units > 0,
    )
    query = query.order_by(_BATCHES.c.customer_id, _BATCHES.c.seq).suffix_with("/* weir:repairs.between */")
    return [outbox.of_row(row) for row in conn.execute(query).mappings()]


def find(conn: sa.Connection, batch_ids: Collection[str]) -> dict[str, Batch]:
    """Return these batches by id; an unknown id is left out."""
    query = sa.select(_BATCHES).where(_BATCHES.c.id.in_(sorted(batch_ids)))
    return {row["id"]: outbox.of_row(row) for row in conn.execute(query).mappings()}


def oldest_open(conn: sa.Connection, stripe_customer_ids: Sequence[str], since_s: int) -> dict[str, int]:
    """Return for each customer the time of its oldest sending since then of which Stripe's count is not confirmed."""
    states = [str(state) for state in (State.ACCEPTED, State.UNCERTAIN, State.HELD)]
    query = (
        sa.select(_BATCHES.c.stripe_customer_id, sa.func.min(_BATCHES.c.timestamp_s))
        .where(
            _BATCHES.c.stripe_customer_id.in_(stripe_customer_ids),
            _BATCHES.c.timestamp_s >= since_s,
            _BATCHES.c.state.in_(states),
            _BATCHES.c.first_sent_at.is_not(None),
        )
        .group_by(_BATCHES.c.stripe_customer_id)
    )
    return {row[0]: row[1] for row in conn.execute(query)}


def event_names(conn: sa.Connection, stripe_customer_ids: Sequence[str], since_s: int) -> dict[str, set[str]]:
    """Return for each customer the names of the meter events that it has batches of, timed since then."""
    query = sa.select(_BATCHES.c.stripe_customer_id, _BATCHES.c.event_name).distinct()
    query = query.where(
        _BATCHES.c.stripe_customer_id.in_(stripe_customer_ids), _BATCHES.c.timestamp_s >= since_s, _BATCHES.c.units > 0
    )
    names: dict[str, set[str]] = {}
    for stripe_customer_id, name in conn.execute(query):
        names.setdefault(stripe_customer_id, set()).add(name)
    return names


def at_stripe(conn: sa.Connection, stripe_customer_ids: Sequence[str], since_s: int, until_s: int) -> list[Repair]:
    """Return the identifiers of these customers that were given up or taken back, timed in [since, until)."""
    query = sa.select(_REPAIRS).where(
        _REPAIRS.c.stripe_customer_id.in_(stripe_customer_ids),
        _REPAIRS.c.timestamp_s >= since_s,
        _REPAIRS.c.timestamp_s < until_s,
    )
    return [_repair(row) for row in conn.execute(query.order_by(_REPAIRS.c.id)).mappings()]


def of_batch(conn: sa.Connection, batch_id: str) -> list[Repair]:
    """Return a batch's history, oldest first."""
    query = sa.select(_REPAIRS).where(_REPAIRS.c.batch_id == batch_id).order_by(_REPAIRS.c.id)
    return [_repair(row) for row in conn.execute(query).mappings()]


def unsettled(conn: sa.Connection) -> list[Repair]:
    """Return the cancellations of which Stripe's answer is not known."""
    query = sa.select(_REPAIRS).where(_REPAIRS.c.kind == str(Kind.CANCEL), _REPAIRS.c.settled_at.is_(None))
    return [_repair(row) for row in conn.execute(query.order_by(_REPAIRS.c.id)).mappings()]


def confirm(conn: sa.Connection, batches: Sequence[Batch], now: Instant) -> None:
    """Record that Stripe's summaries hold these batches; one that is not as it was read stays what it is."""
    if batches:
        rows = [
            {"of_id": batch.id, "of_state": str(batch.state), "of_attempts": batch.attempts, "of_resend": batch.resend}
            for batch in batches
        ]
        settled_at = sa.func.coalesce(_BATCHES.c.settled_at, now)
        conn.execute(_CONFIRM.values(state=str(State.CONFIRMED), settled_at=settled_at), rows)


_CONFIRM = sa.update(_BATCHES).where(
    _BATCHES.c.id == sa.bindparam("of_id"),
    _BATCHES.c.state == sa.bindparam("of_state"),
    _BATCHES.c.attempts == sa.bindparam("of_attempts"),
    _BATCHES.c.resend == sa.bindparam("of_resend"),
)


def send_again(conn: sa.Connection, batch: Batch, key: str, now: Instant) -> bool:
    """Make a batch sendable again under its own identifier; False if it changed meanwhile.

    The time of its first sending stays, so that the pusher still counts the 23 hours of Stripe's memory from there.
    """
    state = State.PENDING if batch.first_sent_at is None else State.UNCERTAIN
    values = {"state": str(state), "idempotency_key": key, "next_attempt_at": now, "settled_at": None}
    return conn.execute(_as_read(batch).values(**values)).rowcount == 1


def renew(
    conn: sa.Connection,
    batch: Batch,
    kind: Kind,
    reason: str,
    actor: str,
    now: Instant,
    *,
    timestamp_s: int,
    state: State = State.PENDING,
) -> bool:
    """Give a batch a fresh identifier and this time, because its last one counts for nothing; False if it changed.

    Its last identifier goes into the history. With the state `rejected` it waits until somebody mends the cause.
    """
    identifier = identifier_of(batch.id, batch.resend + 1)
    values = {
        "state": str(state),
        "resend": batch.resend + 1,
        "idempotency_key": identifier,
        "timestamp_s": timestamp_s,
        "first_sent_at": None,
        "next_attempt_at": now,
        "settled_at": None if state is State.PENDING else now,
        "last_answer": reason,
    }
    if conn.execute(_as_read(batch).values(**values)).rowcount != 1:
        return False
    _record(conn, batch, kind, reason, actor, now)
    return True


def retime(conn: sa.Connection, batch: Batch, key: str, timestamp_s: int, reason: str, now: Instant) -> bool:
    """Give a batch that Stripe can not have counted another time, under a new key; False if it changed meanwhile."""
    assert batch.first_sent_at is None, "what may have been counted keeps its time"
    values = {
        "state": str(State.PENDING),
        "idempotency_key": key,
        "timestamp_s": timestamp_s,
        "next_attempt_at": now,
        "settled_at": None,
        "last_answer": reason,
    }
    return conn.execute(_as_read(batch).values(**values)).rowcount == 1


def cancel(conn: sa.Connection, batch: Batch, reason: str, actor: str, now: Instant) -> None:
    """Write down that the batch's present identifier is about to be taken back: before Stripe is asked."""
    _record(conn, batch, Kind.CANCEL, reason, actor, now)


def settle(conn: sa.Connection, repair_id: str, refusal: str | None, now: Instant) -> None:
    """Record that Stripe took a cancellation, or (`refusal`) that it never will."""
    conn.execute(sa.update(_REPAIRS).where(_REPAIRS.c.id == repair_id).values(settled_at=now, refusal=refusal))


def hold(conn: sa.Connection, batch: Batch, reason: str, now: Instant) -> bool:
    """Hold a batch whatever state it is in, because it may not count; False if it changed meanwhile."""
    values = {"state": str(State.HELD), "settled_at": now, "last_answer": reason}
    return conn.execute(_as_read(batch).values(**values)).rowcount == 1


def of_key(conn: sa.Connection, customer_key: str) -> list[Batch]:
    """Return the batches whose last request carried this Idempotency-Key: several, if they went by the stream."""
    query = sa.select(_BATCHES).where(_BATCHES.c.idempotency_key == customer_key, _BATCHES.c.via == "stream")
    return [outbox.of_row(row) for row in conn.execute(query.order_by(_BATCHES.c.id)).mappings()]


def _as_read(batch: Batch) -> sa.Update:
    return sa.update(_BATCHES).where(
        _BATCHES.c.id == batch.id,
        _BATCHES.c.state == str(batch.state),
        _BATCHES.c.attempts == batch.attempts,
        _BATCHES.c.resend == batch.resend,
    )


def _record(conn: sa.Connection, batch: Batch, kind: Kind, reason: str, actor: str, now: Instant) -> None:
    row = {
        "id": ids.uuid7(),
        "batch_id": batch.id,
        "at": now,
        "kind": str(kind),
        "stripe_customer_id": batch.stripe_customer_id,
        "identifier": batch.identifier,
        "units": batch.units,
        "timestamp_s": batch.timestamp_s,
        "reason": reason,
        "actor": actor,
        "settled_at": None if kind is Kind.CANCEL else now,
        "refusal": None,
    }
    conn.execute(sa.insert(_REPAIRS), row)


def _repair(row: sa.RowMapping) -> Repair:
    return Repair(**{**row, "kind": Kind(row["kind"])})
