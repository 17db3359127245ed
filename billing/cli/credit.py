"""`weir credit`: prepaid credit that customers are given, what is left of it, and where it went."""

import sys

import click

from billing.cli import topup
from billing.cli.app import Session, pass_session
from billing.cli.output import Row, emit, emit_one, listing
from billing.clock import instant_text, parse_instant
from billing.credit.account import PRIORITY_DEFAULT, PRIORITY_MAX, Kind
from billing.ledger import accounts, charges, facts, leases
from billing.ledger import credit as history
from billing.ledger.accounts import Customer
from billing.ledger.credit import Entry
from billing.ledger.leases import Standing
from billing.money import amount_text, format_amount, parse_amount

COLUMNS = ("at", "kind", "amount", "left", "credit", "expires_at", "reason")
ENTRIES_SHOWN = 100


@click.group()
def credit() -> None:
    """Prepaid credit; CUSTOMER is an id or a name, AMOUNT is in major units, such as 25 or 0.50."""


@credit.command()
@click.argument("customer")
@click.argument("amount")
@click.option("--expires", metavar="INSTANT", help="When what is left of it lapses, such as +90d.  [default: never]")
@click.option("--reason", metavar="TEXT", help="Why, for the customer and the audit log.")
@click.option(
    "--priority",
    type=click.IntRange(0, PRIORITY_MAX),
    default=PRIORITY_DEFAULT,
    show_default=True,
    help="Lower burns first; then what expires first.",
)
@listing
@pass_session
def grant(
    session: Session, customer: str, amount: str, *, expires: str | None, reason: str | None, priority: int, form: str
) -> None:
    """Give CUSTOMER credit; gateways use it within a second."""
    currency = session.config.billing.currency
    expires_at = None if expires is None else parse_instant(expires, session.now)
    given = parse_amount(amount)
    with session.database.writing() as conn:
        found = accounts.find_customer(conn, customer)
        facts.pin_currency(conn, currency, session.now)
        entry = history.grant(
            conn,
            found.id,
            given,
            currency,
            session.now,
            session.actor,
            expires_at=expires_at,
            priority=priority,
            reason=reason,
        )
    if form != "table":
        emit_one(form, {"customer": found.name, "customer_id": found.id, **row(entry)})
        return
    click.echo(f"gave {found.name!r} {format_amount(given, currency)} ({entry.id})")


@credit.command()
@click.argument("customer")
@click.option("--at", "instant", metavar="INSTANT", help="The balance at an instant of the past, and nothing else.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=ENTRIES_SHOWN, help="How many of the last entries.")
@listing
@pass_session
def show(session: Session, customer: str, *, instant: str | None, limit: int, form: str) -> None:
    """Show CUSTOMER's balance, what running requests may use of it, and the last entries."""
    with session.database.reading() as conn:
        found = accounts.find_customer(conn, customer)
        standing = leases.standing(conn, found.id, session.now)
        currency = standing.currency or session.config.billing.currency
        if instant is not None:
            at = parse_instant(instant, session.now)
            balance = amount_text(charges.balance_at(conn, found.id, at))
            emit_one(form, {**_who(found), "at": instant_text(at), "balance": balance, "currency": currency})
            return
        entries = history.entries(conn, found.id, limit)
    rows = [row(entry) for entry in entries]
    if form == "json":
        emit_one(form, {**_who(found), **_sums(standing, currency), "entries": rows})
    elif form == "csv":
        emit(form, rows, COLUMNS)
    else:
        emit_one(form, {**_who(found), **_sums(standing, currency)})
        click.echo()
        emit(form, rows, COLUMNS, title=f"entries, in {currency}")


@credit.command()
@click.argument("credit_id")
@click.option("--reason", metavar="TEXT", default="revoked by the administrator", help="Why, for the audit log.")
@click.option("--yes", is_flag=True, help="Do not ask, also on a terminal.")
@pass_session
def revoke(session: Session, credit_id: str, *, reason: str, yes: bool) -> None:
    """Take back what is left of a credit; what running requests hold of it stays theirs, and lapses as they end."""
    if not yes and sys.stdin.isatty():
        click.confirm(f"take back what is left of {credit_id}?", abort=True)
    with session.database.writing() as conn:
        taken = history.end_grant(conn, credit_id, Kind.REVERSAL, reason, session.now, session.actor)
    click.echo(f"took back {format_amount(taken, session.config.billing.currency)}")


for _command in (topup.topup_link, topup.auto, topup.list_topups):
    credit.add_command(_command)


def row(entry: Entry) -> Row:
    """Return an entry as one row; `credit` is the credit that it changes, `left` what that has after it."""
    return {
        "id": entry.id,
        "at": instant_text(entry.at),
        "kind": entry.kind.value,
        "amount": amount_text(entry.amount),
        "left": amount_text(entry.left),
        "owed": amount_text(entry.owed),
        "currency": entry.currency,
        "credit": entry.grant_id,
        "priority": entry.priority,
        "expires_at": None if entry.expires_at is None else instant_text(entry.expires_at),
        "lease": entry.lease_id,
        "source": entry.source,
        "reason": entry.reason,
    }


def _who(found: Customer) -> Row:
    return {"customer": found.name, "customer_id": found.id, "prepaid": found.is_prepaid}


def _sums(standing: Standing, currency: str) -> Row:
    return {
        "balance": amount_text(standing.balance),
        "held": amount_text(standing.held),
        "available": amount_text(standing.available),
        "currency": currency,
    }
