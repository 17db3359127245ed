"""Brings a database to this program's schema, or says what to do when it is not on it.

An upgrade is one transaction on both engines: it happens whole or not at all, and two at once are safe,
since the second waits for the first and finds nothing left to do. On PostgreSQL an advisory lock and time
limits guard it: an upgrade that can not get a table's lock soon gives up, rather than queue every request of
a busy gateway behind it.

Revisions are numbered files (`migrations/versions/0001_….py`), and the number is the revision's id. So the
check that every command makes is one query and a look at file names; Alembic itself (0.1 s to import) is
needed by an upgrade only.
"""

from pathlib import Path
from zlib import crc32

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from billing import clock
from billing.clock import Clock
from billing.errors import DatabaseAwayError, SchemaError
from billing.ledger import partitions
from billing.ledger.database import Database, is_away

TURN_WAIT_S = 120
"""How long an upgrade waits for another one to end."""

LOCK_WAIT_S = 10
"""How long an upgrade waits for a table that others use."""

STATEMENT_S_MAX = 600
"""How long one statement of an upgrade may run."""

_UNDEFINED_TABLE = "42P01"


def upgrade(database: Database, *, to: str = "head", now: Clock = clock.now) -> tuple[str, ...]:
    """Run the revisions up to `to` that the database lacks, and return them; none is the usual case.

    Raises SchemaError if the database is newer than this program or the upgrade failed: nothing was changed.
    """
    try:
        with database.writing(TURN_WAIT_S) as conn:
            if not database.is_sqlite:
                _take_turn(conn)
            before = _revision_of(conn)
            if before is not None and before not in revisions():
                raise SchemaError(mismatch(before, revisions()))
            _run(conn, to)
            partitions.ensure(conn, now())
            after = _revision_of(conn)
    except DBAPIError as error:
        cause = " ".join(str(error.orig).split())[:200]
        raise SchemaError(f"the upgrade failed and changed nothing: {cause}") from error
    return tuple(revision for revision in revisions() if (before or "") < revision <= (after or ""))


def require_current(database: Database) -> None:
    """Raise SchemaError, with the remedy, unless the database is on this program's schema."""
    fault = mismatch(current_revision(database), revisions())
    if fault is not None:
        raise SchemaError(fault)


def mismatch(current: str | None, known: tuple[str, ...]) -> str | None:
    """Return why a program of the known revisions can not use a database at `current`, and the remedy."""
    if current is None:
        return "the database is empty; run `weir db upgrade`"
    if current not in known:
        return f"the database is newer ({current}) than this program ({known[-1]}); upgrade weir"
    if current != known[-1]:
        return f"the database is older ({current}) than this program ({known[-1]}); run `weir db upgrade`"
    return None


def current_revision(database: Database) -> str | None:
    """Return the database's revision, None if it has none of our tables. Raises DatabaseAwayError."""
    try:
        with database.reading() as conn:
            revision: str | None = conn.scalar(sa.text("SELECT version_num FROM alembic_version"))
            return revision
    except DBAPIError as error:
        if _is_undefined_table(error):
            return None
        if is_away(error):
            raise DatabaseAwayError(
                f"the database does not answer: {' '.join(str(error.orig).split())[:200]}"
            ) from None
        raise


def revisions() -> tuple[str, ...]:
    """Return the ids of all revisions of this program, oldest first."""
    return tuple(sorted(path.name.partition("_")[0] for path in scripts().glob("versions/[0-9]*_*.py")))


def scripts() -> Path:
    """Return the folder of the revisions: inside the package in a wheel, beside it in a checkout."""
    ledger = Path(__file__).resolve().parent
    packaged = ledger / "migrations"
    return packaged if packaged.is_dir() else ledger.parent.parent / "migrations"


def _run(conn: sa.Connection, to: str) -> None:
    from alembic import command  # noqa: PLC0415 -- see the module's docstring
    from alembic.config import Config  # noqa: PLC0415

    config = Config(attributes={"connection": conn})
    config.set_main_option("script_location", str(scripts()).replace("%", "%%"))
    command.upgrade(config, to)


def _take_turn(conn: sa.Connection) -> None:
    """Wait for the advisory lock, which the transaction's end gives back, then limit all further waits."""
    conn.execute(sa.text(f"SET LOCAL lock_timeout = '{TURN_WAIT_S}s'"))
    conn.execute(sa.text("SELECT pg_advisory_xact_lock(:number)"), {"number": crc32(b"weir:schema")})
    conn.execute(sa.text(f"SET LOCAL lock_timeout = '{LOCK_WAIT_S}s'"))
    conn.execute(sa.text(f"SET LOCAL statement_timeout = '{STATEMENT_S_MAX}s'"))


def _revision_of(conn: sa.Connection) -> str | None:
    """Return the revision without a statement that could fail: in PostgreSQL that ends the transaction."""
    if not sa.inspect(conn).has_table("alembic_version"):
        return None
    revision: str | None = conn.scalar(sa.text("SELECT version_num FROM alembic_version"))
    return revision


def _is_undefined_table(error: DBAPIError) -> bool:
    if getattr(error.orig, "sqlstate", None) == _UNDEFINED_TABLE:
        return True
    return "no such table" in str(error.orig)
