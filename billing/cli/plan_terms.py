"""`weir plan add|set|show|settle`: what a plan includes in each period, its volume tiers, and how far customers are."""

from collections.abc import Callable
from typing import Any

import click

from billing import clock, ids, jobs, settling
from billing.calendar import Per
from billing.cli.app import Session, pass_session
from billing.cli.output import Row, emit, emit_one, listing
from billing.cli.scenario import explaining
from billing.clock import instant_text, parse_instant
from billing.errors import UsageError
from billing.ledger import accounts, plan_counts, plan_terms, plans, versions
from billing.money import amount_text, parse_amount
from billing.pricing.rates import version_at
from billing.pricing.terms import PlanTerms, Terms, discount_text, parse_tier
from billing.reports.plan import count_row
from billing.stripe_sync import turn

USED_COLUMNS = ("customer", "per", "period_start", "period_end", "tokens", "covered", "currency")
_TIER_HELP = "Above so many tokens of a period, so much off: 10000000=15%; may be given several times."


def _terms_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say a plan's terms; `_terms` reads them."""
    for option in (
        click.option("--tier", "tiers", metavar="TOKENS=DISCOUNT", multiple=True, help=_TIER_HELP),
        click.option("--per", type=click.Choice(["day", "month"]), help="Their period.  [default: month]"),
        click.option("--included-amount", metavar="AMOUNT", help="So much of each period's amount is free."),
        click.option("--included-tokens", type=int, metavar="N", help="The first N tokens of each period are free."),
    ):
        command = option(command)
    return command


def _terms(tokens: int | None, amount: str | None, tiers: tuple[str, ...], per: str | None) -> Terms | None:
    """Return the terms that were given, None for none. Raises UsageError, RefusedError, InvalidAmountError."""
    if tokens is None and amount is None and not tiers:
        if per is not None:
            raise UsageError("--per is the period of --included-tokens, --included-amount and --tier; give one of them")
        return None
    read = tuple(sorted(parse_tier(each) for each in tiers))
    return Terms(Per(per or "month"), tokens or 0, parse_amount(amount or "0"), read)


@click.command()
@click.argument("name")
@_terms_options
@explaining
@listing
@pass_session
def add(
    session: Session,
    name: str,
    *,
    included_tokens: int | None,
    included_amount: str | None,
    per: str | None,
    tiers: tuple[str, ...],
    reason: str | None,
    actor: str | None,
    form: str,
) -> None:
    """Add a plan; `weir margin set 20% --plan NAME` says what its customers pay, the options what each period includes.

    Periods are days or months of billing.timezone. Requests are held and booked at the list price; each minute the
    difference that allowance and tiers make, in the order of usage, follows as adjustments.
    """
    terms = _terms(included_tokens, included_amount, tiers, per)
    with session.database.writing() as conn:
        added = plans.add(conn, name, session.now, actor or session.actor)
        if terms is not None:
            version = PlanTerms(ids.new_id("terms"), added.id, terms, session.now, session.now)
            plan_terms.append(conn, version, actor=actor or session.actor, reason=reason)
    row = {"id": added.id, "name": added.name, "created_at": instant_text(added.created_at)}
    emit_one(form, {**row, **terms_row(terms)})


@click.command("set")
@click.argument("name")
@_terms_options
@click.option("--none", "is_none", is_flag=True, help="No allowance and no tiers any more.")
@click.option("--from", "from_text", metavar="INSTANT", default="now", help="When it begins.  [default: now]")
@explaining
@listing
@pass_session
def set_terms(
    session: Session,
    name: str,
    *,
    included_tokens: int | None,
    included_amount: str | None,
    per: str | None,
    tiers: tuple[str, ...],
    is_none: bool,
    from_text: str,
    reason: str | None,
    actor: str | None,
    form: str,
) -> None:
    """Change what NAME includes and its tiers, as a whole, from now on or from an instant to come.

    Tiers come on top of margins, floors and minimums, and stop at cost.

    In the middle of a period the count of tokens goes on: what was used keeps its terms, what follows has the new ones.
    """
    terms = _terms(included_tokens, included_amount, tiers, per)
    if (terms is None) != is_none:
        raise UsageError("say the new terms, or --none; one of both")
    start = parse_instant(from_text, session.now)
    with session.database.writing() as conn:
        found = plans.find(conn, name)
        version = PlanTerms(ids.new_id("terms"), found.id, terms, start, session.now)
        plan_terms.append(conn, version, actor=actor or session.actor, reason=reason)
    emit_one(form, {"id": found.id, "name": found.name, "effective_from": instant_text(start), **terms_row(terms)})


@click.command()
@click.argument("name")
@listing
@pass_session
def show(session: Session, name: str, form: str) -> None:
    """Show the plan NAME: its terms now, and how far each of its customers is in the present periods."""
    settings = session.config.billing
    with session.database.reading() as conn:
        found = plans.find(conn, name)
        book = versions.load_book(conn, default_margin=settings.default_margin, currency=settings.currency)
        names = accounts.customer_names(conn)
        on = [each for each in sorted(names) if book.buyer(each, session.now).plan_id == found.id]
        counts = {each: plan_counts.of_customer(conn, each, session.now) for each in on}
    version = version_at(book.versions_of_terms(found.id), session.now)
    used: list[Row] = [
        {"customer": names[each], "customer_id": each, **count_row(one, settings.currency)}
        for each in on
        for one in counts[each]
        if one.period.holds(session.now)
    ]
    row: Row = {"id": found.id, "name": found.name, "customers": len(on)}
    row = {**row, **terms_row(None if version is None else version.terms), "currency": settings.currency}
    if form == "json":
        emit_one("json", {**row, "used": used})
        return
    if form == "table":
        emit_one("table", row)
    emit(form, used, USED_COLUMNS)


@click.command()
@click.option("--customer", metavar="NAME|ID", help="Only this customer's periods.")
@listing
@pass_session
def settle(session: Session, customer: str | None, form: str) -> None:
    """Settle allowances and tiers now; `weir serve` and `weir worker` do it each minute."""
    with session.database.reading() as conn:
        only = None if customer is None else accounts.find_customer(conn, customer).id
        names = accounts.customer_names(conn)
    with turn.waited_for(session.database, jobs.TERMS_JOB):
        done = settling.settle(session.config, session.database, clock.now, only=only)
    rows: list[Row] = [
        {
            "customer": names[each.settled.customer_id],
            "customer_id": each.settled.customer_id,
            **count_row(each.settled, session.config.billing.currency),
            "adjustments": each.events,
            "amount": amount_text(each.amount),
        }
        for each in done
    ]
    emit(form, rows, (*USED_COLUMNS, "adjustments", "amount"))


def terms_row(terms: Terms | None) -> dict[str, object]:
    """Return terms as columns, each None without any; the amount is in the ledger's currency."""
    if terms is None:
        return {"per": None, "included_tokens": None, "included_amount": None, "tiers": None}
    return {
        "per": terms.per.value,
        "included_tokens": terms.included_tokens,
        "included_amount": amount_text(terms.included_amount),
        "tiers": [{"above": tier.above, "discount": discount_text(tier.discount_ppm)} for tier in terms.tiers],
    }


COMMANDS = (add, set_terms, show, settle)
