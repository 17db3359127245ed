"""Money is exact for any amount: against fractions, against itself there and back, and by hand."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.errors import InvalidAmountError
from billing.money import (
    Pico,
    PicoPerToken,
    amount_number,
    amount_text,
    charge,
    format_amount,
    join,
    parse_amount,
    parse_rate,
    publish_rate,
    rate_text,
    split,
)

counts = st.integers(0, 10**12)
amounts = st.integers(-(10**30), 10**30).map(Pico)
unit_prices = st.integers(0, 10**13).map(PicoPerToken)
HALF = Fraction(1, 2)


def half_up(value: Fraction) -> int:
    """The greatest whole number that is at most a half above the value."""
    return (value + HALF).__floor__()


@given(st.integers(0, 10**30), st.integers(1, 10**20))
def test_a_published_rate_is_the_fraction_rounded_half_up(numerator: int, denominator: int) -> None:
    """Python's own fractions are the judge."""
    assert publish_rate(numerator, denominator) == half_up(Fraction(numerator, denominator))


@given(st.integers(0, 10**12), st.integers(1, 10**12))
def test_an_exact_half_is_rounded_up(whole: int, halves: int) -> None:
    """Random fractions are hardly ever halves, so these are made."""
    assert publish_rate((2 * whole + 1) * halves, 2 * halves) == whole + 1


@pytest.mark.parametrize(
    ("numerator", "denominator", "rate"),
    [(0, 1, 0), (1, 2, 1), (1, 3, 0), (2, 3, 1), (3, 2, 2), (5, 2, 3), (49, 100, 0), (50, 100, 1), (7, 1, 7)],
)
def test_a_published_rate_by_hand(numerator: int, denominator: int, rate: int) -> None:
    """Half-up, and not half-even: 1/2 is 1, 5/2 is 3."""
    assert publish_rate(numerator, denominator) == rate


@given(unit_prices, counts, counts)
def test_a_charge_is_linear_in_tokens(price: PicoPerToken, one: int, other: int) -> None:
    """However a request is cut into parts, the parts cost what the whole does."""
    assert charge(one, price) + charge(other, price) == charge(one + other, price)


@given(unit_prices, unit_prices, counts)
def test_a_charge_is_additive_in_prices(one: PicoPerToken, other: PicoPerToken, tokens: int) -> None:
    """Cost plus margin per token is cost plus margin in total."""
    assert charge(tokens, one) + charge(tokens, other) == charge(tokens, PicoPerToken(one + other))


def test_a_charge_by_hand() -> None:
    """0.0375 per 1M tokens: 1,000 tokens are 37.5 millionths."""
    assert amount_text(charge(1_000, parse_rate("0.0375"))) == "0.000037500000"


@given(st.lists(amounts, max_size=50))
def test_sums_of_halves_join_to_the_sum_of_amounts(parts: list[Pico]) -> None:
    """SQL adds the two columns apart; nothing is lost, beyond 2⁶³ either."""
    micros = sum(split(part)[0] for part in parts)
    picos = sum(split(part)[1] for part in parts)

    assert join(micros, picos) == sum(parts)


@given(amounts)
def test_the_second_half_is_a_part_of_a_micro_unit(amount: Pico) -> None:
    """Also below zero, so that a sum of a million of them fits 63 bits."""
    assert 0 <= split(amount)[1] < 10**6
    assert join(*split(amount)) == amount


def test_halves_by_hand() -> None:
    """1.5 micro-units, and minus 1.5."""
    assert split(1_500_000) == (1, 500_000)
    assert split(-1_500_000) == (-2, 500_000)


@given(amounts)
def test_every_amount_is_read_as_it_was_written(amount: Pico) -> None:
    """With all decimals, as the shortest number, and before its currency."""
    assert parse_amount(amount_text(amount)) == amount
    assert parse_amount(amount_number(amount)) == amount
    text, currency = format_amount(amount, "usd").split(" ")
    assert (parse_amount(text), currency) == (amount, "usd")


@given(unit_prices)
def test_every_rate_is_read_as_it_was_written(price: PicoPerToken) -> None:
    """With four to six decimals."""
    assert parse_rate(rate_text(price)) == price


@given(amounts)
def test_the_shortest_number_has_no_digit_to_spare(amount: Pico) -> None:
    """It goes into JSON as it is."""
    text = amount_number(amount)

    assert "." not in text or not text.endswith(("0", "."))
    assert Fraction(text) == Fraction(amount, 10**12)


@given(st.integers(0, 10**20), st.integers(0, 10**12 - 1), st.integers(0, 8))
def test_zeros_behind_the_last_decimal_change_nothing(whole: int, fraction: int, zeros: int) -> None:
    """The texts 0.25 and 0.250000000000000 are one amount."""
    text = f"{whole}.{fraction:012d}"

    assert parse_amount(text + "0" * zeros) == parse_amount(text) == whole * 10**12 + fraction


@given(st.integers(0, 10**9), st.text("0123456789", min_size=7, max_size=20).filter(lambda text: text[-1] != "0"))
def test_a_seventh_decimal_of_a_rate_is_refused(whole: int, decimals: str) -> None:
    """A rate is rounded by its author or not at all."""
    with pytest.raises(InvalidAmountError, match="more than 6 decimals"):
        parse_rate(f"{whole}.{decimals}")


@given(st.integers(1, 10**12))
def test_a_negative_rate_is_refused(value: int) -> None:
    """Nothing costs less than nothing."""
    with pytest.raises(InvalidAmountError, match="negative"):
        parse_rate("-" + rate_text(PicoPerToken(value)))


@given(st.text(max_size=20))
def test_a_text_is_an_amount_or_is_refused(text: str) -> None:
    """No other exception, and no amount from what is no plain decimal number."""
    try:
        amount = parse_amount(text)
    except InvalidAmountError:
        return
    assert Fraction(text.strip()) == Fraction(amount, 10**12)


@pytest.mark.parametrize(
    ("text", "pico"),
    [
        ("0", 0),
        ("0.0375", 37_500_000_000),
        ("12.50", 12_500_000_000_000),
        ("-0.000000000001", -1),
        ("9223372.036854775808", 2**63),
        (" 1 ", 10**12),
    ],
)
def test_amounts_by_hand(text: str, pico: int) -> None:
    """Picounits are 10⁻¹² of the major unit."""
    assert parse_amount(text) == pico


@pytest.mark.parametrize(
    "text", ["", ".", "1.", ".5", "1e3", "٣", "1_000", "1,5", "+1", "--1", "inf", "nan", "0x1", "½"]
)
def test_what_is_no_plain_decimal_is_refused(text: str) -> None:
    """Python's own readers would take some of them."""
    with pytest.raises(InvalidAmountError):
        parse_amount(text)
    with pytest.raises(InvalidAmountError):
        parse_rate(text)


@pytest.mark.parametrize(
    ("price", "text"),
    [
        (0, "0.0000"),
        (1, "0.000001"),
        (37_500, "0.0375"),
        (37_510, "0.03751"),
        (30_000, "0.0300"),
        (10**9, "1000.0000"),
    ],
)
def test_rates_are_written_with_at_least_four_decimals(price: int, text: str) -> None:
    """Columns of prices stay readable, and nothing is hidden."""
    assert rate_text(PicoPerToken(price)) == text
