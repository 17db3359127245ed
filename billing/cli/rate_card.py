"""`weir margin export|plan|apply|rollback`: the rule set as a file in git, changed as a whole, and only by additions.

`plan` shows what a card would change, what history would have come to under it, and whom it makes pay more; `apply`
puts it in force at an instant, all of it or nothing; `rollback` does the same with the rule set of an instant.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import click

from billing.cli import scenario as options
from billing.cli.app import Session, pass_session
from billing.cli.output import Row, emit, emit_one, listing
from billing.cli.scenario import explaining
from billing.clock import Instant, instant_text, parse_instant
from billing.errors import RefusedError, UsageError
from billing.ledger import plans, rule_sets, versions
from billing.ledger.database import Connection
from billing.ledger.rule_sets import Order
from billing.money import parse_amount
from billing.pricing import change, publish, rate_card, scenario
from billing.pricing.book import PriceBook
from billing.pricing.change import Change, RuleSet, Says, TermsChange
from billing.pricing.margins import parse_margin
from billing.pricing.rate_card import Card, Entry, PlanEntry
from billing.pricing.terms import Terms
from billing.reports import simulation
from billing.reports.simulation import Line
from billing.reports.usage import whole_hours

CHANGE_COLUMNS = ("change", "scope", "model", "plan", "customer", "effective_from", "before", "after")
EFFECT_COLUMNS = (
    "customer",
    "requests",
    "revenue_before",
    "revenue_after",
    "revenue_change_pct",
    "currency",
    "warning",
)
FLOOR_COLUMNS = ("model", "customer", "rule_margin", "floor", "rule")
WARN_ABOVE = "10%"
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_AT = click.option("--at", "at_text", metavar="INSTANT", default="now", help="When it begins.  [default: now]")
_BACKDATE = click.option("--backdate", is_flag=True, help="Let --at lie in the past; history keeps its prices.")
_FORCE = click.option("--force", is_flag=True, help="Take a price above 11 times the cost.")


def _load(session: Session, conn: Connection) -> PriceBook:
    settings = session.config.billing
    return versions.load_book(conn, default_margin=settings.default_margin, currency=settings.currency)


@click.command("export")
@click.option("--at", "at_text", metavar="INSTANT", default="now", help="In force at that instant.  [default: now]")
@click.option("--as-of", metavar="INSTANT", help="By what was recorded by then.  [default: what is known today]")
@pass_session
def export(session: Session, at_text: str, as_of: str | None) -> None:
    """Print the rules (and terms of plans) in force as a rate card in TOML, which `plan` and `apply` read."""
    at = parse_instant(at_text, session.now)
    with session.database.reading() as conn:
        book = _load(session, conn)
        names = options.names_of(conn)
    if as_of is not None:
        book = book.as_of(parse_instant(as_of, session.now))
    entries = [
        Entry(
            says.margin,
            scope.model,
            names[scope.customer_id] if scope.customer_id else None,
            says.allow_loss,
            says.floor,
            names[scope.plan_id] if scope.plan_id else None,
            says.fixed,
            says.minimum,
        )
        for scope, says in change.rule_set(book, at).items()
    ]
    header = (
        f"Margins in force at {instant_text(at)}; who is not named has {book.default_margin} (billing.default_margin)."
    )
    of_plans = [PlanEntry(names[plan_id], terms) for plan_id, terms in change.terms_set(book, at).items()]
    click.echo(rate_card.render(entries, header, of_plans), nl=False)


@click.command("plan", context_settings={"ignore_unknown_options": True})
@click.argument("file", type=_FILE, required=False)
@click.option("--margin", "margin_text", metavar="MARGIN", help="Instead of a file: set this one rule.")
@click.option("--model", metavar="MODEL", help="The rule is only for this model.")
@click.option("--plan", "plan_name", metavar="NAME|ID", help="The rule is only for the customers of this plan.")
@click.option("--customer", metavar="NAME|ID", help="The rule is only for this customer.")
@click.option("--floor", "floor_text", metavar="MARGIN", help="The rule's floor.")
@options.stating
@_AT
@click.option("--since", metavar="INSTANT", default="-30d", help="History to price.  [default: -30d]")
@click.option(
    "--warn-above", metavar="PERCENT", default=WARN_ABOVE, help=f"Warn who pays so much more.  [default: {WARN_ABOVE}]"
)
@click.option("--allow-loss", is_flag=True, help="Take a margin that sells below cost.")
@_BACKDATE
@_FORCE
@listing
@pass_session
def plan(
    session: Session,
    file: Path | None,
    *,
    margin_text: str | None,
    model: str | None,
    plan_name: str | None,
    customer: str | None,
    floor_text: str | None,
    fixed: tuple[str, ...],
    minimum: tuple[str, ...],
    at_text: str,
    since: str,
    warn_above: str,
    allow_loss: bool,
    backdate: bool,
    force: bool,
    form: str,
) -> None:
    """Show what a rate card (or one rule) would change, for whom, and what history would have come to; change nothing.

    It exits with 4 if `apply` would refuse it.
    """
    limit = _hundredths(warn_above)
    at = parse_instant(at_text, session.now)
    is_rule = margin_text is not None or bool(fixed)
    if (file is None) != is_rule:
        raise UsageError("name a rate card, or say one rule by --margin or --fixed; one of both")
    with session.database.reading() as conn:
        book = _load(session, conn)
        planned: list[Row] = []
        if file is not None:
            card = _card(file, force=force)
            wanted = _wanted(conn, card.margins)
            of_plans = change.terms_changes(book, _terms_of(conn, card.plans), at) if card.plans else ()
            planned = _terms_rows(of_plans, options.names_of(conn))
        else:
            prices = options.prices_of(fixed, "--fixed", force=force)
            lowest = options.prices_of(minimum, "--minimum", force=force)
            chosen = publish.read_margin(margin_text, prices, allow_loss=allow_loss, force=force)
            least = None if floor_text is None else parse_margin(floor_text, force=force)
            one = _wanted(conn, [Entry(chosen, model, customer, allow_loss, least, plan_name, prices, lowest)])
            wanted = {**change.rule_set(book, at), **one}
        found = change.changes(book, wanted, at)
        refused = _refused(book, found, at, session.now, backdate=backdate)
        after = scenario.with_margins(
            book,
            [Change(change.Kind.ADD, scope, at, None, says).rule("planned", at) for scope, says in wanted.items()],
            is_complete=True,
        )
        first = parse_instant(since, session.now)
        lines = simulation.load(conn, whole_hours(first, session.now, None), after)
        names = options.names_of(conn)
    _show_plan(found, planned, lines, _floors(after, at, names), names, after, at, limit, refused, form)
    if refused is not None:
        raise RefusedError(refused)


def _card(file: Path, *, force: bool) -> Card:
    card = options.read_card(file, force=force)
    if card.costs:
        raise UsageError(f"{file} has [[cost]] tables, which only `weir simulate` reads; set costs by `weir cost set`")
    return card


def _wanted(conn: Connection, entries: Sequence[Entry]) -> RuleSet:
    rules = options.rules_of(conn, {str(number): entry for number, entry in enumerate(entries)}, Instant(0))
    return {rule.scope: says for rule in rules if (says := change.said(rule)) is not None}


def _refused(book: PriceBook, found: tuple[Change, ...], at: Instant, now: Instant, *, backdate: bool) -> str | None:
    """Return why `apply` would refuse the changes; None if it would not."""
    try:
        if at < now and not backdate:
            return f"--at {instant_text(at)} is in the past; leave it out to begin now, or add --backdate"
        rule_sets.checked(book, found, now)
    except RefusedError as error:
        return str(error)
    return None


def _hundredths(text: str) -> int:
    """Read a percentage such as "10%" or "2.5", in hundredths of a per cent. Raises UsageError."""
    parts = divmod(parse_amount(text.strip().removesuffix("%")), 10**10)
    if parts[1] or parts[0] < 0:
        raise UsageError(f"--warn-above {text}: write a percentage such as 10% or 2.5%")
    return parts[0]


def _pays_more(line: Line, limit: int) -> bool:
    """Tell whether revenue grows by more than the limit, exactly: without dividing."""
    return (line.after.revenue - line.before.revenue) * 10_000 > line.before.revenue * limit


def _floors(book: PriceBook, at: Instant, names: Mapping[str, str]) -> list[Row]:
    """Return where a floor makes the price higher than the rule that would decide."""
    rows: list[Row] = []
    for model in book.models():
        for customer_id in (None, *book.customers_with_rules()):
            lifting = book.floor(model, customer_id, at)
            if lifting is None:
                continue
            rule = book.winner(model, customer_id, at)
            margin = book.default_margin if rule is None or rule.margin is None else rule.margin
            rows.append(
                {
                    "model": model,
                    "customer": None if customer_id is None else names[customer_id],
                    "rule_margin": str(margin),
                    "floor": str(lifting.floor),
                    "rule": f"{lifting.scope} scope",
                }
            )
    return rows


def _change_rows(found: Sequence[Change], names: Mapping[str, str]) -> list[Row]:
    def text(says: Says | None) -> str:
        return "none" if says is None else str(says)

    return [
        {
            "change": each.kind.value,
            "scope": str(each.scope),
            "model": each.scope.model,
            "plan": names[each.scope.plan_id] if each.scope.plan_id else None,
            "customer": names[each.scope.customer_id] if each.scope.customer_id else None,
            "effective_from": instant_text(each.effective_from),
            "before": text(each.before),
            "after": text(each.after),
        }
        for each in found
    ]


def _show_plan(
    found: Sequence[Change],
    planned: Sequence[Row],
    lines: Sequence[Line],
    floors: Sequence[Row],
    names: Mapping[str, str],
    book: PriceBook,
    at: Instant,
    limit: int,
    refused: str | None,
    form: str,
) -> None:
    changes = [*_change_rows(found, names), *planned]
    effect: list[Row] = [
        {**simulation.row(line, book.currency), "warning": "pays more" if _pays_more(line, limit) else None}
        for line in lines
    ]
    if form == "json":
        facts = {"effective_from": instant_text(at), "changes": changes, "effect": effect, "floors": floors}
        emit_one("json", {**facts, "refused": refused})
        return
    if form == "csv":
        emit("csv", effect, EFFECT_COLUMNS)
        return
    emit("table", changes, CHANGE_COLUMNS, title="Changes" if changes else "Changes: none, it is in force")
    if lines:
        total = simulation.total(lines)
        emit(
            "table",
            [*effect, {**simulation.row(total, book.currency), "customer": "total"}],
            EFFECT_COLUMNS,
            title="\nHistory under it",
        )
    if floors:
        emit("table", floors, FLOOR_COLUMNS, title="\nBelow the floor, and so raised to it")


@click.command("apply")
@click.argument("file", type=_FILE)
@_AT
@_BACKDATE
@_FORCE
@explaining
@listing
@pass_session
def apply(
    session: Session,
    file: Path,
    *,
    at_text: str,
    backdate: bool,
    force: bool,
    reason: str | None,
    actor: str | None,
    form: str,
) -> None:
    """Put a rate card in force from an instant on, all of it or nothing.

    Rules that the card does not name end then, and what is scheduled after that instant is cancelled; look at `plan`
    first. A request that has begun keeps its price. Applied again it changes nothing.
    """
    card = _card(file, force=force)
    with session.database.writing() as conn:
        wanted = _wanted(conn, card.margins)
        order = _order(session, "margin.apply", at_text, actor, reason, backdate=backdate)
        rows = _put_in_force(session, conn, wanted, order)
        if card.plans:
            rows += _put_terms_in_force(session, conn, _terms_of(conn, card.plans), order)
    _show_changes(rows, form)


@click.command("rollback")
@click.option("--to", "to_text", metavar="INSTANT", required=True, help="The rules that were in force then.")
@_AT
@_BACKDATE
@explaining
@listing
@pass_session
def rollback(
    session: Session,
    *,
    to_text: str,
    at_text: str,
    backdate: bool,
    reason: str | None,
    actor: str | None,
    form: str,
) -> None:
    """Put the rule set of an instant in force again, as it was believed then; by adding versions, never by deleting."""
    instant = parse_instant(to_text, session.now)
    with session.database.writing() as conn:
        believed = _load(session, conn).as_of(instant)
        wanted = change.rule_set(believed, instant)
        order = _order(session, "margin.rollback", at_text, actor, reason, backdate=backdate)
        rows = _put_in_force(session, conn, wanted, order)
        rows += _put_terms_in_force(session, conn, change.terms_set(believed, instant), order)
    _show_changes(rows, form)


def _order(
    session: Session, action: str, at_text: str, actor: str | None, reason: str | None, *, backdate: bool
) -> Order:
    at = parse_instant(at_text, session.now)
    return Order(action, at, session.now, actor or session.actor, reason, backdate)


def _put_in_force(session: Session, conn: Connection, wanted: RuleSet, order: Order) -> list[Row]:
    settings = session.config.billing
    found = rule_sets.apply(conn, wanted, order, default_margin=settings.default_margin, currency=settings.currency)
    return _change_rows(found, options.names_of(conn))


def _put_terms_in_force(session: Session, conn: Connection, wanted: Mapping[str, Terms], order: Order) -> list[Row]:
    settings = session.config.billing
    found = rule_sets.apply_terms(
        conn, wanted, order, default_margin=settings.default_margin, currency=settings.currency
    )
    return _terms_rows(found, options.names_of(conn))


def _terms_of(conn: Connection, entries: Sequence[PlanEntry]) -> dict[str, Terms]:
    """Return terms by plan. Raises NotFoundError for a plan that there is not."""
    return {plans.find(conn, entry.name).id: entry.terms for entry in entries}


def _terms_rows(found: Sequence[TermsChange], names: Mapping[str, str]) -> list[Row]:
    return [
        {
            "change": each.kind.value,
            "scope": "terms",
            "model": None,
            "plan": names[each.plan_id],
            "customer": None,
            "effective_from": instant_text(each.effective_from),
            "before": "none" if each.before is None else str(each.before),
            "after": "none" if each.after is None else str(each.after),
        }
        for each in found
    ]


def _show_changes(rows: Sequence[Row], form: str) -> None:
    """Show what was added, once it is committed."""
    emit(form, rows, CHANGE_COLUMNS, title="Changed" if rows else "Nothing to change: it is in force")


COMMANDS = (export, plan, apply, rollback)
