"""Recorded requests as sums by customer, model and time, for whoever wants to price them anew.

Two sources, both exact. The hourly rollups suffice while no version of the scenario begins within the history: a
million requests are then a few hundred rows. Where one does, the events are summed by the database between those
starts, in one pass. A request is priced as of its start but counts in the hour in which it ended: hence a start within
the STREAM_US_MAX before the first hour asks for the events, too.

Corrections are not requests and are left out; `corrections` sums them apart.
"""

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from billing import clock
from billing.clock import HOUR_US, Instant
from billing.ledger import partitions, schema, totals
from billing.ledger.totals import Selection
from billing.money import PICO_PER_MICRO, Pico, join
from billing.pricing.scenario import Bucket
from billing.usage import Usage

STREAM_US_MAX = 7 * 24 * HOUR_US
"""No request takes longer; its id and its start lie within this time before the hour in which it counts."""

_EVENTS, _HOURLY, _ADJUSTMENTS = schema.usage_events, schema.usage_hourly, schema.adjustments
_COUNTS = Usage._fields
_MONEY = ("cost", "amount")


def extent(conn: sa.Connection, selection: Selection) -> tuple[Instant, Instant] | None:
    """Return instants between which all selected requests began; None without any."""
    span = totals.span(conn, selection)
    return None if span is None else (Instant(max(0, span[0] - STREAM_US_MAX)), Instant(span[1] + HOUR_US))


def buckets(conn: sa.Connection, selection: Selection, starts: Sequence[Instant]) -> list[Bucket]:
    """Return the selected requests' sums, apart for each customer, model and time between two of `starts`.

    `starts` are all the instants within `extent` at which a price may change, in order.
    """
    span = extent(conn, selection)
    if span is None:
        return []
    return _of_events(conn, selection, starts) if starts else _of_rollups(conn, selection, span[0])


def corrections(conn: sa.Connection, selection: Selection) -> list[Bucket]:
    """Return what corrections in the selected hours come to, by customer and model; `requests` counts them."""
    source = _ADJUSTMENTS.join(_EVENTS, _EVENTS.c.id == _ADJUSTMENTS.c.event_id)
    query = (
        sa.select(_EVENTS.c.customer_id, _EVENTS.c.model, sa.literal_column("0"), *_sums())
        .select_from(source)
        .where(*within(selection))
    )
    return [_bucket(row, Instant(0)) for row in conn.execute(query.group_by(_EVENTS.c.customer_id, _EVENTS.c.model))]


def _of_rollups(conn: sa.Connection, selection: Selection, at: Instant) -> list[Bucket]:
    """Take the rollups less the corrections in them."""
    columns = [_HOURLY.c[name] for name in ("requests", *_COUNTS)]
    money = [_HOURLY.c[f"{name}_{part}"] for name in _MONEY for part in ("micro", "pico")]
    query = sa.select(
        _HOURLY.c.customer_id, _HOURLY.c.model, sa.literal_column("0"), *(sa.func.sum(each) for each in columns + money)
    ).where(*totals.conditions(selection))
    rows = conn.execute(query.group_by(_HOURLY.c.customer_id, _HOURLY.c.model))
    found = {(row[0], row[1]): _bucket(row, at) for row in rows}
    for corrected in corrections(conn, selection):
        key = corrected.customer_id, corrected.model
        found[key] = _without(found[key], corrected)
    return [bucket for bucket in found.values() if bucket.requests]


def _without(bucket: Bucket, corrected: Bucket) -> Bucket:
    usage = Usage(*(whole - part for whole, part in zip(bucket.usage, corrected.usage, strict=True)))
    cost, amount = Pico(bucket.cost - corrected.cost), Pico(bucket.amount - corrected.amount)
    return Bucket(bucket.customer_id, bucket.model, bucket.at, bucket.requests, usage, cost, amount)


def _of_events(conn: sa.Connection, selection: Selection, starts: Sequence[Instant]) -> list[Bucket]:
    totals.without_jit(conn)
    number = totals.numbered(_EVENTS.c.started_at, starts).label("number")
    query = sa.select(_EVENTS.c.customer_id, _EVENTS.c.model, number, *_sums())
    query = query.where(_EVENTS.c.adjusts.is_(None), *within(selection))
    rows = conn.execute(query.group_by(_EVENTS.c.customer_id, _EVENTS.c.model, number))
    return [_bucket(row, starts[row[2] - 1] if row[2] else Instant(starts[0] - 1)) for row in rows]


def _sums() -> list[sa.ColumnElement[Any]]:
    """Count the rows, and sum up counts and money; money in two parts, since SQLite's sums end at 2⁶³."""
    sums: list[sa.ColumnElement[Any]] = [sa.func.count(), *(sa.func.sum(_EVENTS.c[name]) for name in _COUNTS)]
    for name in _MONEY:
        column = _EVENTS.c[f"{name}_pico"]
        sums += [sa.func.sum(column // PICO_PER_MICRO), sa.func.sum(column % PICO_PER_MICRO)]
    return sums


def within(selection: Selection) -> list[sa.ColumnElement[bool]]:
    """Select events by their window; the ids' time bounds what has to be read."""
    found = []
    if selection.customer_id is not None:
        found.append(_EVENTS.c.customer_id == selection.customer_id)
    if selection.since is not None:
        found.append(_EVENTS.c.window_start >= selection.since)
        found.append(_EVENTS.c.id >= bound(max(0, selection.since - STREAM_US_MAX)))
    if selection.until is not None:
        found.append(_EVENTS.c.window_start < selection.until)
        found.append(_EVENTS.c.id < bound(selection.until + HOUR_US))
    return found


def bound(instant: int) -> str:
    """Return the text that divides the ids before an instant from those at and after it."""
    return partitions.bound(clock.to_datetime(Instant(instant)))


def _bucket(row: sa.Row[*tuple[Any, ...]], at: Instant) -> Bucket:
    """Make a bucket of customer, model, number, requests, the counts and the money; NUMERIC sums become integers."""
    requests, *sums = (int(value) for value in row[3:])
    cost, amount = join(*sums[-4:-2]), join(*sums[-2:])
    return Bucket(row[0], row[1], at, requests, Usage(*sums[:-4]), cost, amount)
