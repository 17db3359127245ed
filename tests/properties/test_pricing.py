"""Pricing for any history of costs and rules, against an evaluation so plain that it reads as the rule."""

from collections.abc import Iterable
from dataclasses import replace
from fractions import Fraction
from operator import attrgetter
from typing import TypeVar

from hypothesis import given
from hypothesis import strategies as st

from billing.clock import Instant
from billing.money import Pico, PicoPerToken, charge
from billing.pricing import margins
from billing.pricing.book import PriceBook
from billing.pricing.margins import Margin, MarginKind, MarginRule, Scope, Verdict, parse_margin
from billing.pricing.quote import Quote, UnitPrices
from billing.pricing.rates import CostRate, in_order, version_at
from billing.usage import Usage, provable
from tests.tables import check

# Few models, customers and instants, so that versions meet, tie and overrule each other all the time.
MODELS = ("m", "n")
CUSTOMERS = ("acme", "beta")
LAST = 12
DEFAULT = Margin(MarginKind.MARKUP, 300_000)

instants = st.integers(0, LAST).map(Instant)
rates = st.integers(0, 10**6).map(PicoPerToken)
parts = st.none() | rates
all_margins = st.one_of(
    st.integers(0, 10_000_000).map(lambda ppm: Margin(MarginKind.MARKUP, ppm)),
    st.integers(0, 900_000).map(lambda ppm: Margin(MarginKind.MARGIN, ppm)),
)
scopes = st.builds(Scope, st.none() | st.sampled_from(MODELS), st.none() | st.sampled_from(CUSTOMERS))
cost_rates = st.lists(
    st.tuples(st.sampled_from(MODELS), rates, parts, rates, parts, rates.map(Pico), instants, instants, parts, parts),
    max_size=8,
).map(lambda rows: [CostRate(f"cost_{number:03d}", *row) for number, row in enumerate(rows)])
margin_rules = st.lists(
    st.tuples(scopes, st.none() | all_margins, st.just(value=False), instants, instants), max_size=12
).map(lambda rows: [MarginRule(f"margin_{number:03d}", *row) for number, row in enumerate(rows)])
books = st.builds(PriceBook, cost_rates, margin_rules, st.just(DEFAULT), st.just("usd"))
Ask = tuple[str, str | None, Instant]
asks = st.tuples(st.sampled_from(MODELS), st.none() | st.sampled_from(CUSTOMERS), instants)


Dated = TypeVar("Dated", CostRate, MarginRule)


def plain_version(versions: Iterable[Dated], at: int) -> Dated | None:
    """The version with the greatest start up to an instant; of equal ones the last recorded."""
    begun = [version for version in versions if version.effective_from <= at]
    begun.sort(key=attrgetter("effective_from", "recorded_at", "id"))
    return begun[-1] if begun else None


def plain_rule(prices: PriceBook, model: str, customer: str | None, at: int) -> MarginRule | None:
    """Of the rules in force, one for each scope that applies, the most specific with a margin."""
    candidates: list[tuple[int, MarginRule]] = []
    for scope in {rule.scope for rule in prices.margin_rules}:
        if scope.model in {None, model} and scope.customer_id in {None, customer}:
            rule = plain_version([rule for rule in prices.margin_rules if rule.scope == scope], at)
            if rule is not None and rule.margin is not None:
                candidates.append((2 * (scope.customer_id is not None) + (scope.model is not None), rule))
    return max(candidates, key=lambda candidate: candidate[0])[1] if candidates else None


def plain_price(cost: int, margin: Margin) -> int:
    """The cost with its margin as a fraction, rounded half-up."""
    share = Fraction(margin.share_ppm, 10**6)
    exact = cost * (1 + share) if margin.kind is MarginKind.MARKUP else cost / (1 - share)
    return (exact + Fraction(1, 2)).__floor__()


def plain_quote(prices: PriceBook, model: str, customer: str | None, at: int) -> Quote | None:
    """The quote, worked out from all rows without an index, a cache or an interval."""
    rate = plain_version([rate for rate in prices.cost_rates if rate.model == model], at)
    if rate is None:
        return None
    rule = plain_rule(prices, model, customer, at)
    margin = DEFAULT if rule is None or rule.margin is None else rule.margin
    cached = rate.input if rate.cached_input is None else rate.cached_input
    reasoning = rate.output if rate.reasoning is None else rate.reasoning
    image, audio = (rate.input if own is None else own for own in (rate.image_input, rate.audio_input))
    costs = (rate.input, cached, rate.output, reasoning, rate.request, image, audio)
    return Quote.of(
        model=model,
        currency="usd",
        cost_rate_id=rate.id,
        margin_rule_id=None if rule is None else rule.id,
        margin=str(margin),
        cost=UnitPrices(*costs),
        price=UnitPrices(*(plain_price(cost, margin) for cost in costs)),  # type: ignore[arg-type]
    )


@given(books, st.lists(asks, min_size=1, max_size=20))
def test_a_book_quotes_what_a_plain_evaluation_does(prices: PriceBook, questions: list[Ask]) -> None:
    """In any order of questions, so that no quote that is kept at hand outlives its interval."""
    for model, customer, at in questions:
        assert prices.quote(model, customer, at) == plain_quote(prices, model, customer, at)


@given(books, st.sampled_from(MODELS), st.none() | st.sampled_from(CUSTOMERS))
def test_every_boundary_belongs_to_the_new_version(prices: PriceBook, model: str, customer: str | None) -> None:
    """One microsecond before each start, at it, and after it; with one book for all."""
    starts = {rate.effective_from for rate in prices.cost_rates}
    starts |= {rule.effective_from for rule in prices.margin_rules}
    for start in sorted(starts, reverse=True):
        for at in (start + 1, start, start - 1):
            assert prices.quote(model, customer, Instant(at)) == plain_quote(prices, model, customer, at)


@given(books, asks)
def test_the_most_specific_rule_in_force_wins(prices: PriceBook, question: Ask) -> None:
    """Against every rule, tried one by one."""
    model, customer, at = question

    assert prices.winner(model, customer, at) == plain_rule(prices, model, customer, at)


@given(books, asks)
def test_an_explanation_has_one_winner_and_it_is_the_one_that_is_charged(prices: PriceBook, question: Ask) -> None:
    """And it has every rule of the scopes that apply, once."""
    model, customer, at = question
    reasons = prices.explain(model, customer, at)
    winners = [reason for reason in reasons if reason.verdict is Verdict.WINS]

    assert [reason.rule for reason in winners] == [plain_rule(prices, model, customer, at)]
    assert winners[0].margin == prices.margin(model, customer, at)
    explained = [reason.rule.id for reason in reasons if reason.rule is not None]
    applying = [
        rule.id
        for rule in prices.margin_rules
        if rule.scope.model in {None, model} and rule.scope.customer_id in {None, customer}
    ]
    assert sorted(explained) == sorted(applying)


@given(books, cost_rates, margin_rules, asks, st.integers(1, LAST))
def test_later_versions_never_change_the_past(
    prices: PriceBook,
    later_rates: list[CostRate],
    later_rules: list[MarginRule],
    question: Ask,
    distance: int,
) -> None:
    """Whatever is recorded later and begins later leaves every earlier quote as it was."""
    model, customer, at = question
    delay, recorded = at + distance, LAST + 1
    added_rates = [
        replace(
            rate,
            id=f"cost_9{rate.id}",
            effective_from=Instant(delay + rate.effective_from),
            recorded_at=Instant(recorded + rate.recorded_at),
        )
        for rate in later_rates
    ]
    added_rules = [
        replace(
            rule,
            id=f"margin_9{rule.id}",
            effective_from=Instant(delay + rule.effective_from),
            recorded_at=Instant(recorded + rule.recorded_at),
        )
        for rule in later_rules
    ]
    after = PriceBook(
        (*added_rates, *prices.cost_rates), (*added_rules, *prices.margin_rules), DEFAULT, prices.currency
    )

    assert after.quote(model, customer, at) == prices.quote(model, customer, at)


@given(books, asks)
def test_the_next_change_is_the_first_instant_with_another_quote(prices: PriceBook, question: Ask) -> None:
    """Instants are few here, so each can be asked."""
    model, customer, at = question
    present = plain_quote(prices, model, customer, at)
    changed = [then for then in range(at + 1, LAST + 2) if plain_quote(prices, model, customer, then) != present]

    assert prices.next_change(model, customer, at) == (changed[0] if changed else None)


@given(st.lists(st.tuples(instants, instants), max_size=10), instants)
def test_the_lookup_is_the_last_of_all_that_have_begun(dates: list[tuple[Instant, Instant]], at: Instant) -> None:
    """Against a search through all of them, whatever order they are given in."""
    versions = [
        MarginRule(f"margin_{number}", Scope(), DEFAULT, False, start, recorded)
        for number, (start, recorded) in enumerate(dates)
    ]

    assert version_at(in_order(versions), at) == plain_version(versions, at)


@given(rates, all_margins)
def test_a_margin_of_zero_or_more_never_sells_below_cost(cost: PicoPerToken, margin: Margin) -> None:
    """Not even by rounding; and it is within half a picounit of the exact price."""
    price = margins.apply(cost, margin)

    assert price >= cost
    assert price == plain_price(cost, margin)
    assert margins.is_exact(cost, margin) == (plain_exact(cost, margin) == price)


def plain_exact(cost: int, margin: Margin) -> Fraction:
    """The price before it is rounded."""
    numerator, denominator = margin.factor
    return Fraction(cost * numerator, denominator)


@given(rates, rates, all_margins)
def test_a_dearer_cost_is_never_cheaper(one: PicoPerToken, other: PicoPerToken, margin: Margin) -> None:
    """Prices keep the order of costs."""
    low, high = sorted((one, other))

    assert margins.apply(low, margin) <= margins.apply(high, margin)


@given(st.integers(-999_999, 10**9), st.sampled_from(MarginKind))
def test_every_margin_is_read_as_it_was_written(share_ppm: int, kind: MarginKind) -> None:
    """Down to a millionth, and below zero."""
    margin = Margin(kind, min(share_ppm, 999_999) if kind is MarginKind.MARGIN else share_ppm)

    assert parse_margin(str(margin), allow_loss=True, force=True) == margin


@given(st.builds(Usage, *[st.integers(-5, 30)] * 6), st.none() | st.integers(0, 20))
def test_the_provable_part_is_within_its_wholes_and_within_what_was_reported(
    reported: Usage, limit: int | None
) -> None:
    """No token twice, none that was not told of; and what can be true is billed as it is."""
    usage, anomalies = provable(reported, limit)

    assert min(usage) >= 0
    assert usage.cached_input_tokens + usage.image_input_tokens + usage.audio_input_tokens <= usage.input_tokens
    assert usage.reasoning_tokens <= usage.output_tokens
    assert all(kept <= max(0, told) for kept, told in zip(usage, reported, strict=True))
    assert provable(usage, limit) == (usage, ())
    assert anomalies or usage[:4] == reported[:4]
    parts_fit = reported.cached_input_tokens + reported.image_input_tokens + reported.audio_input_tokens
    assert anomalies or parts_fit > reported.input_tokens or usage == reported


usages = st.builds(Usage, *[st.integers(0, 10**9)] * 6).map(lambda usage: provable(usage, None)[0])
unit_prices = st.builds(UnitPrices, *[rates] * 4, rates.map(Pico), rates, rates)


@given(unit_prices, usages)
def test_an_amount_is_the_sum_over_its_types(prices: UnitPrices, usage: Usage) -> None:
    """Each token at the price of its own type, and the fee once."""
    by_type = (
        (usage.input_tokens - usage.cached_input_tokens - sum(usage[4:]), prices.input),
        (usage.cached_input_tokens, prices.cached_input),
        (usage.image_input_tokens, prices.image_input),
        (usage.audio_input_tokens, prices.audio_input),
        (usage.output_tokens - usage.reasoning_tokens, prices.output),
        (usage.reasoning_tokens, prices.reasoning),
    )

    assert all(count >= 0 for count, _ in by_type)
    assert prices.charge(usage) == sum(charge(count, price) for count, price in by_type) + prices.request


@given(unit_prices, usages, usages)
def test_two_requests_cost_what_they_do_together_and_one_more_fee(prices: UnitPrices, one: Usage, other: Usage) -> None:
    """So rollups may add tokens or amounts: both come to the same."""
    together = Usage(*(first + second for first, second in zip(one, other, strict=True)))

    assert prices.charge(one) + prices.charge(other) == prices.charge(together) + prices.request


def test_the_plain_evaluation_and_the_book_agree_with_a_hand() -> None:
    """The anchor: two evaluations can share an error, an accountant does not."""
    check(
        """
    cost    m       input 0.0300  output 0.1200  from 2026-03-01
    margin  global  30%                          from 2026-03-01
    margin  acme    margin:40%                   from 2026-03-02
    margin  acme/m  none                         from 2026-03-03
    margin  acme    none                         from 2026-03-04
    event   acme  m  2026-03-01T23:59:59.999999  input 1000  output 500  = 0.000117000000 usd
    event   acme  m  2026-03-02                  input 1000  output 500  = 0.000150000000 usd
    event   acme  m  2026-03-03                  input 1000  output 500  = 0.000150000000 usd
    event   acme  m  2026-03-04                  input 1000  output 500  = 0.000117000000 usd
    event   beta  m  2026-03-02                  input 1000  output 500  = 0.000117000000 usd
    """
    )
