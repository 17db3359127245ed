"""What others ask, as it was imported: a version for each change, so that a price's past can be shown.

Nothing here prices a request; it is only compared with what does.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import sqlalchemy as sa

from billing import ids
from billing.clock import Instant
from billing.ledger import audit, schema
from billing.money import Pico, PicoPerToken
from billing.pricing.market import MarketPrice, PriceFile, Rates, Source

_PRICES = schema.market_prices
_ROWS_PER_INSERT = 500


@dataclass(frozen=True, slots=True)
class Change:
    """A model whose price is another than when it was last imported."""

    before: MarketPrice
    after: MarketPrice


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import came to."""

    new: int
    unchanged: int
    changes: tuple[Change, ...]


def append(conn: sa.Connection, file: PriceFile, at: Instant, actor: str) -> Imported:
    """Record what a file says anew; the same file again records nothing. Two at once follow one another."""
    if conn.dialect.name == "postgresql":
        conn.execute(sa.text("LOCK TABLE market_prices IN EXCLUSIVE MODE"))
    known = {price.model: price for price in latest(conn, file.source)}
    fresh = [MarketPrice(file.source, model, rates, at) for model, rates in file.rates.items()]
    changes = [Change(known[each.model], each) for each in fresh if _differs(known, each)]
    new = [each for each in fresh if each.model not in known]
    rows = [_row(each) for each in (*new, *(change.after for change in changes))]
    for start in range(0, len(rows), _ROWS_PER_INSERT):
        conn.execute(sa.insert(_PRICES), rows[start : start + _ROWS_PER_INSERT])
    details = {"models": len(fresh), "new": len(new), "changed": len(changes)}
    audit.record(conn, at=at, actor=actor, action="prices.import", subject=file.source.value, details=details)
    return Imported(len(new), len(fresh) - len(new) - len(changes), tuple(changes))


def latest(conn: sa.Connection, source: Source | None = None) -> list[MarketPrice]:
    """Return each model's newest price, by source and name."""
    newest: dict[tuple[str, str], MarketPrice] = {}
    for price in history(conn, source):
        newest[price.source, price.model] = price
    return [newest[key] for key in sorted(newest)]


def history(conn: sa.Connection, source: Source | None = None) -> list[MarketPrice]:
    """Return all versions, oldest first."""
    query = sa.select(_PRICES).order_by(_PRICES.c.recorded_at, _PRICES.c.id)
    if source is not None:
        query = query.where(_PRICES.c.source == source.value)
    return [_price(row) for row in conn.execute(query).mappings()]


def _differs(known: Mapping[str, MarketPrice], fresh: MarketPrice) -> bool:
    return fresh.model in known and known[fresh.model].rates != fresh.rates


def _row(price: MarketPrice) -> dict[str, object]:
    rates = price.rates
    return {
        "id": ids.new_id("price"),
        "source": price.source.value,
        "model": price.model,
        "input_pico": rates.input,
        "output_pico": rates.output,
        "cached_input_pico": rates.cached_input,
        "reasoning_pico": rates.reasoning,
        "request_pico": rates.request,
        "recorded_at": price.recorded_at,
    }


def _price(row: sa.RowMapping) -> MarketPrice:
    cached, reasoning = row["cached_input_pico"], row["reasoning_pico"]
    rates = Rates(
        PicoPerToken(row["input_pico"]),
        PicoPerToken(row["output_pico"]),
        None if cached is None else PicoPerToken(cached),
        None if reasoning is None else PicoPerToken(reasoning),
        Pico(row["request_pico"]),
    )
    return MarketPrice(Source(row["source"]), row["model"], rates, Instant(row["recorded_at"]))
