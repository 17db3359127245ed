"""What the revisions make is what `billing/ledger/schema.py` says, on both engines.

Alembic's comparison is asked first; it does not see checks, collations, column order, STRICT and WITHOUT ROWID,
so two databases are laid side by side as well: one by the revisions and one by the models.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy.engine import Inspector

from billing.ledger import migrate, schema
from billing.ledger.database import Database
from billing.usage import UsageEvent

COLLATIONS = (
    "SELECT table_name, column_name, collation_name FROM information_schema.columns"
    " WHERE table_schema = 'public' AND collation_name IS NOT NULL"
    " AND table_name NOT LIKE 'usage_events_%' AND table_name <> 'alembic_version' ORDER BY 1, 2"
)
FLAGS = "SELECT name, wr, strict FROM pragma_table_list WHERE schema = 'main' AND name NOT LIKE 'sqlite_%'"


@pytest.fixture
def migrated(empty_database_url: str) -> Iterator[Database]:
    """A database made by the revisions."""
    database = Database(empty_database_url)
    migrate.upgrade(database)
    yield database
    database.close()


@pytest.fixture
def modelled(new_database_url: Callable[[], str]) -> Iterator[Database]:
    """A database made from the models."""
    database = Database(new_database_url())
    with database.writing() as conn:
        schema.metadata.create_all(conn)
    yield database
    database.close()


def is_ours(name: str) -> bool:
    """Neither Alembic's own table nor a partition."""
    return name != "alembic_version" and not name.startswith("usage_events_")


def described(inspector: Inspector, table: str) -> dict[str, Any]:
    """All that the database's catalogue says of a table, in an order of its own."""
    columns = [{**column, "type": repr(column["type"])} for column in inspector.get_columns(table)]
    indexes = [
        {**index, "dialect_options": {name: str(value) for name, value in index["dialect_options"].items()}}
        for index in inspector.get_indexes(table)
    ]
    return {
        "columns": columns,
        "primary key": inspector.get_pk_constraint(table),
        "foreign keys": sorted(inspector.get_foreign_keys(table), key=repr),
        "unique": sorted(inspector.get_unique_constraints(table), key=repr),
        "checks": sorted(inspector.get_check_constraints(table), key=repr),
        "indexes": sorted(indexes, key=repr),
    }


def test_alembic_finds_no_difference(migrated: Database) -> None:
    """Tables, columns, types, nullability, indexes, unique and foreign keys."""
    with migrated.reading() as conn:
        context = MigrationContext.configure(
            conn,
            opts={
                "compare_type": True,
                "compare_server_default": True,
                "include_name": lambda name, kind, _parents: kind != "table" or is_ours(name or ""),
            },
        )
        assert compare_metadata(context, schema.metadata) == []


def test_the_catalogues_agree(migrated: Database, modelled: Database) -> None:
    """Also in what Alembic does not compare: checks, names, and the order of columns."""
    with migrated.reading() as ours, modelled.reading() as theirs:
        inspectors = sa.inspect(ours), sa.inspect(theirs)
        names = [sorted(filter(is_ours, inspector.get_table_names())) for inspector in inspectors]
        assert names[0] == names[1] == sorted(schema.metadata.tables)
        for table in names[0]:
            assert described(inspectors[0], table) == described(inspectors[1], table), table
        question = sa.text(FLAGS if migrated.is_sqlite else COLLATIONS)
        answers = [{tuple(row) for row in conn.execute(question) if is_ours(row[0])} for conn in (ours, theirs)]
        assert answers[0] == answers[1]


def test_storage_is_what_the_engine_does_best(migrated: Database) -> None:
    """SQLite: all STRICT, usage WITHOUT ROWID. PostgreSQL: ids in collation C, events partitioned by range."""
    with migrated.reading() as conn:
        if migrated.is_sqlite:
            flags = {row.name: (row.wr, row.strict) for row in conn.execute(sa.text(FLAGS)) if is_ours(row.name)}
            assert {name for name, (_, is_strict) in flags.items() if not is_strict} == set()
            assert {name for name, (is_keyed, _) in flags.items() if is_keyed} == {
                "usage_events",
                "usage_hourly",
                "upstream_hourly",
                "power_samples",
                "credit_charges",
                "stripe_checkpoints",
                "invoice_checks",
            }
        else:
            collations = {(row[0], row[1]): row[2] for row in conn.execute(sa.text(COLLATIONS))}
            assert collations["usage_events", "id"] == collations["usage_hourly", "customer_id"] == "C"
            assert conn.scalar(sa.text("SELECT pg_get_partkeydef('usage_events'::regclass)")) == "RANGE (id)"


@pytest.mark.parametrize("value", ["'abc'", "'1.5'", "1.5"])
def test_what_is_no_whole_number_can_not_become_money(migrated: Database, value: str) -> None:
    """The database itself refuses it, or (PostgreSQL, for a number) stores a whole one."""
    columns = "customer_id, window_start, api_key_id, model, shard, requests, input_tokens, cached_input_tokens"
    columns += ", output_tokens, reasoning_tokens, cost_micro, amount_micro, amount_pico, assigned_micro"
    columns += ", assigned_pico, window_seq, cost_pico"
    insert = (
        f"INSERT INTO usage_hourly ({columns}) VALUES ('c', 0, 'k', 'm', 0, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, {value})"
    )
    if migrated.is_sqlite or value.startswith("'"):
        with pytest.raises(sa.exc.DBAPIError), migrated.writing() as conn:
            conn.execute(sa.text(insert))
        return
    with migrated.writing() as conn:
        conn.execute(sa.text(insert))
        assert conn.scalar(sa.text("SELECT cost_pico FROM usage_hourly")) == 2


def test_an_event_is_bound_in_the_order_of_its_columns(migrated: Database) -> None:
    """`UsageEvent` is the row but for two columns, which are the ledger's own."""
    with migrated.reading() as conn:
        columns = [column["name"] for column in sa.inspect(conn).get_columns("usage_events")]
    assert [column for column in columns if column not in {"shard", "window_seq"}] == list(UsageEvent._fields)
