"""What a correction adds to an event, by hand and for any course of corrections."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.errors import RefusedError
from billing.limits import TOKENS_PER_EVENT_MAX
from billing.money import Pico, PicoPerToken
from billing.pricing.correction import NOTHING, Add, Change, Recount, Refund, Reprice, Standing, difference
from billing.pricing.quote import Quote, UnitPrices
from billing.usage import Usage

USAGE = Usage(1_000, 500, 600, 200)


def prices(unit: int, fee: int = 0) -> UnitPrices:
    """Output four times as dear as input."""
    one, four = PicoPerToken(unit), PicoPerToken(4 * unit)
    return UnitPrices(input=one, cached_input=one, output=four, reasoning=four, request=Pico(fee))


def quote(unit: int, fee: int = 0) -> Quote:
    """What costs `unit` and is sold at twice that."""
    cost, price = prices(unit, fee), prices(2 * unit, 2 * fee)
    return Quote.of(
        model="m", currency="usd", cost_rate_id="c", margin_rule_id=None, margin="100%", cost=cost, price=price
    )


def standing(unit: int = 10, given_back: int = 0, fee: int = 0) -> Standing:
    """A request of USAGE, of which something was given back."""
    now = quote(unit, fee)
    amount = Pico(now.price.charge(USAGE) - given_back)
    return Standing(USAGE, now.cost.charge(USAGE), amount, now, is_refunded=amount == 0)


def test_a_refund_gives_back_what_is_left_and_leaves_tokens_and_cost() -> None:
    """60,000 at first, 1,000 of it given back before."""
    found = difference(standing(given_back=1_000), Refund())
    assert (found.usage, found.cost, found.amount) == (NOTHING, 0, -59_000)


def test_a_second_refund_has_nothing_left() -> None:
    assert difference(standing(given_back=60_000), Refund()).is_nothing


def test_new_prices_come_to_their_difference_and_keep_what_was_given_back() -> None:
    """From 10 to 7 a token: 3,000 weighted tokens × 2 × 3 less, and 3,000 × 3 less cost."""
    found = difference(standing(given_back=500), Reprice(quote(7), "then"))
    assert (found.cost, found.amount, found.quote) == (-9_000, -18_000, quote(7))


def test_new_counts_are_priced_as_the_event_is_and_the_fee_stays() -> None:
    """100 output tokens less at 80 each; the fee per request is charged once."""
    found = difference(standing(fee=77), Recount(output_tokens=400))
    assert (found.usage, found.cost, found.amount) == (Usage(0, -100, 0, 0), -4_000, -8_000)


@pytest.mark.parametrize("change", [Reprice(quote(20), "then"), Recount(output_tokens=600)])
def test_what_was_given_back_as_a_whole_is_not_charged_again(change: Change) -> None:
    """Neither by dearer prices nor by higher counts."""
    with pytest.raises(RefusedError, match="given back as a whole"):
        difference(standing(given_back=60_000), change)


def test_nobody_gives_back_more_than_was_charged() -> None:
    """To the picounit."""
    assert difference(standing(), Add(Pico(-60_000))).amount == -60_000
    with pytest.raises(RefusedError, match="--refund takes all there is"):
        difference(standing(), Add(Pico(-60_001)))


@pytest.mark.parametrize(
    "change",
    [
        Recount(output_tokens=-1),
        Recount(input_tokens=TOKENS_PER_EVENT_MAX + 1),
        Recount(input_tokens=599),
        Recount(cached_input_tokens=1_001),
        Recount(output_tokens=199),
        Recount(reasoning_tokens=501),
    ],
)
def test_impossible_counts_are_refused(change: Recount) -> None:
    """A part is never above its whole, and no count below 0 or beyond all requests."""
    with pytest.raises(RefusedError):
        difference(standing(), change)


changes = st.one_of(
    st.just(Refund()),
    st.integers(-100_000, 100_000).map(lambda amount: Add(Pico(amount))),
    st.integers(0, 50).map(lambda unit: Reprice(quote(unit), "then")),
    st.builds(Recount, input_tokens=st.integers(0, 2_000), output_tokens=st.integers(0, 2_000)),
)


@given(st.lists(changes, max_size=8))
def test_any_course_of_corrections_stays_at_or_above_zero_and_adds_up(course: list[Change]) -> None:
    """And without amounts given by hand, an event comes to what its quote says of its counts, or to nothing."""
    now = standing()
    by_hand = False
    for change in course:
        try:
            found = difference(now, change)
        except RefusedError:
            continue
        by_hand |= isinstance(change, Add)
        usage = Usage(*(before + added for before, added in zip(now.usage, found.usage, strict=True)))
        amount, cost = Pico(now.amount + found.amount), Pico(now.cost + found.cost)
        now = Standing(usage, cost, amount, found.quote, is_refunded=now.is_refunded or amount == 0)
        assert amount >= 0
        assert min(usage) >= 0
        assert cost == now.quote.cost.charge(usage)
        assert by_hand or amount in (0, now.quote.price.charge(usage))
