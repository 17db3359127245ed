"""How commands show unit prices: rates per 1M tokens and fees per request, the same in every listing.

A table names the currency at each amount; JSON and CSV have plain decimals and a column `currency`, so that
no program has to take a text apart.
"""

from billing.cli.output import Row
from billing.money import Pico, PicoPerToken, amount_number, rate_text
from billing.pricing import margins
from billing.pricing.margins import Margin
from billing.pricing.quote import Quote, UnitPrices


def rate_cell(rate: PicoPerToken | None, currency: str, form: str) -> str | None:
    """Write a rate per 1M tokens; None stays None."""
    return None if rate is None else _with_currency(rate_text(rate), currency, form)


def fee_cell(fee: Pico, currency: str, form: str) -> str:
    """Write a fee per request."""
    return _with_currency(amount_number(fee), currency, form)


def _with_currency(text: str, currency: str, form: str) -> str:
    return f"{text} {currency}" if form == "table" else text


def fields_of(prices: UnitPrices) -> dict[str, str]:
    """Return every unit price as a plain decimal: rates per 1M tokens, and the fee per request."""
    return {
        "input": rate_text(prices.input),
        "cached_input": rate_text(prices.cached_input),
        "image_input": rate_text(prices.image_input),
        "audio_input": rate_text(prices.audio_input),
        "output": rate_text(prices.output),
        "reasoning": rate_text(prices.reasoning),
        "request": amount_number(prices.request),
    }


def rounded_units(quote: Quote, margin: Margin) -> list[str]:
    """Name the units whose price was rounded when it was published."""
    by_margin = margins.apply_to_all(quote.cost, margin)
    return [
        unit
        for unit, cost, price in quote.units()
        if price == getattr(by_margin, unit) and not margins.is_exact(cost, margin)
    ]


def unit_rows(quote: Quote, margin: Margin) -> list[Row]:
    """Return a row per unit for a table: its cost, its price, and whether that is rounded."""
    rounded = rounded_units(quote, margin)
    cost, price = fields_of(quote.cost), fields_of(quote.price)
    return [
        {
            "unit": unit,
            "per": "request" if unit == "request" else "1M tokens",
            "cost": f"{cost[unit]} {quote.currency}",
            "price": f"{price[unit]} {quote.currency}",
            "note": "rounded" if unit in rounded else "",
        }
        for unit, _, _ in quote.units()
    ]


UNIT_COLUMNS = ("unit", "per", "cost", "price", "note")
