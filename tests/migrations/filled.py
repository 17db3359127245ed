"""Rows for every table of a schema, whatever its columns are, and a picture of all rows to compare.

The rows are made from the database's own catalogue, so that they fit each revision, past and future. Where a
CHECK allows only some values, `ALLOWED` names one: a revision that adds such a column adds a line there.
"""

from typing import Any

import sqlalchemy as sa

from billing import ids

ALLOWED: dict[tuple[str, str], Any] = {
    ("suspensions", "cause"): "unpaid",
    ("margin_rules", "kind"): "markup",
    ("margin_rules", "floor_kind"): "margin",
    ("meter_batches", "state"): "accepted",
    ("stripe_events", "state"): "done",
    ("meter_batches", "carry_in_pico"): 999_999,
    ("meter_batches", "carry_pico"): 0,
    ("customers", "is_prepaid"): 1,
    ("credit_entries", "kind"): "grant",
    ("credit_entries", "amount_pico"): 999_999,
    ("credit_entries", "left_pico"): 0,
    ("adjustments", "credit_pico"): -1,
    ("topups", "origin"): "checkout",
    ("topups", "state"): "paid",
    ("topups", "received"): 2**53 + 9,
    ("disputes", "is_freezing"): 1,
    ("meter_batches", "via"): "stream",
    ("meter_repairs", "kind"): "resend",
    ("stripe_checkpoints", "is_explained"): 1,
    ("invoice_checks", "is_explained"): 0,
    ("leases", "budget_id"): None,
    ("budgets", "span"): "month",
    ("budgets", "amount_pico"): 0,
    ("budgets", "is_soft"): 1,
    ("notifications", "state"): "delivered",
    ("plan_terms", "per"): "month",
    ("market_prices", "source"): "openrouter",
    ("machines", "capital"): "owned",
    ("machines", "is_removed"): 1,
}
ONE_OF_TWO = {("leases", "grant_id")}
"""Columns that may be null only where another one is not."""

MADE_BY_MIGRATION = {"alembic_version", "directory_epoch"}
BEYOND_A_FLOAT = 2**53 + 1

Rows = dict[str, list[dict[str, Any]]]


def fill(conn: sa.Connection) -> None:
    """Insert two rows into every table: one with each column set, and one with null wherever it may be."""
    for table in _tables(conn):
        if table.name not in MADE_BY_MIGRATION:
            given = [column for column in table.columns if column.computed is None]
            full = {column.name: _value(conn, column, 1) for column in given}
            needed = [column for column in given if not column.nullable or (table.name, column.name) in ONE_OF_TWO]
            sparse = {column.name: _value(conn, column, 2) for column in needed}
            conn.execute(sa.insert(table), [full])
            conn.execute(sa.insert(table), [sparse])


def picture(conn: sa.Connection) -> Rows:
    """Return all rows of all tables, in a stable order."""
    pictures: Rows = {}
    for table in _tables(conn):
        rows = conn.execute(sa.select(table).order_by(*table.primary_key.columns)).mappings()
        pictures[table.name] = [dict(row) for row in rows]
    return pictures


def _tables(conn: sa.Connection) -> list[sa.Table]:
    """Return the tables as they are in the database, parents before children; no partitions."""
    metadata = sa.MetaData()
    metadata.reflect(conn, only=lambda name, _: not name.startswith("usage_events_"))
    return metadata.sorted_tables


def _value(conn: sa.Connection, column: sa.Column[Any], number: int) -> Any:
    """Return a value that the column takes; integers as great as the engine's type lets them be of use."""
    if column.foreign_keys:
        return _value(conn, next(iter(column.foreign_keys)).column, number)
    name = (column.table.name, column.name)
    if name in ALLOWED:
        return ALLOWED[name]
    if name == ("usage_events", "id"):
        return ids.uuid7()
    if isinstance(column.type, sa.Integer):
        is_wide = isinstance(column.type, sa.BigInteger) or conn.dialect.name == "sqlite"
        return BEYOND_A_FLOAT + number if is_wide else number
    return f"{column.table.name}.{column.name} é {number}"
