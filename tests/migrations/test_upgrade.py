"""An upgrade brings any database to this program's schema once, whole or not at all, and keeps every row."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory

from billing.errors import DatabaseAwayError, SchemaError
from billing.ledger import epoch, migrate
from billing.ledger.database import Database
from tests.migrations import filled


@pytest.fixture
def database(empty_database_url: str) -> Iterator[Database]:
    """An empty database."""
    opened = Database(empty_database_url)
    yield opened
    opened.close()


def table_names(database: Database) -> set[str]:
    """The tables that exist."""
    with database.reading() as conn:
        return set(sa.inspect(conn).get_table_names())


def test_an_empty_database_gets_every_revision_and_the_one_row(database: Database) -> None:
    """And is then what the program asks for."""
    assert migrate.upgrade(database) == migrate.revisions()
    migrate.require_current(database)
    assert migrate.current_revision(database) == migrate.revisions()[-1]
    with database.reading() as conn:
        assert epoch.current(conn) == 1


def test_a_second_upgrade_changes_nothing(database: Database) -> None:
    """It reports that there was nothing to do, and every row is as it was."""
    migrate.upgrade(database)
    with database.writing() as conn:
        filled.fill(conn)
        before = filled.picture(conn)
    assert migrate.upgrade(database) == ()
    with database.reading() as conn:
        assert filled.picture(conn) == before


@pytest.mark.parametrize("revision", migrate.revisions())
def test_every_row_of_every_table_survives_the_way_to_the_newest_schema(database: Database, revision: str) -> None:
    """From each revision on; columns that were there before keep their values, to the unit."""
    migrate.upgrade(database, to=revision)
    with database.writing() as conn:
        filled.fill(conn)
        before = filled.picture(conn)
    assert all(len(rows) == 2 for name, rows in before.items() if name not in filled.MADE_BY_MIGRATION)
    migrate.upgrade(database)
    with database.reading() as conn:
        after = filled.picture(conn)
    for name in before.keys() - {"alembic_version"}:
        kept = [{column: row[column] for column in before[name][0]} for row in after[name]]
        assert kept == before[name], name


def test_write_offs_from_before_are_named_as_adjustments(database: Database) -> None:
    """Revision 0003: each event that named another one gets its row; requests get none."""
    migrate.upgrade(database, to="0002")
    with database.writing() as conn:
        filled.fill(conn)
        named = conn.execute(sa.text("SELECT id, adjusts FROM usage_events WHERE adjusts IS NOT NULL")).all()
    migrate.upgrade(database)
    with database.reading() as conn:
        found = conn.execute(sa.text("SELECT event_id, adjusts, seq, run_key, credit_pico FROM adjustments")).all()
    assert len(named) == 1
    assert [tuple(row) for row in found] == [(named[0].id, named[0].adjusts, 1, named[0].id, 0)]


def test_an_empty_database_is_refused_with_the_remedy(database: Database) -> None:
    """One line that names the command."""
    with pytest.raises(SchemaError, match="the database is empty; run `weir db upgrade`"):
        migrate.require_current(database)


def test_a_database_of_a_later_program_is_refused_and_not_touched(database: Database) -> None:
    """Neither used nor upgraded."""
    migrate.upgrade(database)
    with database.writing() as conn:
        conn.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(SchemaError, match=r"newer \(9999\) than this program .*; upgrade weir"):
        migrate.require_current(database)
    with pytest.raises(SchemaError, match=r"newer \(9999\) than this program .*; upgrade weir"):
        migrate.upgrade(database)


@pytest.mark.parametrize(
    ("current", "answer"),
    [
        ("0002", None),
        ("0001", "the database is older (0001) than this program (0002); run `weir db upgrade`"),
        ("0003", "the database is newer (0003) than this program (0002); upgrade weir"),
        (None, "the database is empty; run `weir db upgrade`"),
    ],
)
def test_each_mismatch_says_what_to_do(current: str | None, answer: str | None) -> None:
    """For a program that knows two revisions."""
    assert migrate.mismatch(current, ("0001", "0002")) == answer


def test_an_upgrade_that_fails_leaves_no_half_schema(database: Database) -> None:
    """A table in the way stops it late; what it had made by then is gone."""
    with database.writing() as conn:
        conn.execute(sa.text("CREATE TABLE usage_hourly (n INTEGER)"))
    with pytest.raises(SchemaError, match=r"changed nothing: .*usage_hourly.* already exists"):
        migrate.upgrade(database)
    assert table_names(database) == {"usage_hourly"}


UPGRADE = """
import sys
from billing.ledger import migrate
from billing.ledger.database import Database
database = Database(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
print(len(migrate.upgrade(database)))
"""


def test_concurrent_upgrades_do_the_work_once(empty_database_url: str) -> None:
    """Three programs at the same moment: one upgrades, the others wait for it and find nothing to do."""
    programs = [
        subprocess.Popen(
            [sys.executable, "-c", UPGRADE, empty_database_url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
            text=True,
        )
        for _ in range(3)
    ]
    for program in programs:
        assert program.stdout is not None
        assert program.stdout.readline() == "ready\n"
    for program in programs:
        assert program.stdin is not None
        program.stdin.write("\n")
        program.stdin.flush()
    made = sorted(int(program.communicate(timeout=60)[0]) for program in programs)
    assert made == [0, 0, len(migrate.revisions())]
    assert all(program.returncode == 0 for program in programs)


def test_a_server_that_is_gone_is_not_an_empty_database() -> None:
    """Nobody is told to upgrade what can not be reached."""
    database = Database("postgresql+psycopg://nobody@127.0.0.1:1/none")
    with pytest.raises(DatabaseAwayError, match="the database does not answer"):
        migrate.require_current(database)


def test_file_names_and_the_chain_of_revisions_agree() -> None:
    """The number in the name is the id, and each revision follows the one before it."""
    config = Config()
    config.set_main_option("script_location", str(migrate.scripts()))
    chain = [revision.revision for revision in ScriptDirectory.from_config(config).walk_revisions()]
    assert tuple(reversed(chain)) == migrate.revisions()


def test_the_template_makes_a_revision_that_runs(tmp_path: Path, database: Database) -> None:
    """What the next engineer starts from is valid, and follows the newest revision."""
    migrate.upgrade(database)
    folder = tmp_path / "migrations"
    (folder / "versions").mkdir(parents=True)
    for source in [*migrate.scripts().glob("*.*"), *migrate.scripts().glob("versions/*.py")]:
        (folder / source.relative_to(migrate.scripts())).write_text(source.read_text())
    config = Config(attributes={})
    config.set_main_option("script_location", str(folder))
    command.revision(config, message="try the template", rev_id="9000")
    assert (folder / "versions" / "9000_try_the_template.py").exists()
    with database.writing() as conn:
        config.attributes["connection"] = conn
        command.upgrade(config, "head")
        assert conn.scalar(sa.text("SELECT version_num FROM alembic_version")) == "9000"
