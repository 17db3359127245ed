"""`weir export`: what was recorded, as files for other programs, written as it is read."""

import csv
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import Any, TypeVar

import click

from billing.cli.app import Session, pass_session
from billing.cli.files import replacing
from billing.cli.times import parse_local, parse_zone
from billing.errors import UsageError
from billing.ledger import accounts, exporting, versions
from billing.ledger.database import Connection
from billing.ledger.exporting import Range
from billing.reports import event_rows, focus, usage
from billing.reports.parquet import Column, ParquetWriter

_Command = TypeVar("_Command", bound=Callable[..., Any])


@click.group()
def export() -> None:
    """Files of what was recorded: events, or costs as the FOCUS specification wants them."""


def ranging(command: _Command) -> _Command:
    """Add the options that say what is exported, and where to."""
    to = click.option(
        "--out",
        "-o",
        metavar="FILE",
        type=click.Path(dir_okay=False, path_type=Path),
        help="[default: standard output]",
    )
    form = click.option(
        "--format", "form", type=click.Choice(["csv", "parquet"]), help="[default: by the name of --out, else csv]"
    )
    timezone = click.option("--timezone", metavar="ZONE", help="Of dates.  [default: billing.timezone]")
    until = click.option("--until", metavar="INSTANT", help="What ended before this instant.  [default: all]")
    since = click.option("--since", metavar="INSTANT", help="What ended at or after this instant.  [default: all]")
    customer = click.option("--customer", metavar="NAME|ID", help="Only this customer's.")
    return customer(since(until(timezone(form(to(command))))))


@export.command("events")
@ranging
@pass_session
def export_events(session: Session, /, **options: Any) -> None:
    """Write each usage event of a range, corrections too, in the order of their ids.

    Memory does not grow with the range. Over whole hours the sums are those of `weir report`.
    """
    currency = session.config.billing.currency
    with session.database.reading() as conn:
        of, customers = range_of(session, conn, options), accounts.customer_names(conn)
        with _sink(event_rows.COLUMNS, options) as write:
            for event in exporting.events(conn, of):
                write(event_rows.values(event, customers, currency))


@export.command("focus")
@click.option("--provider", default="Weir", show_default=True, help="Your name: who provides, publishes and invoices.")
@ranging
@pass_session
def export_focus(session: Session, /, *, provider: str, **options: Any) -> None:
    """Write costs in FOCUS 1.2, the FinOps specification: a line for each day, key, model and sort of token.

    List cost is what a customer without terms of its own pays, contracted and effective cost what this one does, billed
    cost what is left after prepaid credit. Whole hours count, as in `weir report`.
    """
    zone = parse_zone(options["timezone"], session.config.billing.zone)
    settings = session.config.billing
    with session.database.reading() as conn:
        of = range_of(session, conn, options)
        selection = usage.whole_hours(of.since, of.until, of.customer_id)
        book = versions.load_book(conn, default_margin=settings.default_margin, currency=settings.currency)
        with _sink(focus.COLUMNS, options) as write:
            for row in focus.rows(conn, selection, book, zone, provider):
                write(row)


def range_of(session: Session, conn: Connection, options: dict[str, Any]) -> Range:
    """Read the options. Raises UsageError, NotFoundError."""
    zone = parse_zone(options["timezone"], session.config.billing.zone)
    since, until = (
        None if options[name] is None else parse_local(options[name], session.now, zone) for name in ("since", "until")
    )
    if since is not None and until is not None and since >= until:
        raise UsageError("--since is not before --until")
    customer = options["customer"]
    return Range(since, until, None if customer is None else accounts.find_customer(conn, customer).id)


@contextmanager
def _sink(columns: Sequence[Column], options: dict[str, Any]) -> Iterator[Callable[[Sequence[Any]], None]]:
    """Open where rows go to, and tell how many went there. Raises UsageError."""
    out: Path | None = options["out"]
    form = options["form"] or ("parquet" if out is not None and out.suffix == ".parquet" else "csv")
    if out is None and form == "parquet":
        raise UsageError("a Parquet file needs a name: --out FILE")
    if out is None:
        with _csv(sys.stdout, columns) as write:
            yield write
        return
    with replacing(out) as stream:
        if form == "parquet":
            parquet = ParquetWriter(stream, columns)
            yield parquet.write
            parquet.close()
            return
        text = TextIOWrapper(stream, encoding="utf-8", newline="", write_through=False)
        with _csv(text, columns) as write:
            yield write
        text.detach()


@contextmanager
def _csv(stream: Any, columns: Sequence[Column]) -> Iterator[Callable[[Sequence[Any]], None]]:
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([column.name for column in columns])

    def write(values: Sequence[Any]) -> None:
        writer.writerow(event_rows.texts(values, columns))

    yield write
    stream.flush()
