"""`weir usage`: what was used and what it comes to, by customer, model, plan, key, tag and time."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from zoneinfo import ZoneInfo

import click

from billing.cli.app import Session, pass_session
from billing.cli.output import emit, listing
from billing.cli.times import parse_local, parse_zone
from billing.clock import Instant
from billing.ledger import accounts, budgets
from billing.ledger.budgets import State
from billing.ledger.database import Connection
from billing.ledger.totals import Selection
from billing.reports import standing
from billing.reports import usage as report
from billing.reports.usage import DEFAULT_GROUPS

BUDGET_COLUMNS = ("budget", "budget_per", "budget_used_pct")

_Command = TypeVar("_Command", bound=Callable[..., Any])


def selecting(command: _Command) -> _Command:
    """Add the options that say which usage is reported, how it is grouped, and by which clocks."""
    by = click.option("--by", metavar="GROUPS", help=f"{','.join(report.GROUPS)}.  [default: customer,model]")
    until = click.option("--until", metavar="INSTANT", help="Up to this instant.  [default: all]")
    since = click.option("--since", metavar="INSTANT", help="From this instant on, such as -7d.  [default: all]")
    customer = click.option("--customer", metavar="NAME|ID", help="Only this customer's.")
    timezone = click.option("--timezone", metavar="ZONE", help="Of dates and days.  [default: billing.timezone]")
    return customer(since(until(by(timezone(command)))))


@dataclass(frozen=True, slots=True)
class Asked:
    """What the options select, how it is grouped, and the one customer's name if there is one."""

    groups: Sequence[str]
    selection: Selection
    name: str | None
    zone: ZoneInfo


def ask(
    session: Session,
    conn: Connection,
    customer: str | None,
    since: str | None,
    until: str | None,
    by: str | None,
    zone: ZoneInfo,
) -> Asked:
    """Read the options of `selecting`. Raises UsageError, NotFoundError."""
    groups = DEFAULT_GROUPS if by is None else report.parse_groups(by)
    first, last = (None if text is None else parse_local(text, session.now, zone) for text in (since, until))
    found = None if customer is None else accounts.find_customer(conn, customer)
    selection = report.whole_hours(first, last, None if found is None else found.id)
    return Asked(groups, selection, None if found is None else found.name, zone)


def title(what: str, selection: Selection, zone: ZoneInfo) -> str:
    """Say what a table shows, and of which hours."""

    def named(instant: Instant | None, otherwise: str) -> str:
        return otherwise if instant is None else report.local_text(instant, zone)

    return f"{what} from {named(selection.since, 'the beginning')} to {named(selection.until, 'now')}"


@click.command()
@selecting
@listing
@pass_session
def usage(
    session: Session,
    customer: str | None,
    since: str | None,
    until: str | None,
    by: str | None,
    timezone: str | None,
    form: str,
) -> None:
    """Show requests, tokens, what they cost you and what they come to for your customers.

    Whole hours count; days are those of billing.timezone. Budgets are told as they stand now.
    """
    zone = parse_zone(timezone, session.config.billing.zone)
    with session.database.reading() as conn:
        asked = ask(session, conn, customer, since, until, by, zone)
        lines = report.load(conn, asked.selection, asked.groups, zone)
    currency = session.config.billing.currency
    whose = [line.total.customer_id or asked.selection.customer_id for line in lines]
    states = _budgets(session, {each for each in whose if each is not None})
    rows = [report.row(line, asked.groups, currency, asked.name, zone) for line in lines]
    if states:
        for row, line, customer_id in zip(rows, lines, whose, strict=True):
            row.update(standing.columns_of(states, customer_id, line.total.key_id))
    more = BUDGET_COLUMNS if states else ()
    shown = [*report.columns(asked.groups, ("cost", "amount")), *more]
    emit(form, rows, shown, title=title("usage", asked.selection, zone), sparse=report.SPARSE_COUNTS)


def _budgets(session: Session, customer_ids: Collection[str]) -> list[State]:
    """Return how the budgets of these customers stand; those that have none cost nothing."""
    with session.database.reading() as conn:
        found = [each for each in budgets.of_all(conn) if each.customer_id in customer_ids]
        return budgets.states(conn, found, session.config.billing.zone, session.now)
