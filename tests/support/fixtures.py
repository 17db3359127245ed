"""Fixtures that give a test real servers and fresh databases; a plugin that `tests/conftest.py` names.

Invariant: no two tests share a database, and a database is gone when its test is.
"""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from billing.ledger import migrate
from billing.ledger.database import Database
from tests.support.postgres import PostgresServer

TEMPLATE = "template_weir"


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """One PostgreSQL server for the session (each worker's, with xdist), started by the first that asks."""
    with PostgresServer() as server:
        yield server


@dataclass(frozen=True, slots=True)
class Engine:
    """Makes databases on one engine: empty ones, and copies of one that `weir db upgrade` has brought to its schema."""

    new: Callable[[], str]
    copy: Callable[[], str]


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite ledger to be copied."""
    path = tmp_path_factory.mktemp("template") / "weir.db"
    _upgrade(f"sqlite:///{path}")
    return path


@pytest.fixture(scope="session")
def postgres_template(postgres_server: PostgresServer) -> str:
    """The name of a database on the session's server to be copied."""
    _upgrade(postgres_server.create_database(TEMPLATE))
    return TEMPLATE


@pytest.fixture(params=["sqlite", "postgresql"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    """Each engine in turn; its databases are gone when the test is."""
    made: list[str] = []
    if request.param == "sqlite":

        def new() -> str:
            made.append(f"sqlite:///{tmp_path}/weir{len(made) or ''}.db")
            return made[-1]

        def copy() -> str:
            url = new()
            shutil.copyfile(request.getfixturevalue("sqlite_template"), url.removeprefix("sqlite:///"))
            return url

        yield Engine(new, copy)
        return

    server: PostgresServer = request.getfixturevalue("postgres_server")

    def new_on_server() -> str:
        made.append(server.create_database())
        return made[-1]

    def copy_on_server() -> str:
        made.append(server.create_database(template=request.getfixturevalue("postgres_template")))
        return made[-1]

    yield Engine(new_on_server, copy_on_server)
    if server.is_running:
        for url in made:
            server.drop_database(url)


@pytest.fixture
def new_database_url(engine: Engine) -> Callable[[], str]:
    """A function that gives the URL of a fresh, empty database at each call, on each engine in turn."""
    return engine.new


@pytest.fixture
def empty_database_url(engine: Engine) -> str:
    """The URL of one fresh, empty database; the test runs once on SQLite and once on PostgreSQL."""
    return engine.new()


@pytest.fixture
def database_url(engine: Engine) -> str:
    """The URL of one fresh ledger, on the newest schema; the test runs once on SQLite and once on PostgreSQL."""
    return engine.copy()


def _upgrade(url: str) -> None:
    database = Database(url)
    migrate.upgrade(database)
    database.close()
