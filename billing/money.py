"""Money as integers: the only maker of amounts, unit prices and their texts.

An amount is a whole number of picounits (10⁻¹² of the currency's major unit). A published rate per
1M tokens has at most 6 decimals, so the price of one token is a whole number of picounits: a rate of
0.0375 per 1M tokens is 37,500 picounits a token. Hence tokens × price never rounds, and the one
rounding of the product is `publish_rate`. Integers and not Decimal, because an integer can not carry
a context, a precision or a signalling surprise, and adds twenty times faster.

Python's integers do not overflow; SQL's do at 2⁶³ (9.2 million dollars). Sums in SQL therefore run over two
columns, whole micro-units and the picounits left (`split`), and meet again in `join`.
"""

import re
from typing import NewType

from billing.errors import InvalidAmountError

Pico = NewType("Pico", int)
"""An amount in 10⁻¹² of the currency's major unit."""

PicoPerToken = NewType("PicoPerToken", int)
"""A price in picounits per token; numerically the rate per 1M tokens in micro-units."""

PICO_DECIMALS = 12
RATE_DECIMALS = 6
PICO_PER_MAJOR = 10**PICO_DECIMALS
PICO_PER_MICRO = 10**6

_DECIMAL = re.compile(r"(-?)([0-9]{1,30})(?:\.([0-9]{1,30}))?", re.ASCII)


def publish_rate(numerator: int, denominator: int) -> PicoPerToken:
    """Round the fraction of picounits per token half-up to a whole one: the product's only rounding.

    Both are non-negative and the denominator is not 0; a published rate is never negative.
    """
    assert numerator >= 0, "a rate is not negative"
    assert denominator > 0, "the denominator is positive"
    return PicoPerToken((2 * numerator + denominator) // (2 * denominator))


def charge(tokens: int, price: PicoPerToken) -> Pico:
    """Price `tokens` exactly."""
    return Pico(tokens * price)


def _parse_scaled(text: str, decimals: int, what: str) -> int:
    match = _DECIMAL.fullmatch(text.strip())
    if match is None:
        raise InvalidAmountError(f"{what} {text!r} is not a decimal number such as 0.25")
    sign, whole, fraction = match[1], match[2], (match[3] or "").rstrip("0")
    if len(fraction) > decimals:
        raise InvalidAmountError(f"{what} {text!r} has more than {decimals} decimals; round it to {decimals}")
    value: int = int(whole) * 10**decimals + int(fraction.ljust(decimals, "0") or "0")
    return -value if sign else value


def parse_rate(text: str) -> PicoPerToken:
    """Read a rate in major units per 1M tokens, such as "0.0375"; at most 6 decimals, not negative.

    Raises InvalidAmountError.
    """
    value = _parse_scaled(text, RATE_DECIMALS, "the rate")
    if value < 0:
        raise InvalidAmountError(f"the rate {text!r} is negative; give what 1M tokens cost")
    return PicoPerToken(value)


def parse_amount(text: str) -> Pico:
    """Read an amount in major units, such as "12.50"; at most 12 decimals. Raises InvalidAmountError."""
    return Pico(_parse_scaled(text, PICO_DECIMALS, "the amount"))


def _scaled_text(value: int, decimals: int) -> str:
    whole, fraction = divmod(abs(value), 10**decimals)
    return f"{'-' if value < 0 else ''}{whole}.{fraction:0{decimals}d}"


def amount_text(amount: Pico) -> str:
    """Write an amount in major units with all 12 decimals: "0.000123456000"."""
    if amount < 0:
        return _scaled_text(amount, PICO_DECIMALS)
    whole, fraction = divmod(amount, PICO_PER_MAJOR)  # as `_scaled_text` in half its time
    return f"{whole}.{fraction:012d}"


def shortest(text: str) -> str:
    """Shorten what `amount_text` wrote to the shortest JSON number that is exactly it."""
    return text.rstrip("0").rstrip(".")


def format_amount(amount: Pico, currency: str) -> str:
    """Write an amount with its currency: "0.000123456000 usd" (header `x-weir-amount`)."""
    return f"{amount_text(amount)} {currency}"


def amount_number(amount: Pico) -> str:
    """Write an amount as the shortest JSON number that is exactly it: "0.000123456", "0", "12.5"."""
    return shortest(amount_text(amount))


def rate_text(price: PicoPerToken) -> str:
    """Write a unit price as a rate per 1M tokens, at least 4 decimals: "0.0375", "0.000001"."""
    text = _scaled_text(price, RATE_DECIMALS)
    head, tail = text[:-2], text[-2:].rstrip("0")
    return head + tail


def split(amount: int) -> tuple[int, int]:
    """Split an amount into whole micro-units and the 0 to 999,999 picounits left, for sums in SQL."""
    return divmod(amount, PICO_PER_MICRO)


def join(micro: int, pico: int) -> Pico:
    """Join sums of the two halves that `split` gave; the second half need not be normalised."""
    return Pico(micro * PICO_PER_MICRO + pico)
