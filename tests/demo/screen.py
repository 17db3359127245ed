"""What the demo's terminal shows: steps, commands, live tokens, tables."""

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

WIDTH = 118

console = Console(highlight=False, width=None if Console().is_terminal else WIDTH)


def step(title: str) -> None:
    """Head a part of the story."""
    console.print(f"\n[bold cyan]{title}[/]")


def command(words: Sequence[str]) -> None:
    """Show a command that is run."""
    shown = " ".join(f"'{word}'" if " " in word else word for word in words)
    console.print(f"  [dim]$ weir {shown}[/]", soft_wrap=True)


def note(text: str) -> None:
    """Say something beside the story."""
    console.print(f"  {text}")


def token(text: str) -> None:
    """Show a piece of a stream as it arrives."""
    console.print(text, end="", style="green", markup=False, soft_wrap=True)


def table(title: str, rows: Sequence[Mapping[str, object]], columns: Sequence[str]) -> None:
    """Show rows; numbers to the right."""
    shown = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for column in columns:
        values = [str(row[column]) for row in rows]
        is_number = all(value.replace(".", "", 1).replace("-", "", 1).isdigit() for value in values)
        shown.add_column(column.replace("_", " "), justify="right" if is_number else "left", no_wrap=True)
    for row in rows:
        shown.add_row(*(str(row[column]) for column in columns))
    console.print(shown)


def verdict(text: str, *, is_good: bool) -> None:
    """Say how it came out."""
    console.print(f"  [bold {'green' if is_good else 'red'}]{'✓' if is_good else '✗'} {text}[/]")
