"""Usage events as rows for files: the columns of the ledger, with names of customers, and money in major units."""

from collections.abc import Mapping, Sequence
from typing import Any

from billing.clock import instant_text
from billing.money import amount_text
from billing.reports.parquet import Column, Kind
from billing.usage import UsageEvent

_INSTANTS = frozenset({"started_at", "first_token_at", "finished_at", "window_start"})
_MONEY = {"cost_pico": "cost", "amount_pico": "amount"}
_TEXTS = frozenset(
    {
        *("id", "customer_id", "api_key_id", "model", "upstream", "upstream_model", "endpoint", "outcome"),
        *("count_source", "price_ref", "anomaly", "adjusts", "tags"),
    }
)


def _column(name: str) -> Column:
    if name in _INSTANTS:
        return Column(name, Kind.INSTANT)
    if name in _MONEY:
        return Column(_MONEY[name], Kind.MONEY)
    return Column(name, Kind.TEXT if name in _TEXTS else Kind.INTEGER)


COLUMNS: tuple[Column, ...] = (
    *map(_column, UsageEvent._fields),
    Column("customer", Kind.TEXT),
    Column("currency", Kind.TEXT),
)
"""The file's columns, in the order of the table's."""

_CUSTOMER_ID = UsageEvent._fields.index("customer_id")


def values(event: Sequence[Any], customers: Mapping[str, str], currency: str) -> tuple[Any, ...]:
    """Return the values of a row as `ParquetWriter` takes them."""
    return (*event, customers.get(event[_CUSTOMER_ID]), currency)


def texts(values: Sequence[Any], columns: Sequence[Column]) -> list[object]:
    """Return values as CSV has them: instants as RFC 3339 in UTC, money as decimal texts in major units."""
    return [
        value
        if value is None or column.kind in {Kind.TEXT, Kind.INTEGER}
        else instant_text(value)
        if column.kind is Kind.INSTANT
        else amount_text(value)
        for value, column in zip(values, columns, strict=True)
    ]
