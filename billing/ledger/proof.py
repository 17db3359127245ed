"""`weir audit ledger`: the ledger against itself. Each audit is one invariant and names every row that breaks it.

    events = rollups            to the token and the unit, for each hour, key, model and shard
    rollups assigned − credit   = Σ units of batches + carry, for each customer; batches form a chain
    amounts                     = tokens × the unit prices of the quote that the event names
    corrections                 name an event that exists, and are noted
    credit                      entries form a chain that adds up; leases used = Σ charges, closed ones are burnt
    checkpoints                 say what they would bill

Everything is read in the caller's one snapshot. Sums run over whole micro-units and the picounits left, as everywhere:
both engines divide towards zero, and remainders have the sign of what was divided, so that each pair adds up exactly.
Memory grows with the number of rollup rows, not of events.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import sqlalchemy as sa

from billing.clock import HOUR_US
from billing.ledger import due as dues
from billing.ledger import schema
from billing.ledger.events import WORKER_SHARDS
from billing.money import PICO_PER_MICRO, Pico, join
from billing.usage import Outcome, Usage

_EVENTS, _ROLLUPS, _BATCHES = schema.usage_events, schema.usage_hourly, schema.meter_batches
_ENTRIES, _LEASES, _CHARGES = schema.credit_entries, schema.leases, schema.credit_charges
_QUOTES, _NOTES, _INFLIGHT = schema.price_quotes, schema.adjustments, schema.inflight

_WORK = schema.upstream_hourly
_WORK_KEY = ("hour", "upstream", "model", "shard")
_TIMES = ("prompt_us", "generation_us")
_KEY = ("customer_id", "window_start", "api_key_id", "model", "shard")
_TOKENS = Usage._fields


class Finding(NamedTuple):
    """A row that breaks an invariant: which audit found it, whose row it is, and what is wrong with it."""

    audit: str
    customer_id: str | None
    row: str
    fault: str


@dataclass(frozen=True, slots=True)
class Totals:
    """What one customer's usage comes to in each book; `units` and `carry` are what batches made of it."""

    customer_id: str
    events: Pico
    rollups: Pico
    credit: Pico
    unassigned: Pico
    units: int
    carry: Pico


Audit = Callable[[sa.Connection], Iterator[Finding]]


def run(conn: sa.Connection) -> Iterator[Finding]:
    """Run every audit, and give all that they find."""
    for audit in AUDITS:
        yield from audit(conn)


def totals(conn: sa.Connection) -> list[Totals]:
    """Return every customer's sums, by id."""
    events = _by_customer(conn, _EVENTS, _whole(_EVENTS.c.amount_pico), _rest(_EVENTS.c.amount_pico))
    names = ("amount", "credit", "assigned")
    pairs = [_ROLLUPS.c[f"{name}_{part}"] for name in names for part in ("micro", "pico")]
    rollups = _by_customer(conn, _ROLLUPS, *pairs)
    chains = dict(_chains(conn))
    found = []
    for customer_id in sorted({*events, *rollups, *chains}):
        sums = rollups.get(customer_id, [0] * len(pairs))
        amount, credit, assigned = (join(sums[2 * index], sums[2 * index + 1]) for index in range(len(names)))
        batches = chains.get(customer_id, [])
        found.append(
            Totals(
                customer_id,
                events=join(*events.get(customer_id, (0, 0))),
                rollups=amount,
                credit=credit,
                unassigned=Pico(amount - assigned),
                units=sum(batch.units for batch in batches),
                carry=Pico(batches[-1].carry_pico if batches else 0),
            )
        )
    return found


def total(found: Sequence[Totals]) -> Pico:
    """Return what all customers' events come to."""
    return Pico(sum(each.events for each in found))


def _events_are_rolled_up(conn: sa.Connection) -> Iterator[Finding]:
    name = "events = rollups"
    own = [_EVENTS.c[column] for column in _KEY]
    money = [part(_EVENTS.c[column]) for column in ("cost_pico", "amount_pico") for part in (_whole, _rest)]
    sums = [sa.func.sum(column) for column in (*(_EVENTS.c[each] for each in _TOKENS), *money)]
    requests = sa.func.sum(sa.case((_EVENTS.c.adjusts.is_(None), 1), else_=0))
    left = {tuple(row[:5]): _summed(row[5:]) for row in conn.execute(sa.select(*own, requests, *sums).group_by(*own))}
    columns = (*_KEY, "requests", *_TOKENS, "cost_micro", "cost_pico", "amount_micro", "amount_pico")
    for row in conn.execute(sa.select(*(_ROLLUPS.c[column] for column in columns))):
        expected = left.pop(tuple(row[:5]), (0,) * (len(_TOKENS) + 3))
        found = _summed(row[5:])
        if found != expected:
            yield Finding(
                name, row[0], _rollup_of(row), f"holds {_counts(found)}; its events come to {_counts(expected)}"
            )
    for key, expected in sorted(left.items()):
        yield Finding(name, key[0], _rollup_of(key), f"is missing; its events come to {_counts(expected)}")


def _events_are_the_work_of_upstreams(conn: sa.Connection) -> Iterator[Finding]:
    """Times alone: what was recorded before they were measured has none, and no row."""
    name = "events = upstreams' time"
    hour = (_EVENTS.c.window_start - _EVENTS.c.window_start % HOUR_US).label("hour")
    worker = (_EVENTS.c.shard % WORKER_SHARDS).label("worker")
    own = (hour, _EVENTS.c.upstream, _EVENTS.c.model, worker)
    query = sa.select(*own, *(sa.func.sum(_EVENTS.c[each]) for each in _TIMES)).group_by(*own)
    left = {tuple(row[:4]): (int(row[4]), int(row[5])) for row in conn.execute(query)}
    columns = [_WORK.c[each] for each in (*_WORK_KEY, *_TIMES)]
    for row in conn.execute(sa.select(*columns)):
        expected = left.pop(tuple(row[:4]), (0, 0))
        if tuple(row[4:]) != expected:
            yield Finding(name, None, _work_of(row), f"holds {tuple(row[4:])} us; its events come to {expected}")
    for key, expected in sorted(left.items()):
        if expected != (0, 0):
            yield Finding(name, None, _work_of(key), f"is missing; its events come to {expected} us")


def _assigned_is_in_batches(conn: sa.Connection) -> Iterator[Finding]:
    name = "assigned = units + carry"
    columns = [_ROLLUPS.c[f"{each}_{part}"] for each in ("assigned", "credit") for part in ("micro", "pico")]
    rollups = _by_customer(conn, _ROLLUPS, *columns)
    chains = dict(_chains(conn))
    for customer_id in sorted({*rollups, *chains}):
        sums = rollups.get(customer_id, [0, 0, 0, 0])
        assigned = join(sums[0], sums[1]) - join(sums[2], sums[3])
        batches = chains.get(customer_id, [])
        held = sum(batch.units * batch.unit_pico for batch in batches) + (batches[-1].carry_pico if batches else 0)
        if assigned != held:
            yield Finding(name, customer_id, customer_id, f"{assigned} pico assigned; batches and carry hold {held}")


def _batches_form_a_chain(conn: sa.Connection) -> Iterator[Finding]:
    for customer_id, batches in _chains(conn):
        carry = 0
        for number, batch in enumerate(batches, 1):
            if batch.seq != number:
                yield Finding("chain of batches", customer_id, batch.id, f"has seq {batch.seq}, not {number}")
            if batch.carry_in_pico != carry:
                fault = f"takes over {batch.carry_in_pico} pico; the batch before it left {carry}"
                yield Finding("chain of batches", customer_id, batch.id, fault)
            carry = batch.carry_pico


def _amounts_are_tokens_times_prices(conn: sa.Connection) -> Iterator[Finding]:
    name = "amount = tokens × prices"
    joined = _EVENTS.outerjoin(_QUOTES, _QUOTES.c.ref == _EVENTS.c.price_ref)
    cost, amount = _charge("cost_"), _charge("")
    wrong = sa.or_(_QUOTES.c.ref.is_(None), _EVENTS.c.cost_pico != cost, _EVENTS.c.amount_pico != amount)
    columns = (_EVENTS.c.id, _EVENTS.c.customer_id, _EVENTS.c.cost_pico, _EVENTS.c.amount_pico, cost, amount)
    query = sa.select(*columns, _EVENTS.c.price_ref, _QUOTES.c.ref).select_from(joined)
    for row in conn.execute(query.where(_EVENTS.c.adjusts.is_(None), wrong).order_by(_EVENTS.c.id)):
        if row[7] is None:
            yield Finding(name, row[1], row[0], f"names the quote {row[6]!r}, which is not there")
        else:
            yield Finding(
                name, row[1], row[0], f"cost {row[2]}, amount {row[3]} pico; its prices make {row[4]}, {row[5]}"
            )


def _corrections_name_an_event(conn: sa.Connection) -> Iterator[Finding]:
    name = "corrections"
    original, note = _EVENTS.alias("original"), _NOTES.alias("note")
    joined = _EVENTS.outerjoin(original, original.c.id == _EVENTS.c.adjusts)
    joined = joined.outerjoin(note, sa.and_(note.c.event_id == _EVENTS.c.id, note.c.adjusts == _EVENTS.c.adjusts))
    columns = (_EVENTS.c.id, _EVENTS.c.customer_id, _EVENTS.c.adjusts, original.c.customer_id, note.c.event_id)
    is_one = sa.or_(_EVENTS.c.outcome == Outcome.ADJUSTMENT.value, _EVENTS.c.adjusts.is_not(None))
    for row in conn.execute(sa.select(*columns).select_from(joined).where(is_one).order_by(_EVENTS.c.id)):
        if row[3] is None:
            yield Finding(name, row[1], row[0], f"corrects {row[2]!r}, which is not there")
        elif row[3] != row[1]:
            yield Finding(name, row[1], row[0], f"corrects {row[2]}, which is {row[3]}'s")
        elif row[4] is None:
            yield Finding(name, row[1], row[0], "is not noted among the adjustments")


def _credit_forms_a_chain(conn: sa.Connection) -> Iterator[Finding]:
    name = "chain of credit"
    columns = ("id", "customer_id", "seq", "grant_id", "amount_micro", "amount_pico", "left_micro", "left_pico")
    query = sa.select(*(_ENTRIES.c[column] for column in columns)).order_by(_ENTRIES.c.customer_id, _ENTRIES.c.seq)
    customer_id, number = None, 0
    left: dict[str, int] = defaultdict(int)
    for row in conn.execute(query):
        if row.customer_id != customer_id:
            customer_id, number = row.customer_id, 0
            left.clear()
        number += 1
        left[row.grant_id] += join(row.amount_micro, row.amount_pico)
        if row.seq != number:
            yield Finding(name, customer_id, row.id, f"has seq {row.seq}, not {number}")
        if left[row.grant_id] != join(row.left_micro, row.left_pico):
            fault = (
                f"says that {join(row.left_micro, row.left_pico)} pico are left; its entries make {left[row.grant_id]}"
            )
            yield Finding(name, customer_id, row.id, fault)


def _leases_are_charged_and_burnt(conn: sa.Connection) -> Iterator[Finding]:
    name = "leases = charges = burns"
    amount = _CHARGES.c.amount_pico
    query = sa.select(_CHARGES.c.lease_id, sa.func.sum(_whole(amount)), sa.func.sum(_rest(amount)))
    charged = {row[0]: join(int(row[1]), int(row[2])) for row in conn.execute(query.group_by(_CHARGES.c.lease_id))}
    burns = sa.select(_ENTRIES.c.lease_id, sa.func.sum(_ENTRIES.c.amount_micro), sa.func.sum(_ENTRIES.c.amount_pico))
    of_leases = burns.where(_ENTRIES.c.lease_id.is_not(None)).group_by(_ENTRIES.c.lease_id)
    burnt = {row[0]: -join(int(row[1]), int(row[2])) for row in conn.execute(of_leases)}
    columns = (_LEASES.c.id, _LEASES.c.customer_id, _LEASES.c.used_pico, _LEASES.c.closed_at)
    of_credit = sa.select(*columns).where(_LEASES.c.grant_id.is_not(None)).order_by(_LEASES.c.id)
    for lease_id, customer_id, used, closed_at in conn.execute(of_credit):
        of_requests, of_burns = charged.pop(lease_id, 0), burnt.pop(lease_id, 0)
        if used != of_requests:
            yield Finding(name, customer_id, lease_id, f"{used} pico are used; its requests come to {of_requests}")
        if of_burns != (0 if closed_at is None else used):
            yield Finding(name, customer_id, lease_id, f"{used} pico are used; {of_burns} are burnt")
    for lease_id in sorted({*charged, *burnt}):
        yield Finding(name, None, lease_id, "is charged or burnt, and is not there")


def _checkpoints_say_what_they_bill(conn: sa.Connection) -> Iterator[Finding]:
    names = ("id", "customer_id", "input_tokens", "output_tokens", "amount_pico")
    for row in conn.execute(sa.select(_INFLIGHT).order_by(_INFLIGHT.c.id)):
        event = dues.from_text(row.due).event
        for column in names:
            if getattr(row, column) != getattr(event, column):
                fault = f"{column} is {getattr(row, column)}; it would bill {getattr(event, column)}"
                yield Finding("checkpoints", row.customer_id, row.id, fault)


def _credit_is_paid(conn: sa.Connection) -> Iterator[Finding]:
    """What rollups leave to credit is what requests took from leases, less what was given back."""
    pairs = (_ROLLUPS.c.credit_micro, _ROLLUPS.c.credit_pico)
    left = {customer_id: join(*sums) for customer_id, sums in _by_customer(conn, _ROLLUPS, *pairs).items()}
    paid: dict[str, int] = defaultdict(int)
    amount = _CHARGES.c.amount_pico
    query = sa.select(_LEASES.c.customer_id, sa.func.sum(_whole(amount)), sa.func.sum(_rest(amount)))
    for row in conn.execute(query.join(_CHARGES, _CHARGES.c.lease_id == _LEASES.c.id).group_by(_LEASES.c.customer_id)):
        paid[row[0]] += join(int(row[1]), int(row[2]))
    back = sa.select(_EVENTS.c.customer_id, _NOTES.c.credit_pico).join(_NOTES, _NOTES.c.event_id == _EVENTS.c.id)
    for customer_id, change in conn.execute(back):
        paid[customer_id] += change
    for customer_id in sorted({*left, *paid}):
        if left.get(customer_id, 0) != paid[customer_id]:
            fault = f"rollups leave {left.get(customer_id, 0)} pico to credit; requests took {paid[customer_id]} of it"
            yield Finding("credit = charges", customer_id, customer_id, fault)


AUDITS: tuple[Audit, ...] = (
    _events_are_rolled_up,
    _events_are_the_work_of_upstreams,
    _assigned_is_in_batches,
    _batches_form_a_chain,
    _amounts_are_tokens_times_prices,
    _corrections_name_an_event,
    _credit_forms_a_chain,
    _leases_are_charged_and_burnt,
    _credit_is_paid,
    _checkpoints_say_what_they_bill,
)
"""Every audit; all run, whatever the others find."""


def _by_customer(conn: sa.Connection, table: sa.Table, *columns: sa.ColumnElement[int]) -> dict[str, list[int]]:
    query = sa.select(table.c.customer_id, *(sa.func.sum(column) for column in columns)).group_by(table.c.customer_id)
    return {row[0]: [int(value) for value in row[1:]] for row in conn.execute(query)}


def _chains(conn: sa.Connection) -> Iterator[tuple[str, list[sa.Row[Any]]]]:
    columns = ("id", "customer_id", "seq", "units", "unit_pico", "carry_in_pico", "carry_pico")
    chains: dict[str, list[sa.Row[Any]]] = defaultdict(list)
    query = sa.select(*(_BATCHES.c[column] for column in columns)).order_by(_BATCHES.c.customer_id, _BATCHES.c.seq)
    for row in conn.execute(query):
        chains[row.customer_id].append(row)
    yield from chains.items()


def _whole(column: sa.ColumnElement[int]) -> sa.ColumnElement[int]:
    return column // PICO_PER_MICRO


def _rest(column: sa.ColumnElement[int]) -> sa.ColumnElement[int]:
    return column % PICO_PER_MICRO


def _charge(prefix: str) -> sa.ColumnElement[int]:
    prices = {unit: _QUOTES.c[f"{prefix}{unit}_pico"] for unit in ("input", "cached_input", "output", "reasoning")}
    media = [
        _EVENTS.c[f"{unit}_tokens"]
        * (sa.func.coalesce(_QUOTES.c[f"{prefix}{unit}_pico"], prices["input"]) - prices["input"])
        for unit in ("image_input", "audio_input")
    ]
    return (
        sum(media, (_EVENTS.c.input_tokens - _EVENTS.c.cached_input_tokens) * prices["input"])
        + _EVENTS.c.cached_input_tokens * prices["cached_input"]
        + (_EVENTS.c.output_tokens - _EVENTS.c.reasoning_tokens) * prices["output"]
        + _EVENTS.c.reasoning_tokens * prices["reasoning"]
        + _QUOTES.c[f"{prefix}request_pico"]
    )


def _summed(values: Sequence[Any]) -> tuple[int, ...]:
    """Requests, the counts of tokens, cost and amount: the money joined."""
    *counts, cost_micro, cost_pico, amount_micro, amount_pico = (int(value) for value in values)
    return (*counts, join(cost_micro, cost_pico), join(amount_micro, amount_pico))


def _counts(sums: Sequence[int]) -> str:
    names = ("requests", *_TOKENS, "cost_pico", "amount_pico")
    return " ".join(f"{name}={value}" for name, value in zip(names, sums, strict=True))


def _work_of(row: Sequence[Any]) -> str:
    return "upstream_hourly " + " ".join(f"{name}={value}" for name, value in zip(_WORK_KEY, row[:4], strict=True))


def _rollup_of(row: Sequence[Any]) -> str:
    return "usage_hourly " + " ".join(f"{name}={value}" for name, value in zip(_KEY, row[:5], strict=True))
