"""`weir key`: API keys; a secret is printed once, by `create`, and can not be had again."""

import sys

import click

from billing.cli.app import Session, pass_session
from billing.cli.budgets import LIMIT, apply_budget, budget_options, given_limits, period_span, rate_options
from billing.cli.budgets import rows as budget_rows
from billing.cli.output import emit, emit_one, listing
from billing.clock import Instant, instant_text, parse_instant
from billing.disconnect import CANCEL, Disconnect
from billing.errors import UsageError
from billing.ledger import accounts, key_tags, settings
from billing.ledger.accounts import ApiKey

LIST_COLUMNS = (
    "id",
    "customer",
    "name",
    "hint",
    "status",
    "models",
    "rpm",
    "tpm",
    "concurrency",
    "on_disconnect",
    "expires_at",
)


@click.group()
def key() -> None:
    """API keys of your customers; CUSTOMER is an id or a name."""


@key.command()
@click.argument("customer")
@click.option("--name", default="default", show_default=True, help="What the key is for.")
@click.option("--models", metavar="A,B", help="The only models it may use.  [default: all]")
@click.option("--rpm", type=LIMIT, default=0, help="Requests per minute.  [default: limits.default_rpm]")
@click.option("--tpm", type=LIMIT, default=0, help="Tokens per minute.  [default: limits.default_tpm]")
@click.option("--concurrency", type=LIMIT, default=0, help="Requests at a time.  [default: no limit]")
@click.option("--expires", metavar="INSTANT", help="When it stops to work, such as +90d.  [default: never]")
@click.option(
    "--on-disconnect",
    metavar="POLICY",
    default=CANCEL.text,
    show_default=True,
    help="When the client leaves: cancel, drain (generate and bill the whole answer), or drain:TOKENS more.",
)
@click.option("--tag", "tags", metavar="NAME=VALUE", multiple=True, help="What reports may group by; may be repeated.")
@budget_options
@listing
@pass_session
def create(
    session: Session,
    customer: str,
    *,
    name: str,
    models: str | None,
    rpm: int,
    tpm: int,
    concurrency: int,
    expires: str | None,
    on_disconnect: str,
    tags: tuple[str, ...],
    budget: str | None,
    per: str | None,
    is_soft: bool,
    form: str,
) -> None:
    """Make a key for CUSTOMER and print it: it is shown this once only."""
    chosen = None if models is None else [model for model in models.split(",") if model.strip()]
    expires_at = None if expires is None else parse_instant(expires, session.now)
    span, given_tags = period_span(budget, per, is_soft=is_soft), key_tags.parse(tags)
    with session.database.writing() as conn:
        found = accounts.find_customer(conn, customer)
        made, secret = accounts.create_key(
            conn,
            found.id,
            name,
            chosen,
            rpm,
            tpm,
            concurrency,
            expires_at,
            at=session.now,
            actor=session.actor,
            on_disconnect=Disconnect.parse(on_disconnect),
        )
        if span is not None and budget is not None:
            apply_budget(session, conn, found.id, made.id, span, budget, is_soft=is_soft)
        if given_tags:
            key_tags.change(conn, made.id, given_tags, (), session.now, session.actor)
    if form == "table":
        click.echo(secret)
        click.echo(f"{made.id} of {found.name!r}: keep the key, it is not shown again", err=True)
    else:
        emit_one(form, {"id": made.id, "key": secret, **row(made, found.name, session.now), "tags": given_tags})


@key.command("list")
@click.option("--customer", metavar="NAME|ID", help="Only this customer's.")
@listing
@pass_session
def list_(session: Session, customer: str | None, form: str) -> None:
    """List keys, oldest first, without their secrets."""
    with session.database.reading() as conn:
        if customer is None:
            names = {each.id: each.name for each in accounts.list_customers(conn)}
            keys = accounts.list_keys(conn)
        else:
            found = accounts.find_customer(conn, customer)
            names = {found.id: found.name}
            keys = accounts.list_keys(conn, found.id)
        tags = key_tags.of_all(conn)
    rows = [
        {**row(each, names[each.customer_id], session.now), "tags": key_tags.parse(tags.get(each.id, ()))}
        for each in keys
    ]
    emit(form, rows, (*LIST_COLUMNS, *(("tags",) if tags else ())), title="keys")


@key.command("set")
@click.argument("key_id")
@click.option("--tag", "tags", metavar="NAME=VALUE", multiple=True, help="Give it a tag; its past is regrouped, too.")
@click.option("--untag", metavar="NAME", multiple=True, help="Take a tag away.")
@budget_options
@rate_options
@listing
@pass_session
def set_(
    session: Session,
    /,
    key_id: str,
    *,
    tags: tuple[str, ...],
    untag: tuple[str, ...],
    budget: str | None,
    per: str | None,
    is_soft: bool,
    form: str,
    **rates: int | None,
) -> None:
    """Change a key's tags, budget and limits; gateways follow within a second."""
    span, limits = period_span(budget, per, is_soft=is_soft), given_limits(rates)
    given_tags = key_tags.parse(tags)
    if span is None and not limits and not given_tags and not untag:
        raise UsageError("nothing to set; `weir key set --help` shows what there is")
    with session.database.writing() as conn:
        found = accounts.get_key(conn, key_id)
        if span is not None and budget is not None:
            apply_budget(session, conn, found.customer_id, key_id, span, budget, is_soft=is_soft)
        if limits:
            settings.set_key_limits(conn, key_id, limits, session.now, session.actor)
        if given_tags or untag:
            key_tags.change(conn, key_id, given_tags, untag, session.now, session.actor)
    with session.database.reading() as conn:
        owner = accounts.get_customer(conn, found.customer_id)
        held = [each for each in budget_rows(session, conn, owner.id) if each["key_id"] == key_id]
        after = {**row(accounts.get_key(conn, key_id), owner.name, session.now), "tags": key_tags.of_key(conn, key_id)}
    emit_one(form, {**after, "budgets": held})


@key.command()
@click.argument("key_id")
@click.option("--yes", is_flag=True, help="Do not ask, also on a terminal.")
@listing
@pass_session
def revoke(session: Session, key_id: str, *, yes: bool, form: str) -> None:
    """Revoke a key for good; gateways refuse it within a second."""
    if not yes and sys.stdin.isatty():
        click.confirm(f"revoke {key_id} for good?", abort=True)
    with session.database.writing() as conn:
        revoked = accounts.revoke_key(conn, key_id, session.now, session.actor)
        owner = accounts.get_customer(conn, revoked.customer_id)
    if form == "table":
        click.echo(f"revoked {revoked.id} ({revoked.hint}) of {owner.name!r}")
    else:
        emit_one(form, row(revoked, owner.name, session.now))


def row(of: ApiKey, customer: str, now: Instant) -> dict[str, object]:
    """Return a key as one row; its status is that of the instant `now`."""
    return {
        "id": of.id,
        "customer": customer,
        "customer_id": of.customer_id,
        "name": of.name,
        "hint": of.hint,
        "status": _status(of, now),
        "models": None if of.models is None else list(of.models),
        "rpm": of.rpm,
        "tpm": of.tpm,
        "concurrency": of.concurrency,
        "on_disconnect": of.on_disconnect.text,
        "created_at": instant_text(of.created_at),
        "expires_at": None if of.expires_at is None else instant_text(of.expires_at),
        "revoked_at": None if of.revoked_at is None else instant_text(of.revoked_at),
    }


def _status(of: ApiKey, now: Instant) -> str:
    if of.revoked_at is not None:
        return "revoked"
    return "expired" if of.expires_at is not None and of.expires_at <= now else "active"
