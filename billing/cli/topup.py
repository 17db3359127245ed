"""`weir credit topup-link|auto|topups`: money that customers pay in, by Stripe's page or by their saved card."""

import click

from billing.cli.app import Session, pass_session
from billing.cli.output import Row, emit, emit_one, listing
from billing.clock import SECOND_US, Instant, instant_text
from billing.errors import RefusedError, UsageError
from billing.ledger import accounts, auto_topups, credit, topups
from billing.ledger.accounts import Customer
from billing.ledger.auto_topups import AutoTopup
from billing.ledger.topups import Topup
from billing.money import amount_text, format_amount, parse_amount
from billing.stripe_sync.minor_units import to_minor, to_pico

COLUMNS = ("id", "created_at", "origin", "state", "amount", "received", "refunded", "disputed", "credited", "note")
TOPUPS_SHOWN = 100


@click.command("topup-link")
@click.argument("customer")
@click.argument("amount")
@listing
@pass_session
def topup_link(session: Session, customer: str, amount: str, form: str) -> None:
    """Make a page of Stripe's where CUSTOMER pays AMOUNT, and print its address.

    What is paid there is credited once, within a second of Stripe's webhook (`checkout.session.*`, `charge.*`,
    `refund.*`). The page is open for a day.
    """
    from billing.stripe_sync import topups as paying  # noqa: PLC0415 -- the SDK's import is slow, and rarely needed
    from billing.stripe_sync.client import connect  # noqa: PLC0415

    minor = _minor(session, amount)
    port = connect(session.config)
    found = _find(session, customer)
    if found.suspensions and any(held.cause is accounts.Cause.DISPUTED for held in found.suspensions):
        raise RefusedError(f"{found.name!r} disputes a payment; settle that first (`weir customer show`)")
    link = paying.open_link(session.config, session.database, port, found, minor, session.now, session.actor)
    if form == "table":
        click.echo(link.checkout.url)
        return
    made = {"url": link.checkout.url, "expires_at": instant_text(Instant(link.checkout.expires_at_s * SECOND_US))}
    emit_one(form, {"customer": found.name, "customer_id": found.id, **made, **_row(link.topup)})


@click.command()
@click.argument("customer")
@click.option("--below", metavar="AMOUNT", help="Charge the saved card when the balance is below this.")
@click.option("--amount", metavar="AMOUNT", help="How much is charged, and credited.")
@click.option("--off", "is_off", is_flag=True, help="Do not top up by itself any more.")
@listing
@pass_session
def auto(session: Session, customer: str, *, below: str | None, amount: str | None, is_off: bool, form: str) -> None:
    """Top CUSTOMER's credit up by itself; without options, show what is set.

    The card is the one that paid last by `weir credit topup-link`, made after this was set. A declined card is tried
    again after one and three days, then not until it is set again or a payment arrives.
    """
    if is_off and (below is not None or amount is not None):
        raise UsageError("--off takes no other option")
    if (below is None) != (amount is None):
        raise UsageError("give --below and --amount together")
    found = _find(session, customer)
    currency = session.config.billing.currency
    with session.database.writing() as conn:
        credit.lock(conn, found.id)
        if is_off:
            auto_topups.remove(conn, found.id, session.now, session.actor)
        elif below is not None and amount is not None:
            lowest = 0 if parse_amount(below) == 0 else _minor(session, below)
            told = (lowest, _minor(session, amount), currency)
            auto_topups.put(conn, found.id, *told, session.now, session.actor)
        setting = auto_topups.find(conn, found.id)
        has_card = topups.payer(conn, found.id) is not None
    emit_one(form, {"customer": found.name, "customer_id": found.id, **_setting_row(setting, has_card=has_card)})


@click.command("topups")
@click.argument("customer")
@click.option("--limit", type=click.IntRange(1, 10_000), default=TOPUPS_SHOWN, help="How many of the last.")
@listing
@pass_session
def list_topups(session: Session, customer: str, *, limit: int, form: str) -> None:
    """List CUSTOMER's payments for credit, newest first."""
    found = _find(session, customer)
    with session.database.reading() as conn:
        rows = [_row(each) for each in topups.of_customer(conn, found.id, limit)]
    emit(form, rows, COLUMNS, title="payments for credit")


def _minor(session: Session, amount: str) -> int:
    return to_minor(parse_amount(amount), session.config.billing.currency)


def _find(session: Session, customer: str) -> Customer:
    with session.database.reading() as conn:
        return accounts.find_customer(conn, customer)


def _row(topup: Topup) -> Row:
    def told(minor: int) -> str:
        return amount_text(to_pico(minor, topup.currency))

    return {
        "id": topup.id,
        "topup": topup.id,
        "created_at": instant_text(topup.created_at),
        "origin": topup.origin.value,
        "state": topup.state.value,
        "amount": told(topup.amount),
        "received": told(topup.received),
        "refunded": told(topup.refunded),
        "disputed": told(topup.withdrawn),
        "credited": told(topup.credited),
        "currency": topup.currency,
        "checkout_session": topup.checkout_session_id,
        "payment_intent": topup.payment_intent_id,
        "note": topup.note,
    }


def _setting_row(setting: AutoTopup | None, *, has_card: bool) -> Row:
    if setting is None:
        return {"auto": False}
    return {
        "auto": True,
        "below": format_amount(to_pico(setting.below, setting.currency), setting.currency),
        "amount": format_amount(to_pico(setting.amount, setting.currency), setting.currency),
        "has_saved_card": has_card,
        "failures": setting.failures,
        "paused_at": None if setting.paused_at is None else instant_text(setting.paused_at),
        "note": setting.note,
    }
