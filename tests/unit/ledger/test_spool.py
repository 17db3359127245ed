"""The spool: durable, in order, once, one holder, and nothing that is in it stops what comes after."""

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa

from billing import drain
from billing.clock import Instant
from billing.ledger import due as dues
from billing.ledger import inflight, migrate, schema, spool
from billing.ledger.database import Database
from billing.ledger.due import Due
from billing.ledger.spool import Spool, SpoolError
from billing.money import Pico
from tests.unit.ledger.made import event, quote

NOON = Instant(1_772_366_400_000_000)
QUOTE = quote()


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    opened = Database(database_url)
    migrate.upgrade(opened)
    yield opened
    opened.close()


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Spool]:
    opened = Spool.new(tmp_path / "spool")
    yield opened
    opened.close()


def now() -> Instant:
    return NOON


def made(count: int, **given: object) -> list[Due]:
    return [Due(event(NOON, price_ref=QUOTE.ref, **given), QUOTE) for _ in range(count)]


def recorded(database: Database) -> list[str]:
    """The ids of all events; the rollups must know as many."""
    with database.reading() as conn:
        ids = list(conn.execute(sa.select(schema.usage_events.c.id).order_by(schema.usage_events.c.id)).scalars())
        assert (conn.execute(sa.select(sa.func.sum(schema.usage_hourly.c.requests))).scalar_one() or 0) == len(ids)
    return ids


def test_what_is_spooled_comes_to_the_ledger_once_and_leaves(database: Database, own: Spool) -> None:
    some, others = made(3), made(2)
    own.append(some)
    own.append(some)
    own.append(others)
    assert own.rows == 5
    assert [each.due for each in own.first(9)] == [*some, *others]
    assert drain.drain(database, own, 1, now) == 5
    assert (own.rows, drain.drain(database, own, 1, now)) == (0, 0)
    assert recorded(database) == sorted(due.event.id for due in (*some, *others))


def test_a_crash_between_the_ledger_and_the_spool_records_nothing_twice(database: Database, own: Spool) -> None:
    given = made(4)
    with database.writing() as conn:
        dues.store_quotes(conn, [QUOTE])
        dues.append(conn, given[:2], 0, NOON)
    own.append(given)
    drain.drain(database, own, 1, now)
    assert recorded(database) == sorted(due.event.id for due in given)
    assert own.rows == 0


def test_what_the_ledger_refuses_is_kept_and_stops_nothing(database: Database, own: Spool) -> None:
    given = made(5)
    broken = given[2]._replace(event=given[2].event._replace(upstream=None))  # type: ignore[arg-type]
    own.append([*given[:2], broken, *given[3:]])
    assert drain.drain(database, own, 1, now) == 4
    assert (own.rows, own.refused) == (0, 1)
    assert recorded(database) == sorted(due.event.id for due in given if due is not given[2])
    path = own.path
    own.close()
    assert path.exists(), "it is not thrown away"
    own.__init__(path)  # type: ignore[misc]
    assert own.refused == 1


def test_what_a_torn_disk_left_is_set_aside_and_stops_nothing(
    database: Database, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Texts that are cut, empty, not UTF-8, no event's, or that a changed digit made another amount: none is billed."""
    folder = tmp_path / "spool"
    dead = Spool.new(folder)
    given = made(7)
    dead.append(given)
    stream, other = (Due(inflight.interrupted(each.event), QUOTE) for each in made(2))
    dead.checkpoint([stream, other], [])
    path = dead.path
    dead.close()
    dearer = ("UPDATE events SET due = replace(due, '\"amount_pico\":117000000', '\"amount_pico\":917000000')", 5)
    with closing(sqlite3.connect(path)) as behind, behind:
        for change, seq in (
            ("UPDATE events SET due = substr(due, 1, 200)", 1),
            ("UPDATE events SET due = ''", 2),
            ("UPDATE events SET due = CAST(x'7b22ff22' AS TEXT), id = CAST(x'ff' AS TEXT)", 3),
            ("UPDATE events SET due = '[1]'", 4),
            dearer,
        ):
            assert behind.execute(f"{change} WHERE seq = {seq}").rowcount == 1
        changed = behind.execute("SELECT count(*) FROM events WHERE instr(due, '917000000')").fetchone()
        assert changed == (1,)
        behind.execute("UPDATE checkpoints SET due = 'x' WHERE id = ?", (stream.event.id,))
    (folder / "0.spool").write_bytes(b"torn" * 2_000)
    assert drain.adopt(database, folder, 1, now) == 3
    assert recorded(database) == sorted(due.event.id for due in (*given[5:], other))
    said = [record.message for record in caplog.records if record.levelname == "ERROR"]
    assert (said.count("spool.damaged"), said.count("spool.failed")) == (6, 1), "each is said, and the torn file"
    with pytest.raises(SpoolError, match=r"0\.spool can not be read"):
        spool.waiting(folder)
    (folder / "0.spool").unlink()
    assert spool.waiting(folder) == (1, 0, 6), "nothing is thrown away"
    orphan = Spool(path)
    orphan.append(made(1))
    assert drain.drain(database, orphan, 1, now) == 1, "it goes on"
    orphan.close()


def test_events_are_refused_again_and_again(database: Database, own: Spool) -> None:
    """One by one, as workers meet them; also what no column could hold, and a price that changed under its name."""
    huge = made(1)[0]
    another = made(1)[0]
    dearer = replace(QUOTE, price=replace(QUOTE.price, request=Pico(1)))
    for broken in (
        huge._replace(event=huge.event._replace(upstream=None)),  # type: ignore[arg-type]
        huge._replace(event=huge.event._replace(output_tokens=2**63)),
        another._replace(quote=dearer),
    ):
        fine = made(1)
        own.append([*fine, broken])
        assert drain.drain(database, own, 1, now) == 1
        assert fine[0].event.id in recorded(database)
    assert (own.rows, own.refused, len(recorded(database))) == (0, 3, 3)


def test_a_spool_has_one_holder_and_an_empty_one_leaves_no_file(tmp_path: Path) -> None:
    held = Spool.new(tmp_path)
    with pytest.raises(BlockingIOError):
        Spool(held.path)
    assert list(spool.orphans(tmp_path)) == []
    held.append(made(1))
    held.close()
    (orphan,) = spool.orphans(tmp_path)
    assert orphan.rows == 1
    assert spool.waiting(tmp_path) == (1, 1, 0)
    orphan.remove([each.seq for each in orphan.first(9)])
    orphan.close()
    assert list(tmp_path.iterdir()) == []
    assert spool.waiting(tmp_path) == (0, 0, 0)


SPOOLER = """
import sys
from pathlib import Path
from billing.ledger import due
from billing.ledger.spool import Spool
spool = Spool.new(Path(sys.argv[1]))
for line in sys.stdin:
    spool.append([due.from_text(line)])
    print("durable", flush=True)
"""


def test_the_spool_of_a_killed_worker_is_drained_by_another(database: Database, tmp_path: Path) -> None:
    """And its streams in flight, of which the ledger was not told, are billed as interrupted."""
    given, folder = made(3), tmp_path / "spool"
    command = [sys.executable, "-c", SPOOLER, str(folder)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[3]
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for due in given:
            process.stdin.write(dues.to_text(due) + "\n")
            process.stdin.flush()
            assert process.stdout.readline() == "durable\n"
        assert drain.adopt(database, folder, 1, now) == 0, "its worker lives"
        os.kill(process.pid, signal.SIGKILL)
    (path,) = folder.glob("*.spool")
    stream = Due(inflight.interrupted(made(1)[0].event), QUOTE)
    with closing(sqlite3.connect(path)) as behind, behind:
        behind.execute("INSERT INTO checkpoints VALUES (?, ?)", (stream.event.id, dues.to_text(stream)))
    assert drain.adopt(database, folder, 1, now) == 4
    assert drain.adopt(database, folder, 1, now) == 0
    assert recorded(database) == sorted(due.event.id for due in (*given, stream))
    with database.reading() as conn:
        query = sa.select(schema.usage_events.c.outcome).where(schema.usage_events.c.id == stream.event.id)
        assert conn.execute(query).scalar_one() == "interrupted"
    assert list(folder.iterdir()) == []


def test_an_event_takes_its_checkpoint_out_of_the_spool(database: Database, own: Spool) -> None:
    (due,) = made(1)
    other = made(1)[0]
    own.checkpoint([Due(inflight.interrupted(each.event), QUOTE) for each in (due, other)], [])
    own.append([due])
    assert [each.event_id for each in own.checkpoints()] == [other.event.id]
    own.checkpoint([], [other.event.id])
    assert own.checkpoints() == []


def test_an_interrupted_event_is_made_whole_by_what_was_spooled(database: Database, own: Spool) -> None:
    """Another host took this one for dead while it was cut off from the database."""
    (due,) = made(1)
    with database.writing() as conn:
        dues.store_quotes(conn, [QUOTE])
        before = inflight.interrupted(due.event._replace(output_tokens=1, reasoning_tokens=0, amount_pico=5))
        dues.append(conn, [Due(before, QUOTE)], 0, NOON)
    own.append([due])
    for _ in range(2):
        drain.drain(database, own, 1, now)
        own.append([due])
    with database.reading() as conn:
        table = schema.usage_events
        sums = conn.execute(sa.select(sa.func.sum(table.c.output_tokens), sa.func.sum(table.c.amount_pico))).one()
    assert tuple(sums) == (due.event.output_tokens, due.event.amount_pico)


def test_a_full_spool_says_so(own: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "SPOOL_ROWS_MAX", 2)
    own.append(made(2))
    with pytest.raises(SpoolError, match="that is its limit"):
        own.append(made(1))


def test_a_folder_that_can_not_be_written_says_what_to_do(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(SpoolError, match=r"set \[database\] spool"):
        Spool.new(blocked)
