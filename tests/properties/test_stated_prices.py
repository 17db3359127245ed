"""Fixed prices and minimums: against the plain way of pricing unit by unit, and by hand."""

from hypothesis import given
from hypothesis import strategies as st

from billing.clock import Instant
from billing.money import PicoPerToken
from billing.pricing import margins
from billing.pricing.book import PriceBook
from billing.pricing.margins import Margin, MarginKind, MarginRule, Scope
from billing.pricing.quote import UNITS
from billing.pricing.stated import WHOLES, Stated, stated
from billing.usage import Usage
from tests.tables import cost_rate

MODEL, CUSTOMER = "m", "cust_a"
SCOPES = (Scope(MODEL, CUSTOMER), Scope(None, CUSTOMER), Scope(MODEL), Scope())
DEFAULT = Margin(MarginKind.MARKUP, 300_000)
shares = st.builds(Margin, st.sampled_from(MarginKind), st.integers(0, 900_000))
prices = st.dictionaries(st.sampled_from(UNITS), st.integers(1, 400_000), max_size=4).map(stated)


@st.composite
def books(draw: st.DrawFn) -> PriceBook:
    """A rule in each of some scopes, with any of a floor, fixed prices and minimums."""
    rules = [
        MarginRule(str(scope), scope, draw(shares), True, Instant(0), Instant(0), floor, draw(prices), draw(prices))
        for scope in draw(st.sets(st.sampled_from(SCOPES)))
        for floor in [draw(st.none() | shares)]
    ]
    parts = draw(st.sampled_from(("", "cached_input 0.007 ", "reasoning 0.3 ", "request 0.000000500001 ")))
    return PriceBook([cost_rate(MODEL, f"input 0.03 output 0.120001 {parts}from 1970-01-01")], rules, DEFAULT, "usd")


def plainly(book: PriceBook, unit: str) -> int:
    """A unit's price by the sentences of the documentation, one after another."""
    cost = book.cost_rates[0].unit_prices
    by_scope = {rule.scope: rule for rule in book.margin_rules}
    ruling = [by_scope[scope] for scope in SCOPES if scope in by_scope]
    won = ruling[0] if ruling else None
    margin = DEFAULT if won is None or won.margin is None else won.margin
    floors = [rule.floor for rule in ruling if rule.floor is not None]

    def price(of: str, least: Stated) -> int:
        fixed = dict(won.fixed if won is not None else ())
        stated_ = fixed.get(of, fixed.get(WHOLES.get(of, of)))
        at = PicoPerToken(getattr(cost, of))
        found = margins.apply(at, margin) if stated_ is None else stated_
        return max([found, *(margins.apply(at, floor) for floor in floors), dict(least).get(of, 0)])

    found = price(unit, ())
    for rule in ruling:  # a part that costs what its whole does follows it, unless it has a minimum of its own
        least, whole = dict(rule.minimum), WHOLES.get(unit)
        found_whole = found if whole is None else _whole_so_far(price(whole, ()), whole, ruling, rule)
        if unit in least:
            found = max(found, least[unit])
        elif whole is not None and found == found_whole:
            found = max(found, least.get(whole, 0))
    return found


def _whole_so_far(price: int, whole: str, ruling: list[MarginRule], until: MarginRule) -> int:
    before = ruling[: ruling.index(until)]
    return max([price, *(dict(rule.minimum).get(whole, 0) for rule in before)])


@given(books(), st.integers(0, 10**6), st.integers(0, 10**6))
def test_each_unit_costs_what_its_rules_say_and_a_request_the_sum(book: PriceBook, whole: int, part: int) -> None:
    """Fixed in the place of cost and margin, never below a floor or a minimum; amounts stay tokens times prices."""
    quote = book.resolve(MODEL, CUSTOMER, Instant(1))
    assert quote is not None
    assert {unit: getattr(quote.price, unit) for unit in UNITS} == {unit: plainly(book, unit) for unit in UNITS}
    part = min(part, whole)
    amount = quote.price.charge(Usage(whole, whole, part, part))
    of_parts = part * (quote.price.cached_input + quote.price.reasoning)
    rest = (whole - part) * (quote.price.input + quote.price.output)
    assert amount == of_parts + rest + quote.price.request


def test_the_example_of_the_accountant() -> None:
    """By hand: 1000 tokens at 0.03 + 30 %, 500 at the fixed 0.10 whatever they cost, and a least price for input."""
    rules = [
        MarginRule("a", Scope(), DEFAULT, False, Instant(0), Instant(0), minimum=stated({"input": 50_000})),
        MarginRule("b", Scope(None, "b"), DEFAULT, True, Instant(0), Instant(0), None, stated({"output": 100_000})),
    ]
    book = PriceBook([cost_rate(MODEL, "input 0.03 output 0.12 from 1970-01-01")], rules, DEFAULT, "usd")
    found = [book.quote(MODEL, customer, Instant(1)) for customer in ("a", "b")]
    amounts = [quote.price.charge(Usage(1_000, 500, 0, 200)) for quote in found if quote is not None]
    assert amounts == [1_000 * 50_000 + 500 * 156_000, 1_000 * 50_000 + 500 * 100_000]
    assert [quote.margin for quote in found if quote is not None] == [
        "30%, minimum input 0.0500 cached_input 0.0500 image_input 0.0500 audio_input 0.0500",
        "30%, fixed output 0.1000, minimum input 0.0500 cached_input 0.0500 image_input 0.0500 audio_input 0.0500",
    ]
    because = [reason.because for reason in book.explain(MODEL, "b", Instant(1))]
    assert because[0] == "the most specific rule in force; at least input 0.0500 by a (global)"
