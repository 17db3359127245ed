"""`weir init`: a configuration that works for what runs on this machine, a database, and what to do next."""

import json
import os
import secrets
import shlex
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import click

from billing.address import parse
from billing.cli import probe
from billing.cli.app import Session, pass_session
from billing.cli.probe import Server
from billing.config import load
from billing.errors import ConfigError, RefusedError, UsageError
from billing.ledger import migrate
from billing.ledger.database import Database

_HEAD = """\
# Weir's configuration; every key is also WEIR_SECTION__KEY in the environment.

[gateway]
host = "127.0.0.1"
port = 8787
admin_token = {token}

[database]
url = "sqlite:///weir.db"       # or postgresql+psycopg://user:password@host/name
"""

_EXAMPLE = """
# No model server was found. This is one; `weir init --yes` looks again.
# [[upstreams]]
# name = "local"
# url = "http://127.0.0.1:8080"     # or https://…, or unix:///run/llama.sock
"""

_TAIL = """
[billing]
currency = "usd"
timezone = "UTC"                # of days in reports
default_margin = "30%"          # on top of cost, while `weir margin set` made no rule for all

[stripe]                        # STRIPE_API_KEY and STRIPE_WEBHOOK_SECRET belong in the environment
enabled = true

# [notify]                      # webhooks when budgets are half, to 80 % and wholly used, and when credit runs low
# url = "https://your-host/weir"
# secret = "whsec_…"            # WEIR_NOTIFY__SECRET; `openssl rand -base64 32` makes one
# low_balance = 5

[limits]                        # of keys without limits of their own; 0 is none
default_rpm = 0
default_tpm = 0
"""


@click.command()
@click.option("--upstream", metavar="URL", help="Your model server.  [default: look on this machine]")
@click.option("--no-db", is_flag=True, help="Do not make the database.")
@click.option("--yes", is_flag=True, help="Overwrite the configuration if there is one.")
@pass_session
def init(session: Session, *, upstream: str | None, no_db: bool, yes: bool) -> None:
    """Write weir.toml for the model servers found on this machine, and make the database."""
    path = session.config_path or Path("weir.toml")
    if path.exists() and not yes:
        raise RefusedError(f"{path} exists; overwrite it with --yes, or edit it")
    servers = probe.find() if upstream is None else [_named(upstream)]
    _write(path, document(servers, secrets.token_urlsafe(32)))
    click.echo(f"wrote {path}")
    for server in servers:
        click.echo(f"  upstream {server.url} ({_described(server)})")
    if not servers:
        click.echo("  no model server answers here: fill in [[upstreams]]")
    config = load(path)
    if not no_db:
        with closing(Database(config.database.url)) as database:
            migrate.upgrade(database)
        click.echo(f"made the database {database.url.render_as_string()}")
    click.echo(next_steps(servers))


def document(servers: Sequence[Server], admin_token: str) -> str:
    """Return the configuration file for the servers."""
    tables = "".join(_upstream(name, server) for name, server in zip(_names(servers), servers, strict=True))
    return _HEAD.format(token=_quoted(admin_token)) + (tables or _EXAMPLE) + _TAIL


def next_steps(servers: Sequence[Server]) -> str:
    """Return what to do after `weir init`, with the name of a model that is there."""
    model = next((model for server in servers for model in server.models or ()), "MODEL")
    return f"""next:
  weir cost set {shlex.quote(model)} --input 0.03 --output 0.12    what 1M tokens cost you
  weir margin set 30%                                 what you put on top
  weir customer add acme                              who pays
  weir key create acme                                prints an API key, once
  weir serve                                          then use http://127.0.0.1:8787/v1"""


def _upstream(name: str, server: Server) -> str:
    served = f"# serves {', '.join(server.models)[:200]}\n" if server.models else ""
    key = 'api_key = ""                    # it asks for one\n' if server.models is None else ""
    kind = f'kind = "{server.kind}"\n' if server.kind != "auto" else ""
    return f'\n[[upstreams]]\nname = "{name}"\nurl = {_quoted(server.url)}\n{kind}{key}{served}'


def _quoted(text: str) -> str:
    """Write a basic string of TOML; JSON's is one as long as nothing but ASCII is escaped."""
    return json.dumps(text, ensure_ascii=False)


def _names(servers: Sequence[Server]) -> list[str]:
    """Name servers by their kind; the second of a kind is "vllm-2"."""
    bases = ["local" if server.kind == "auto" else server.kind for server in servers]
    counts = [bases[: position + 1].count(base) for position, base in enumerate(bases)]
    return [base if count == 1 else f"{base}-{count}" for base, count in zip(bases, counts, strict=True)]


def _described(server: Server) -> str:
    models = "asks for an API key" if server.models is None else ", ".join(server.models) or "no model loaded"
    return models if server.kind == "auto" else f"{server.kind}: {models}"


def _named(url: str) -> Server:
    """Return the server that the admin named, whether or not it answers now."""
    base = url.rstrip("/").removesuffix("/v1")
    try:
        parse(base)
    except ValueError as error:
        raise UsageError(f"{url!r} is no URL of a model server such as http://127.0.0.1:8080: it {error}") from None
    return probe.ask(base) or Server(base, "auto", ())


def _write(path: Path, text: str) -> None:
    """Write the file whole, and for its owner's eyes only: it holds the admin token."""
    unfinished = path.with_name(path.name + ".unfinished")
    try:
        descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        unfinished.replace(path)
    except OSError as error:
        raise ConfigError(f"{path} can not be written: {error.strerror}") from error
