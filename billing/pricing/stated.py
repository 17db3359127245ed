"""Prices that a margin rule states in money: fixed ones, which no cost moves, and minimums. Pure.

A fixed price takes the place of cost and margin for its unit. A part without a fixed price of its own takes that of its
whole (cached, image and audio input: input; reasoning: output), as everywhere. What is not fixed at all follows the
rule's margin. A minimum is the money's counterpart of a floor: under the scope of its rule no such unit is sold for
less, by whatever rule, also a fixed one; of several the highest holds. (The volume tiers of a plan come on top, by
adjustments, and stop at cost: `terms.py`.) A part that is sold at the price of its whole
goes on following it, unless it has a minimum of its own.

Invariant: all of it is settled when a quote is made, in whole picounits per unit. So a request's amount stays the sum
of tokens times unit prices, exact on the hot path, in history's sums (`weir simulate`) and on every receipt.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from billing.money import Pico, PicoPerToken, amount_number, rate_text
from billing.pricing.quote import UNITS, UnitPrices

Stated = tuple[tuple[str, int], ...]
"""Units and their prices (picounits per token, or per request), in the order of UNITS, each at most once."""

WHOLES = {"cached_input": "input", "image_input": "input", "audio_input": "input", "reasoning": "output"}
REQUEST = "request"


def stated(prices: Mapping[str, int]) -> Stated:
    """Put prices by unit in order."""
    assert prices.keys() <= set(UNITS), "only what is priced has a price"
    return tuple((unit, prices[unit]) for unit in UNITS if unit in prices)


def text_of(unit: str, price: int) -> str:
    """Write a price as the options and rate cards read it: per 1M tokens, or per request."""
    return amount_number(Pico(price)) if unit == REQUEST else rate_text(PicoPerToken(price))


def words(prices: Stated) -> str:
    """Write prices in a line: "input 0.0500 output 0.1000"."""
    return " ".join(f"{unit} {text_of(unit, price)}" for unit, price in prices)


def with_fixed(price: UnitPrices, fixed: Stated) -> UnitPrices:
    """Return the prices with those that are fixed in their place."""
    given = dict(fixed)
    for part, whole in WHOLES.items():
        if whole in given:
            given.setdefault(part, given[whole])
    return _changed(price, given)


def with_minimum(price: UnitPrices, minimum: Stated) -> UnitPrices:
    """Return the prices, each at least its minimum."""
    given = dict(minimum)
    raised = {unit: least for unit, least in minimum if getattr(price, unit) < least}
    for part, whole in WHOLES.items():
        if whole in raised and part not in given and getattr(price, part) == getattr(price, whole):
            raised[part] = raised[whole]
    return _changed(price, raised)


def at_least(price: UnitPrices, least: UnitPrices) -> UnitPrices:
    """Return the higher of two prices for every unit."""
    return _changed(price, {unit: max(getattr(price, unit), getattr(least, unit)) for unit in UNITS})


def differing(before: UnitPrices, after: UnitPrices) -> Stated:
    """Return the units whose prices differ, at the prices after."""
    return stated({unit: getattr(after, unit) for unit in UNITS if getattr(before, unit) != getattr(after, unit)})


def joined(parts: Iterable[tuple[str, Stated]]) -> str:
    """Write what is stated behind its names, with commas before; nothing where nothing is."""
    return "".join(f", {name} {words(prices)}" for name, prices in parts if prices)


def _changed(price: UnitPrices, given: Mapping[str, int]) -> UnitPrices:
    if not given:
        return price
    tokens = {unit: PicoPerToken(value) for unit, value in given.items() if unit != REQUEST}
    return replace(price, **tokens, request=Pico(given.get(REQUEST, price.request)))
