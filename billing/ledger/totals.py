"""Sums over the hourly rollups: the only source of reports, so that their cost stays flat as events grow.

Money is summed in its two columns (`billing.money.split`) and joined in Python, so a total is exact past 2⁶³
picounits. A window belongs to [since, until) by its start; windows never straddle a UTC hour.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from billing.clock import Instant
from billing.ledger import schema
from billing.money import Pico, join

_HOURLY, _CUSTOMERS, _KEYS = schema.usage_hourly, schema.customers, schema.api_keys
_COUNTS = (
    *("requests", "input_tokens", "cached_input_tokens", "image_input_tokens", "audio_input_tokens"),
    *("output_tokens", "reasoning_tokens"),
)
_MONEY = ("cost_micro", "cost_pico", "amount_micro", "amount_pico", "credit_micro", "credit_pico")
_NO_JIT = sa.text("SET LOCAL jit = off")
"""PostgreSQL would compile the choice among starts for each partition: a million events and 100 starts took 22 s with
it and 6.5 s without (two busy cores)."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Which windows count: those that start in [since, until), of one customer or (None) of all."""

    since: Instant | None = None
    until: Instant | None = None
    customer_id: str | None = None


@dataclass(frozen=True, slots=True)
class Total:
    """One sum; what was not grouped by is None. `start` is that of its window, or the last of the `starts` before it.

    `credit` is the part of the amount that prepaid credit paid for.
    """

    customer_id: str | None
    customer: str | None
    model: str | None
    key_id: str | None
    key_name: str | None
    requests: int
    input_tokens: int
    cached_input_tokens: int
    image_input_tokens: int
    audio_input_tokens: int
    output_tokens: int
    reasoning_tokens: int
    cost: Pico
    amount: Pico
    credit: Pico
    start: Instant | None = None


def sums(conn: sa.Connection, selection: Selection, by: Collection[str], starts: Sequence[Instant] = ()) -> list[Total]:
    """Sum up by any of "customer", "model", "key" and "hour", ordered by these; without usage there is no sum.

    Hours are apart by their windows. With `starts`, in order, the times between two of them are apart: one pass,
    however many there are. Ordered here and not in SQL, whose order of names depends on the engine and its locale.
    """
    if starts:
        without_jit(conn)
    grouped: list[sa.ColumnElement[Any]] = []
    source: sa.FromClause = _HOURLY
    if "customer" in by:
        source = source.outerjoin(_CUSTOMERS, _CUSTOMERS.c.id == _HOURLY.c.customer_id)
        grouped += [_CUSTOMERS.c.name.label("customer"), _HOURLY.c.customer_id]
    if "model" in by:
        grouped.append(_HOURLY.c.model)
    if "key" in by:
        source = source.outerjoin(_KEYS, _KEYS.c.id == _HOURLY.c.api_key_id)
        grouped += [_KEYS.c.name.label("key_name"), _HOURLY.c.api_key_id.label("key_id")]
    if "hour" in by:
        grouped.append(_HOURLY.c.window_start)
    elif starts:
        grouped.append(numbered(_HOURLY.c.window_start, starts).label("number"))
    summed = [sa.func.sum(_HOURLY.c[name]).label(name) for name in (*_COUNTS, *_MONEY)]
    query = sa.select(*grouped, *summed).select_from(source).where(*conditions(selection))
    rows = conn.execute(query.group_by(*grouped)).mappings()
    return sorted((_total(row, starts) for row in rows if row["requests"] is not None), key=_order)


def span(conn: sa.Connection, selection: Selection) -> tuple[Instant, Instant] | None:
    """Return the starts of the first and the last window with usage, None if there is none."""
    first, last = sa.func.min(_HOURLY.c.window_start), sa.func.max(_HOURLY.c.window_start)
    row = conn.execute(sa.select(first, last).where(*conditions(selection))).one()
    return None if row[0] is None else (row[0], row[1])


def conditions(selection: Selection) -> Iterable[sa.ColumnElement[bool]]:
    """Give what selects the rollup rows."""
    if selection.customer_id is not None:
        yield _HOURLY.c.customer_id == selection.customer_id
    if selection.since is not None:
        yield _HOURLY.c.window_start >= selection.since
    if selection.until is not None:
        yield _HOURLY.c.window_start < selection.until


def numbered(column: sa.ColumnElement[int], starts: Sequence[Instant]) -> sa.ColumnElement[int]:
    """Return how many of `starts`, which are in order, lie at or before an instant; by halving."""

    def among(low: int, high: int) -> sa.ColumnElement[int]:
        if low == high:
            return sa.literal_column(str(low))
        middle = (low + high) // 2
        is_before = column < sa.literal_column(str(int(starts[middle])))
        return sa.case((is_before, among(low, middle)), else_=among(middle + 1, high))

    return among(0, len(starts))


def without_jit(conn: sa.Connection) -> None:
    """Have no statement of this transaction compiled."""
    if conn.dialect.name == "postgresql":
        conn.execute(_NO_JIT)


def _order(total: Total) -> tuple[int, tuple[str, ...]]:
    named = (total.customer, total.customer_id, total.model, total.key_name, total.key_id)
    return total.start or 0, tuple(name or "" for name in named)


def _start(row: sa.RowMapping, starts: Sequence[Instant]) -> Instant | None:
    number = row.get("number")
    return starts[number - 1] if number else row.get("window_start")


def _total(row: sa.RowMapping, starts: Sequence[Instant]) -> Total:
    """PostgreSQL's sums are NUMERIC and come as Decimals of whole numbers, hence `int`."""
    return Total(
        customer_id=row.get("customer_id"),
        customer=row.get("customer"),
        model=row.get("model"),
        key_id=row.get("key_id"),
        key_name=row.get("key_name"),
        **{name: int(row[name]) for name in _COUNTS},
        cost=join(int(row["cost_micro"]), int(row["cost_pico"])),
        amount=join(int(row["amount_micro"]), int(row["amount_pico"])),
        credit=join(int(row["credit_micro"]), int(row["credit_pico"])),
        start=_start(row, starts),
    )
