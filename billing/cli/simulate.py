"""`weir simulate`: what recorded usage would have come to under other margins or costs; it changes nothing."""

from pathlib import Path

import click

from billing.cli import scenario as options
from billing.cli.app import Session, pass_session
from billing.cli.output import emit, listing
from billing.clock import parse_instant
from billing.errors import UsageError
from billing.ledger import versions
from billing.ledger.database import Connection
from billing.pricing import publish, scenario
from billing.pricing.book import PriceBook
from billing.pricing.rate_card import Card, Entry
from billing.reports import simulation
from billing.reports.usage import whole_hours

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command(context_settings={"ignore_unknown_options": True})
@click.option("--margin", "margin_text", metavar="MARGIN", help="30% on the cost, or margin:40% of the price.")
@click.option("--model", metavar="MODEL", help="The margin is only for this model.")
@click.option("--plan", metavar="NAME|ID", help="The margin is only for the customers of this plan.")
@click.option("--customer", metavar="NAME|ID", help="The margin is only for this customer.")
@options.stating
@click.option("--file", "card_file", type=_FILE, help="A rate card (`weir margin export`): its rules and no others.")
@click.option("--cost-file", type=_FILE, help="Other costs: [[cost]] tables with model, input, output, … in TOML.")
@click.option("--since", metavar="INSTANT", help="Usage from this instant on, such as -30d.  [default: all]")
@click.option("--until", metavar="INSTANT", help="Usage up to this instant.  [default: all]")
@click.option("--by", default="customer", metavar="GROUPS", help="customer, model or both.  [default: customer]")
@click.option("--allow-loss", is_flag=True, help="Take a margin that sells below cost.")
@click.option("--force", is_flag=True, help="Take unusual margins and rates.")
@listing
@pass_session
def simulate(
    session: Session,
    *,
    margin_text: str | None,
    model: str | None,
    plan: str | None,
    customer: str | None,
    fixed: tuple[str, ...],
    minimum: tuple[str, ...],
    card_file: Path | None,
    cost_file: Path | None,
    since: str | None,
    until: str | None,
    by: str,
    allow_loss: bool,
    force: bool,
    form: str,
) -> None:
    """Price what was used under other margins or costs: revenue, cost and margin before and after.

    What is given holds for all of history, in the place of every version of it; the rest is as it is known today.
    Without options, history is priced by today's knowledge: it shows what backdated versions would have changed. Whole
    hours count. Nothing is changed. Both sides are list prices: what allowances and tiers of plans come to is left out.
    """
    groups = _groups(by)
    is_rule = margin_text is not None or bool(fixed)
    if not is_rule and (model or plan or customer or minimum):
        raise UsageError("--model, --plan, --customer and --minimum are of the rule that --margin says; give it, too")
    if is_rule and card_file is not None:
        raise UsageError("--margin (or --fixed) and --file both say the margins; give one")
    card = Card() if card_file is None else options.read_card(card_file, force=force)
    costs = card.costs if cost_file is None else options.read_card(cost_file, force=force).costs
    if cost_file is not None and not costs:
        raise UsageError(f"{cost_file} has no [[cost]] table")
    first, last = (None if text is None else parse_instant(text, session.now) for text in (since, until))
    with session.database.reading() as conn:
        book = _book(session, conn)
        if is_rule:
            prices = options.prices_of(fixed, "--fixed", force=force)
            least = options.prices_of(minimum, "--minimum", force=force)
            chosen = publish.read_margin(margin_text, prices, allow_loss=allow_loss, force=force)
            entry = Entry(chosen, model, customer, allow_loss, None, plan, prices, least)
            rules = options.rules_of(conn, {"simulated": entry}, session.now)
            book = scenario.with_margins(book, rules, is_complete=False)
        elif card_file is not None:
            entries = {f"simulated {number}": entry for number, entry in enumerate(card.margins)}
            rules = options.rules_of(conn, entries, session.now)
            book = scenario.with_margins(book, rules, is_complete=True)
        book = scenario.with_costs(book, costs)
        lines = simulation.load(conn, whole_hours(first, last, None), book, groups)
    _show(lines, groups, book.currency, form)


def _book(session: Session, conn: Connection) -> PriceBook:
    settings = session.config.billing
    return versions.load_book(conn, default_margin=settings.default_margin, currency=settings.currency)


def _groups(text: str) -> tuple[str, ...]:
    groups = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    for group in groups:
        if group not in simulation.GROUPS:
            raise UsageError(f"{group!r} is nothing to group by; choose among {', '.join(simulation.GROUPS)}")
    return groups


def _show(lines: list[simulation.Line], groups: tuple[str, ...], currency: str, form: str) -> None:
    rows = [simulation.row(line, currency) for line in lines]
    unpriced = sum(line.after.requests_unpriced for line in lines)
    if form == "table" and lines:
        rows.append({**simulation.row(simulation.total(lines), currency), groups[0]: "total"})
    emit(form, rows, simulation.columns(groups))
    if unpriced:
        click.echo(
            f"weir: {unpriced} requests have no price in this scenario and count as 0 in it: their models have no cost"
            " at the time",
            err=True,
        )
