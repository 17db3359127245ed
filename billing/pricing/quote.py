"""A quote: what one model's tokens cost and earn for one customer, fixed at a version of rates and rules.

The amount is exact: (input − cached − image − audio) × input + cached × cached_input + image × image_input
+ audio × audio_input + (output − reasoning) × output + reasoning × reasoning + the request fee, in picounits, with no
rounding (the unit prices were rounded when published).
"""

import json
from collections.abc import Iterator
from dataclasses import astuple, dataclass, fields
from hashlib import sha256

from billing.limits import RATE_PICO_MAX, REQUEST_FEE_PICO_MAX
from billing.money import Pico, PicoPerToken
from billing.usage import Usage

REF_HEX_CHARS = 16
"""64 bits of a hash: among a million quotes two share a ref once in 37 million, and `store_quote` checks."""


_MEDIA = ("image_input", "audio_input")
AS_INPUT = PicoPerToken(-1)
"""Given as the price of pictures or sound: what input costs."""


@dataclass(frozen=True, slots=True)
class UnitPrices:
    """Picounits per token of each type, and per request; parts without a rate of their own: their whole's."""

    input: PicoPerToken
    cached_input: PicoPerToken
    output: PicoPerToken
    reasoning: PicoPerToken
    request: Pico
    image_input: PicoPerToken = AS_INPUT
    audio_input: PicoPerToken = AS_INPUT

    def __post_init__(self) -> None:
        """Let pictures and sound without a price of their own cost what input does."""
        for unit in _MEDIA:
            if getattr(self, unit) == AS_INPUT:
                object.__setattr__(self, unit, self.input)

    def charge(self, usage: Usage) -> Pico:
        """Price a usage whose parts are within their wholes (`billing.usage.provable`), exactly."""
        amount = (
            (usage.input_tokens - usage.cached_input_tokens) * self.input
            + usage.cached_input_tokens * self.cached_input
            + (usage.output_tokens - usage.reasoning_tokens) * self.output
            + usage.reasoning_tokens * self.reasoning
            + self.request
        )
        if usage.image_input_tokens or usage.audio_input_tokens:
            amount += usage.image_input_tokens * (self.image_input - self.input)
            amount += usage.audio_input_tokens * (self.audio_input - self.input)
        return Pico(amount)

    def charge_all(self, usage: Usage, requests: int) -> Pico:
        """Price many requests by the sums of their usage: the same as the sum of their prices, for it is linear."""
        return Pico(self.charge(usage) + (requests - 1) * self.request)

    @property
    def content(self) -> tuple[int, ...]:
        """What a quote's ref is made of: pictures and sound are left out where they cost what input does.

        So a quote without prices of their own keeps the ref that it had before there were any.
        """
        values: tuple[int, ...] = astuple(self)
        return values[: -len(_MEDIA)] if self.image_input == self.input == self.audio_input else values


UNITS: tuple[str, ...] = tuple(field.name for field in fields(UnitPrices))
"""What is priced, in the order of the fields."""


@dataclass(frozen=True, slots=True)
class Quote:
    """Cost and price per unit, and the versions that they come from; made by `Quote.of`.

    `ref` is derived from all other fields, so equal quotes have equal refs; `margin_rule_id` is None while
    `billing.default_margin` holds. `margin` is the rule in words, such as "30%" or "margin:40%".
    """

    ref: str
    model: str
    currency: str
    cost_rate_id: str
    margin_rule_id: str | None
    margin: str
    cost: UnitPrices
    price: UnitPrices

    @classmethod
    def of(
        cls,
        *,
        model: str,
        currency: str,
        cost_rate_id: str,
        margin_rule_id: str | None,
        margin: str,
        cost: UnitPrices,
        price: UnitPrices,
    ) -> "Quote":
        """Make the quote of these fields, and its ref: their hash, the same on every host for ever."""
        content = [model, currency, cost_rate_id, margin_rule_id, margin, cost.content, price.content]
        ref = sha256(json.dumps(content, separators=(",", ":")).encode()).hexdigest()[:REF_HEX_CHARS]
        return cls(ref, model, currency, cost_rate_id, margin_rule_id, margin, cost, price)

    def units_beyond_limit(self) -> tuple[str, ...]:
        """Name the units whose price is so high that an event's amount might not fit the ledger."""
        return tuple(
            unit
            for unit, _, price in self.units()
            if price > (REQUEST_FEE_PICO_MAX if unit == "request" else RATE_PICO_MAX)
        )

    def units_below_cost(self) -> tuple[str, ...]:
        """Name the units that are sold at a loss."""
        return tuple(unit for unit, cost, price in self.units() if price < cost)

    def units_given_away(self) -> tuple[str, ...]:
        """Name the units that cost something and are sold for nothing."""
        return tuple(unit for unit, cost, price in self.units() if price == 0 < cost)

    def units(self) -> Iterator[tuple[str, int, int]]:
        """Give each unit with its cost and price; not pictures and sound that are input like any other."""
        as_input = self.cost.input, self.price.input
        for unit, cost, price in zip(UNITS, astuple(self.cost), astuple(self.price), strict=True):
            if unit not in _MEDIA or (cost, price) != as_input:
                yield unit, cost, price
