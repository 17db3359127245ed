"""Usage that credit pays for: the event, what it takes from leases, and which request took it, in one transaction.

Invariant (I7): Σ amounts of a prepaid customer's events ≤ Σ credit that it was given, whatever happened to the leases
meanwhile. An event whose lease was closed (its holder was stopped, cut off or slow for longer than a lease lasts), or
that costs more than it held, is paid from what is free now. What nothing pays for is written off in the same
transaction by an adjustment that names the event: the tokens stay on record at their price, and the loss is the
operator's, since the customer must not be overspent. The adjustment's anomaly is `uncovered`.

Locks are taken in the order customers, rollups, leases. The usual case needs no customer's lock: leases that have room
grow. Otherwise everything since the savepoint is undone and done again under the locks.
"""

from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

import sqlalchemy as sa

from billing import ids
from billing.clock import Instant
from billing.credit.holds import Part
from billing.ledger import credit, events, leases, schema
from billing.money import PICO_PER_MICRO, Pico, join
from billing.usage import Outcome, UsageEvent

UNCOVERED = "uncovered"

_LEASES = schema.leases
_CHARGES = schema.credit_charges


class Charge(NamedTuple):
    """An event of a prepaid customer, and what of its amount falls on which leases, by the worker's own book."""

    event: UsageEvent
    parts: tuple[Part, ...]


def append(
    conn: sa.Connection, appended: Sequence[UsageEvent], charges: Iterable[Charge], shard: int, at: Instant
) -> tuple[UsageEvent, ...]:
    """Append events, some of which credit pays for, as `events.append` does; return what had to be written off.

    Charges of events that are not among those appended are ignored: they were recorded by an earlier commit.
    """
    present = {event.id for event in appended}
    due = [charge for charge in charges if charge.event.id in present]
    paid = {charge.event.id: charge.event.amount_pico for charge in due}
    with conn.begin_nested() as attempt:
        events.append(conn, appended, shard, paid)
        if _post_on_leases(conn, due):
            return ()
        attempt.rollback()
    for customer_id in sorted({charge.event.customer_id for charge in due}):
        credit.lock(conn, customer_id)
    events.append(conn, appended, shard, paid)
    _lock_leases(conn, {part.lease_id for charge in due for part in charge.parts})
    losses = tuple(loss for charge in due if (loss := _post_somewhere(conn, charge, at)) is not None)
    if losses:
        events.append(conn, losses, shard, {loss.id: loss.amount_pico for loss in losses})
        conn.execute(sa.insert(schema.adjustments), [_noted(loss, at) for loss in losses])
    return losses


def _post_on_leases(conn: sa.Connection, due: Sequence[Charge]) -> bool:
    """Let every lease grow by all that falls on it; False (and to be undone) where one is closed or too small."""
    sums: dict[str, int] = {}
    for charge in due:
        if sum(part.amount for part in charge.parts) != charge.event.amount_pico:
            return False
        for part in charge.parts:
            sums[part.lease_id] = sums.get(part.lease_id, 0) + part.amount
    if not all(_use(conn, lease_id, amount) for lease_id, amount in sorted(sums.items())):
        return False
    name(conn, [(charge.event, part) for charge in due for part in charge.parts])
    return True


def _use(conn: sa.Connection, lease_id: str, amount: int) -> bool:
    """Use up a part of an open lease if it has that; one conditional statement."""
    used = _LEASES.c.used_pico + amount
    query = sa.update(_LEASES).where(
        _LEASES.c.id == lease_id, _LEASES.c.closed_at.is_(None), used <= _LEASES.c.amount_pico
    )
    return conn.execute(query.values(used_pico=used).prefix_with("/* weir:charges.use */")).rowcount == 1


def _lock_leases(conn: sa.Connection, lease_ids: Collection[str]) -> None:
    """Lock leases in the order of their ids, which is everybody's."""
    query = sa.select(_LEASES.c.id).where(_LEASES.c.id.in_(sorted(lease_ids))).order_by(_LEASES.c.id)
    conn.execute(query.with_for_update()).all()


def _post_somewhere(conn: sa.Connection, charge: Charge, at: Instant) -> UsageEvent | None:
    """Pay an event from its leases as far as they go, then from what is free; return the adjustment for the rest.

    The customer and the leases are locked.
    """
    event, rest = charge.event, charge.event.amount_pico
    paid = []
    for part in charge.parts:
        share = min(part.amount, rest)
        if share > 0 and _use(conn, part.lease_id, share):
            paid.append(Part(part.lease_id, Pico(share)))
            rest -= share
    if rest > 0:
        _, burnt = leases.burn(conn, credit.read(conn, event.customer_id), rest, at)
        paid += burnt
        rest -= sum(part.amount for part in burnt)
    name(conn, [(event, part) for part in paid])
    return _written_off(event, rest) if rest > 0 else None


def name(conn: sa.Connection, paid: Sequence[tuple[UsageEvent, Part]]) -> None:
    """Write down which events used which leases."""
    rows = [
        {"lease_id": part.lease_id, "event_id": event.id, "at": event.finished_at, "amount_pico": part.amount}
        for event, part in paid
        if part.amount
    ]
    if rows:
        conn.execute(sa.insert(_CHARGES), rows)


def _written_off(event: UsageEvent, amount: int) -> UsageEvent:
    """Return the adjustment that takes back what nothing pays for; its tokens are 0, for the event keeps them."""
    return event._replace(
        id=ids.uuid7(),
        outcome=Outcome.ADJUSTMENT.value,
        input_tokens=0,
        cached_input_tokens=0,
        output_tokens=0,
        reasoning_tokens=0,
        cost_pico=0,
        amount_pico=-amount,
        anomaly=UNCOVERED,
        adjusts=event.id,
    )


def _noted(loss: UsageEvent, at: Instant) -> dict[str, object]:
    """Return the row that says of a write-off what it corrects; nothing becomes credit again, for nothing had paid."""
    return {
        "event_id": loss.id,
        "adjusts": loss.adjusts,
        "seq": 1,
        "run_key": loss.id,
        "change": UNCOVERED,
        "reason": "no credit was left for it",
        "actor": "gateway",
        "at": at,
        "credit_pico": 0,
    }


def of_events(
    conn: sa.Connection, customer_ids: Collection[str], event_ids: Collection[str], since: int
) -> dict[str, int]:
    """Return what credit paid of these events, which began at or after an instant; only those of which it paid any."""
    query = (
        sa.select(_CHARGES.c.event_id, _CHARGES.c.amount_pico)
        .join(_LEASES, _LEASES.c.id == _CHARGES.c.lease_id)
        .where(
            _LEASES.c.customer_id.in_(sorted(customer_ids)),
            sa.or_(_LEASES.c.closed_at.is_(None), _LEASES.c.closed_at >= since),
            _CHARGES.c.event_id.in_(sorted(event_ids)),
        )
    )
    paid: dict[str, int] = {}
    for event_id, amount in conn.execute(query):
        paid[event_id] = paid.get(event_id, 0) + amount
    return paid


def balance_at(conn: sa.Connection, customer_id: str, at: Instant) -> Pico:
    """Return a customer's balance at an instant of the past: what was left then, less what requests had used by then.

    Requests on leases that were closed by then are in the entries already.
    """
    then = credit.read(conn, customer_id, at)
    alive = [grant for grant in then.grants if not grant.is_expired(at)]
    amount = _CHARGES.c.amount_pico
    query = (
        sa.select(sa.func.sum(amount // PICO_PER_MICRO), sa.func.sum(amount % PICO_PER_MICRO))
        .join(_LEASES, _LEASES.c.id == _CHARGES.c.lease_id)
        .where(
            _LEASES.c.customer_id == customer_id,
            _LEASES.c.grant_id.in_([grant.id for grant in alive]),
            sa.or_(_LEASES.c.closed_at.is_(None), _LEASES.c.closed_at > at),
            _CHARGES.c.at <= at,
        )
    )
    micro, pico = conn.execute(query).one()
    return Pico(sum(grant.left for grant in alive) - then.owed - join(int(micro or 0), int(pico or 0)))
