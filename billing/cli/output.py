"""The only printer of listings: a table for people, `--json` and `--csv` for programs, from the same rows.

A row is a mapping from a column's name to a str, int, bool, None, list or dict; money is already text in major
units with its currency in a column of its own, so that no format can round it.
"""

import csv
import io
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeVar

import click
from rich.console import Console, JustifyMethod
from rich.table import Table
from rich.text import Text

PIPE_COLUMNS = 1_000
"""The width of a table that is not printed on a terminal."""

Row = Mapping[str, object]
_Command = TypeVar("_Command", bound=Callable[..., Any])


def listing(command: _Command) -> _Command:
    """Add `--json` and `--csv` to a command; it receives `form`: "table", "json" or "csv"."""
    command = click.option("--csv", "form", flag_value="csv", help="Print CSV with a header line.")(command)
    command = click.option("--json", "form", flag_value="json", help="Print JSON.")(command)
    return click.option("--table", "form", flag_value="table", default="table", hidden=True)(command)


def emit(
    form: str,
    rows: Sequence[Row],
    columns: Sequence[str],
    *,
    title: str | None = None,
    total: Row | None = None,
    sparse: Collection[str] = (),
) -> None:
    """Print rows; JSON has every field of each row, table and CSV the named columns, a table `total` below them.

    A table leaves out those of the columns `sparse` that are 0 in every row.
    """
    if form == "json":
        click.echo(json.dumps([dict(row) for row in rows], indent=2, ensure_ascii=False))
    elif form == "csv":
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([_cell(row.get(column)) for column in columns] for row in rows)
        click.echo(buffer.getvalue(), nl=False)
    else:
        _print_table(rows, [name for name in columns if name not in sparse or _says(rows, name)], title, total)


def emit_one(form: str, row: Row, *, title: str | None = None) -> None:
    """Print one thing: its fields below each other, or as one JSON object, or as one CSV row."""
    if form == "json":
        click.echo(json.dumps(dict(row), indent=2, ensure_ascii=False))
    elif form == "csv":
        emit("csv", [row], list(row))
    else:
        table = Table(show_header=False, title=title, title_justify="left", box=None)
        for name, value in row.items():
            table.add_row(name.replace("_", " "), Text(_cell(value)))
        console().print(table)


def _print_table(rows: Sequence[Row], columns: Sequence[str], title: str | None, total: Row | None) -> None:
    table = Table(title=title, title_justify="left", header_style="bold", box=None, pad_edge=False)
    table.show_footer, table.footer_style = total is not None, "bold"
    for column in columns:
        numeric = all(isinstance(row.get(column), int) or _is_decimal(row.get(column)) for row in rows)
        sum_of = Text("" if total is None else _cell(total.get(column)))
        justify: JustifyMethod = "right" if numeric else "left"
        table.add_column(column.replace("_", " "), sum_of, justify=justify, overflow="fold")
    for row in rows:
        table.add_row(*(_styled(row.get(column)) for column in columns))
    console().print(table if rows else "nothing to show")


def _says(rows: Sequence[Row], column: str) -> bool:
    return any(row.get(column) for row in rows)


def _styled(value: object) -> Text:
    """Return a cell; a number below 0 is red."""
    return Text(_cell(value), "red" if _is_decimal(value) and str(value).startswith("-") else "")


def console() -> Console:
    """Return a console that folds no id where nobody looks: a pipe or a file has no width."""
    made = Console()
    if not made.is_terminal:
        made.width = PIPE_COLUMNS
    return made


def _is_decimal(value: object) -> bool:
    return isinstance(value, str) and value.lstrip("-").replace(".", "", 1).isdigit()


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, list | dict):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)
