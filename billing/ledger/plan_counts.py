"""How far each period of a customer is settled under its plan's terms, and the events that a settlement walks through.

Events are walked in the order of usage, (finished_at, id). Whether anything came late is told by the rollups, which
count every request in its hour: where a walk from the last place does not find as many as they say, the whole period is
walked. So that walk may look where new events mostly are (LOOKBACK_US), and still none is ever missed.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from billing import clock
from billing.calendar import Per, Period
from billing.clock import HOUR_US, Instant
from billing.ledger import partitions, schema
from billing.pricing.terms import Correction, Count
from billing.usage import Usage, UsageEvent

CHUNK_ROWS = 500
LOOKBACK_US = HOUR_US
"""Requests that took longer are found by walking the whole period."""

STREAM_US_MAX = 7 * 24 * HOUR_US

_COUNTS, _EVENTS, _HOURLY = schema.plan_counts, schema.usage_events, schema.usage_hourly
_ADJUSTMENTS = schema.adjustments
_USED = [_EVENTS.c[name] for name in ("id", "started_at", "finished_at", "amount_pico", "price_ref", *Usage._fields)]


NONE = Count()


NONE = Count()


@dataclass(frozen=True, slots=True)
class Settled:
    """Up to where a period is settled: the count there, and how many requests its hours had until then."""

    customer_id: str
    per: Per
    period: Period
    count: Count = NONE
    requests: int = 0
    until_at: int = 0
    until_id: str = ""
    corrections: int = 0
    corrections_settled: int = 0

    @property
    def is_stale(self) -> bool:
        """Whether an event of it was corrected since."""
        return self.corrections != self.corrections_settled

    @property
    def from_start(self) -> "Settled":
        """The period before its first event."""
        return replace(self, count=NONE, requests=0, until_at=0, until_id="")


class Used:
    """An event of a period, with what was corrected of it."""

    __slots__ = ("amount", "corrections", "finished_at", "id", "price_ref", "started_at", "usage")

    def __init__(self, row: Sequence[Any]) -> None:
        """`row` is of _USED."""
        self.id, self.started_at, self.finished_at, self.amount, self.price_ref = row[:5]
        self.usage = Usage(*row[5:])
        self.corrections: list[Correction] = []

    @property
    def net(self) -> int:
        """What it comes to now."""
        return int(self.amount + sum(each.amount for each in self.corrections))

    @property
    def standing(self) -> Usage:
        """Its counts, with what was corrected of them."""
        every = (self.usage, *(each.usage for each in self.corrections))
        return Usage(*(sum(counts) for counts in zip(*every, strict=True)))


def touch(conn: sa.Connection, corrected: Sequence[UsageEvent]) -> None:
    """Have the settled periods of these corrections' originals walked through again; for all but our own."""
    originals = sorted({each.adjusts for each in corrected if each.adjusts is not None})
    if not originals:
        return
    holds = sa.exists().where(
        _EVENTS.c.id.in_(originals),
        _EVENTS.c.customer_id == _COUNTS.c.customer_id,
        _EVENTS.c.finished_at >= _COUNTS.c.period_start,
        _EVENTS.c.finished_at < _COUNTS.c.period_end,
    )
    customers = sorted({each.customer_id for each in corrected})
    query = sa.update(_COUNTS).where(_COUNTS.c.customer_id.in_(customers), holds)
    conn.execute(query.values(corrections=_COUNTS.c.corrections + 1))


def begin(conn: sa.Connection, new: Settled) -> None:
    """Make the period's row if there is none, before its events are read: so no correction meanwhile is overlooked."""
    insert = sqlite.insert if conn.dialect.name == "sqlite" else postgresql.insert
    conn.execute(insert(_COUNTS).values(_row(new)).on_conflict_do_nothing())


def of_customer(conn: sa.Connection, customer_id: str, since: Instant) -> list[Settled]:
    """Return the customer's periods that end after an instant, and older ones that were corrected."""
    is_stale = _COUNTS.c.corrections != _COUNTS.c.corrections_settled
    query = sa.select(_COUNTS).where(
        _COUNTS.c.customer_id == customer_id, sa.or_(_COUNTS.c.period_end > since, is_stale)
    )
    return [_settled(row) for row in conn.execute(query.order_by(_COUNTS.c.period_start, _COUNTS.c.per))]


def save(conn: sa.Connection, settled: Settled) -> None:
    """Write how far a period is settled; corrections that came since it was read stay unsettled."""
    row = _row(settled)
    key = {name: row.pop(name) for name in ("customer_id", "per", "period_start")}
    del row["corrections"]
    conn.execute(sa.update(_COUNTS).where(*(_COUNTS.c[name] == value for name, value in key.items())).values(row))


def recorded(conn: sa.Connection, settled: Settled) -> int:
    """Return how many requests the hours of a period have by the rollups."""
    first, last = _hours(settled.period)
    query = sa.select(sa.func.sum(_HOURLY.c.requests)).where(
        _HOURLY.c.customer_id == settled.customer_id, _HOURLY.c.window_start >= first, _HOURLY.c.window_start < last
    )
    return int(conn.execute(query).scalar() or 0)


def count_behind(conn: sa.Connection, settled: Settled) -> int:
    """Return how many events are found behind where a period is settled."""
    return int(conn.execute(sa.select(sa.func.count()).where(*_behind(settled))).scalar_one())


def behind(conn: sa.Connection, settled: Settled) -> Iterator[list[Used]]:
    """Give the events behind where a period is settled, in the order of usage, some at a time, with their corrections.

    Those of the period's first and last hour that are not in it (where it begins within an hour) are among them.
    """
    query = sa.select(*_USED).where(*_behind(settled)).order_by(_EVENTS.c.finished_at, _EVENTS.c.id)
    for rows in conn.execute(query, execution_options={"yield_per": CHUNK_ROWS}).partitions():
        found = {row[0]: Used(row) for row in rows}
        for used, correction, price_ref in _corrections(conn, found):
            used.corrections.append(correction)
            used.price_ref = price_ref
        yield list(found.values())


def _corrections(conn: sa.Connection, found: dict[str, Used]) -> Iterator[tuple[Used, Correction, str]]:
    columns = (_ADJUSTMENTS.c.adjusts, _ADJUSTMENTS.c.change, _EVENTS.c.amount_pico, _EVENTS.c.price_ref)
    source = _ADJUSTMENTS.join(_EVENTS, _EVENTS.c.id == _ADJUSTMENTS.c.event_id)
    query = sa.select(*columns, *(_EVENTS.c[name] for name in Usage._fields)).select_from(source)
    for row in conn.execute(query.where(_ADJUSTMENTS.c.adjusts.in_(list(found))).order_by(_ADJUSTMENTS.c.seq)):
        yield found[row[0]], Correction(row[1], Usage(*row[4:]), row[2]), row[3]


def _behind(settled: Settled) -> list[sa.ColumnElement[bool]]:
    first, last = _hours(settled.period)
    since = max(0, first - STREAM_US_MAX, min(settled.until_at, last) - LOOKBACK_US)
    return [
        _EVENTS.c.customer_id == settled.customer_id,
        _EVENTS.c.adjusts.is_(None),
        _EVENTS.c.id >= partitions.bound(clock.to_datetime(Instant(since))),
        _EVENTS.c.id < partitions.bound(clock.to_datetime(Instant(last + HOUR_US))),
        _EVENTS.c.window_start >= first,
        _EVENTS.c.window_start < last,
        sa.or_(
            _EVENTS.c.finished_at > settled.until_at,
            sa.and_(_EVENTS.c.finished_at == settled.until_at, _EVENTS.c.id > settled.until_id),
        ),
    ]


def _hours(period: Period) -> tuple[Instant, Instant]:
    return clock.hour_start(period.start), clock.hour_start(period.end + HOUR_US - 1)


def _settled(row: sa.Row[Any]) -> Settled:
    return Settled(
        row.customer_id,
        Per(row.per),
        Period(row.period_start, row.period_end),
        Count(row.tokens, row.covered_pico),
        row.requests,
        row.until_at,
        row.until_id,
        row.corrections,
        row.corrections_settled,
    )


def _row(settled: Settled) -> dict[str, object]:
    return {
        "customer_id": settled.customer_id,
        "per": settled.per.value,
        "period_start": settled.period.start,
        "period_end": settled.period.end,
        "tokens": settled.count.tokens,
        "covered_pico": settled.count.covered,
        "requests": settled.requests,
        "until_at": settled.until_at,
        "until_id": settled.until_id,
        "corrections": settled.corrections,
        "corrections_settled": settled.corrections_settled,
    }
