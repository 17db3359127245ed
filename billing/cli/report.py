"""`weir report`: usage as a business reads it."""

import click

from billing.cli.app import Session, pass_session
from billing.cli.output import emit, listing
from billing.cli.usage import load, selecting, title
from billing.reports import margin as margin_report
from billing.reports.usage import columns


@click.group()
def report() -> None:
    """What usage earned."""


@report.command()
@selecting
@listing
@pass_session
def margin(
    session: Session, customer: str | None, since: str | None, until: str | None, by: str | None, form: str
) -> None:
    """Show revenue, cost and the margin between them, also in per cent of the revenue."""
    lines, groups, selection, name = load(session, customer, since, until, by)
    currency = session.config.billing.currency
    rows = [margin_report.row(line, groups, currency, name) for line in lines]
    money = ("revenue", "cost", "margin", "margin_pct")
    emit(form, rows, columns(groups, money), title=title("margin", selection))
