"""`weir usage`: what was used and what it comes to, by customer, model, key and day."""

from collections.abc import Callable, Collection, Sequence
from typing import Any, TypeVar

import click

from billing.cli.app import Session, pass_session
from billing.cli.output import emit, listing
from billing.clock import Instant, instant_text, parse_instant
from billing.ledger import accounts, budgets
from billing.ledger.budgets import State
from billing.ledger.totals import Selection
from billing.reports import standing
from billing.reports import usage as report
from billing.reports.usage import DEFAULT_GROUPS, Line

BUDGET_COLUMNS = ("budget", "budget_per", "budget_used_pct")

_Command = TypeVar("_Command", bound=Callable[..., Any])


def selecting(command: _Command) -> _Command:
    """Add the options that say which usage is reported, and how it is grouped."""
    by = click.option("--by", metavar="GROUPS", help="model,customer,key,day.  [default: customer,model]")
    until = click.option("--until", metavar="INSTANT", help="Up to this instant.  [default: all]")
    since = click.option("--since", metavar="INSTANT", help="From this instant on, such as -7d.  [default: all]")
    customer = click.option("--customer", metavar="NAME|ID", help="Only this customer's.")
    return customer(since(until(by(command))))


def load(
    session: Session, customer: str | None, since: str | None, until: str | None, by: str | None
) -> tuple[list[Line], Sequence[str], Selection, str | None]:
    """Return the lines that the options select, the groups, the selection, and the one customer's name if any."""
    groups = DEFAULT_GROUPS if by is None else report.parse_groups(by)
    first, last = (None if text is None else parse_instant(text, session.now) for text in (since, until))
    with session.database.reading() as conn:
        found = None if customer is None else accounts.find_customer(conn, customer)
        selection = report.whole_hours(first, last, None if found is None else found.id)
        lines = report.load(conn, selection, groups, session.config.billing.zone)
    return lines, groups, selection, None if found is None else found.name


def title(what: str, selection: Selection) -> str:
    """Say what a table shows, and of which hours."""

    def named(instant: Instant | None, otherwise: str) -> str:
        return otherwise if instant is None else instant_text(instant)

    return f"{what} from {named(selection.since, 'the beginning')} to {named(selection.until, 'now')}"


@click.command()
@selecting
@listing
@pass_session
def usage(
    session: Session, customer: str | None, since: str | None, until: str | None, by: str | None, form: str
) -> None:
    """Show requests, tokens, what they cost you and what they come to for your customers.

    Whole hours count; days are those of billing.timezone. Budgets are told as they stand now.
    """
    lines, groups, selection, name = load(session, customer, since, until, by)
    currency = session.config.billing.currency
    whose = [line.total.customer_id or selection.customer_id for line in lines]
    states = _budgets(session, {each for each in whose if each is not None})
    rows = [report.row(line, groups, currency, name) for line in lines]
    if states:
        for row, line, customer_id in zip(rows, lines, whose, strict=True):
            row.update(standing.columns_of(states, customer_id, line.total.key_id))
    more = BUDGET_COLUMNS if states else ()
    emit(form, rows, [*report.columns(groups, ("cost", "amount")), *more], title=title("usage", selection))


def _budgets(session: Session, customer_ids: Collection[str]) -> list[State]:
    """Return how the budgets of these customers stand; those that have none cost nothing."""
    with session.database.reading() as conn:
        found = [each for each in budgets.of_all(conn) if each.customer_id in customer_ids]
        return budgets.states(conn, found, session.config.billing.zone, session.now)
