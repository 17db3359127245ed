"""What a gateway must know of keys and prices, kept as a file on its host: for a start while the ledger is away.

It holds the rows of the tables that make keys and prices, as of one epoch, in one SQLite file, and the same code that
loads them from the ledger loads them from there. Of every customer's credit entries it has the newest, which says
whether there is credit; no lease, no event. A table that is not kept is not in the file at all: code that would need it
fails, and the gateway waits for the ledger rather than serve at other prices.

The file appears whole or not at all, is readable by its owner alone (keys are in it as hashes, as in the ledger), names
the revision of the program that wrote it, and belongs to one database. Its time of modification is when the ledger was
last seen to be as the file says.
"""

import contextlib
import os
import sqlite3
import time
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import sqlite
from sqlalchemy.pool import NullPool
from sqlalchemy.schema import CreateIndex, CreateTable

from billing.errors import WeirError
from billing.ledger import epoch, migrate, schema
from billing.ledger.database import Database, DatabaseError

SUFFIX = ".memo"

TABLES = (
    *(schema.directory_epoch, schema.customers, schema.suspensions, schema.api_keys, schema.budgets),
    *(schema.plans, schema.plan_assignments, schema.plan_terms, schema.cost_rates, schema.margin_rules),
    schema.credit_entries,
)
"""What `principals.load` and `versions.load_book` read."""


class MemoError(WeirError):
    """There is no file to start from."""


def path_of(folder: Path, database: Database) -> Path:
    """Return where the file of a database is; its name gives no password away."""
    named = database.url.render_as_string(hide_password=True)
    return folder.joinpath(f"{blake2b(named.encode(), digest_size=8).hexdigest()}{SUFFIX}")


def write(conn: sa.Connection, path: Path) -> int:
    """Write the file as of this transaction, and return its epoch. Raises OSError."""
    with contextlib.closing(sqlite3.connect(":memory:")) as memory:
        memory.execute("CREATE TABLE memo (revision TEXT NOT NULL) STRICT")
        memory.execute("INSERT INTO memo VALUES (?)", (migrate.revisions()[-1],))
        for table in TABLES:
            _copy(conn, table, memory)
        memory.commit()
        content = memory.serialize()
    unfinished = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.touch(0o600)
        with unfinished.open("wb") as file:
            file.write(content)
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return epoch.current(conn)


def _copy(conn: sa.Connection, table: sa.Table, memory: sqlite3.Connection) -> None:
    dialect = sqlite.dialect()
    memory.execute(str(CreateTable(table).compile(dialect=dialect)))
    for index in table.indexes:
        memory.execute(str(CreateIndex(index).compile(dialect=dialect)))
    columns = [column for column in table.c if column.computed is None]
    names, places = ", ".join(column.name for column in columns), ", ".join("?" for _ in columns)
    rows = conn.execution_options(yield_per=1_000).execute(_rows(table, columns))
    memory.executemany(f"INSERT INTO {table.name} ({names}) VALUES ({places})", map(tuple, rows))  # noqa: S608 -- ours


def _rows(table: sa.Table, columns: list[sa.Column[Any]]) -> sa.Select[Any]:
    """Return the query for what is kept of a table: all rows, or of credit each customer's newest."""
    query = sa.select(*columns)
    if table is not schema.credit_entries:
        return query
    newest = (
        sa.select(sa.func.max(table.c.seq))
        .where(table.c.customer_id == schema.customers.c.id)
        .correlate(schema.customers)
        .scalar_subquery()
    )
    return query.join_from(
        schema.customers, table, sa.and_(table.c.customer_id == schema.customers.c.id, table.c.seq == newest)
    )


@contextlib.contextmanager
def reading(path: Path) -> Iterator[sa.Connection]:
    """Open the file as a ledger to read keys and prices from. Raises MemoError unless it can be used."""
    uri = f"{path.resolve().as_uri()}?mode=ro&immutable=1"
    engine = sa.create_engine("sqlite://", creator=lambda: sqlite3.connect(uri, uri=True), poolclass=NullPool)
    try:
        with engine.connect() as conn:
            if conn.scalar(sa.text("SELECT revision FROM memo")) != migrate.revisions()[-1]:
                raise MemoError(f"{path} was written by another version of weir")
            yield conn
    except DatabaseError as error:
        raise MemoError(f"{path} can not be used: {error.orig}") from None


def age_s(path: Path) -> int:
    """Return how long ago the ledger was last seen to be as the file says, rounded up to seconds.

    A file of the future has no age that could be trusted: the clock was set back. Raises MemoError.
    """
    try:
        age_ns = time.time_ns() - path.stat().st_mtime_ns
    except OSError as error:
        raise MemoError(f"{path} can not be read: {error.strerror}") from None
    if age_ns < 0:
        raise MemoError(f"{path} is of the future: the clock was set back")
    return -(-age_ns // 1_000_000_000)


def touch(path: Path) -> None:
    """Note that the ledger is still as the file says. Raises OSError."""
    os.utime(path)


def is_usable(path: Path) -> bool:
    """Tell whether a gateway can start from the file."""
    return epoch_of(path) is not None


def epoch_of(path: Path) -> int | None:
    """Return the epoch that the file is of, None if there is none that could be used."""
    try:
        with reading(path) as conn:
            return epoch.current(conn)
    except MemoError:
        return None
