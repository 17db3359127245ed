"""Engine, transactions and locks: every difference between SQLite and PostgreSQL is here.

A transaction is opened at the edge, `with database.writing() as conn:`, and commits when the block ends. On SQLite
a writing one begins IMMEDIATE, so that a read inside it can not be stale by the time it writes; on PostgreSQL the
functions that read before they write say which row lock they take. SQLite runs in WAL mode with synchronous=FULL:
a commit that returned survives a power cut (https://sqlite.org/pragma.html#pragma_synchronous).
"""

import fcntl
import os
import socket
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from zlib import crc32

import sqlalchemy as sa
from sqlalchemy.engine.interfaces import DBAPICursor
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.pool import QueuePool

from billing.errors import ConfigError, DatabaseAwayError

Connection = sa.Connection
"""What a transaction gives; named here, so that callers need not import SQLAlchemy."""

DatabaseError = DBAPIError
"""Whatever the database says no with; `is_away` tells an outage from a fault of ours."""

WAIT_S = 10
SILENT_MS_MAX = 5_000
"""How long PostgreSQL's host may leave what we sent unacknowledged: a cut network is noticed by then."""

Cursor = DBAPICursor
"""The driver's own cursor, for the few statements whose speed matters."""

SQLITE_CACHE_KIB = 16 * 1024


class Database:
    """One database, its engine, and how to open transactions on it."""

    def __init__(self, url: str, *, wait_s: int = WAIT_S) -> None:
        """`wait_s`: how long a statement waits for others' locks before the database counts as away."""
        try:
            parsed = sa.engine.make_url(url)
        except sa.exc.ArgumentError:
            raise ConfigError("database.url is not a URL such as sqlite:///weir.db") from None
        self.is_sqlite = parsed.get_backend_name() == "sqlite"
        if not self.is_sqlite and parsed.get_backend_name() != "postgresql":
            raise ConfigError("database.url must begin with sqlite:/// or postgresql+psycopg://")
        if parsed.drivername == "postgresql":
            parsed = parsed.set(drivername="postgresql+psycopg")
        self.url = parsed
        self.engine = _sqlite_engine(parsed, wait_s) if self.is_sqlite else _postgresql_engine(parsed, wait_s)

    def close(self) -> None:
        """Give back every pooled connection."""
        self.engine.dispose()

    @contextmanager
    def writing(self, lock_wait_s: int | None = None) -> Iterator[sa.Connection]:
        """Open a transaction that may write; it commits at the end of the block, or rolls back on an exception.

        `lock_wait_s`: how long to wait for SQLite's one writer, if not as long as always.
        """
        with self._connected() as connected, self._patience(connected, lock_wait_s):
            begin = {"weir_begin": "BEGIN IMMEDIATE"} if self.is_sqlite else {}
            connection = connected.execution_options(**begin)
            with connection.begin():
                yield connection

    @contextmanager
    def _patience(self, connected: sa.Connection, wait_s: int | None) -> Iterator[None]:
        driver = connected.connection.dbapi_connection if self.is_sqlite and wait_s is not None else None
        if driver is None or wait_s is None:
            yield
            return
        cursor = driver.cursor()
        before = cursor.execute("PRAGMA busy_timeout").fetchone()[0]
        cursor.execute(f"PRAGMA busy_timeout = {wait_s * 1_000}")
        try:
            yield
        finally:
            cursor.execute(f"PRAGMA busy_timeout = {before}")

    @contextmanager
    def writing_on(self, held: list[sa.Connection]) -> Iterator[sa.Connection]:
        """Open a writing transaction on the one connection in `held`, or on a new one that is kept there.

        For one thread that commits all the time: a checkout costs more than the commit of a row. After an exception the
        connection is dropped, since it may be dead.
        """
        self._hold(held)
        try:
            with held[0].begin():
                yield held[0]
        except BaseException:
            held.pop().invalidate()
            raise

    @contextmanager
    def appending_on(self, held: list[sa.Connection]) -> Iterator[Cursor]:
        """Open a writing transaction as `writing_on` does, and give the driver's own cursor in it.

        For statements that are ready for the driver: on SQLite a commit of 16 events takes 200 µs of CPU this way, and
        300 through SQLAlchemy's transaction and results. Raises what SQLAlchemy would: DatabaseError.
        """
        self._hold(held)
        driver = held[0].connection.dbapi_connection
        assert driver is not None, "it is connected"
        try:
            with _translated(held[0]):
                cursor = driver.cursor()
                if self.is_sqlite:
                    cursor.execute("BEGIN IMMEDIATE")
                yield cursor
                if self.is_sqlite:
                    cursor.execute("COMMIT")
                else:
                    driver.commit()
        except BaseException:
            held.pop().invalidate()
            raise

    def _hold(self, held: list[sa.Connection]) -> None:
        if not held:
            try:
                connection = self.engine.connect()
            except (OperationalError, InterfaceError) as error:
                raise DatabaseAwayError(f"the database does not answer: {_one_line(error)}") from None
            held.append(connection.execution_options(weir_begin="BEGIN IMMEDIATE") if self.is_sqlite else connection)

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """Open a transaction that only reads, on one snapshot."""
        with self._connected() as connected:
            level = {} if self.is_sqlite else {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
            connection = connected.execution_options(**level)
            with connection.begin():
                yield connection

    @contextmanager
    def _connected(self) -> Iterator[sa.Connection]:
        try:
            connection = self.engine.connect()
        except (OperationalError, InterfaceError) as error:
            raise DatabaseAwayError(f"the database does not answer: {_one_line(error)}") from None
        with connection:
            yield connection

    def journal_mode(self) -> str | None:
        """Return how SQLite keeps its journal, None on PostgreSQL."""
        if not self.is_sqlite:
            return None
        with self.reading() as conn:
            return str(conn.execute(sa.text("PRAGMA journal_mode")).scalar_one())

    def interrupt(self, held: list[sa.Connection]) -> None:
        """Cut a PostgreSQL connection under another thread's statement, which then fails as if the server had gone."""
        driver = held[0].connection.dbapi_connection if held and not self.is_sqlite else None
        if driver is not None:
            with suppress(OSError), socket.socket(fileno=os.dup(driver.fileno())) as cut:
                cut.shutdown(socket.SHUT_RDWR)

    def ping(self) -> None:
        """Raise DatabaseAwayError unless the database answers a query."""
        try:
            with self.reading() as conn:
                conn.execute(sa.text("SELECT 1"))
        except (OperationalError, InterfaceError) as error:
            raise DatabaseAwayError(f"the database does not answer: {_one_line(error)}") from None

    @contextmanager
    def elected(self, job: str) -> Iterator[bool]:
        """Give True to one process at a time for `job`, among all hosts; the lock dies with its holder.

        PostgreSQL: a session advisory lock on a connection of its own. SQLite: flock on a file beside the database.
        """
        if self.is_sqlite:
            yield from self._elected_by_file(job)
            return
        with self._connected() as connected:
            connection = connected.execution_options(isolation_level="AUTOCOMMIT")
            number = crc32(f"weir:{job}".encode())
            is_mine = connection.scalar(sa.text("SELECT pg_try_advisory_lock(:n)"), {"n": number}) is True
            try:
                yield is_mine
            finally:
                if is_mine:
                    connection.execute(sa.text("SELECT pg_advisory_unlock(:n)"), {"n": number})

    def _elected_by_file(self, job: str) -> Iterator[bool]:
        path = Path(f"{self.url.database}.{job}.lock")
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield True
        finally:
            os.close(descriptor)


def is_away(error: DBAPIError) -> bool:
    """Tell whether an error means that the database can not be reached or written now, rather than a fault of ours."""
    return isinstance(error, OperationalError | InterfaceError)


@contextmanager
def driver_cursor(conn: sa.Connection) -> Iterator[Cursor]:
    """Give the driver's cursor in a transaction of SQLAlchemy's. Raises what SQLAlchemy would: DatabaseError."""
    with _translated(conn):
        yield conn.connection.cursor()


@contextmanager
def _translated(conn: sa.Connection) -> Iterator[None]:
    """Raise the driver's errors as SQLAlchemy does; their parameters, which may name customers, are left out."""
    driver_error = conn.dialect.loaded_dbapi.Error
    try:
        yield
    except driver_error as error:
        raise DBAPIError.instance(None, None, error, driver_error, hide_parameters=True, dialect=conn.dialect) from None


def _one_line(error: Exception) -> str:
    cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    return " ".join(str(cause).split())[:200]


def _sqlite_engine(url: sa.URL, wait_s: int) -> sa.Engine:
    if not url.database or url.database == ":memory:":
        raise ConfigError("database.url must name a file, such as sqlite:///weir.db")
    engine = sa.create_engine(
        url, poolclass=QueuePool, pool_size=8, hide_parameters=True, connect_args={"timeout": wait_s}
    )

    @sa.event.listens_for(engine, "connect")
    def _prepare(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # we say BEGIN ourselves: sqlite3's own begins too late for reads
        connection.execute(f"PRAGMA busy_timeout = {wait_s * 1_000}")
        _keep_journal_ahead(connection, time.monotonic() + wait_s)
        for pragma in (
            "synchronous = FULL",
            "foreign_keys = ON",
            f"cache_size = -{SQLITE_CACHE_KIB}",
        ):
            connection.execute(f"PRAGMA {pragma}")

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: sa.Connection) -> None:
        connection.exec_driver_sql(connection.get_execution_options().get("weir_begin", "BEGIN"))

    return engine


def _keep_journal_ahead(connection: sqlite3.Connection, deadline_s: float) -> None:
    """Switch to WAL. Who does so on a new file while another does is told "locked" at once, whatever the time-out."""
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline_s:
                raise
            time.sleep(0.01)
        else:
            return


def _postgresql_engine(url: sa.URL, wait_s: int) -> sa.Engine:
    """Return the engine; a server that is gone without a word is noticed by TCP, a lock is not waited for for ever."""
    arguments: dict[str, int | str] = {
        "connect_timeout": min(5, max(2, wait_s)),
        "tcp_user_timeout": SILENT_MS_MAX,
        "keepalives_idle": 5,
        "keepalives_interval": 2,
        "keepalives_count": 3,
    }
    engine = sa.create_engine(url, pool_size=8, hide_parameters=True, pool_pre_ping=True, connect_args=arguments)
    if wait_s < WAIT_S:

        @sa.event.listens_for(engine, "connect")
        def _prepare(connection: Any, _record: Any) -> None:
            connection.execute(f"SET lock_timeout = '{wait_s}s'")
            connection.commit()

    return engine
