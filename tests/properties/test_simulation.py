"""`weir simulate` against the plain way: every event priced by itself, in Python. Equal to the picounit, always.

The history is any events of three customers and two models over some hours, with long streams that began before
their hour, corrections among them; the scenario is any dated costs and margins, whose starts fall anywhere among them.
"""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from billing.clock import HOUR_US, Instant, hour_start
from billing.ledger import events, history, migrate, schema
from billing.ledger.database import Database
from billing.ledger.totals import Selection
from billing.limits import RATE_PICO_MAX
from billing.money import Pico, PicoPerToken
from billing.pricing import scenario
from billing.pricing.book import PriceBook
from billing.pricing.margins import Margin, MarginKind, MarginRule, Scope
from billing.pricing.plans import Assignment
from billing.pricing.rates import CostRate
from billing.pricing.scenario import Money
from billing.reports import simulation
from billing.usage import Usage, UsageEvent
from tests.unit.ledger.made import event

NOON = Instant(1_772_366_400_000_000)
CUSTOMERS = ("cust_a", "cust_b", "cust_c")
MODELS = ("small", "large")
SPAN_US = 4 * HOUR_US

instants = st.integers(0, SPAN_US).map(lambda us: Instant(NOON + us)) | st.sampled_from(
    [Instant(NOON + hours * HOUR_US) for hours in range(4)]
)
rates = st.integers(0, RATE_PICO_MAX).map(PicoPerToken)
margins = st.one_of(
    st.integers(-900_000, 10_000_000).map(lambda ppm: Margin(MarginKind.MARKUP, ppm)),
    st.integers(-900_000, 900_000).map(lambda ppm: Margin(MarginKind.MARGIN, ppm)),
)
scopes = st.one_of(
    st.builds(Scope, st.none() | st.sampled_from(MODELS), st.none() | st.sampled_from(CUSTOMERS)),
    st.builds(lambda model, plan: Scope(model, plan_id=plan), st.none() | st.sampled_from(MODELS), st.just("plan_a")),
)


@st.composite
def cost_rates(draw: st.DrawFn) -> CostRate:
    """Any dated cost; most of them dated among the events."""
    return CostRate(
        id=f"cost_{draw(st.integers(0, 10**9))}",
        model=draw(st.sampled_from(MODELS)),
        input=draw(rates),
        cached_input=draw(st.none() | rates),
        output=draw(rates),
        reasoning=draw(st.none() | rates),
        request=Pico(draw(st.integers(0, 10**12))),
        effective_from=draw(instants | st.just(Instant(0))),
        recorded_at=Instant(0),
    )


@st.composite
def rules(draw: st.DrawFn) -> MarginRule:
    """Any dated margin, or the end of one."""
    chosen = draw(margins | st.none())
    start = draw(instants | st.just(Instant(0)))
    return MarginRule(f"rule_{draw(st.integers(0, 10**9))}", draw(scopes), chosen, False, start, Instant(0))


@st.composite
def assignments(draw: st.DrawFn) -> Assignment:
    """A customer joins the plan, or leaves it, among the events."""
    plan_id = draw(st.sampled_from(["plan_a", None]))
    number = draw(st.integers(0, 10**9))
    return Assignment(f"as_{number}", draw(st.sampled_from(CUSTOMERS)), plan_id, draw(instants), Instant(0))


@st.composite
def books(draw: st.DrawFn) -> PriceBook:
    """Any price book."""
    default = Margin(MarginKind.MARKUP, 300_000)
    costs, margins_ = draw(st.lists(cost_rates(), max_size=6)), draw(st.lists(rules(), max_size=6))
    return PriceBook(costs, margins_, default, "usd", draw(st.lists(assignments(), max_size=4)))


@st.composite
def requests(draw: st.DrawFn) -> UsageEvent:
    """Any request; it may have begun hours before the one in which it counts."""
    started = draw(instants)
    finished = started + draw(st.integers(0, 10**6) | st.integers(0, 3 * HOUR_US))
    whole, generated = draw(st.integers(0, 10**6)), draw(st.integers(0, 10**6))
    return event(
        Instant(started),
        customer_id=draw(st.sampled_from(CUSTOMERS)),
        model=draw(st.sampled_from(MODELS)),
        finished_at=finished,
        window_start=hour_start(finished),
        input_tokens=whole,
        cached_input_tokens=draw(st.integers(0, whole)),
        output_tokens=generated,
        reasoning_tokens=draw(st.integers(0, generated)),
        cost_pico=draw(st.integers(0, 2**63 - 1)),
        amount_pico=draw(st.integers(0, 2**63 - 1)),
    )


@st.composite
def histories(draw: st.DrawFn) -> list[UsageEvent]:
    """Requests, and corrections of some of them."""
    made = draw(st.lists(requests(), min_size=1, max_size=12))
    for original in draw(st.lists(st.sampled_from(made), max_size=3)):
        at = draw(instants)
        corrected = event(
            at,
            customer_id=original.customer_id,
            model=original.model,
            outcome="adjustment",
            adjusts=original.id,
            input_tokens=0,
            cached_input_tokens=0,
            output_tokens=-draw(st.integers(0, original.output_tokens)),
            reasoning_tokens=0,
            cost_pico=-draw(st.integers(0, 10**12)),
            amount_pico=-draw(st.integers(0, 10**12)),
        )
        made.append(corrected)
    return made


def plainly(made: list[UsageEvent], book: PriceBook) -> dict[tuple[str, str], tuple[Money, Money, int]]:
    """Price each request by itself: before, after, and what corrections come to, by customer and model."""
    found: dict[tuple[str, str], tuple[Money, Money, int]] = {}
    for each in made:
        key = each.customer_id, each.model
        before, after, corrected = found.get(key, (Money(), Money(), 0))
        if each.adjusts is not None:
            found[key] = before, after, corrected + each.amount_pico
            continue
        before = before.plus(Money(1, Pico(each.amount_pico), Pico(each.cost_pico)))
        usage = Usage(each.input_tokens, each.output_tokens, each.cached_input_tokens, each.reasoning_tokens)
        quote = book.quote(each.model, each.customer_id, Instant(each.started_at))
        if quote is None:
            after = after.plus(Money(1, requests_unpriced=1))
        else:
            after = after.plus(Money(1, quote.price.charge(usage), quote.cost.charge(usage)))
        found[key] = before, after, corrected
    return {key: value for key, value in found.items() if value[0].requests}


@pytest.fixture
def database(new_database_url: Callable[[], str]) -> Any:
    """One database for all examples; each clears the events."""
    opened = Database(new_database_url())
    migrate.upgrade(opened)
    yield opened
    opened.close()


def fill(database: Database, made: list[UsageEvent]) -> None:
    """Make these the only events."""
    with database.writing() as conn:
        for table in (schema.usage_events, schema.usage_hourly, schema.adjustments):
            conn.execute(table.delete())
        events.append(conn, made, 0)
        corrected = [each for each in made if each.adjusts is not None]
        noted = [
            {
                "event_id": each.id,
                "adjusts": each.adjusts,
                "seq": number,
                "run_key": each.id,
                "change": "test",
                "reason": "test",
                "actor": "test",
                "at": each.started_at,
                "credit_pico": 0,
            }
            for number, each in enumerate(corrected)
        ]
        if noted:
            conn.execute(schema.adjustments.insert(), noted)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(made=histories(), book=books())
def test_sums_come_to_the_same_as_every_event_by_itself(
    database: Database, made: list[UsageEvent], book: PriceBook
) -> None:
    """By customer and model, before and after, in any scenario."""
    fill(database, made)
    with database.reading() as conn:
        lines = simulation.load(conn, Selection(), book, ("customer", "model"))
    found = {(str(line.customer_id), str(line.model)): (line.before, line.after, line.corrections) for line in lines}
    assert found == plainly(made, book)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(made=histories(), book=books())
def test_rollups_and_events_tell_the_same(database: Database, made: list[UsageEvent], book: PriceBook) -> None:
    """Where no version begins in the history: a start that changes nothing sends the question to the events."""
    fill(database, made)
    always = scenario.with_margins(book, [], is_complete=True)
    always = scenario.with_costs(always, {rate.model: rate for rate in book.cost_rates}.values()).with_assignments(())
    with database.reading() as conn:
        span = history.extent(conn, Selection())
        assert span is not None
        assert scenario.starts_between(always, *span) == ()
        by_hours = simulation.load(conn, Selection(), always, ("customer",))
        started = history.buckets(conn, Selection(), [Instant(NOON + HOUR_US)])
    by_events: dict[str, Money] = {}
    for bucket in started:
        by_events[bucket.customer_id] = by_events.get(bucket.customer_id, Money()).plus(
            scenario.repriced(bucket, always)
        )
    assert {str(line.customer_id): line.after for line in by_hours} == by_events


def test_any_number_of_starts_is_told_apart(database: Database) -> None:
    """Three hundred versions among thirty requests: the halving finds each side, and the boundary is the new one's."""
    made = [event(Instant(NOON + number * 10), finished_at=NOON, window_start=NOON) for number in range(30)]
    costs = [
        CostRate(
            f"cost_{number}",
            "qwen3.5-9b",
            PicoPerToken(number),
            None,
            PicoPerToken(1),
            None,
            Pico(0),
            Instant(NOON + number),
            Instant(0),
        )
        for number in range(300)
    ]
    book = PriceBook(costs, [], Margin(MarginKind.MARKUP, 0), "usd")
    fill(database, made)
    with database.reading() as conn:
        (line,) = simulation.load(conn, Selection(), book)
    assert line.after.revenue == sum(1_000 * number * 10 + 500 for number in range(30))
    assert line.after == plainly(made, book)["cust_acme", "qwen3.5-9b"][1]
