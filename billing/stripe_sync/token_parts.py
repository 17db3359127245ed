"""Tokens mode: what a rollup's amount is made of, in tokens at their unit prices. Pure.

Invariant: the parts' units × unit prices are the amount, exactly, or there are no parts. What is not tokens at the
prices of one quote (a correction, a request that prepaid credit paid in part, usage of before tokens mode) is billed as
an amount, in millionths of the currency, on the meter of amount mode.

A type that costs as much as its whole is counted with it: cached input at the price of input is input. What is free is
not counted.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from billing.ledger.outbox import Delta
from billing.pricing.quote import UnitPrices


class TokenType(StrEnum):
    """What a meter counts; REQUEST is the fee for each request."""

    INPUT = "input"
    CACHED_INPUT = "cached_input"
    OUTPUT = "output"
    REASONING = "reasoning"
    IMAGE_INPUT = "image_input"
    AUDIO_INPUT = "audio_input"
    REQUEST = "request"


class Rate(NamedTuple):
    """What a customer pays for one kind of token of a model: a unit and its price in picounits."""

    model: str
    token_type: TokenType
    unit_pico: int


@dataclass(frozen=True, slots=True)
class Lane:
    """The meter that counts a customer's tokens at one rate, and from when on its subscription bills it (seconds)."""

    event_name: str
    opens_s: int


@dataclass(frozen=True, slots=True)
class Tariff:
    """How one customer is billed by tokens: its lanes, and the rates that can have none, so that amounts are billed.

    `amount_opens_s` is the start of the subscription, before which no amount can be billed.
    """

    lanes: Mapping[Rate, Lane] = field(default_factory=dict)
    without: frozenset[Rate] = frozenset()
    amount_opens_s: int | None = None


@dataclass(frozen=True, slots=True)
class Tariffs:
    """The tariffs of a page of customers, and the unit prices of the quotes that their usage names."""

    prices: Mapping[str, UnitPrices]
    of_customers: Mapping[str, Tariff]

    def parts(self, delta: Delta) -> dict[Rate, int] | None:
        """Return what a delta is made of; None for what has to be billed as an amount."""
        prices = None if delta.price_ref is None else self.prices.get(delta.price_ref)
        return None if prices is None else parts(delta, prices)


def rates(model: str, prices: UnitPrices) -> tuple[Rate, ...]:
    """Return what a model is billed by at these prices: each type that has a price of its own."""
    found = [Rate(model, TokenType.INPUT, prices.input), Rate(model, TokenType.OUTPUT, prices.output)]
    for part, price, whole in _own_prices(prices):
        if price != whole:
            found.append(Rate(model, part, price))
    found.append(Rate(model, TokenType.REQUEST, prices.request))
    return tuple(rate for rate in found if rate.unit_pico > 0)


def _own_prices(prices: UnitPrices) -> tuple[tuple[TokenType, int, int], ...]:
    """Return each type that is a part of another, its price, and the price of that other."""
    return (
        (TokenType.CACHED_INPUT, prices.cached_input, prices.input),
        (TokenType.IMAGE_INPUT, prices.image_input, prices.input),
        (TokenType.AUDIO_INPUT, prices.audio_input, prices.input),
        (TokenType.REASONING, prices.reasoning, prices.output),
    )


def parts(delta: Delta, prices: UnitPrices) -> dict[Rate, int] | None:
    """Return the units of each rate that make up a delta; None if none do. A delta of no amount has no parts."""
    counts = delta.counts
    units = {
        TokenType.INPUT: counts.input_tokens,
        TokenType.CACHED_INPUT: counts.cached_input_tokens,
        TokenType.OUTPUT: counts.output_tokens,
        TokenType.REASONING: counts.reasoning_tokens,
        TokenType.IMAGE_INPUT: counts.image_input_tokens,
        TokenType.AUDIO_INPUT: counts.audio_input_tokens,
        TokenType.REQUEST: counts.requests,
    }
    for part, price, whole in _own_prices(prices):
        if price != whole:
            units[TokenType.OUTPUT if part is TokenType.REASONING else TokenType.INPUT] -= units[part]
    found = {rate: units[rate.token_type] for rate in rates(delta.model, prices)}
    is_whole = sum(rate.unit_pico * count for rate, count in found.items()) == delta.amount
    if not is_whole or min(found.values(), default=0) < 0:
        return None
    return {rate: count for rate, count in found.items() if count}
