"""Rows of a listing as a Parquet file, whole or not at all: it has its name only when it is complete."""

from collections.abc import Sequence
from pathlib import Path

import click

from billing.cli.files import replacing
from billing.cli.output import Row
from billing.money import parse_amount
from billing.reports.parquet import Column, Kind, ParquetWriter
from billing.reports.usage import COUNTS

_MONEY = frozenset(
    {"revenue", "cost", "margin", "from_credit", "metered", "revenue_before", "revenue_change", "margin_before"}
)


def write(path: Path, rows: Sequence[Row], columns: Sequence[str]) -> None:
    """Write the named columns of the rows. Raises UsageError where the file can not be made."""
    kinds = [_kind(name) for name in columns]
    with replacing(path) as stream:
        writer = ParquetWriter(stream, [Column(name, kind) for name, kind in zip(columns, kinds, strict=True)])
        for row in rows:
            writer.write([_value(row.get(name), kind) for name, kind in zip(columns, kinds, strict=True)])
        writer.close()
    click.echo(f"{len(rows)} rows in {path}", err=True)


def _kind(name: str) -> Kind:
    if name in COUNTS:
        return Kind.INTEGER
    if name in _MONEY:
        return Kind.MONEY
    return Kind.PERCENT if name.endswith("_pct") else Kind.TEXT


def _value(value: object, kind: Kind) -> object:
    """Return what the writer takes: of a decimal text the integer of its smallest unit."""
    if value is None or kind in {Kind.TEXT, Kind.INTEGER}:
        return value
    amount = parse_amount(str(value))
    return amount if kind is Kind.MONEY else amount // 10**10
