"""`weir invoice`: what a customer's next invoice will be, by the ledger and by Stripe."""

import click

from billing.cli.app import Session, pass_session
from billing.cli.output import Row, emit, emit_one, listing
from billing.clock import instant_text
from billing.ledger import accounts
from billing.money import Pico, amount_text
from billing.stripe_sync import previews
from billing.stripe_sync.client import connect
from billing.stripe_sync.previews import Preview

COLUMNS = ("what", "ledger", "stripe")


@click.group()
def invoice() -> None:
    """Invoices of Stripe's; CUSTOMER is an id or a name."""


@invoice.command()
@click.argument("customer")
@listing
@pass_session
def preview(session: Session, customer: str, form: str) -> None:
    """Show CUSTOMER's coming invoice from the ledger and from Stripe's preview, and explain the difference."""
    with session.database.reading() as conn:
        found = accounts.find_customer(conn, customer)
    seen = previews.look(session.database, connect(session.config), found.id)
    if form == "table":
        emit(form, _table(seen), COLUMNS, title=_title(seen))
        return
    emit_one(form, row(seen))


def row(seen: Preview) -> Row:
    """Return the preview as one row; amounts are decimal texts in the currency's major unit."""
    return {
        "customer": seen.customer.name,
        "customer_id": seen.customer.id,
        "currency": seen.stripe.currency,
        "period_start": instant_text(seen.start),
        "period_end": instant_text(seen.end),
        "ledger": {
            "usage": amount_text(seen.ledger.usage),
            "credit": amount_text(seen.ledger.credit),
            "billable": amount_text(seen.billable),
            "units_sent": seen.ledger.units_sent,
            "units_unsent": seen.ledger.units_unsent,
        },
        "stripe": {
            "units": seen.stripe_units,
            "amount": amount_text(seen.counted),
            "total": amount_text(seen.stripe_total),
        },
        "difference": amount_text(seen.difference),
        "explained": {
            "unsent": amount_text(seen.ledger.unsent),
            "unassigned": amount_text(seen.ledger.unassigned),
            "carry": amount_text(seen.carry),
        },
        "unexplained": amount_text(seen.unexplained),
    }


def _title(seen: Preview) -> str:
    period = f"{instant_text(seen.start)} to {instant_text(seen.end)}"
    return f"{seen.customer.name}, {period}, in {seen.stripe.currency}"


def _table(seen: Preview) -> list[Row]:
    def line(what: str, ledger: Pico | None, stripe: Pico | None = None) -> Row:
        return {
            "what": what,
            "ledger": "" if ledger is None else amount_text(ledger),
            "stripe": "" if stripe is None else amount_text(stripe),
        }

    return [
        line("usage", seen.ledger.usage),
        line("paid by credit", Pico(-seen.ledger.credit)),
        line("to be invoiced", seen.billable, seen.counted),
        line("  not sent yet", seen.ledger.unsent),
        line("  in no batch yet", seen.ledger.unassigned),
        line("  below a unit, carried on", seen.carry),
        line("  sent, not counted by Stripe", seen.unexplained),
        line("total on the invoice", None, seen.stripe_total),
    ]
