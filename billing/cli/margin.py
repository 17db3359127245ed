"""`weir margin`: what is earned on the cost, as dated rules; `explain` shows which one decides and why.

Each `set` and each `remove` adds a version, and nothing is ever changed: an event keeps the prices that it
was recorded with.
"""

from collections.abc import Mapping

import click

from billing import ids
from billing.cli import rate_card
from billing.cli.app import Session, pass_session
from billing.cli.output import Row, emit, emit_one, listing
from billing.cli.scenario import explaining, names_of, prices_of, scope_of, stating
from billing.cli.unit_prices import UNIT_COLUMNS, fields_of, rounded_units, unit_rows
from billing.clock import Instant, instant_text, parse_instant
from billing.errors import NotFoundError
from billing.ledger import versions
from billing.ledger.accounts import find_customer
from billing.ledger.database import Connection
from billing.pricing import publish
from billing.pricing.book import PriceBook
from billing.pricing.margins import MarginRule, Reason, Scope, parse_margin
from billing.pricing.quote import UNITS
from billing.pricing.rates import Standing, next_start, standing, version_at
from billing.pricing.stated import text_of

PRICES_SHOWN_MAX = 20
"""Models whose new prices `set` and `remove` show."""

RULE_COLUMNS = (
    "scope",
    "model",
    "plan",
    "customer",
    "margin",
    "fixed",
    "minimum",
    "floor",
    "effective_from",
    "effective_until",
    "state",
    "id",
)
REASON_COLUMNS = ("verdict", "scope", "margin", "effective_from", "recorded_at", "because", "id")
REMOVED = "none"


@click.group()
def margin() -> None:
    """What you earn on your cost: for all, a model, a customer, or a customer's model."""


@margin.command("set", context_settings={"ignore_unknown_options": True})
@click.argument("margin_text", metavar="[MARGIN]", required=False)
@click.option("--model", metavar="MODEL", help="Only for this model.")
@click.option("--plan", metavar="NAME|ID", help="Only for the customers of this plan.")
@click.option("--customer", metavar="NAME|ID", help="Only for this customer.")
@click.option("--from", "from_text", metavar="INSTANT", default="now", help="When it begins.  [default: now]")
@click.option("--floor", "floor_text", metavar="MARGIN", help="The least margin of all under it, by whatever rule.")
@stating
@click.option("--allow-loss", is_flag=True, help="Take a margin that sells below cost, such as -10%.")
@click.option("--backdate", is_flag=True, help="Let --from lie in the past; history keeps its prices.")
@click.option("--force", is_flag=True, help="Take a price above 11 times the cost.")
@explaining
@listing
@pass_session
def set_margin(
    session: Session,
    margin_text: str | None,
    *,
    model: str | None,
    plan: str | None,
    customer: str | None,
    from_text: str,
    floor_text: str | None,
    fixed: tuple[str, ...],
    minimum: tuple[str, ...],
    allow_loss: bool,
    backdate: bool,
    force: bool,
    reason: str | None,
    actor: str | None,
    form: str,
) -> None:
    """Set the MARGIN: 30% on the cost, or margin:40% of the price; or fixed prices, with or without one.

    --fixed output=0.10 takes the place of cost and margin for that unit, and for parts of it that have no fixed price
    of their own (cached, image and audio input, reasoning); the rest follows MARGIN, which may be left out where input
    and output are fixed. --minimum, like --floor, holds for all under the rule, whatever a more specific one says;
    a plan's volume tiers come on top of both, and stop at cost.

    It holds from now on, or from an instant to come. The most specific rule wins: customer and model, then
    customer, then plan and model, then plan, then model, then all. History keeps its prices: also a margin that
    is backdated prices only what is not recorded yet.
    """
    prices = prices_of(fixed, "--fixed", force=force)
    chosen = publish.read_margin(margin_text, prices, allow_loss=allow_loss, force=force)
    with session.database.writing() as conn:
        rule = MarginRule(
            id=ids.new_id("margin"),
            scope=scope_of(conn, model, customer, plan),
            margin=chosen,
            allow_loss=allow_loss,
            effective_from=parse_instant(from_text, session.now),
            recorded_at=session.now,
            floor=None if floor_text is None else parse_margin(floor_text, force=force),
            fixed=prices,
            minimum=prices_of(minimum, "--minimum", force=force),
        )
        book, names = _append(session, conn, rule, backdate=backdate, reason=reason, actor=actor)
    _show(session, book, rule, names, form)


@margin.command("remove")
@click.option("--model", metavar="MODEL", help="The rule of this model.")
@click.option("--plan", metavar="NAME|ID", help="The rule of this plan.")
@click.option("--customer", metavar="NAME|ID", help="The rule of this customer.")
@click.option("--from", "from_text", metavar="INSTANT", default="now", help="When it ends.  [default: now]")
@click.option("--backdate", is_flag=True, help="Let --from lie in the past; history keeps its prices.")
@explaining
@listing
@pass_session
def remove_margin(
    session: Session,
    *,
    model: str | None,
    plan: str | None,
    customer: str | None,
    from_text: str,
    backdate: bool,
    reason: str | None,
    actor: str | None,
    form: str,
) -> None:
    """End a rule: less specific ones then decide, from now on or from an instant to come."""
    with session.database.writing() as conn:
        rule = MarginRule(
            id=ids.new_id("margin"),
            scope=scope_of(conn, model, customer, plan),
            margin=None,
            allow_loss=False,
            effective_from=parse_instant(from_text, session.now),
            recorded_at=session.now,
        )
        book, names = _append(session, conn, rule, backdate=backdate, reason=reason, actor=actor)
    _show(session, book, rule, names, form)


def _append(
    session: Session, conn: Connection, rule: MarginRule, *, backdate: bool, reason: str | None, actor: str | None
) -> tuple[PriceBook, dict[str, str]]:
    """Add the rule; return the book that it makes and the names of the customers in it."""
    settings = session.config.billing
    book = versions.append_margin_rule(
        conn,
        rule,
        default_margin=settings.default_margin,
        currency=settings.currency,
        backdate=backdate,
        actor=actor or session.actor,
        reason=reason,
    )
    return book, names_of(conn)


def _show(session: Session, book: PriceBook, rule: MarginRule, names: Mapping[str, str], form: str) -> None:
    """Show the version, once it is committed."""
    emit_one(form, _row(book, rule, names, session.now))
    if form == "table":
        _show_prices(book, rule)


def _show_prices(book: PriceBook, rule: MarginRule) -> None:
    """Show what the rule's customers will pay from its start on, and what was rounded on the way."""
    pairs = publish.affected_by_rule(book, rule.scope)
    rows: list[Row] = []
    for model, customer_id in pairs[:PRICES_SHOWN_MAX]:
        quote = book.resolve(model, customer_id, rule.effective_from)
        if quote is None:
            continue
        rounded = rounded_units(quote, book.margin(model, customer_id, rule.effective_from))
        prices = {
            unit: f"{text} {book.currency}{' (rounded)' if unit in rounded else ''}"
            for unit, text in fields_of(quote.price).items()
        }
        rows.append({"model": model, "margin": quote.margin, **prices})
    if not rows:
        click.echo("\nNo model under this rule has a cost yet: `weir cost set MODEL --input R --output R`")
        return
    emit("table", rows, ("model", "margin", *UNITS), title="\nPrices per 1M tokens and per request")
    if len(pairs) > PRICES_SHOWN_MAX:
        click.echo(f"and {len(pairs) - PRICES_SHOWN_MAX} models more: `weir margin explain MODEL`")


@margin.command("list")
@listing
@pass_session
def list_margins(session: Session, *, form: str) -> None:
    """List all rules, past and scheduled ones too, and the default margin."""
    settings = session.config.billing
    with session.database.reading() as conn:
        book = versions.load_book(conn, default_margin=settings.default_margin, currency=settings.currency)
        names = names_of(conn)
    rows = [_row(book, rule, names, session.now) for rule in sorted(book.margin_rules, key=_listing_order)]
    emit(form, [*rows, _default_row(book, session.now)], RULE_COLUMNS)


def _listing_order(rule: MarginRule) -> tuple[str, str, str]:
    scope = rule.scope
    return scope.customer_id or "", scope.plan_id or "", scope.model or ""


def _row(book: PriceBook, rule: MarginRule, names: Mapping[str, str], at: Instant) -> Row:
    siblings = book.versions_of_margin(rule.scope)
    until = next_start(siblings, rule.effective_from)
    customer_id = rule.scope.customer_id
    return {
        "id": rule.id,
        "scope": str(rule.scope),
        "model": rule.scope.model,
        "customer": None if customer_id is None else names[customer_id],
        "customer_id": customer_id,
        "plan": None if rule.scope.plan_id is None else names[rule.scope.plan_id],
        "plan_id": rule.scope.plan_id,
        "margin": REMOVED if rule.margin is None else str(rule.margin),
        "fixed": {unit: text_of(unit, price) for unit, price in rule.fixed} or None,
        "minimum": {unit: text_of(unit, price) for unit, price in rule.minimum} or None,
        "floor": None if rule.floor is None else str(rule.floor),
        "allow_loss": rule.allow_loss,
        "effective_from": instant_text(rule.effective_from),
        "effective_until": None if until is None else instant_text(until),
        "recorded_at": instant_text(rule.recorded_at),
        "state": standing(siblings, rule, at).value,
    }


def _default_row(book: PriceBook, at: Instant) -> Row:
    rule = version_at(book.versions_of_margin(Scope()), at)
    return {
        "id": None,
        "scope": "default",
        "model": None,
        "customer": None,
        "customer_id": None,
        "plan": None,
        "plan_id": None,
        "margin": str(book.default_margin),
        "fixed": None,
        "minimum": None,
        "floor": None,
        "allow_loss": False,
        "effective_from": None,
        "effective_until": None,
        "recorded_at": None,
        "state": (Standing.IN_FORCE if rule is None or rule.margin is None else Standing.REPLACED).value,
    }


@margin.command("explain")
@click.argument("model")
@click.option("--customer", metavar="NAME|ID", help="For this customer.")
@click.option("--at", "at_text", metavar="INSTANT", default="now", help="At that instant.  [default: now]")
@click.option("--as-of", metavar="INSTANT", help="By what was recorded by then.  [default: what is known today]")
@listing
@pass_session
def explain_margin(
    session: Session, model: str, *, customer: str | None, at_text: str, as_of: str | None, form: str
) -> None:
    """Show which rule decides the price of MODEL and why, its cost and its price.

    --at asks for the price of an instant, --as-of for what was believed at one: a rule that was backdated later, or
    scheduled since, was not known then.
    """
    settings = session.config.billing
    at = parse_instant(at_text, session.now)
    with session.database.reading() as conn:
        buyer = None if customer is None else find_customer(conn, customer)
        book = versions.load_book(conn, default_margin=settings.default_margin, currency=settings.currency)
        names = names_of(conn)
    if as_of is not None:
        book = book.as_of(parse_instant(as_of, session.now))
    customer_id = None if buyer is None else buyer.id
    plan_id = book.buyer(customer_id, at).plan_id
    reasons = [_reason_row(reason) for reason in book.explain(model, customer_id, at)]
    if form == "csv":
        emit("csv", reasons, REASON_COLUMNS)
        return
    quote = book.resolve(model, customer_id, at)
    if quote is None:
        raise NotFoundError(_no_cost(book, model, at))
    chosen = book.margin(model, customer_id, at)
    change = book.next_change(model, customer_id, at)
    facts: Row = {
        "model": model,
        "customer": None if buyer is None else buyer.name,
        "customer_id": customer_id,
        "plan": None if plan_id is None else names[plan_id],
        "at": instant_text(at),
        "margin": quote.margin,
        "margin_rule": quote.margin_rule_id,
        "cost_rate": quote.cost_rate_id,
        "next_change": None if change is None else instant_text(change),
        "sold": not quote.units_beyond_limit(),
    }
    if form == "json":
        prices = {
            "currency": quote.currency,
            "cost": fields_of(quote.cost),
            "price": fields_of(quote.price),
            "rounded": rounded_units(quote, chosen),
        }
        emit_one("json", {**facts, **prices, "price_ref": quote.ref, "rules": reasons})
        return
    emit_one("table", {name: value for name, value in facts.items() if value is not None})
    emit("table", unit_rows(quote, chosen), UNIT_COLUMNS, title="\nCost and price")
    emit("table", reasons, REASON_COLUMNS, title="\nRules, the most specific first")


def _reason_row(reason: Reason) -> Row:
    rule = reason.rule
    return {
        "verdict": reason.verdict.value,
        "scope": "default" if rule is None else str(rule.scope),
        "margin": str(reason.margin) if rule is None else rule.words,
        "effective_from": None if rule is None else instant_text(rule.effective_from),
        "recorded_at": None if rule is None else instant_text(rule.recorded_at),
        "because": reason.because,
        "id": None if rule is None else rule.id,
    }


def _no_cost(book: PriceBook, model: str, at: Instant) -> str:
    later = next_start(book.versions_of_cost(model), at)
    begins = "" if later is None else f" (its first begins at {instant_text(later)})"
    return (
        f"{model!r} has no cost at {instant_text(at)}{begins}, so requests for it are refused: set one with"
        f" `weir cost set {model} --input R --output R`"
    )


for _command in rate_card.COMMANDS:
    margin.add_command(_command)
