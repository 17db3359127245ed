"""What recounting a sample of live traffic found, summed per day, model, upstream and version; and anomalies of events.

Counts only: no text and no customer comes here. Sums grow in one conditional statement, so that any number of workers
may add to a row.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Final

import sqlalchemy as sa

from billing.clock import DAY_US, Instant
from billing.ledger import schema
from billing.tokens.drift import Side

_TABLE: Final = schema.token_audits
_KEY: Final = ("day", "model", "upstream", "kind", "version")
_FIELDS: Final = tuple(field.name for field in fields(Side))
_SIDES: Final = ("input", "output")


@dataclass(frozen=True, slots=True, order=True)
class Source:
    """Whose counts: a model on an upstream, its kind of server and its version (empty if it does not say)."""

    model: str
    upstream: str
    kind: str
    version: str


@dataclass(frozen=True, slots=True)
class Found:
    """What the samples of one source add up to."""

    input: Side = Side()  # noqa: RUF009 -- frozen
    output: Side = Side()  # noqa: RUF009 -- frozen

    def __add__(self, other: "Found") -> "Found":
        """Return the sums over both."""
        return Found(self.input + other.input, self.output + other.output)


def day_of(instant: int) -> Instant:
    """Return the start of the UTC day that holds the instant."""
    return Instant(instant - instant % DAY_US)


def add(conn: sa.Connection, day: Instant, found: Mapping[Source, Found]) -> None:
    """Add samples to their day, in one order of rows, so that two writers can not deadlock."""
    rows = [
        {
            "day": day,
            **{name: getattr(source, name) for name in _KEY[1:]},
            **{f"{side}_{name}": getattr(getattr(sums, side), name) for side in _SIDES for name in _FIELDS},
        }
        for source, sums in sorted(found.items(), key=lambda item: item[0])
    ]
    if rows:
        conn.execute(_UPSERT, rows)


def load(
    conn: sa.Connection, since: Instant | None = None, until: Instant | None = None, model: str | None = None
) -> dict[Source, Found]:
    """Return what the samples of whole UTC days add up to: the one that holds `since`, and those begun by `until`."""
    sums = [_sum(side, name) for side in _SIDES for name in _FIELDS]
    keys = [_TABLE.c[name] for name in _KEY[1:]]
    query = sa.select(*keys, *sums).group_by(*keys)
    if since is not None:
        query = query.where(_TABLE.c.day >= day_of(since))
    if until is not None:
        query = query.where(_TABLE.c.day < until)
    if model is not None:
        query = query.where(_TABLE.c.model == model)
    rows = conn.execute(query).mappings()
    found = {
        Source(*(row[name] for name in _KEY[1:])): Found(_side(row, "input"), _side(row, "output")) for row in rows
    }
    return dict(sorted(found.items()))


def anomalies(
    conn: sa.Connection, since: Instant | None = None, until: Instant | None = None, model: str | None = None
) -> dict[tuple[str, str], dict[str, int]]:
    """Return how often each anomaly was found in [since, until), by model and upstream, corrections left out."""
    events = schema.usage_events
    query = sa.select(events.c.model, events.c.upstream, events.c.anomaly, sa.func.count())
    query = query.where(events.c.anomaly.is_not(None), events.c.adjusts.is_(None))
    if since is not None:
        query = query.where(events.c.finished_at >= since)
    if until is not None:
        query = query.where(events.c.finished_at < until)
    if model is not None:
        query = query.where(events.c.model == model)
    found: dict[tuple[str, str], dict[str, int]] = {}
    for name, upstream, anomaly, number in conn.execute(
        query.group_by(events.c.model, events.c.upstream, events.c.anomaly)
    ):
        counted = found.setdefault((name, upstream), {})
        for one in anomaly.split(","):
            counted[one] = counted.get(one, 0) + number
    return dict(sorted(found.items()))


def _sum(side: str, name: str) -> sa.ColumnElement[Any]:
    column = _TABLE.c[f"{side}_{name}"]
    match name:
        case "worst_over":
            return sa.func.max(column).label(column.name)
        case "worst_under":
            return sa.func.min(column).label(column.name)
        case _:
            return sa.func.sum(column).label(column.name)


def _side(row: sa.RowMapping, side: str) -> Side:
    """PostgreSQL's sums are NUMERIC and come as Decimals of whole numbers, hence `int`."""
    return Side(**{name: int(row[f"{side}_{name}"]) for name in _FIELDS})


def _merged(column: str) -> str:
    if column.endswith(("worst_over", "worst_under")):
        better = ">" if column.endswith("over") else "<"
        return (
            f"{column} = CASE WHEN excluded.{column} {better} token_audits.{column}"
            f" THEN excluded.{column} ELSE token_audits.{column} END"
        )
    return f"{column} = token_audits.{column} + excluded.{column}"


def _upsert() -> sa.TextClause:
    numbers = [f"{side}_{name}" for side in _SIDES for name in _FIELDS]
    columns = [*_KEY, *numbers]
    return sa.text(  # names of columns, none from outside
        f"INSERT INTO token_audits ({', '.join(columns)}) VALUES ({', '.join(':' + name for name in columns)})"
        f" ON CONFLICT ({', '.join(_KEY)}) DO UPDATE SET {', '.join(map(_merged, numbers))}"
        " /* weir:token_audits.add */"
    )


_UPSERT: Final = _upsert()
