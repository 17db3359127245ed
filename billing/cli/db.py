"""`weir db`: the database's schema, and copies of it."""

from contextlib import closing
from pathlib import Path

import click

from billing.cli.app import Session, pass_session
from billing.errors import RefusedError
from billing.ledger import backup as ledger_backup
from billing.ledger import migrate
from billing.ledger.database import Database


@click.group()
def db() -> None:
    """The ledger's database: its schema, and copies of it."""


@db.command()
@pass_session
def upgrade(session: Session) -> None:
    """Bring the database to this program's schema; do it once after each installation of a newer weir."""
    with closing(Database(session.config.database.url)) as database:
        made = migrate.upgrade(database)
        current = migrate.current_revision(database)
    click.echo(f"upgraded to {current}" if made else f"nothing to do: the database is at {current}")


@db.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--yes", is_flag=True, help="Overwrite FILE if it exists.")
@pass_session
def backup(session: Session, file: Path, *, yes: bool) -> None:
    """Copy the ledger into FILE while it is being used: a SQLite file, or an archive of pg_dump's."""
    if file.exists() and not yes:
        raise RefusedError(f"{file} exists; choose another name, or overwrite it with --yes")
    ledger_backup.write(session.database, file)
    click.echo(f"{file}: {file.stat().st_size} bytes")
