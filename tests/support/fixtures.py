"""Fixtures that give a test real servers and fresh databases; a plugin that `tests/conftest.py` names.

Invariant: no two tests share a database, and a database is gone when its test is.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.postgres import PostgresServer


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """One PostgreSQL server for the session (each worker's, with xdist), started by the first that asks."""
    with PostgresServer() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def new_database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], str]]:
    """A function that gives the URL of a fresh, empty database at each call, on each engine in turn."""
    made: list[str] = []
    if request.param == "sqlite":

        def create() -> str:
            made.append(f"sqlite:///{tmp_path}/weir{len(made) or ''}.db")
            return made[-1]

        yield create
        return

    server: PostgresServer = request.getfixturevalue("postgres_server")

    def create_on_server() -> str:
        made.append(server.create_database())
        return made[-1]

    yield create_on_server
    if server.is_running:
        for url in made:
            server.drop_database(url)


@pytest.fixture
def database_url(new_database_url: Callable[[], str]) -> str:
    """The URL of one fresh, empty database; the test runs once on SQLite and once on PostgreSQL."""
    return new_database_url()
