"""Events read one after another, however many there are: for files of what was recorded.

One snapshot, in the order of their ids, a few thousand at a time: neither the database's driver nor we hold them all.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from billing.clock import HOUR_US, Instant
from billing.ledger import schema, totals
from billing.ledger.history import STREAM_US_MAX, bound, within
from billing.ledger.totals import Selection
from billing.money import PICO_PER_MICRO, Pico, join
from billing.usage import Outcome, Usage, UsageEvent

ROWS_AT_ONCE = 2_000

_EVENTS = schema.usage_events


@dataclass(frozen=True, slots=True)
class Range:
    """Which events: those that ended in [since, until), of one customer or (None) of all."""

    since: Instant | None = None
    until: Instant | None = None
    customer_id: str | None = None


def events(conn: sa.Connection, of: Range) -> Iterator[sa.Row[*tuple[Any, ...]]]:
    """Give each event as the columns of `UsageEvent`, oldest id first. Corrections count when they were made."""
    columns = [_EVENTS.c[name] for name in UsageEvent._fields]
    query = sa.select(*columns).where(*conditions(of)).order_by(_EVENTS.c.id)
    yield from conn.execute(query, execution_options={"yield_per": ROWS_AT_ONCE})


def conditions(of: Range) -> Iterator[sa.ColumnElement[bool]]:
    """Give what selects the events; the ids' time bounds what has to be read."""
    if of.customer_id is not None:
        yield _EVENTS.c.customer_id == of.customer_id
    if of.since is not None:
        yield _EVENTS.c.finished_at >= of.since
        yield _EVENTS.c.id >= bound(max(0, of.since - STREAM_US_MAX))
    if of.until is not None:
        yield _EVENTS.c.finished_at < of.until
        yield _EVENTS.c.id < bound(of.until + HOUR_US)


@dataclass(frozen=True, slots=True)
class Charge:
    """The sums of events of one quote, key and day; `request_count` counts them, also those that are corrections.

    `list_segment` tells between which two of the given instants they began.
    """

    day: int
    customer_id: str
    key_id: str
    model: str
    price_ref: str
    is_correction: bool
    list_segment: int
    request_count: int
    usage: Usage
    amount: Pico


def charges(
    conn: sa.Connection, selection: Selection, days: Sequence[Instant], segments: Sequence[Instant]
) -> Iterator[Charge]:
    """Sum up the events of whole hours by day, customer, key, model and quote, in that order; memory stays flat.

    `days` are the starts of days, the first of them no later than the first event; so are `segments` of what they are.
    """
    totals.without_jit(conn)
    is_correction = sa.case((_EVENTS.c.outcome == Outcome.ADJUSTMENT.value, 1), else_=0)
    grouped: list[sa.ColumnElement[Any]] = [
        totals.numbered(_EVENTS.c.window_start, days).label("day"),
        *(_EVENTS.c[name] for name in ("customer_id", "api_key_id", "model", "price_ref")),
        is_correction.label("is_correction"),
        totals.numbered(_EVENTS.c.started_at, segments).label("segment"),
    ]
    counts = [sa.func.sum(_EVENTS.c[name]) for name in Usage._fields]
    amount = _EVENTS.c.amount_pico
    money = [sa.func.sum(amount // PICO_PER_MICRO), sa.func.sum(amount % PICO_PER_MICRO)]
    query = sa.select(*grouped, sa.func.count(), *counts, *money).where(*within(selection)).group_by(*grouped)
    named = ("day", "customer_id", "api_key_id", "model", "price_ref", "is_correction", "segment")
    ordered = query.order_by(*(sa.literal_column(str(number)) for number in range(1, len(named) + 1)))
    for row in conn.execute(ordered, execution_options={"yield_per": ROWS_AT_ONCE}):
        day, customer_id, key_id, model, ref, is_corrected, segment = row[: len(named)]
        count, *sums = (int(value) for value in row[len(named) :])
        usage, sum_of = Usage(*sums[:-2]), join(*sums[-2:])
        yield Charge(day, customer_id, key_id, model, ref, bool(is_corrected), segment, count, usage, sum_of)
