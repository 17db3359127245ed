"""`weir report`: usage as a business reads it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.text import Text

from billing.cli import actual, chart, parquet_file
from billing.cli.app import Session, pass_session
from billing.cli.chart import Bar
from billing.cli.output import Row, console, emit, listing
from billing.cli.times import parse_zone
from billing.cli.usage import Asked, ask, selecting, title
from billing.clock import HOUR_US, hour_start
from billing.money import Pico, amount_text
from billing.reports import comparison, usage
from billing.reports import margin as margin_report
from billing.reports import revenue as revenue_report
from billing.reports.comparison import Pair
from billing.reports.usage import Line, columns

CHART_CELLS = 48

_Command = TypeVar("_Command", bound=Callable[..., Any])
_MakeRow = Callable[[Line], dict[str, object]]


def showing(command: _Command) -> _Command:
    """Add the options that say how a report is compared and shown."""
    compare = click.option(
        "--compare",
        is_flag=True,
        help="Beside the period before: of the same length, or with --by day the day before, and so on.",
    )
    drawn = click.option(
        "--chart", "is_chart", is_flag=True, help="Draw bars of revenue: its cost ░, its margin █, a loss ▓."
    )
    file = click.option(
        "--parquet",
        "parquet",
        metavar="FILE",
        type=click.Path(dir_okay=False, path_type=Path),
        help="Write a Parquet file instead, with money as DECIMAL(38, 12).",
    )
    return compare(drawn(file(command)))


@click.group()
def report() -> None:
    """What usage earned."""


report.add_command(actual.variance)


@report.command()
@selecting
@showing
@listing
@pass_session
def margin(session: Session, /, *, form: str, **options: Any) -> None:
    """Show revenue, cost and the margin between them, also in per cent of the revenue."""
    found = _find(session, _Options(**options))
    currency = session.config.billing.currency

    def row(line: Line) -> dict[str, object]:
        return margin_report.row(line, found.asked.groups, currency, found.asked.name, found.asked.zone)

    _show(session, "margin", form, found, row, margin_report.COLUMNS)


@report.command()
@selecting
@showing
@listing
@pass_session
def revenue(session: Session, /, *, form: str, **options: Any) -> None:
    """Show revenue, how much of it prepaid credit paid for, what is metered, and each share of the whole."""
    found = _find(session, _Options(**options))
    currency = session.config.billing.currency
    whole = usage.sum_of(pair.now for pair in found.pairs).amount

    def row(line: Line) -> dict[str, object]:
        return revenue_report.row(line, found.asked.groups, currency, whole, found.asked.name, found.asked.zone)

    _show(session, "revenue", form, found, row, revenue_report.COLUMNS)


@dataclass(frozen=True, slots=True)
class _Options:
    """What was given on the command line."""

    customer: str | None
    since: str | None
    until: str | None
    by: str | None
    timezone: str | None
    compare: bool
    is_chart: bool
    parquet: Path | None


@dataclass(frozen=True, slots=True)
class _Found:
    """What a report shows: pairs of which `before` is used only where it was asked for."""

    options: _Options
    asked: Asked
    pairs: list[Pair]


def _find(session: Session, options: _Options) -> _Found:
    zone = parse_zone(options.timezone, session.config.billing.zone)
    with session.database.reading() as conn:
        asked = ask(session, conn, options.customer, options.since, options.until, options.by, zone)
        if options.compare:
            until = asked.selection.until or hour_start(session.now + HOUR_US - 1)
            asked = replace(asked, selection=replace(asked.selection, until=until))
            return _Found(options, asked, comparison.load(conn, asked.selection, asked.groups, zone))
        lines = usage.load(conn, asked.selection, asked.groups, zone)
        return _Found(options, asked, [Pair(line, line) for line in lines])


def _show(session: Session, what: str, form: str, found: _Found, row: _MakeRow, money: Sequence[str]) -> None:
    options, groups = found.options, found.asked.groups
    compared = comparison.COLUMNS if options.compare else ()
    shown = columns(groups, (*money, *compared))

    def row_of(pair: Pair) -> Row:
        return row(pair.now) | (comparison.fields(pair) if options.compare else {})

    rows = [row_of(pair) for pair in found.pairs]
    if options.parquet is not None:
        parquet_file.write(options.parquet, rows, shown)
        return
    if options.is_chart and form == "table":
        _draw(found, session.config.billing.currency)
        return
    heading = title(what, found.asked.selection, found.asked.zone)
    emit(form, rows, shown, title=heading, total=_total(found, row_of), sparse=usage.SPARSE_COUNTS)


def _total(found: _Found, row_of: Callable[[Pair], Row]) -> Row | None:
    """Return the row below a table; none where one line is all, or where lines by tag share usage."""
    if len(found.pairs) < 2 or "tag" in found.asked.groups:
        return None
    now, before = (usage.sum_of(getattr(pair, side) for pair in found.pairs) for side in ("now", "before"))
    return {**row_of(Pair(Line(None, now), Line(None, before))), found.asked.groups[0]: "total"}


def _draw(found: _Found, currency: str) -> None:
    bars = [_bar(pair.now, found.asked, currency) for pair in found.pairs]
    out = console()
    if not bars:
        out.print("nothing to show")
        return
    out.print(title("revenue", found.asked.selection, found.asked.zone))
    wide = max(len(bar.label) for bar in bars)
    for bar, drawn in zip(bars, chart.cells(bars, CHART_CELLS), strict=True):
        line = Text(f"{bar.label:<{wide}} ")
        line.append(chart.COST * drawn.cost, "blue").append(chart.MARGIN * drawn.margin, "green")
        line.append(chart.LOSS * drawn.loss, "red").append(f" {bar.text}")
        out.print(line)


def _bar(line: Line, asked: Asked, currency: str) -> Bar:
    named = usage.keys(line, asked.groups, asked.name, asked.zone)
    names = ["key_name" if group == "key" and named["key_name"] else group for group in asked.groups]
    label = " ".join(str(named.get(name) or "-") for name in names)
    amount, cost = line.total.amount, line.total.cost
    percent = margin_report.percentage(Pico(amount - cost), amount)
    text = f"{amount_text(amount)} {currency}" + ("" if percent is None else f", margin {percent}%")
    return Bar(label, amount, cost, text)
