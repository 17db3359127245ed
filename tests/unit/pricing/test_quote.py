"""Quotes: exact amounts, refs that follow from the content, and what is sold too cheap or too dear."""

from dataclasses import astuple, replace
from typing import Any

import pytest

from billing.limits import RATE_PICO_MAX, REQUEST_FEE_PICO_MAX
from billing.money import Pico, PicoPerToken, amount_text, parse_amount, parse_rate
from billing.pricing.quote import UNITS, Quote, UnitPrices
from billing.usage import Usage


def prices(rates: str = "0.03 0.01 0.12 0.24", fee: str = "0") -> UnitPrices:
    """Unit prices from rates per 1M tokens, in the order of UNITS, and a fee per request."""
    first, second, third, fourth = (parse_rate(rate) for rate in rates.split())
    return UnitPrices(first, second, third, fourth, parse_amount(fee))


def with_unit(some: UnitPrices, unit: str, price: int) -> UnitPrices:
    """Unit prices with one of them changed."""
    changed: list[Any] = [price if name == unit else getattr(some, name) for name in UNITS]
    return UnitPrices(*changed)


def quote(*, cost: UnitPrices, price: UnitPrices) -> Quote:
    """A quote of these unit prices."""
    return Quote.of(
        model="qwen3.5-9b",
        currency="usd",
        cost_rate_id="cost_1",
        margin_rule_id=None,
        margin="30%",
        cost=cost,
        price=price,
    )


def test_each_token_is_charged_once_at_the_price_of_its_type() -> None:
    """600 × 0.03 + 400 × 0.01 + 300 × 0.12 + 200 × 0.24 per 1M, and 0.001: worked out by hand."""
    usage = Usage(input_tokens=1000, output_tokens=500, cached_input_tokens=400, reasoning_tokens=200)

    amount = prices(fee="0.001").charge(usage)

    assert amount_text(amount) == "0.001106000000"  # 18 + 4 + 36 + 48 = 106 µ, and the fee


def test_a_request_without_tokens_costs_its_fee() -> None:
    """The fee is per request, whatever was generated."""
    assert amount_text(prices(fee="0.001").charge(Usage(0, 0))) == "0.001000000000"


def test_the_largest_event_at_the_dearest_price_fits_the_ledger() -> None:
    """SQL's integers end at 2⁶³; limits.py makes sure that one event can not pass it."""
    most = PicoPerToken(RATE_PICO_MAX)
    dearest = UnitPrices(most, most, most, most, Pico(REQUEST_FEE_PICO_MAX))

    assert dearest.charge(Usage(input_tokens=10**9, output_tokens=0)) < 2**63


def test_the_ref_is_a_known_value_that_every_host_and_release_gives() -> None:
    """The first 16 hex digits of `sha256sum` over the JSON text of the fields, taken outside of Python."""
    one = quote(cost=prices(), price=prices("0.039 0.013 0.156 0.312"))

    assert one.ref == "7ffc3a88eddc7d3e"


@pytest.mark.parametrize(
    "change",
    [
        {"model": "qwen3.5-4b"},
        {"currency": "eur"},
        {"cost_rate_id": "cost_2"},
        {"margin_rule_id": "margin_1"},
        {"margin": "margin:30%"},
        *({side: with_unit(prices(), unit, 1)} for side in ("cost", "price") for unit in UNITS),
    ],
)
def test_a_quote_that_differs_in_any_field_has_another_ref(change: dict[str, object]) -> None:
    """What an event names by its ref can not be mistaken for anything else."""
    fields = {
        "model": "qwen3.5-9b",
        "currency": "usd",
        "cost_rate_id": "cost_1",
        "margin_rule_id": None,
        "margin": "30%",
        "cost": prices(),
        "price": prices(),
    }
    original = Quote.of(**fields)  # type: ignore[arg-type]

    assert Quote.of(**(fields | change)).ref != original.ref  # type: ignore[arg-type]
    assert Quote.of(**fields) == original  # type: ignore[arg-type]


@pytest.mark.parametrize("unit", UNITS)
def test_every_unit_that_is_sold_below_cost_is_named(unit: str) -> None:
    """A price one picounit below the cost is a loss; the same price is none."""
    cost = prices(fee="0.001")
    lower = with_unit(cost, unit, getattr(cost, unit) - 1)

    assert quote(cost=cost, price=lower).units_below_cost() == (unit,)
    assert quote(cost=cost, price=cost).units_below_cost() == ()
    assert quote(cost=lower, price=cost).units_below_cost() == ()


@pytest.mark.parametrize("unit", UNITS)
def test_every_unit_that_costs_and_is_sold_for_nothing_is_named(unit: str) -> None:
    """Only what costs nothing may be sold for nothing."""
    cost = prices(fee="0.001")
    free = with_unit(cost, unit, 0)

    assert quote(cost=cost, price=free).units_given_away() == (unit,)
    assert quote(cost=free, price=free).units_given_away() == ()


@pytest.mark.parametrize("unit", UNITS)
def test_every_unit_that_is_dearer_than_the_ledger_can_hold_is_named(unit: str) -> None:
    """The limit itself is allowed, one picounit more is not."""
    most = REQUEST_FEE_PICO_MAX if unit == "request" else RATE_PICO_MAX
    at_limit, above = with_unit(prices(), unit, most), with_unit(prices(), unit, most + 1)

    assert quote(cost=prices(), price=at_limit).units_beyond_limit() == ()
    assert quote(cost=prices(), price=above).units_beyond_limit() == (unit,)


def test_the_units_are_the_fields_in_order() -> None:
    """Listings, columns and hashes take the units in this order."""
    numbered = UnitPrices(PicoPerToken(1), PicoPerToken(2), PicoPerToken(3), PicoPerToken(4), Pico(5))

    assert dict(zip(UNITS, astuple(numbered), strict=True)) == {
        "input": 1,
        "cached_input": 2,
        "output": 3,
        "reasoning": 4,
        "request": 5,
        "image_input": 1,
        "audio_input": 1,
    }


MEDIA = replace(prices(fee="0.001"), image_input=parse_rate("0.05"), audio_input=parse_rate("0.005"))


def test_images_and_audio_are_charged_at_prices_of_their_own() -> None:
    """150 × 0.03 + 400 × 0.01 + 350 × 0.05 + 100 × 0.005 + 300 × 0.12 + 200 × 0.24 per 1M, and 0.001: by hand."""
    usage = Usage(1000, 500, cached_input_tokens=400, reasoning_tokens=200)
    usage = usage._replace(image_input_tokens=350, audio_input_tokens=100)

    assert amount_text(MEDIA.charge(usage)) == "0.001110500000"  # 4.5 + 4 + 17.5 + 0.5 + 36 + 48 = 110.5 µ, and the fee
    assert prices(fee="0.001").charge(usage) == prices(fee="0.001").charge(Usage(1000, 500, 400, 200))


def test_prices_of_images_that_are_those_of_input_leave_the_ref_as_it_was() -> None:
    """A worker of the release before them has stored the quote under its ref; another price makes another one."""
    as_input = prices()
    spelt_out = replace(as_input, image_input=as_input.input, audio_input=as_input.input)

    assert quote(cost=spelt_out, price=spelt_out).ref == quote(cost=as_input, price=as_input).ref
    assert quote(cost=MEDIA, price=MEDIA).ref != quote(cost=prices(fee="0.001"), price=prices(fee="0.001")).ref


def test_images_and_audio_are_named_apart_only_where_their_price_is_their_own() -> None:
    """Without rates of their own they are input, and what is wrong with that is said once."""
    cost, free = prices(), prices("0 0.01 0.12 0.24")
    own = with_unit(cost, "image_input", 0)

    assert (
        quote(cost=cost, price=free).units_given_away() == quote(cost=cost, price=free).units_below_cost() == ("input",)
    )
    assert quote(cost=cost, price=own).units_given_away() == ("image_input",)
