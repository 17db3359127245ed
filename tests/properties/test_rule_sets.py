"""Changing a whole rule set: from its instant on it is the wanted one, before it nothing moved, and nothing is lost."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.clock import Instant
from billing.pricing.book import PriceBook
from billing.pricing.change import Kind, Says, changes, rule_set
from billing.pricing.margins import Margin, MarginKind, MarginRule, Scope, apply
from billing.pricing.rates import CostRate
from tests.tables import cost_rate

CUSTOMERS = ("cust_a", "cust_b")
MODELS = ("m", "n")
LATE = 30

margins = st.builds(Margin, st.sampled_from(MarginKind), st.integers(0, 900_000))
scopes = st.builds(Scope, st.none() | st.sampled_from(MODELS), st.none() | st.sampled_from(CUSTOMERS))
says = st.builds(Says, margins, st.none() | margins, st.booleans())
wishes = st.dictionaries(scopes, says, max_size=5)
instants = st.integers(0, LATE).map(Instant)


@st.composite
def books(draw: st.DrawFn) -> PriceBook:
    """Rules at any instants, recorded one after another."""
    rows = draw(st.lists(st.tuples(scopes, st.none() | margins, instants, st.none() | margins), max_size=10))
    rules = [
        MarginRule(f"rule_{number:03d}", scope, margin, False, start, Instant(number), floor)
        for number, (scope, margin, start, floor) in enumerate(rows)
    ]
    costs: list[CostRate] = [cost_rate(model, "input 0.03 output 0.12 from 1970-01-01") for model in MODELS]
    return PriceBook(costs, rules, Margin(MarginKind.MARKUP, 300_000), "usd")


def changed(book: PriceBook, wanted: dict[Scope, Says], at: Instant, recorded: int = 100) -> PriceBook:
    """The book after the change, which is recorded later than all else."""
    new = [
        each.rule(f"new_{recorded}_{number:03d}", Instant(recorded))
        for number, each in enumerate(changes(book, wanted, at))
    ]
    return book.with_rules((*book.margin_rules, *new))


@given(books(), wishes, instants)
def test_the_rule_set_is_the_wanted_one_from_the_instant_on_and_what_it_was_before(
    book: PriceBook, wanted: dict[Scope, Says], at: Instant
) -> None:
    after = changed(book, wanted, at)
    for instant in range(LATE + 2):
        expected = wanted if instant >= at else rule_set(book, Instant(instant))
        assert rule_set(after, Instant(instant)) == expected


@given(books(), wishes, instants)
def test_nothing_is_removed_and_a_second_application_adds_nothing(
    book: PriceBook, wanted: dict[Scope, Says], at: Instant
) -> None:
    after = changed(book, wanted, at)
    assert set(book.margin_rules) <= set(after.margin_rules)
    assert changes(after, wanted, at) == ()


@given(books(), wishes, instants, instants)
def test_a_rollback_restores_any_instant_as_it_was_believed(
    book: PriceBook, wanted: dict[Scope, Says], at: Instant, to: Instant
) -> None:
    """Whatever was applied or backdated in between."""
    believed = rule_set(book.as_of(Instant(50)), to)
    after = changed(book, wanted, at)
    restored = rule_set(after.as_of(Instant(50)), to)
    assert restored == believed
    again = changed(after, restored, at, recorded=200)
    assert rule_set(again, Instant(LATE + 1)) == believed


@given(books(), st.sampled_from(MODELS), st.sampled_from((None, *CUSTOMERS)), instants)
def test_no_price_is_below_any_floor_in_force_nor_raised_without_one(
    book: PriceBook, model: str, customer: str | None, at: Instant
) -> None:
    """The floors of all scopes that a request falls under, computed the plain way."""
    quote = book.quote(model, customer, at)
    assert quote is not None
    in_force = rule_set(book, at)
    under = [
        said.floor
        for scope, said in in_force.items()
        if said.floor is not None and scope.model in (None, model) and scope.customer_id in (None, customer)
    ]
    winner = book.winner(model, customer, at)
    margin = book.default_margin if winner is None or winner.margin is None else winner.margin
    wanted = max(apply(quote.cost.output, each) for each in (margin, *under))
    assert quote.price.output == wanted
    lifting = book.floor(model, customer, at)
    assert (lifting is None) == (quote.margin_rule_id == (None if winner is None else winner.id))


@pytest.mark.parametrize("highest", [Scope(), Scope("m"), Scope(None, "cust_a"), Scope("m", "cust_a")])
def test_of_several_floors_the_highest_holds_wherever_it_stands(highest: Scope) -> None:
    """By hand: 0.12 at 40 %, though the most specific rule says 5 % and other floors less than 40 %."""
    margin, low, high = (Margin(MarginKind.MARKUP, ppm) for ppm in (50_000, 100_000, 400_000))
    places = (Scope(), Scope("m"), Scope(None, "cust_a"), Scope("m", "cust_a"))
    rules = [
        MarginRule(str(place), place, margin, False, Instant(0), Instant(0), high if place == highest else low)
        for place in places
    ]
    book = PriceBook([cost_rate("m", "input 0.03 output 0.12 from 1970-01-01")], rules, margin, "usd")
    quote = book.quote("m", "cust_a", Instant(1))
    assert quote is not None
    assert (quote.price.output, quote.margin, quote.margin_rule_id) == (168_000, "40%", str(highest))


def test_each_change_is_named_for_what_it_does() -> None:
    """Added, changed, removed, and a scheduled version that is cancelled."""
    ten, twenty = Says(Margin(MarginKind.MARKUP, 100_000)), Says(Margin(MarginKind.MARKUP, 200_000))
    rules = [
        MarginRule("a", Scope(), ten.margin, False, Instant(0), Instant(0)),
        MarginRule("b", Scope("m"), ten.margin, False, Instant(0), Instant(1)),
        MarginRule("c", Scope("n"), ten.margin, False, Instant(9), Instant(2)),
    ]
    book = PriceBook([], rules, ten.margin, "usd")
    found = changes(book, {Scope(): twenty, Scope(None, "cust_a"): ten}, Instant(5))
    assert [(each.kind, each.scope, each.effective_from, each.before, each.after) for each in found] == [
        (Kind.CHANGE, Scope(), 5, ten, twenty),
        (Kind.REMOVE, Scope("m"), 5, ten, None),
        (Kind.CANCEL, Scope("n"), 9, ten, None),
        (Kind.ADD, Scope(None, "cust_a"), 5, None, ten),
    ]
    assert str(Says(ten.margin, twenty.margin, allow_loss=True)) == "10%, floor 20%, loss allowed"
