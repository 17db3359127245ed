"""The months of `usage_events` on PostgreSQL: a partition each, made a year ahead; SQLite has one table.

A month's partition is bounded by UUIDv7 text: the first 48 bits of an id are its milliseconds since 1970, so
the first id of a month begins with the 12 hex digits of its first millisecond, "xxxxxxxx-xxxx-". That prefix
alone is smaller than every id of its millisecond and greater than every id before it, in the bytewise order
of collation C.
"""

from datetime import UTC, datetime
from itertools import pairwise

import sqlalchemy as sa

from billing import clock

MONTHS_AHEAD = 12

_EXISTING = sa.text(
    "SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid"
    " WHERE i.inhparent = 'usage_events'::regclass"
)


def ensure(conn: sa.Connection, now: int) -> tuple[str, ...]:
    """Make what is missing of this month's partition and the next twelve; return the names of those made.

    A month that comes too late, after events of it went to the DEFAULT partition, takes them over. A new
    partition is attached (and not created in place), since that does not lock the other partitions against
    reading and writing; what is locked is the DEFAULT partition, empty as long as this runs once a year.
    """
    if conn.dialect.name != "postgresql":
        return ()
    wanted = _months(now)
    if not _missing(conn, wanted):
        return ()
    conn.execute(sa.text("LOCK TABLE usage_events_default IN ACCESS EXCLUSIVE MODE"))
    made = _missing(conn, wanted)
    for name in made:
        _make(conn, name, *wanted[name])
    return made


def bound(first: datetime) -> str:
    """Return the text that divides the ids before an instant from those at and after it."""
    digits = f"{clock.from_datetime(first) // 1_000:012x}"
    return f"{digits[:8]}-{digits[8:]}-"


def _months(now: int) -> dict[str, tuple[str, str]]:
    """Return each month's partition name with its lower bound (in it) and its upper (not in it)."""
    today = clock.to_datetime(clock.Instant(now))
    number = today.year * 12 + today.month - 1
    firsts = [datetime(n // 12, n % 12 + 1, 1, tzinfo=UTC) for n in range(number, number + MONTHS_AHEAD + 2)]
    return {f"usage_events_{first:%Y_%m}": (bound(first), bound(following)) for first, following in pairwise(firsts)}


def _missing(conn: sa.Connection, wanted: dict[str, tuple[str, str]]) -> tuple[str, ...]:
    existing = set(conn.execute(_EXISTING).scalars())
    return tuple(name for name in wanted if name not in existing)


def _make(conn: sa.Connection, name: str, lower: str, upper: str) -> None:
    """Make a month's partition. Its name and bounds are digits of ours: PostgreSQL takes no parameters here."""
    conn.execute(sa.text(f"CREATE TABLE {name} (LIKE usage_events INCLUDING ALL)"))
    take = "WITH moved AS (DELETE FROM usage_events_default WHERE id >= :lower AND id < :upper RETURNING *)"
    take_over = f"{take} INSERT INTO {name} SELECT * FROM moved"  # noqa: S608
    conn.execute(sa.text(take_over), {"lower": lower, "upper": upper})
    bounds = f"FROM ('{lower}') TO ('{upper}')"
    conn.execute(sa.text(f"ALTER TABLE usage_events ATTACH PARTITION {name} FOR VALUES {bounds}"))
