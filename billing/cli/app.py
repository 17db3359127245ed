"""The root of `weir`: options, the session that commands share, and errors as one line with an exit code.

Exit codes: 0 done, 1 failed, 2 usage, 3 not found, 4 refused by a rule.
"""

import getpass
import importlib
from collections.abc import Mapping
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import Any

import click

from billing import clock
from billing.clock import Instant
from billing.config import Config, load
from billing.errors import WeirError
from billing.ledger import facts, migrate
from billing.ledger.database import Database, DatabaseError, is_away


class Session:
    """What a command works with: the configuration, and the database once it is needed."""

    def __init__(self, config_path: Path | None) -> None:
        self.config_path = config_path
        self._opened = ExitStack()

    def close(self) -> None:
        """Give back what the command opened."""
        self._opened.close()

    @cached_property
    def config(self) -> Config:
        """The configuration. Raises ConfigError."""
        return load(self.config_path)

    @cached_property
    def database(self) -> Database:
        """The database, reached, on this schema and in this currency. Raises SchemaError, RefusedError."""
        database = Database(self.config.database.url)
        self._opened.callback(database.close)
        migrate.require_current(database)
        with database.reading() as conn:
            facts.require_currency(conn, self.config.billing.currency)
        return database

    @cached_property
    def now(self) -> Instant:
        """The instant of this command: read once, so that all its rows agree."""
        return clock.now()

    @cached_property
    def actor(self) -> str:
        """Who runs the command, for the audit log."""
        return f"cli:{getpass.getuser()}"


pass_session = click.make_pass_decorator(Session)


class Root(click.Group):
    """A group whose commands' modules are imported when they are named."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._modules: dict[str, str] = {}

    def mount(self, modules: Mapping[str, str]) -> None:
        """Add commands: each name, and the module that holds it under that name."""
        self._modules.update(modules)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return all names, in the order in which they were mounted."""
        return [*self._modules, *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the command of that name, None if there is none."""
        module = self._modules.get(cmd_name)
        if module is None:
            return super().get_command(ctx, cmd_name)
        command = getattr(importlib.import_module(module), cmd_name)
        assert isinstance(command, click.Command), "a module holds its command under its name"
        return command


@click.group(cls=Root, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option(
    "--config",
    "config_path",
    type=click.Path(dir_okay=False, path_type=Path),
    envvar="WEIR_CONFIG",
    help="Configuration file.  [default: weir.toml]",
)
@click.version_option(package_name="tokenweir", prog_name="weir")
@click.pass_context
def root(context: click.Context, config_path: Path | None) -> None:
    """Meter the token stream of your own model server, put your margin on it, get it paid through Stripe."""
    context.obj = Session(config_path)
    context.call_on_close(context.obj.close)


def run(arguments: list[str] | None = None) -> int:
    """Run a command line and return its exit code; every expected error is one line on stderr."""
    try:
        outcome = root.main(arguments, prog_name="weir", standalone_mode=False)
    except WeirError as error:
        return _fail(str(error), error.exit_code)
    except click.exceptions.Abort:
        return _fail("stopped", 1)
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        hint = f" (see `{context.command_path} --help`)" if context is not None else ""
        return _fail(error.format_message() + hint, error.exit_code)
    except DatabaseError as error:
        if not is_away(error):
            raise
        return _fail(f"the database does not answer: {' '.join(str(error.orig).split())[:200]}", 1)
    except BrokenPipeError:
        return 0
    return outcome if isinstance(outcome, int) else 0


def _fail(message: str, code: int) -> int:
    click.echo(f"weir: {message}", err=True)
    return code
