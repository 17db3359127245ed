"""`weir plan`: groups of customers with margins of their own (`weir margin set 20% --plan NAME`)."""

import click

from billing.cli import plan_terms
from billing.cli.app import Session, pass_session
from billing.cli.output import Row, emit, emit_one, listing
from billing.cli.scenario import explaining
from billing.clock import instant_text, parse_instant
from billing.ledger import accounts, plans, versions
from billing.ledger.plans import NO_PLAN, Plan
from billing.pricing.book import PriceBook
from billing.pricing.margins import Scope
from billing.pricing.rates import version_at

COLUMNS = (
    *("id", "name", "customers", "margin", "per", "included_tokens", "included_amount", "tiers"),
    "created_at",
)


@click.group()
def plan() -> None:
    """Groups of customers with margins of their own."""


@plan.command("list")
@listing
@pass_session
def list_plans(session: Session, form: str) -> None:
    """List all plans, how many customers are on each now, and the margin of each."""
    settings = session.config.billing
    with session.database.reading() as conn:
        book = versions.load_book(conn, default_margin=settings.default_margin, currency=settings.currency)
        every = plans.every(conn)
    on = [book.buyer(each, session.now).plan_id for each in {assigned.customer_id for assigned in book.assignments}]
    emit(form, [_row(session, book, each, on.count(each.id)) for each in every], COLUMNS, title="plans")


def _row(session: Session, book: PriceBook, each: Plan, customers: int) -> Row:
    rule = version_at(book.versions_of_margin(Scope(plan_id=each.id)), session.now)
    version = version_at(book.versions_of_terms(each.id), session.now)
    return {
        "id": each.id,
        "name": each.name,
        "customers": customers,
        **plan_terms.terms_row(None if version is None else version.terms),
        "margin": None if rule is None or rule.margin is None else str(rule.margin),
        "created_at": instant_text(each.created_at),
    }


@plan.command()
@click.argument("customer")
@click.argument("plan_name", metavar=f"PLAN|{NO_PLAN}")
@click.option("--from", "from_text", metavar="INSTANT", default="now", help="When it begins.  [default: now]")
@click.option("--backdate", is_flag=True, help="Let --from lie in the past; history keeps its prices.")
@explaining
@listing
@pass_session
def assign(
    session: Session,
    customer: str,
    plan_name: str,
    *,
    from_text: str,
    backdate: bool,
    reason: str | None,
    actor: str | None,
    form: str,
) -> None:
    """Put CUSTOMER on PLAN from now on, or from an instant to come; `none` ends it. Margins of its own still win."""
    start = parse_instant(from_text, session.now)
    with session.database.writing() as conn:
        found = accounts.find_customer(conn, customer)
        chosen = None if plan_name == NO_PLAN else plans.find(conn, plan_name)
        who = actor or session.actor
        plans.assign(conn, found.id, chosen, start, session.now, who, backdate=backdate, reason=reason)
    emit_one(
        form,
        {
            "customer": found.name,
            "customer_id": found.id,
            "plan": None if chosen is None else chosen.name,
            "effective_from": instant_text(start),
        },
    )


for _command in plan_terms.COMMANDS:
    plan.add_command(_command)
