"""Who is on which plan decides the price: against the plain way, at any instant, cached or not."""

from hypothesis import given
from hypothesis import strategies as st

from billing.clock import Instant
from billing.pricing.book import PriceBook
from billing.pricing.margins import Margin, MarginKind, MarginRule, Scope
from billing.pricing.plans import Assignment, stand_in
from tests.tables import cost_rate

CUSTOMERS = ("cust_a", "cust_b")
PLANS = ("plan_a", "plan_b")
MODELS = ("m", "n")
LATE = 20
DEFAULT = Margin(MarginKind.MARKUP, 300_000)

instants = st.integers(0, LATE).map(Instant)
models = st.none() | st.sampled_from(MODELS)
scopes = st.one_of(
    st.builds(Scope, models, st.none() | st.sampled_from(CUSTOMERS)),
    st.builds(lambda model, plan: Scope(model, plan_id=plan), models, st.sampled_from(PLANS)),
)
margins = st.none() | st.builds(Margin, st.just(MarginKind.MARKUP), st.integers(0, 900_000))


@st.composite
def books(draw: st.DrawFn) -> PriceBook:
    """Any rules and assignments, recorded one after another."""
    rows = draw(st.lists(st.tuples(scopes, margins, instants), max_size=12))
    rules = [
        MarginRule(f"rule_{number:03d}", scope, margin, False, start, Instant(number))
        for number, (scope, margin, start) in enumerate(rows)
    ]
    moves = draw(st.lists(st.tuples(st.sampled_from(CUSTOMERS), st.none() | st.sampled_from(PLANS), instants)))
    assigned = [
        Assignment(f"as_{number:03d}", customer, plan, start, Instant(number))
        for number, (customer, plan, start) in enumerate(moves)
    ]
    costs = [cost_rate(model, "input 0.03 output 0.12 from 1970-01-01") for model in MODELS]
    return PriceBook(costs, rules, DEFAULT, "usd", assigned)


def plainly(book: PriceBook, model: str, customer: str, at: int) -> tuple[str | None, str]:
    """The deciding rule and its margin, by looking through everything that was ever recorded."""
    moved = [each for each in book.assignments if each.customer_id == customer and each.effective_from <= at]
    last = max(moved, key=lambda each: (each.effective_from, each.recorded_at), default=None)
    plan = None if last is None else last.plan_id
    wanted = [Scope(model, customer), Scope(None, customer)]
    wanted += [Scope(model, None, plan), Scope(None, None, plan)] if plan is not None else []
    for scope in [*wanted, Scope(model), Scope()]:
        versions = [rule for rule in book.margin_rules if rule.scope == scope and rule.effective_from <= at]
        newest = max(versions, key=lambda rule: (rule.effective_from, rule.recorded_at), default=None)
        if newest is not None and newest.margin is not None:
            return newest.id, str(newest.margin)
    return None, str(DEFAULT)


@given(books(), st.lists(st.tuples(st.sampled_from(MODELS), st.sampled_from(CUSTOMERS), instants), max_size=40))
def test_the_price_is_that_of_the_plan_at_the_time(book: PriceBook, asked: list[tuple[str, str, Instant]]) -> None:
    """In any order of asking: what is held from one instant is never told for another."""
    for model, customer, at in asked:
        quote = book.quote(model, customer, at)
        assert quote is not None
        assert (quote.margin_rule_id, quote.margin) == plainly(book, model, customer, at)


@given(books(), st.sampled_from(MODELS), st.sampled_from(CUSTOMERS))
def test_every_change_of_the_price_is_among_the_starts(book: PriceBook, model: str, customer: str) -> None:
    """Between two starts, also those of assignments, nothing changes."""
    starts = {*book.starts(model, customer, Instant(-1))}
    for at in range(LATE + 1):
        before, now = plainly(book, model, customer, at - 1), plainly(book, model, customer, at)
        assert before == now or at in starts


@given(books(), st.sampled_from(MODELS), st.sampled_from(PLANS), instants)
def test_a_stand_in_pays_what_a_customer_without_rules_of_its_own_does(
    book: PriceBook, model: str, plan: str, at: Instant
) -> None:
    """For whom `publish` checks a plan's prices."""
    joined = book.with_assignments([Assignment("as", "cust_new", plan, Instant(0), Instant(0))])
    assert book.quote(model, stand_in(plan), at) == joined.quote(model, "cust_new", at)


def test_a_change_of_plans_takes_effect_at_its_instant_and_ends_at_the_next() -> None:
    """By hand: 10 % on the plan from 5 to 9, 30 % before and after."""
    rule = MarginRule("r", Scope(plan_id="plan_a"), Margin(MarginKind.MARKUP, 100_000), False, Instant(0), Instant(0))
    moves = [
        Assignment("as_1", "cust_a", "plan_a", Instant(5), Instant(0)),
        Assignment("as_2", "cust_a", None, Instant(9), Instant(0)),
    ]
    book = PriceBook([cost_rate("m", "input 0.03 output 0.12 from 1970-01-01")], [rule], DEFAULT, "usd", moves)
    found = [(book.quote("m", "cust_a", Instant(at)) or rule).margin for at in (4, 5, 8, 9)]
    assert found == ["30%", "10%", "10%", "30%"]
    assert book.next_change("m", "cust_a", Instant(0)) == 5
    assert book.as_of(Instant(-1)).buyer("cust_a", Instant(6)).plan_id is None
