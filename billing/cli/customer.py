"""`weir customer`: who pays, and who is suspended and why."""

import sys

import click

from billing.cli.app import Session, pass_session
from billing.cli.budgets import all_rows as all_budget_rows
from billing.cli.budgets import apply_budget, budget_options, given_limits, period_span, rate_options
from billing.cli.budgets import rows as budget_rows
from billing.cli.output import Row, emit, emit_one, listing
from billing.clock import Instant, instant_text, parse_instant
from billing.credit.budget import Span
from billing.errors import ConfigError, RefusedError, UsageError, WeirError
from billing.ledger import accounts, plans, settings
from billing.ledger.accounts import Cause, Customer

LIST_COLUMNS = ("id", "name", "email", "status", "stripe_customer", "created_at")
DEFAULT_REASON = "suspended by the administrator"


@click.group()
def customer() -> None:
    """Who pays for tokens; CUSTOMER is an id or a name."""


@customer.command()
@click.argument("name")
@click.option("--email", metavar="ADDRESS", help="Where invoices go.")
@click.option("--prepaid", "is_prepaid", is_flag=True, help="Nothing beyond its credit: see `weir credit grant`.")
@click.option("--plan", "plan_name", metavar="NAME|ID", help="Put it on this plan: see `weir plan list`.")
@click.option("--stripe", "is_stripe", is_flag=True, help="Create the customer and a subscription at Stripe.")
@click.option("--stripe-customer", metavar="cus_…", help="Link an existing customer of Stripe's.")
@listing
@pass_session
def add(
    session: Session,
    name: str,
    *,
    email: str | None,
    is_prepaid: bool,
    plan_name: str | None,
    is_stripe: bool,
    stripe_customer: str | None,
    form: str,
) -> None:
    """Add a customer."""
    if is_stripe and stripe_customer is not None:
        raise UsageError("--stripe makes a customer at Stripe, --stripe-customer links one: give one of them")
    if is_stripe or stripe_customer is not None:
        _require_stripe(session)
    with session.database.writing() as conn:
        plan = None if plan_name is None else plans.find(conn, plan_name)
        added = accounts.add_customer(conn, name, email, session.now, session.actor, is_prepaid=is_prepaid)
        if plan is not None:
            plans.assign(conn, added.id, plan, session.now, session.now, session.actor)
    if is_stripe or stripe_customer is not None:
        try:
            _connect(session, added, stripe_customer)
        except WeirError as error:
            again = f"`weir customer link {added.id}` tries again"
            raise WeirError(f"{added.name!r} was added, but not linked to Stripe: {error}; {again}") from error
    _tell(session, form, _again(session, added), f"added the customer {added.name!r} ({added.id})")


@customer.command("list")
@listing
@pass_session
def list_(session: Session, form: str) -> None:
    """List all customers, oldest first."""
    with session.database.reading() as conn:
        found = accounts.list_customers(conn)
        standing = all_budget_rows(session, conn) if form == "json" else {}
    emit(form, [row(each, standing.get(each.id, [])) for each in found], LIST_COLUMNS, title="customers")


@customer.command()
@click.argument("customer")
@listing
@pass_session
def show(session: Session, customer: str, form: str) -> None:
    """Show all that is known of CUSTOMER."""
    _show(session, customer, form)


@customer.command()
@click.argument("customer")
@click.option("--reason", metavar="TEXT", default=DEFAULT_REASON, help="What the customer's clients are told.")
@listing
@pass_session
def suspend(session: Session, customer: str, reason: str, form: str) -> None:
    """Refuse CUSTOMER's requests from now on, until `weir customer resume`."""
    with session.database.writing() as conn:
        found = accounts.find_customer(conn, customer)
        is_new = accounts.suspend(conn, found.id, Cause.MANUAL, reason, session.now, session.actor)
    sentence = f"suspended {found.name!r}" if is_new else f"{found.name!r} was suspended already"
    _tell(session, form, _again(session, found), sentence)


@customer.command()
@click.argument("customer")
@click.option("--reason", metavar="TEXT", help="Why, for the audit log.")
@click.option("--all", "is_all", is_flag=True, help="Lift every cause, an unpaid invoice too.")
@listing
@pass_session
def resume(session: Session, customer: str, *, reason: str | None, is_all: bool, form: str) -> None:
    """Take CUSTOMER's requests again: lifts what `suspend` did.

    A suspension for an unpaid invoice ends by itself when it is paid; --all ends it now.
    """
    causes = tuple(Cause) if is_all else (Cause.MANUAL,)
    with session.database.writing() as conn:
        found = accounts.find_customer(conn, customer)
        lifted = [
            cause for cause in causes if accounts.resume(conn, found.id, cause, reason, session.now, session.actor)
        ]
    after = _again(session, found)
    left = "; ".join(f"{held.cause.value}: {held.reason}" for held in after.suspensions)
    if left and not lifted:
        raise RefusedError(f"{found.name!r} is still suspended ({left}); --all lifts that, too")
    if left:
        click.echo(f"weir: {found.name!r} is still suspended ({left}); --all lifts that, too", err=True)
    _tell(session, form, after, f"lifted: {', '.join(lifted)}" if lifted else f"{found.name!r} was not suspended")


@customer.command()
@click.argument("customer")
@click.argument("stripe_customer", metavar="[cus_…]", required=False)
@click.option("--yes", is_flag=True, help="Replace a link to another customer of Stripe's.")
@listing
@pass_session
def link(session: Session, customer: str, stripe_customer: str | None, *, yes: bool, form: str) -> None:
    """Link CUSTOMER to a customer of Stripe's, and subscribe it; without cus_…, create that, too."""
    _require_stripe(session)
    found = _find(session, customer)
    replaced = None
    if stripe_customer is not None and found.stripe_customer_id not in (None, stripe_customer):
        replaced = found.stripe_customer_id
        if not yes:
            raise RefusedError(
                f"{found.name!r} is linked to {replaced}: what is not sent yet would be paid by {stripe_customer};"
                " replace the link with --yes"
            )
        with session.database.writing() as conn:
            accounts.unlink(conn, found.id, session.now, session.actor)
    try:
        _connect(session, found, stripe_customer)
    except WeirError as error:
        if replaced is None:
            raise
        raise WeirError(f"{found.name!r} is linked to nobody now: {error}; try again, or link {replaced}") from error
    after = _again(session, found)
    _tell(session, form, after, f"linked {after.name!r} to {after.stripe_customer_id}")


@customer.command()
@click.argument("customer")
@click.option("--yes", is_flag=True, help="Do not ask, also on a terminal.")
@listing
@pass_session
def delete(session: Session, customer: str, *, yes: bool, form: str) -> None:
    """Close CUSTOMER's account: revoke its keys, send and invoice its last usage, end its subscription.

    Its history stays. Where Stripe has not counted everything yet, run it again: it goes on where it was.
    """
    found = _find(session, customer)
    if not yes and sys.stdin.isatty():
        click.confirm(f"close the account of {found.name!r}, and end its subscription?", abort=True)
    from billing.stripe_sync import closing  # noqa: PLC0415 -- the SDK's import is slow, and rarely needed

    revoked = closing.stop(session.database, found, session.now, session.actor)
    if found.stripe_subscription_id is not None:
        _require_stripe(session)
        closing.settle(session.config, session.database, found)
    with session.database.writing() as conn:
        accounts.mark_deleted(conn, found.id, session.now, session.actor)
    _tell(session, form, _again(session, found), f"closed {found.name!r}; {revoked} keys were revoked")


@customer.command("set")
@click.argument("customer")
@budget_options
@click.option("--credit-limit", metavar="AMOUNT|none", help="The most that may be unpaid, of who is not prepaid.")
@click.option("--paid-until", metavar="INSTANT", help="Usage before this is paid; Stripe tells it where it is linked.")
@rate_options
@listing
@pass_session
def set_(
    session: Session,
    /,
    customer: str,
    *,
    budget: str | None,
    per: str | None,
    is_soft: bool,
    credit_limit: str | None,
    paid_until: str | None,
    form: str,
    **rates: int | None,
) -> None:
    """Change CUSTOMER's budgets and limits; gateways follow within a second."""
    span, limits = period_span(budget, per, is_soft=is_soft), given_limits(rates)
    if span is None and credit_limit is None and paid_until is None and not limits:
        raise UsageError("nothing to set; `weir customer set --help` shows what there is")
    with session.database.writing() as conn:
        found = accounts.find_customer(conn, customer)
        if span is not None and budget is not None:
            apply_budget(session, conn, found.id, None, span, budget, is_soft=is_soft)
        if credit_limit is not None:
            apply_budget(session, conn, found.id, None, Span.UNPAID, credit_limit, is_soft=False)
        if paid_until is not None:
            until = parse_instant(paid_until, session.now)
            settings.set_paid_until(conn, found.id, until, session.now, session.actor)
        if limits:
            settings.set_customer_limits(conn, found.id, limits, session.now, session.actor)
    _show(session, found.name, form)


def _show(session: Session, name_or_id: str, form: str) -> None:
    with session.database.reading() as conn:
        found = accounts.find_customer(conn, name_or_id)
    _print(session, form, found)


def _print(session: Session, form: str, found: Customer) -> None:
    with session.database.reading() as conn:
        budgets = budget_rows(session, conn, found.id)
    emit_one(form, row(found, budgets))


def row(found: Customer, budgets: list[Row]) -> dict[str, object]:
    """Return a customer as one row, the same from every command; `budgets` say how its own and its keys' stand."""
    return {
        "id": found.id,
        "name": found.name,
        "email": found.email,
        "status": "deleted" if found.deleted_at else "suspended" if found.suspensions else "active",
        "prepaid": found.is_prepaid,
        "suspensions": [
            {"cause": held.cause.value, "reason": held.reason, "since": instant_text(held.since)}
            for held in found.suspensions
        ],
        "stripe_customer": found.stripe_customer_id,
        "stripe_subscription": found.stripe_subscription_id,
        "stripe_subscription_status": found.stripe_subscription_status,
        "period_start": _text(found.period_start),
        "period_end": _text(found.period_end),
        "past_due_since": _text(found.past_due_since),
        "paid_until": _text(found.paid_until),
        "rpm": found.rpm,
        "tpm": found.tpm,
        "concurrency": found.concurrency,
        "created_at": instant_text(found.created_at),
        "budgets": budgets,
    }


def _text(instant: Instant | None) -> str | None:
    return None if instant is None else instant_text(instant)


def _find(session: Session, name_or_id: str) -> Customer:
    with session.database.reading() as conn:
        return accounts.find_customer(conn, name_or_id)


def _again(session: Session, known: Customer) -> Customer:
    with session.database.reading() as conn:
        return accounts.get_customer(conn, known.id)


def _tell(session: Session, form: str, found: Customer, sentence: str) -> None:
    """Print the sentence for people, the customer for programs."""
    if form == "table":
        click.echo(sentence)
    else:
        _print(session, form, found)


def _require_stripe(session: Session) -> None:
    if not session.config.stripe.is_active:
        raise ConfigError("Stripe is off here: set STRIPE_API_KEY, and stripe.enabled = true in weir.toml")


def _connect(session: Session, found: Customer, stripe_customer: str | None) -> None:
    """Create the customer at Stripe, or adopt one that is there."""
    from billing.stripe_sync import customers  # noqa: PLC0415 -- the SDK's import is slow, and rarely needed

    given = (session.config, session.database, found)
    if stripe_customer is None:
        customers.create_for(*given, session.now, session.actor)
    else:
        customers.adopt(*given, stripe_customer, session.now, session.actor)
