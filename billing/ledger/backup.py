"""A copy of the whole ledger while it is being written: one snapshot, checked before it counts as a backup.

SQLite copies through its online backup interface (https://sqlite.org/backup.html) in one step: readers of a WAL
database do not hold up writers, and a copy in several steps would begin anew with every commit in between.
PostgreSQL has a tool of its own, pg_dump, which this runs.
"""

import os
import shlex
import shutil
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path

import sqlalchemy as sa

from billing.errors import WeirError
from billing.ledger.database import Database


def write(database: Database, target: Path) -> None:
    """Write a backup to a file, which appears only when it is whole and is readable by its owner alone.

    Raises WeirError.
    """
    unfinished = target.with_name(target.name + ".unfinished")
    try:
        os.close(os.open(unfinished, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600))
        if database.is_sqlite:
            _copy(database, unfinished)
        else:
            _dump(database, unfinished, target)
        with unfinished.open("rb") as written:
            os.fsync(written.fileno())
        unfinished.replace(target)
    except (OSError, sqlite3.Error) as error:
        raise WeirError(f"the backup failed: {error}") from error
    finally:
        unfinished.unlink(missing_ok=True)


def _copy(database: Database, path: Path) -> None:
    """Copy SQLite's pages, and leave no WAL mode behind: a backup is one file, not three."""
    assert database.url.database is not None
    source_uri = f"{Path(database.url.database).resolve().as_uri()}?mode=ro"
    with closing(sqlite3.connect(source_uri, uri=True)) as source, closing(sqlite3.connect(path)) as copy:
        source.backup(copy)
        copy.execute("PRAGMA journal_mode = DELETE")
        answer = copy.execute("PRAGMA quick_check").fetchone()[0]
        if answer != "ok":
            raise WeirError(f"the copy is damaged, and so may be the database: {answer}")


def _dump(database: Database, path: Path, target: Path) -> None:
    """Run pg_dump; the password goes through its environment, since command lines are public."""
    url = database.url
    without_password = sa.URL.create(
        "postgresql", url.username, host=url.host, port=url.port, database=url.database, query=url.query
    )
    connection = without_password.render_as_string()
    if shutil.which("pg_dump") is None:
        remedy = f"pg_dump --format=custom --file={shlex.quote(str(target))} --dbname={shlex.quote(connection)}"
        raise WeirError(f"pg_dump is not installed here; where it is, run: {remedy}")
    command = ["pg_dump", "--format=custom", "--no-password", f"--file={path}", f"--dbname={connection}"]
    password = {} if url.password is None else {"PGPASSWORD": str(url.password)}
    ended = subprocess.run(  # noqa: S603 -- no shell, and nothing in it comes from outside
        command, env={**os.environ, **password}, capture_output=True, text=True, check=False
    )
    if ended.returncode != 0:
        raise WeirError(f"pg_dump failed: {' '.join(ended.stderr.split())[:300]}")
