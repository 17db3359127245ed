"""What each comparison with Stripe came to, kept: per customer and hour, per invoice line, per run.

Invariant: an hour has one checkpoint, with both sums of the last check; when a later check finds other sums than the
one before, `changed_from` keeps what they were. A run is appended once it has compared every customer, so the newest
one says since when nothing has been compared.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from billing import ids
from billing.clock import DAY_US, SECOND_US, Instant
from billing.ledger import schema

_POINTS = schema.stripe_checkpoints
_INVOICES = schema.invoice_checks
_RUNS = schema.reconcile_runs
_CUSTOMERS = schema.customers
_BATCHES = schema.meter_batches

LISTED_ROWS_MAX = 1_000
CARRIED_US_MAX = 70 * DAY_US
"""A batch is timed in its hour, or at the start of a period that begins at most so much later."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """An hour of a customer of Stripe's on a meter, as it was last compared."""

    stripe_customer_id: str
    event_name: str
    hour_start: Instant
    customer_id: str
    ledger_units: int
    stripe_units: int
    kind: str
    explanation: str
    is_explained: bool
    checked_at: Instant


@dataclass(frozen=True, slots=True)
class InvoiceCheck:
    """The metered line of a finalized invoice for a period, against what the ledger sent for that period.

    `meter` is "" for the line of amounts, and else the name of the meter of tokens that the line bills.
    """

    invoice_id: str
    period_start: Instant
    period_end: Instant
    customer_id: str
    finalized_at: Instant
    invoiced_units: int
    ledger_units: int
    kind: str
    explanation: str
    is_explained: bool
    checked_at: Instant
    meter: str = ""


@dataclass(frozen=True, slots=True)
class Run:
    """One comparison of all customers; `kinds` counts its findings."""

    started_at: Instant
    finished_at: Instant
    since: Instant
    until: Instant
    customers: int
    unreadable: int
    kinds: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Subject:
    """A customer of Stripe's whose sums are to be compared, and ours that it stands for."""

    customer_id: str
    name: str
    stripe_customer_id: str


def subjects(
    conn: sa.Connection, since_s: int, after: str, customers_max: int, only: str | None = None
) -> tuple[list[Subject], str | None]:
    """Return who of the next customers is linked to Stripe, or was and has batches timed since then; by our id.

    The second value is the customer to go on behind, None after the last: so memory does not grow with their number.
    A batch is timed at most 35 days and a period after its hour, so older hours are not looked at.
    """
    columns = (_CUSTOMERS.c.id, _CUSTOMERS.c.name, _CUSTOMERS.c.stripe_customer_id)
    page = sa.select(*columns).where(_CUSTOMERS.c.id > after) if only is None else sa.select(*columns)
    if only is not None:
        page = page.where(_CUSTOMERS.c.id == only)
    query = page.order_by(_CUSTOMERS.c.id).limit(customers_max).suffix_with("/* weir:comparisons.subjects */")
    rows = conn.execute(query).all()
    names = {row[0]: row[1] for row in rows}
    found = {(row[0], row[2]) for row in rows if row[2] is not None}
    sent = (
        sa.select(_BATCHES.c.customer_id, _BATCHES.c.stripe_customer_id)
        .where(
            _BATCHES.c.customer_id.in_(sorted(names)),
            _BATCHES.c.window_start >= since_s * SECOND_US - CARRIED_US_MAX,
            _BATCHES.c.timestamp_s >= since_s,
            _BATCHES.c.units > 0,
        )
        .distinct()
    )
    found |= {(row[0], row[1]) for row in conn.execute(sent)}
    is_last = only is not None or len(rows) < customers_max
    return [Subject(each, names[each], stripe) for each, stripe in sorted(found)], None if is_last else rows[-1][0]


def write(conn: sa.Connection, points: Sequence[Checkpoint]) -> None:
    """Write checkpoints, each over the one of its hour; the sums that it replaces are kept where they differ."""
    known, new = _known(conn, points), []
    for point in points:
        before = known.get((point.stripe_customer_id, point.event_name, point.hour_start))
        values: dict[str, object] = {name: getattr(point, name) for name in Checkpoint.__slots__}
        values["is_explained"] = int(point.is_explained)
        if before is None:
            new.append(values | {"first_checked_at": point.checked_at, "checks": 1, "changed_from": None})
            continue
        sums = {name: before[name] for name in ("ledger_units", "stripe_units", "kind", "checked_at")}
        is_changed = (before["ledger_units"], before["stripe_units"]) != (point.ledger_units, point.stripe_units)
        changed_from = json.dumps(sums) if is_changed else before["changed_from"]
        query = sa.update(_POINTS).where(*_is_hour(point))
        conn.execute(query.values(**values, checks=_POINTS.c.checks + 1, changed_from=changed_from))
    if new:
        conn.execute(sa.insert(_POINTS), new)


def _known(conn: sa.Connection, points: Sequence[Checkpoint]) -> dict[tuple[str, str, int], sa.RowMapping]:
    """Return what is written of these hours: one query for all, by the key's first column."""
    if not points:
        return {}
    hours = [point.hour_start for point in points]
    query = sa.select(_POINTS).where(
        _POINTS.c.stripe_customer_id.in_(sorted({point.stripe_customer_id for point in points})),
        _POINTS.c.hour_start.between(min(hours), max(hours)),
    )
    rows = conn.execute(query).mappings()
    return {(row["stripe_customer_id"], row["event_name"], row["hour_start"]): row for row in rows}


def matched(
    conn: sa.Connection, stripe_customer_ids: Sequence[str], since: Instant, until: Instant
) -> dict[tuple[str, str, int], tuple[int, int]]:
    """Return the sums (ledger, Stripe) of the hours in [since, until) that matched when they were last compared."""
    query = sa.select(_POINTS).where(
        _POINTS.c.stripe_customer_id.in_(stripe_customer_ids),
        _POINTS.c.hour_start >= since,
        _POINTS.c.hour_start < until,
        _POINTS.c.kind == "match",
    )
    return {
        (row["stripe_customer_id"], row["event_name"], row["hour_start"]): (row["ledger_units"], row["stripe_units"])
        for row in conn.execute(query).mappings()
    }


def write_invoices(conn: sa.Connection, checks: Iterable[InvoiceCheck]) -> None:
    """Write what invoices were found to bill, each over what was found of it before.

    A line of tokens has a row of its own, named by invoice and meter ("in_1/weir_tokens_…"): the key of the table is
    that of the releases before, which knew one line.
    """
    insert = sqlite.insert if conn.dialect.name == "sqlite" else postgresql.insert
    for check in checks:
        values: dict[str, object] = {name: getattr(check, name) for name in InvoiceCheck.__slots__ if name != "meter"}
        values["is_explained"] = int(check.is_explained)
        if check.meter:
            values["invoice_id"] = f"{check.invoice_id}/{check.meter}"
        query = insert(_INVOICES).values(**values)
        conn.execute(query.on_conflict_do_update(index_elements=["invoice_id", "period_start"], set_=values))


def record_run(conn: sa.Connection, run: Run) -> None:
    """Append a run."""
    values = {name: getattr(run, name) for name in Run.__slots__} | {"kinds": json.dumps(dict(run.kinds))}
    conn.execute(sa.insert(_RUNS).values(id=ids.uuid7(), **values))


def last_run(conn: sa.Connection) -> Run | None:
    """Return the newest run over all customers, None before the first."""
    query = sa.select(_RUNS).order_by(_RUNS.c.id.desc()).limit(1)
    row = conn.execute(query).mappings().one_or_none()
    if row is None:
        return None
    return Run(**{name: row[name] for name in Run.__slots__ if name != "kinds"}, kinds=json.loads(row["kinds"]))


def unexplained(conn: sa.Connection) -> int:
    """Return how many hours and invoice lines differ from Stripe's without a known reason: two small indexes."""
    literal: sa.ColumnClause[int] = sa.literal_column("0")
    hours = conn.scalar(sa.select(sa.func.count()).select_from(_POINTS).where(_POINTS.c.is_explained == literal))
    lines = conn.scalar(sa.select(sa.func.count()).select_from(_INVOICES).where(_INVOICES.c.is_explained == literal))
    return int(hours or 0) + int(lines or 0)


def _is_hour(point: Checkpoint) -> tuple[sa.ColumnElement[bool], ...]:
    return (
        _POINTS.c.stripe_customer_id == point.stripe_customer_id,
        _POINTS.c.event_name == point.event_name,
        _POINTS.c.hour_start == point.hour_start,
    )
