"""Corrections of recorded events: new events that name the original, and what they give back, in one transaction.

Invariant (I5): no event changes; an adjustment is an event of its own with the difference, and a row of `adjustments`
that says which one it corrects, as the how-manieth, by which command and why. Σ events = Σ rollups holds as for every
event. Two commands at once can not both give an event back: the customer is locked, and (original, seq) is unique. The
same command twice (`run_key`) corrects each event once: (run_key, original) is unique, too.

An adjustment counts in the billing window of the moment in which it is made, never in the original's: that one may be
invoiced. What is given back of usage that goes to Stripe lowers what later windows send (`stripe_sync.batches`), since
a meter event is never negative. What credit had paid for becomes credit again, and is never Stripe's business; of an
event that both paid for, the part that was paid last, Stripe's, is given back first. What is charged more to a prepaid
customer is burnt from its free credit, or refused (I7).

Locks are taken in the order customers, rollups, leases.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from billing import clock, ids
from billing.clock import Instant
from billing.errors import NotFoundError, RefusedError
from billing.ledger import audit, charges, credit, events, leases, partitions, plan_counts, schema, versions
from billing.ledger.accounts import Customer, get_customer
from billing.money import Pico, amount_number
from billing.pricing import correction
from billing.pricing.book import PriceBook
from billing.pricing.correction import Change, Difference, Reprice, Standing
from billing.pricing.terms import MONEY_ALONE, TERMS
from billing.usage import Outcome, Usage, UsageEvent

MEANWHILE = "it was corrected meanwhile"
"""Why an event was not brought to its target: what it comes to now has to be looked at again."""

SHARD = -1
"""Rollup rows of its own, so that no worker that records waits for a long correction."""

CHUNK_ROWS = 500
"""Events that are corrected in one transaction."""

_EVENTS = schema.usage_events
_ADJUSTMENTS = schema.adjustments
_FIELDS = [_EVENTS.c[name] for name in UsageEvent._fields]


@dataclass(frozen=True, slots=True)
class Choice:
    """Which events are meant: those that match everything that is given; [since, until) is when they began."""

    since: Instant | None = None
    until: Instant | None = None
    equal: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Prices:
    """New prices: what a book says of an instant, or (None) of each event's own."""

    book: PriceBook
    at: Instant | None


@dataclass(frozen=True, slots=True)
class Targets:
    """What events shall come to, by id: the amount, and how many corrections each had when that was worked out."""

    nets: Mapping[str, tuple[Pico, int]]


Wish = Change | Prices | Targets


@dataclass(frozen=True, slots=True)
class Order:
    """One command: its key, what to change, why, by whom and when."""

    run_key: str
    change: str
    reason: str
    actor: str
    at: Instant
    currency: str


@dataclass(frozen=True, slots=True)
class Adjusted:
    """What became of one event: its adjustment, or (None) why there is none.

    `because` also tells, beside an adjustment, that this command's key had made it before.
    """

    original: UsageEvent
    adjustment: UsageEvent | None
    because: str | None = None

    @property
    def is_new(self) -> bool:
        """Whether the adjustment was made just now."""
        return self.adjustment is not None and self.because is None


@dataclass(frozen=True, slots=True)
class Note:
    """What is known of an adjustment beside its event: the original, the command, why, by whom, when."""

    event_id: str
    adjusts: str
    change: str
    reason: str
    at: Instant
    amount: Pico


@dataclass(slots=True)
class _Facts:
    """An event and all that came after it."""

    event: UsageEvent
    later: list[UsageEvent]
    by_this_run: str | None
    change_of_run: str | None
    paid_by_credit: int
    changes: list[str]

    @property
    def amount(self) -> Pico:
        """What the event comes to now."""
        return Pico(self.event.amount_pico + sum(each.amount_pico for each in self.later))

    @property
    def is_refunded(self) -> bool:
        """Whether it was given back as a whole, and does not come to nothing by a plan's terms."""
        is_given = TERMS not in self.changes or any(change.startswith(MONEY_ALONE) for change in self.changes)
        return self.event.amount_pico > 0 and self.amount == 0 and is_given


def chosen(conn: sa.Connection, choice: Choice, after: str = "", rows_max: int = CHUNK_ROWS) -> list[str]:
    """Return the ids of the next events after id `after` that are meant, in their order; no adjustments."""
    query = sa.select(_EVENTS.c.id).where(_EVENTS.c.adjusts.is_(None), _EVENTS.c.id > after)
    if choice.since is not None:  # An id is made a moment before its request starts; the bounds prune the months.
        since = Instant(max(0, choice.since - clock.HOUR_US))
        query = query.where(_EVENTS.c.id >= _bound(since), _EVENTS.c.started_at >= choice.since)
    if choice.until is not None:
        query = query.where(
            _EVENTS.c.id < _bound(Instant(choice.until + clock.HOUR_US)), _EVENTS.c.started_at < choice.until
        )
    for name, value in choice.equal.items():
        query = query.where(_EVENTS.c[name] == value)
    return list(conn.execute(query.order_by(_EVENTS.c.id).limit(rows_max)).scalars())


def _bound(instant: Instant) -> str:
    return partitions.bound(clock.to_datetime(instant))


def adjust(conn: sa.Connection, event_ids: Sequence[str], order: Order, change: Wish) -> list[Adjusted]:
    """Correct these events and return what became of each, in their order.

    Raises NotFoundError for an unknown id, RefusedError if the key was another command's, or if prepaid credit does
    not cover what is charged; what can not be done to an event is told in its `because`.
    """
    facts = _load(conn, event_ids, order)
    customers = {each: get_customer(conn, each) for each in sorted({fact.event.customer_id for fact in facts})}
    free: dict[str, int] = {}
    judged = [
        _aim(conn, fact, change, customers[fact.event.customer_id], order, free)
        if isinstance(change, Targets)
        else _judge(conn, fact, order, change)
        for fact in facts
    ]
    made = [
        _adjustment(fact.event, found, customers[fact.event.customer_id], order.at)
        if isinstance(found, Difference)
        else None
        for fact, found in zip(facts, judged, strict=True)
    ]
    for _, quote in sorted({found.quote.ref: found.quote for found in judged if isinstance(found, Difference)}.items()):
        versions.store_quote(conn, quote)
    _write(conn, facts, made, customers, order)
    return [_told(fact, found, new) for fact, found, new in zip(facts, judged, made, strict=True)]


def preview(conn: sa.Connection, event_ids: Sequence[str], order: Order, change: Change | Prices) -> list[Adjusted]:
    """Return what `adjust` would make of these events, and leave everything as it is. Raises what `adjust` does."""
    with conn.begin_nested() as attempt:
        found = adjust(conn, event_ids, order, change)
        attempt.rollback()
    return found


def _told(fact: _Facts, found: Difference | str, new: UsageEvent | None) -> Adjusted:
    if new is not None:
        return Adjusted(fact.event, new)
    before = next((each for each in fact.later if each.id == fact.by_this_run), None)
    return Adjusted(fact.event, before, because=str(found))


def _judge(conn: sa.Connection, fact: _Facts, order: Order, change: Change | Prices) -> Difference | str:
    """Return the difference to write, or why there is none."""
    if fact.by_this_run is not None:
        if fact.change_of_run != order.change:
            raise RefusedError(
                f"--key {order.run_key} was used for another change of {fact.event.id} ({fact.change_of_run}); take"
                " another key"
            )
        return "this key has corrected it before"
    standing = _standing(conn, fact)
    try:
        asked = _reprice(fact.event, change, order.change) if isinstance(change, Prices) else change
        found = correction.difference(standing, asked)
    except RefusedError as error:
        return str(error)
    return "there is nothing to change" if found.is_nothing else found


def _aim(
    conn: sa.Connection, fact: _Facts, targets: Targets, customer: Customer, order: Order, free: dict[str, int]
) -> Difference | str:
    """Return the difference to what an event shall come to, or why there is none.

    A prepaid customer is charged no more than its free credit (I7), of which `free` keeps what is left.
    """
    net, corrections = targets.nets[fact.event.id]
    if corrections != len(fact.later):
        return MEANWHILE
    amount = net - fact.amount
    if amount > 0 and customer.is_prepaid:
        if customer.id not in free:
            free[customer.id] = max(0, leases.free(conn, credit.read(conn, customer.id), order.at))
        amount = min(amount, free[customer.id])
        free[customer.id] -= amount
    standing = _standing(conn, fact)
    return Difference(correction.NOTHING, Pico(0), Pico(amount), standing.quote) if amount else "it is that already"


def _reprice(event: UsageEvent, prices: Prices, when: str) -> Reprice:
    instant = Instant(event.started_at) if prices.at is None else prices.at
    quote = prices.book.quote(event.model, event.customer_id, instant)
    if quote is None:
        raise RefusedError(f"{event.model} has no price at {clock.instant_text(instant)}")
    return Reprice(quote, when)


def _standing(conn: sa.Connection, fact: _Facts) -> Standing:
    every = (fact.event, *fact.later)
    return Standing(
        usage=Usage(*(sum(getattr(each, name) for each in every) for name in Usage._fields)),
        cost=Pico(sum(each.cost_pico for each in every)),
        amount=fact.amount,
        quote=versions.load_quote(conn, every[-1].price_ref),
        is_refunded=fact.is_refunded,
        is_under_terms=TERMS in fact.changes,
    )


def _adjustment(event: UsageEvent, found: Difference, customer: Customer, at: Instant) -> UsageEvent:
    return event._replace(
        id=ids.uuid7(),
        started_at=at,
        first_token_at=None,
        finished_at=at,
        outcome=Outcome.ADJUSTMENT.value,
        **found.usage._asdict(),
        cost_pico=found.cost,
        amount_pico=found.amount,
        price_ref=found.quote.ref,
        window_start=clock.window_start(at, customer.period_start, customer.period_end),
        anomaly=None,
        adjusts=event.id,
        prompt_us=0,
        generation_us=0,
    )


# what there is


def _load(conn: sa.Connection, event_ids: Sequence[str], order: Order) -> list[_Facts]:
    """Lock the events' customers, and return all that is recorded of each. Raises NotFoundError, RefusedError."""
    found = {row.id: row for row in _events(conn, event_ids)}
    for event_id in event_ids:
        if event_id not in found:
            raise NotFoundError(f"no usage is recorded for the request {event_id!r} (x-request-id)")
        if (original := found[event_id].adjusts) is not None:
            raise RefusedError(f"{event_id} is itself an adjustment; correct {original}, which it names")
    for customer_id in sorted({row.customer_id for row in found.values()}):
        credit.lock(conn, customer_id)
    notes: dict[str, list[sa.Row[*tuple[Any, ...]]]] = {event_id: [] for event_id in event_ids}
    columns = (_ADJUSTMENTS.c.event_id, _ADJUSTMENTS.c.adjusts, _ADJUSTMENTS.c.run_key, _ADJUSTMENTS.c.change)
    query = sa.select(*columns).where(_ADJUSTMENTS.c.adjusts.in_(event_ids)).order_by(_ADJUSTMENTS.c.seq)
    for note in conn.execute(query):
        notes[note.adjusts].append(note)
    later = {row.id: row for row in _events(conn, [note.event_id for each in notes.values() for note in each])}
    paid = _paid_by_credit(conn, found, notes)
    facts = []
    for event_id in event_ids:
        of_run = next((note for note in notes[event_id] if note.run_key == order.run_key), None)
        facts.append(
            _Facts(
                found[event_id],
                [later[note.event_id] for note in notes[event_id]],
                None if of_run is None else of_run.event_id,
                None if of_run is None else of_run.change,
                paid.get(event_id, 0),
                [note.change for note in notes[event_id]],
            )
        )
    return facts


def _events(conn: sa.Connection, event_ids: Collection[str]) -> list[UsageEvent]:
    if not event_ids:
        return []
    rows = conn.execute(sa.select(*_FIELDS).where(_EVENTS.c.id.in_(sorted(event_ids))))
    return [UsageEvent(*row) for row in rows]


def _paid_by_credit(
    conn: sa.Connection,
    found: Mapping[str, UsageEvent],
    notes: Mapping[str, Sequence[sa.Row[*tuple[Any, ...]]]],
) -> dict[str, int]:
    """Return what credit pays of each event now: charges of it and of its adjustments, less what was given back."""
    original = {event_id: event_id for event_id in found}
    original |= {note.event_id: event_id for event_id, each in notes.items() for note in each}
    paid: dict[str, int] = {}
    since = min(event.started_at for event in found.values())
    charged = charges.of_events(conn, {event.customer_id for event in found.values()}, original, since)
    for event_id, amount in charged.items():
        paid[original[event_id]] = paid.get(original[event_id], 0) + amount
    query = sa.select(_ADJUSTMENTS.c.adjusts, _ADJUSTMENTS.c.credit_pico).where(
        _ADJUSTMENTS.c.adjusts.in_(sorted(found)), _ADJUSTMENTS.c.credit_pico != 0
    )
    for row in conn.execute(query):
        paid[row.adjusts] = paid.get(row.adjusts, 0) + row.credit_pico
    return paid


# what is written


def _write(
    conn: sa.Connection,
    facts: Sequence[_Facts],
    made: Sequence[UsageEvent | None],
    customers: Mapping[str, Customer],
    order: Order,
) -> None:
    pairs = [(fact, event) for fact, event in zip(facts, made, strict=True) if event is not None]
    if not pairs:
        return
    to_credit = {event.id: _to_credit(fact, event) for fact, event in pairs}
    burns = [event for _, event in pairs if event.amount_pico > 0 and customers[event.customer_id].is_prepaid]
    by_credit = {event_id: -amount for event_id, amount in to_credit.items() if amount}
    by_credit |= {event.id: event.amount_pico for event in burns}
    events.append(conn, [event for _, event in pairs], SHARD, by_credit)
    for event in burns:
        _burn(conn, event, order)
    rows = [_row(event, len(fact.later) + 1, order, credit_pico=-to_credit[event.id]) for fact, event in pairs]
    conn.execute(sa.insert(_ADJUSTMENTS), rows)
    if order.change != TERMS:
        plan_counts.touch(conn, [event for _, event in pairs])
    _give_credit(conn, [event for _, event in pairs], to_credit, order)
    _record(conn, [event for _, event in pairs], order)


def _to_credit(fact: _Facts, event: UsageEvent) -> int:
    """Return how much of what is given back becomes credit: all beyond the part that credit did not pay for."""
    if event.amount_pico >= 0:
        return 0
    metered = max(0, fact.amount - fact.paid_by_credit)
    return max(0, -event.amount_pico - metered)


def _burn(conn: sa.Connection, event: UsageEvent, order: Order) -> None:
    """Take what is charged to a prepaid customer from its free credit. Raises RefusedError if that is less."""
    before = credit.read(conn, event.customer_id)
    free = leases.free(conn, before, order.at)
    if free < event.amount_pico:
        raise RefusedError(
            f"{event.adjusts}: the prepaid customer has {amount_number(free)} {order.currency} of credit left,"
            f" less than the {amount_number(Pico(event.amount_pico))} to be charged; nothing was changed"
        )
    _, parts = leases.burn(conn, before, event.amount_pico, order.at)
    charges.name(conn, [(event, part) for part in parts])


def _row(event: UsageEvent, seq: int, order: Order, *, credit_pico: int) -> dict[str, object]:
    return {
        "event_id": event.id,
        "adjusts": event.adjusts,
        "seq": seq,
        "run_key": order.run_key,
        "change": order.change,
        "reason": order.reason,
        "actor": order.actor,
        "at": order.at,
        "credit_pico": credit_pico,
    }


def _give_credit(
    conn: sa.Connection, adjustments: Iterable[UsageEvent], to_credit: Mapping[str, int], order: Order
) -> None:
    """Give each customer back, as one credit without an expiry, what credit had paid for."""
    owed: dict[str, list[UsageEvent]] = {}
    for event in adjustments:
        if to_credit[event.id]:
            owed.setdefault(event.customer_id, []).append(event)
    for customer_id, each in sorted(owed.items()):
        amount = Pico(sum(to_credit[event.id] for event in each))
        source = f"adjustment:{each[0].id}"
        credit.grant(
            conn, customer_id, amount, order.currency, order.at, order.actor, reason=order.reason, source=source
        )


def _record(conn: sa.Connection, adjustments: Sequence[UsageEvent], order: Order) -> None:
    """One line of the audit log for each customer: how many events, and what they come to."""
    for customer_id in sorted({event.customer_id for event in adjustments}):
        of_customer = [event for event in adjustments if event.customer_id == customer_id]
        details = {
            "run_key": order.run_key,
            "change": order.change,
            "reason": order.reason,
            "events": len(of_customer),
            "first": of_customer[0].adjusts,
            "last": of_customer[-1].adjusts,
            "amount": amount_number(Pico(sum(event.amount_pico for event in of_customer))),
            "currency": order.currency,
        }
        audit.record(conn, at=order.at, actor=order.actor, action="usage.adjust", subject=customer_id, details=details)


def of_request(conn: sa.Connection, event_id: str) -> list[Note]:
    """Return the adjustments of one event, the oldest first."""
    query = sa.select(_ADJUSTMENTS).where(_ADJUSTMENTS.c.adjusts == event_id).order_by(_ADJUSTMENTS.c.seq)
    rows = conn.execute(query).all()
    amounts = {event.id: event.amount_pico for event in _events(conn, [row.event_id for row in rows])}
    return [
        Note(row.event_id, row.adjusts, row.change, row.reason, Instant(row.at), Pico(amounts[row.event_id]))
        for row in rows
    ]


def note_of(conn: sa.Connection, event_id: str) -> str | None:
    """Return why an adjustment was made; None if the id is no adjustment's."""
    return conn.execute(sa.select(_ADJUSTMENTS.c.reason).where(_ADJUSTMENTS.c.event_id == event_id)).scalar()
