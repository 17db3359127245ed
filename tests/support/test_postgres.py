"""The tests' own PostgreSQL does what fault tests rely on: it dies when told, recovers, leaves nothing."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
import sqlalchemy

from tests.support import postgres_guard
from tests.support.postgres import PostgresServer

DEADLINE_S = 60


@pytest.fixture
def server() -> Iterator[PostgresServer]:
    """A server of this test's own, to be hurt."""
    with PostgresServer() as running:
        yield running


def execute(url: str, statement: str) -> list[tuple[object, ...]]:
    """Run one statement in a connection and transaction of its own; the rows, if it gives any."""
    engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool)
    with engine.begin() as connection:
        result = connection.execute(sqlalchemy.text(statement))
        return [tuple(row) for row in result] if result.returns_rows else []


def wait_until(is_so: Callable[[], bool]) -> None:
    """Return when the condition holds; fail at the deadline."""
    deadline = time.monotonic() + DEADLINE_S
    while not is_so():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.01)


def processes_of(home: Path) -> list[int]:
    """The live processes whose command line names the directory."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(home).encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def test_each_database_is_fresh_on_both_engines(new_database_url: Callable[[], str]) -> None:
    """A table made in one database is not in the next."""
    first, second = new_database_url(), new_database_url()
    execute(first, "CREATE TABLE t (n INTEGER)")
    execute(second, "CREATE TABLE t (n INTEGER)")
    execute(first, "INSERT INTO t VALUES (7)")
    assert execute(first, "SELECT n FROM t") == [(7,)]
    assert execute(second, "SELECT n FROM t") == []


def test_the_url_is_of_the_engine_asked_for(database_url: str, request: pytest.FixtureRequest) -> None:
    """Each parameter really reaches its own engine."""
    dialect = sqlalchemy.create_engine(database_url).dialect.name
    assert f"[{dialect}]" in request.node.name
    assert database_url.startswith("sqlite:///" if dialect == "sqlite" else "postgresql+psycopg://")


def test_a_template_gives_its_tables_to_its_copies(postgres_server: PostgresServer) -> None:
    """So a schema is migrated once, and each test copies it."""
    template = postgres_server.create_database("a_template")
    execute(template, "CREATE TABLE t AS SELECT 41 + 1 AS n")
    copy = postgres_server.create_database(template="a_template")
    assert execute(copy, "SELECT n FROM t") == [(42,)]
    postgres_server.drop_database(copy)
    postgres_server.drop_database(template)
    with pytest.raises(sqlalchemy.exc.OperationalError, match="does not exist"):
        execute(copy, "SELECT 1")


def test_a_stopped_server_refuses_and_starts_again_on_the_same_data_and_port(server: PostgresServer) -> None:
    """An outage in order: same URL before and after."""
    url = server.create_database()
    execute(url, "CREATE TABLE t AS SELECT 1 AS n")
    server.stop()
    assert not server.is_running
    with pytest.raises(sqlalchemy.exc.OperationalError):
        execute(url, "SELECT n FROM t")
    server.start()
    assert execute(url, "SELECT n FROM t") == [(1,)]


def test_a_killed_server_keeps_what_was_committed_and_nothing_else(server: PostgresServer) -> None:
    """Killed with a transaction open; every process dies, and the next start recovers."""
    url = server.create_database()
    execute(url, "CREATE TABLE t AS SELECT 1 AS n")
    open_transaction = psycopg.connect(url.replace("+psycopg", ""))
    open_transaction.execute("INSERT INTO t VALUES (2)")
    server.kill9()
    assert postgres_guard.postmaster_of(server.data) is None
    with pytest.raises(psycopg.OperationalError):
        open_transaction.execute("SELECT 1")
    open_transaction.close()
    server.start()
    assert execute(url, "SELECT n FROM t") == [(1,)]
    assert "was interrupted" in (server.home / "log").read_text()


def test_fsync_is_off_unless_durable_was_asked_for(postgres_server: PostgresServer) -> None:
    """Speed by default, the disk's word on request."""
    with PostgresServer(durable=True) as durable:
        assert execute(durable.url(), "SHOW fsync") == [("on",)]
        assert execute(durable.url(), "SHOW synchronous_commit") == [("on",)]
    assert execute(postgres_server.url(), "SHOW fsync") == [("off",)]


def test_the_password_is_asked_for(postgres_server: PostgresServer) -> None:
    """Another user of the machine does not get in."""
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(f"postgresql://weir_tests:wrong@127.0.0.1:{postgres_server.port}/postgres")


def test_the_server_does_not_run_as_root(postgres_server: PostgresServer) -> None:
    """As PostgreSQL demands, whoever runs the tests."""
    pid = postgres_guard.postmaster_of(postgres_server.data)
    assert pid is not None
    assert Path(f"/proc/{pid}").stat().st_uid != 0


def test_a_closed_server_leaves_no_process_and_no_directory() -> None:
    """Closed while running, and closed after a kill."""
    for kill_first in (False, True):
        with PostgresServer() as running:
            home = running.home
            assert processes_of(home)
            if kill_first:
                running.kill9()
        assert processes_of(home) == []
        assert not home.exists()


def test_a_killed_server_leaves_no_shared_memory() -> None:
    """The segment named in its lock file is freed with the rest."""
    with PostgresServer() as running:
        segment = (running.data / "postmaster.pid").read_text().splitlines()[6].split()[1]
        assert segment in segments()
        running.kill9()
        assert segment in segments()
    assert segment not in segments()


def segments() -> list[str]:
    """The ids of the System V shared memory segments that exist."""
    lines = Path("/proc/sysvipc/shm").read_text().splitlines()[1:]
    return [line.split()[1] for line in lines]


OWNER = """
import sys, time
from tests.support.postgres import PostgresServer
server = PostgresServer()
server.start()
print(server.home, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_server_dies_with_an_owner_that_was_killed(number: signal.Signals) -> None:
    """Nothing stays behind when the test run itself is killed."""
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", OWNER]
    owner = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=root, text=True)
    with owner:
        assert owner.stdout is not None
        home = Path(owner.stdout.readline().strip())
        assert postgres_guard.postmaster_of(home / "data") is not None
        os.kill(owner.pid, number)
    wait_until(lambda: not home.exists() and processes_of(home) == [])
