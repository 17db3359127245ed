"""Checkpoints of streams in flight, and their recovery: a crash loses at most the last second of metering (I3).

A checkpoint is the event that its stream would become if its worker died now. **Whoever deletes a checkpoint may write
its event**: the recorder with the stream's real end, in the transaction that records it (`resolved`), or whoever finds
the worker dead, with what the checkpoint says (`recover`). Both delete under the row's lock, so it is one of them.

A worker is dead when it has not been seen for `LAPSE_US` by the database's clock, and still has not moved when it is
looked at again; the condition is checked once more in the transaction that takes its streams. A worker that was only
asleep (SIGSTOP, a cut network) and goes on has lost nothing: its event is refused by its id, and the difference to what
was billed becomes an adjustment that names it (I5). It is written once however often it is tried: its id is derived
from the event's, and what makes no difference any more is not written. A prepaid customer's is never negative: what was
counted was delivered.

Locks: quotes, the worker, checkpoints in the order of their ids, then as `charges.py` has them.
"""

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from billing import ids
from billing.clock import SECOND_US, Instant
from billing.credit.holds import Part, spread
from billing.ledger import due as dues_
from billing.ledger import schema
from billing.ledger.charges import Cap, Payment
from billing.ledger.due import Due
from billing.usage import Anomaly, Outcome, UsageEvent

LAPSE_US = 4 * SECOND_US
"""How long a worker may be silent; it speaks every second while it has streams."""

RECOVER_ROWS_MAX = 500
"""Streams that one transaction recovers."""

CORRECTIONS_MAX = 4
"""How often one stream's worker may be taken for dead and go on."""

_SUMS = (
    *("input_tokens", "cached_input_tokens", "output_tokens", "reasoning_tokens"),
    *("image_input_tokens", "audio_input_tokens"),
    *("cost_pico", "amount_pico"),
)
_TIMES = ("prompt_us", "generation_us")
_WORKERS = schema.workers
_INFLIGHT = schema.inflight
_EVENTS = schema.usage_events


class Suspect(NamedTuple):
    """A worker that has not been seen for too long, and when it was seen last."""

    worker_id: str
    seen_at: Instant


def register(conn: sa.Connection, worker_id: str, host: str, at: Instant) -> None:
    """Make a worker known, before it has streams."""
    conn.execute(sa.insert(_WORKERS).values(id=worker_id, host=host, started_at=at, seen_at=at))


def beat(conn: sa.Connection, worker_id: str, at: Instant) -> bool:
    """Say that a worker lives; False if it is not known: it was taken for dead, and its streams are billed."""
    alive = sa.update(_WORKERS).where(_WORKERS.c.id == worker_id).values(seen_at=at)
    return conn.execute(alive.prefix_with("/* weir:inflight.beat */")).rowcount == 1


def leave(conn: sa.Connection, worker_id: str) -> None:
    """Forget a worker that has ended in good order: all its streams are recorded."""
    conn.execute(sa.delete(_INFLIGHT).where(_INFLIGHT.c.worker_id == worker_id))
    conn.execute(sa.delete(_WORKERS).where(_WORKERS.c.id == worker_id))


def write(conn: sa.Connection, worker_id: str, checkpoints: Sequence[Due]) -> None:
    """Keep the latest checkpoints of a worker's streams; `event.finished_at` is when each was made."""
    if not checkpoints:
        return
    insert = sqlite.insert if conn.dialect.name == "sqlite" else postgresql.insert
    statement = insert(_INFLIGHT)
    news = {name: statement.excluded[name] for name in _INFLIGHT.c.keys() if name != "id"}  # noqa: SIM118
    upsert = statement.on_conflict_do_update(index_elements=[_INFLIGHT.c.id], set_=news)
    conn.execute(upsert, [_row(worker_id, checkpoint) for checkpoint in sorted(checkpoints, key=_id_of)])


def drop(conn: sa.Connection, event_ids: Collection[str]) -> None:
    """Forget the checkpoints of streams that have ended: they are recorded, or came to nothing."""
    query = sa.select(_INFLIGHT.c.id).where(_INFLIGHT.c.id.in_(sorted(event_ids))).order_by(_INFLIGHT.c.id)
    conn.execute(query.with_for_update()).all()
    conn.execute(sa.delete(_INFLIGHT).where(_INFLIGHT.c.id.in_(sorted(event_ids))))


def resolved(conn: sa.Connection, dues: Sequence[Due]) -> list[Due]:
    """Take away the checkpoints of events that are to be recorded, and return what is left to record.

    That is: an event that is not recorded yet, as it is; one that was recorded as interrupted, its correction; nothing
    of one that was recorded already.
    """
    event_ids = {due.event.id for due in dues}
    if not event_ids:
        return []
    drop(conn, event_ids)
    recorded = _recorded(conn, event_ids)
    cut = [event_id for event_id, event in recorded.items() if event.outcome == Outcome.INTERRUPTED.value]
    corrections = _recorded(conn, [_correction_id(event_id, n) for event_id in cut for n in range(CORRECTIONS_MAX)])
    left = []
    for due in dues:
        if due.event.id not in recorded:
            left.append(due)
        elif due.event.id in cut:
            made = [corrections.get(_correction_id(due.event.id, number)) for number in range(CORRECTIONS_MAX)]
            left += _correction(due, [recorded[due.event.id], *(each for each in made if each is not None)])
    return left


def suspects(conn: sa.Connection, at: Instant) -> list[Suspect]:
    """Return the workers that have not been seen for too long."""
    query = sa.select(_WORKERS.c.id, _WORKERS.c.seen_at).where(_WORKERS.c.seen_at < at - LAPSE_US)
    return [Suspect(row[0], row[1]) for row in conn.execute(query.order_by(_WORKERS.c.id))]


def recover(conn: sa.Connection, suspect: Suspect, shard: int, at: Instant) -> list[UsageEvent] | None:
    """Record a dead worker's streams as interrupted, some at a time, and return their events; None when it is done.

    It is done, too, if the worker is alive after all, or someone else recovers it right now.
    """
    is_dead = (_WORKERS.c.id == suspect.worker_id, _WORKERS.c.seen_at == suspect.seen_at)
    query = sa.select(_WORKERS.c.id).where(*is_dead).with_for_update(skip_locked=True)
    if conn.execute(query).one_or_none() is None:
        return None
    left = sa.select(_INFLIGHT.c.due).where(_INFLIGHT.c.worker_id == suspect.worker_id).order_by(_INFLIGHT.c.id)
    found = [dues_.from_text(text) for text in conn.execute(left.limit(RECOVER_ROWS_MAX).with_for_update()).scalars()]
    if not found:
        conn.execute(sa.delete(_WORKERS).where(*is_dead))
        return None
    dues = resolved(conn, found)
    dues_.store_quotes(conn, [due.quote for due in dues])
    dues_.append(conn, dues, shard, at)
    return [due.event for due in dues]


def interrupted(event: UsageEvent) -> UsageEvent:
    """Return what is recorded of a stream if it goes no further than this."""
    return event._replace(outcome=Outcome.INTERRUPTED.value)


def _row(worker_id: str, checkpoint: Due) -> dict[str, object]:
    event = checkpoint.event
    assert event.outcome == Outcome.INTERRUPTED.value, "that is what it becomes"
    return {
        "id": event.id,
        "worker_id": worker_id,
        "customer_id": event.customer_id,
        "checkpointed_at": event.finished_at,
        "input_tokens": event.input_tokens,
        "output_tokens": event.output_tokens,
        "amount_pico": event.amount_pico,
        "due": dues_.to_text(checkpoint),
    }


def _id_of(checkpoint: Due) -> str:
    return checkpoint.event.id


def _recorded(conn: sa.Connection, event_ids: Collection[str]) -> dict[str, UsageEvent]:
    if not event_ids:
        return {}
    columns = [_EVENTS.c[name] for name in UsageEvent._fields]
    query = sa.select(*columns).where(_EVENTS.c.id.in_(sorted(event_ids)))
    return {row[0]: UsageEvent(*row) for row in conn.execute(query.suffix_with("/* weir:inflight.recorded */"))}


def _correction(due: Due, recorded: Sequence[UsageEvent]) -> list[Due]:
    """Return the adjustment that makes what was recorded of an interrupted event what it came to; none if it is that.

    A checkpoint may be older than what is recorded, so it only ever adds.
    """
    event = due.event
    changes = _less(event, recorded, _SUMS)
    amount = changes["amount_pico"]
    is_final = event.outcome != Outcome.INTERRUPTED.value
    if not any(changes.values()) or len(recorded) > CORRECTIONS_MAX:
        return []
    has_credit = due.payment is not None and due.payment.credit is not None
    if amount < 0 and (has_credit or not is_final):
        return []
    adjustment = event._replace(
        id=_correction_id(event.id, len(recorded) - 1),
        outcome=Outcome.ADJUSTMENT.value,
        anomaly=Anomaly.RESUMED.value,
        adjusts=event.id,
        **changes,
        **_less(event, recorded, _TIMES),
    )
    return [Due(adjustment, due.quote, _share(due.payment, amount))]


def _less(event: UsageEvent, recorded: Sequence[UsageEvent], names: Sequence[str]) -> dict[str, Any]:
    return {name: getattr(event, name) - sum(getattr(each, name) for each in recorded) for name in names}


def _share(payment: Payment | None, amount: int) -> Payment | None:
    """Return what of a correction falls on which lease: the last part, since the first is charged already."""
    if payment is None:
        return None
    credit = None if payment.credit is None else _last(payment.credit, amount)
    caps = tuple(Cap(cap.budget_id, _last(cap.parts, amount)) for cap in payment.caps)
    return payment._replace(credit=credit, caps=caps)


def _last(parts: tuple[Part, ...], amount: int) -> tuple[Part, ...]:
    return tuple(reversed(spread(amount, reversed(parts))[0]))


def _correction_id(event_id: str, number: int) -> str:
    return ids.derived(event_id, f"{Anomaly.RESUMED.value}:{number}")
