"""On PostgreSQL each event is in the partition of its month, and the months are made before they begin."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from billing import clock
from billing.clock import Instant
from billing.ledger import migrate, partitions
from billing.ledger.database import Database
from tests.support.postgres import PostgresServer

MARCH = datetime(2026, 3, 1, tzinfo=UTC)
MILLISECOND = timedelta(milliseconds=1)
LOWEST, HIGHEST = 0, 2**74 - 1


def instant(moment: datetime) -> Instant:
    """The moment as the ledger writes it."""
    return clock.from_datetime(moment)


def id_at(moment: datetime, rest: int) -> str:
    """A UUIDv7 of the moment's millisecond; `rest` is its 74 bits that are not time."""
    millisecond = instant(moment) // 1_000
    value = millisecond << 80 | 7 << 76 | rest >> 62 << 64 | 2 << 62 | rest & (1 << 62) - 1
    text = f"{value:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


@pytest.fixture
def database(postgres_server: PostgresServer) -> Iterator[Database]:
    """A PostgreSQL database, upgraded in the middle of March 2026."""
    opened = Database(postgres_server.create_database())
    migrate.upgrade(opened, now=lambda: instant(MARCH + timedelta(days=14)))
    yield opened
    opened.close()


def record(conn: sa.Connection, event_id: str) -> None:
    """Insert an event of which only the id matters."""
    conn.execute(
        sa.text(
            "INSERT INTO usage_events VALUES (:id, 'c', 'k', 'm', 'u', 'um', '/', 1, NULL, 2, 'completed', 200,"
            " 'upstream', 1, 0, 1, 0, 5, 7, 'q', 0, NULL, NULL, NULL, 0, 0)"
        ),
        {"id": event_id},
    )


def partition_of(conn: sa.Connection, event_id: str) -> str:
    """The name of the partition that holds the event."""
    found = conn.scalar(sa.text("SELECT tableoid::regclass::text FROM usage_events WHERE id = :id"), {"id": event_id})
    return str(found)


def partitions_of(conn: sa.Connection) -> list[str]:
    """The names of all partitions."""
    rows = conn.execute(
        sa.text("SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'usage_events'::regclass")
    )
    return sorted(rows.scalars())


def test_an_upgrade_makes_this_month_the_next_twelve_and_a_default(database: Database) -> None:
    """Thirteen months and the partition for whatever fits none."""
    months = [f"usage_events_2026_{month:02}" for month in range(3, 13)]
    months += [f"usage_events_2027_{month:02}" for month in range(1, 4)]
    with database.reading() as conn:
        assert partitions_of(conn) == [*months, "usage_events_default"]


@pytest.mark.parametrize("rest", [LOWEST, HIGHEST])
@pytest.mark.parametrize(
    ("moment", "partition"),
    [
        (MARCH, "usage_events_2026_03"),
        (MARCH - MILLISECOND, "usage_events_default"),
        (datetime(2026, 4, 1, tzinfo=UTC) - MILLISECOND, "usage_events_2026_03"),
        (datetime(2026, 4, 1, tzinfo=UTC), "usage_events_2026_04"),
        (datetime(2027, 1, 1, tzinfo=UTC) - MILLISECOND, "usage_events_2026_12"),
        (datetime(2027, 1, 1, tzinfo=UTC), "usage_events_2027_01"),
        (datetime(2027, 4, 1, tzinfo=UTC), "usage_events_default"),
    ],
)
def test_the_last_and_the_first_millisecond_of_a_month_land_right(
    database: Database, moment: datetime, partition: str, rest: int
) -> None:
    """With the smallest and the greatest id that the millisecond can have."""
    with database.writing() as conn:
        record(conn, id_at(moment, rest))
        assert partition_of(conn, id_at(moment, rest)) == partition


def test_a_known_bound() -> None:
    """RFC 9562, appendix A.6: the example of a UUIDv7 is of 2022-02-22T14:22:22-05:00, 017F22E2-79B0-7CC3-…"""
    assert partitions.bound(datetime(2022, 2, 22, 19, 22, 22, tzinfo=UTC)) == "017f22e2-79b0-"


SECONDS = st.integers(31_536_000, 200_000_000_000).map(lambda seconds: datetime.fromtimestamp(seconds, UTC))


@given(SECONDS, st.integers(-2, 2), st.integers(LOWEST, HIGHEST))
def test_a_bound_divides_ids_by_their_millisecond(moment: datetime, offset: int, rest: int) -> None:
    """Ids of the bound's millisecond and later are above it, all earlier ones below, whatever their other bits."""
    other = id_at(moment + offset * MILLISECOND, rest)
    assert (other.encode() > partitions.bound(moment).encode()) == (offset >= 0)


def test_a_second_run_makes_nothing(database: Database) -> None:
    """Within the same month."""
    with database.writing() as conn:
        assert partitions.ensure(conn, instant(MARCH + timedelta(days=30))) == ()


def test_the_next_month_makes_one_more(database: Database) -> None:
    """A monthly job stays a year ahead."""
    with database.writing() as conn:
        assert partitions.ensure(conn, instant(datetime(2026, 4, 1, tzinfo=UTC))) == ("usage_events_2027_04",)


def test_a_month_made_too_late_takes_its_events_over(database: Database) -> None:
    """No event is lost, doubled or changed by the move, and those of no month stay where they were."""
    late, other = (
        id_at(datetime(2028, 5, 31, tzinfo=UTC), HIGHEST),
        id_at(datetime(2040, 1, 1, tzinfo=UTC), LOWEST),
    )
    with database.writing() as conn:
        record(conn, late)
        record(conn, other)
        before = conn.execute(sa.text("SELECT * FROM usage_events ORDER BY id")).all()
        assert partition_of(conn, late) == "usage_events_default"
        made = partitions.ensure(conn, instant(datetime(2028, 6, 1, tzinfo=UTC) - MILLISECOND))
        assert len(made) == 1 + partitions.MONTHS_AHEAD
        assert partition_of(conn, late) == "usage_events_2028_05"
        assert partition_of(conn, other) == "usage_events_default"
        assert conn.execute(sa.text("SELECT * FROM usage_events ORDER BY id")).all() == before


def test_a_partition_keeps_ids_unique(database: Database) -> None:
    """The primary key came with it."""
    event_id = id_at(MARCH, 1)
    with database.writing() as conn:
        record(conn, event_id)
    with pytest.raises(sa.exc.IntegrityError), database.writing() as conn:
        record(conn, event_id)


def test_a_month_is_read_without_the_others(database: Database) -> None:
    """A look-up by id touches one partition."""
    with database.reading() as conn:
        plan = conn.execute(sa.text(f"EXPLAIN SELECT * FROM usage_events WHERE id = '{id_at(MARCH, 1)}'")).scalars()
        assert "usage_events_2026_03" in (text := "\n".join(plan))
        assert text.count("usage_events_20") == text.count("usage_events_2026_03")


def test_sqlite_has_one_table(tmp_path: object) -> None:
    """And nothing to make."""
    database = Database(f"sqlite:///{tmp_path}/weir.db")
    migrate.upgrade(database)
    with database.writing() as conn:
        assert partitions.ensure(conn, instant(MARCH)) == ()
    database.close()
