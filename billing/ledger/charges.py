"""Usage that credit pays for or budgets limit: the event, and what it takes from leases, in one transaction.

Invariant (I7): Σ amounts of a prepaid customer's events ≤ Σ credit that it was given, and what is used in a period is
at most its hard budgets, whatever happened to the leases meanwhile. An event whose lease was closed (its holder was
stopped, cut off or slow for longer than a lease lasts), or that costs more than it held, takes from what is free now.
What nothing covers is written off in the same transaction by an adjustment that names the event: the tokens stay on
record at their price, and the loss is the operator's, since the customer must not be overspent. The adjustment's
anomaly is `uncovered`.

Who is not prepaid and has credit uses that first, as far as it goes; the rest is metered.

Locks are taken in the order customers, rollups, leases. The usual case needs no customer's lock: leases that have room
grow. Otherwise everything since the savepoint is undone and done again under the locks.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple
from zoneinfo import ZoneInfo

import sqlalchemy as sa

from billing import ids
from billing.clock import Instant
from billing.credit.holds import Part
from billing.ledger import budgets, credit, events, leases, plan_counts, schema
from billing.money import PICO_PER_MICRO, Pico, join
from billing.usage import Outcome, UsageEvent

UNCOVERED = "uncovered"

_LEASES = schema.leases
_CHARGES = schema.credit_charges


class Cap(NamedTuple):
    """A budget that an event falls under, and what of its amount falls on which leases of it."""

    budget_id: str
    parts: tuple[Part, ...]


class Payment(NamedTuple):
    """What of an event's amount falls on which leases, by its worker's own book.

    `credit` are parts of the customer's credit, None if it has none. `is_prepaid`: credit has to pay for all of it. The
    zone is that of the budgets' days.
    """

    credit: tuple[Part, ...] | None
    is_prepaid: bool = True
    caps: tuple[Cap, ...] = ()
    zone: str = "UTC"


class Charge(NamedTuple):
    """An event and its payment."""

    event: UsageEvent
    parts: tuple[Part, ...] | None
    is_prepaid: bool = True
    caps: tuple[Cap, ...] = ()
    zone: str = "UTC"

    @property
    def all_parts(self) -> Iterator[Part]:
        """What falls on leases of any kind."""
        yield from self.parts or ()
        for cap in self.caps:
            yield from cap.parts


def append(
    conn: sa.Connection,
    appended: Sequence[UsageEvent],
    charges: Iterable[Charge],
    shard: int,
    at: Instant,
) -> tuple[UsageEvent, ...]:
    """Append events, some of which are charged, as `events.append` does; return what had to be written off.

    Charges of events that are not among those appended are ignored: they were recorded by an earlier commit.
    """
    present = {event.id for event in appended}
    due = [charge for charge in charges if charge.event.id in present]
    with conn.begin_nested() as attempt:
        paid = {charge.event.id: charge.event.amount_pico for charge in due if charge.parts is not None}
        events.append(conn, appended, shard, paid)
        if _post_on_leases(conn, due):
            return ()
        attempt.rollback()
    for customer_id in sorted({charge.event.customer_id for charge in due}):
        credit.lock(conn, customer_id)
    prepaid = {charge.event.id: charge.event.amount_pico for charge in due if charge.is_prepaid}
    events.append(conn, appended, shard, prepaid)
    _lock_leases(conn, {part.lease_id for charge in due for part in charge.all_parts})
    uncovered = {charge.event.id: _use_budgets(conn, charge) for charge in due}
    forgiven: Counter[str] = Counter()
    losses = []
    for charge in due:
        excess = _excess(conn, charge, uncovered[charge.event.id], forgiven)
        lost = _post_somewhere(conn, charge, excess, shard, at)
        if lost > 0:
            losses.append(_written_off(charge.event, lost))
            forgiven.update({cap.budget_id: lost for cap in charge.caps})
    if losses:
        written = {loss.id: loss.amount_pico for loss in losses if loss.adjusts in prepaid}
        events.append(conn, losses, shard, written)
        conn.execute(sa.insert(schema.adjustments), [_noted(loss, at) for loss in losses])
        plan_counts.touch(conn, losses)
    return tuple(losses)


def _post_on_leases(conn: sa.Connection, due: Sequence[Charge]) -> bool:
    """Let every lease grow by all that falls on it; False (and to be undone) where one is closed or too small."""
    sums: dict[str, int] = {}
    for charge in due:
        kinds = [cap.parts for cap in charge.caps] + ([] if charge.parts is None else [charge.parts])
        if any(sum(part.amount for part in parts) != charge.event.amount_pico for parts in kinds):
            return False
        for part in charge.all_parts:
            sums[part.lease_id] = sums.get(part.lease_id, 0) + part.amount
    if not all(_use(conn, lease_id, amount) for lease_id, amount in sorted(sums.items())):
        return False
    name(conn, [(charge.event, part) for charge in due for part in charge.parts or ()])
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


def _use_budgets(conn: sa.Connection, charge: Charge) -> dict[str, int]:
    """Use an event's leases of budgets; return what they do not cover of it, by budget."""
    rests: dict[str, int] = {}
    for cap in charge.caps:
        rest: int = charge.event.amount_pico
        for part in cap.parts:
            share = min(part.amount, rest)
            if share > 0 and _use(conn, part.lease_id, share):
                rest -= share
        rests[cap.budget_id] = rest
    return rests


def _excess(conn: sa.Connection, charge: Charge, uncovered: Mapping[str, int], forgiven: Mapping[str, int]) -> int:
    """Return by how much an event exceeds its budgets: of what no lease covers, what is more than was free.

    All events of this commit count as used and have used their leases; `forgiven` is what will be taken back of others.
    """
    most, zone = 0, ZoneInfo(charge.zone)
    for budget_id, rest in uncovered.items():
        found = budgets.state(conn, budget_id, zone, charge.event.window_start) if rest > 0 else None
        if found is not None:
            most = max(most, min(rest, found.held - found.left - forgiven.get(budget_id, 0)))
    return most


def _post_somewhere(conn: sa.Connection, charge: Charge, excess: int, shard: int, at: Instant) -> int:
    """Have credit pay for an event, but for what exceeds its budgets; return what has to be written off.

    The customer and the leases are locked, and the event counts as used.
    """
    event = charge.event
    allowed = event.amount_pico - excess
    paid = [] if charge.parts is None else _paid(conn, charge, charge.parts, allowed, at)
    name(conn, [(event, part) for part in paid])
    covered = sum(part.amount for part in paid)
    if charge.is_prepaid:
        return event.amount_pico - covered
    events.credit(conn, event, shard, covered)
    return excess


def _paid(conn: sa.Connection, charge: Charge, parts: Iterable[Part], allowed: int, at: Instant) -> list[Part]:
    """Pay for so much of an event with its leases of credit, then with what credit is free; return what paid."""
    paid = []
    for part in parts:
        share = min(part.amount, allowed)
        if share > 0 and _use(conn, part.lease_id, share):
            paid.append(Part(part.lease_id, Pico(share)))
            allowed -= share
    if allowed > 0:
        customer_id = charge.event.customer_id
        paid += leases.burn(conn, credit.read(conn, customer_id), allowed, at)[1]
    return paid


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
        image_input_tokens=0,
        audio_input_tokens=0,
        anomaly=UNCOVERED,
        adjusts=event.id,
        prompt_us=0,
        generation_us=0,
    )


def _noted(loss: UsageEvent, at: Instant) -> dict[str, object]:
    """Return the row that says of a write-off what it corrects; nothing becomes credit again, for nothing had paid."""
    return {
        "event_id": loss.id,
        "adjusts": loss.adjusts,
        "seq": 1,
        "run_key": loss.id,
        "change": UNCOVERED,
        "reason": "no credit or budget was left for it",
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
