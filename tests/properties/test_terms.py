"""Allowances and tiers: whatever comes late, is corrected or settled twice at once, the sums are the plain ones."""

import random
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa

from billing import ids, settling
from billing.clock import DAY_US, HOUR_US, SECOND_US, Instant, to_datetime
from billing.config import Billing, Config
from billing.credit.holds import Part
from billing.ledger import adjustments, events, partitions, plan_terms, plans, proof, schema, versions
from billing.ledger.adjustments import Order
from billing.ledger.charges import Charge
from billing.money import Pico
from billing.pricing.correction import Add, Recount, Refund
from billing.pricing.terms import PlanTerms, Terms, Tier
from billing.usage import Usage, UsageEvent
from tests.credit_bench import USD, CreditBench, credit_bench
from tests.tables import book
from tests.unit.ledger.made import event

BOOK = """
    cost    m  input 0.0300  cached_input 0.0100  output 0.1200  request 0.000001    from 2026-01-01
    cost    n  input 0.5000  output 2.0000                                           from 2026-01-01
    margin  global  30%                                                              from 2026-01-01
"""
MONTHS = (Instant(1_772_323_200_000_000), Instant(1_775_001_600_000_000))  # March and April 2026
CONFIG = Config(billing=Billing(currency=USD, timezone="UTC"))
TIERS = (Tier(9_000, 123_456), Tier(15_000, 990_000))
TERMS = Terms(
    included_tokens=5_000, included_amount=Pico(3_000_000_000), tiers=(Tier(9_000, 123_456), Tier(15_000, 990_000))
)


@pytest.fixture
def bench(database_url: str) -> Iterator[CreditBench]:
    """A ledger with prices; at its end every audit of it must hold."""
    with credit_bench(database_url) as made:
        made.at = Instant(MONTHS[1] + 20 * DAY_US)
        yield made
        with made.database.reading() as conn:
            assert list(proof.run(conn)) == []


def on_plan(bench: CreditBench, terms: Terms, at: Instant, name: str = "gold") -> str:
    """A plan with terms, known from an instant on."""
    with bench.database.writing() as conn:
        plan = plans.add(conn, name, at, "test")
        plan_terms.append(conn, PlanTerms(ids.new_id("terms"), plan.id, terms, at, at), actor="test", reason=None)
    return plan.id


def assign(bench: CreditBench, customer_id: str, plan_id: str, at: Instant) -> None:
    """Put a customer on a plan."""
    with bench.database.writing() as conn:
        plan = next(each for each in plans.every(conn) if each.id == plan_id)
        plans.assign(conn, customer_id, plan, at, at, "test")


def used(customer_id: str, at: Instant, model: str, usage: Usage) -> UsageEvent:
    """A request that ended at an instant, at its list price."""
    quote = book(BOOK).quote(model, None, at)
    assert quote is not None
    return event(
        at,
        **{
            "id": partitions.bound(to_datetime(at)) + ids.uuid7()[14:],
            "customer_id": customer_id,
            "model": model,
            "finished_at": at,
            **usage._asdict(),
            "cost_pico": quote.cost.charge(usage),
            "amount_pico": quote.price.charge(usage),
            "price_ref": quote.ref,
        },
    )


def record(bench: CreditBench, *made: UsageEvent) -> None:
    """Record requests."""
    with bench.database.writing() as conn:
        for one in made:
            quote = book(BOOK).quote(one.model, None, Instant(one.started_at))
            assert quote is not None
            versions.store_quote(conn, quote)
        events.append(conn, list(made), 0)


def settle(bench: CreditBench) -> int:
    """Settle; return how many adjustments were written."""
    return sum(each.events for each in settling.settle(CONFIG, bench.database, bench.now))


def nets(bench: CreditBench) -> dict[str, int]:
    """What each request comes to by its rows."""
    table = schema.usage_events
    found: dict[str, int] = {}
    with bench.database.reading() as conn:
        for row in conn.execute(sa.select(table.c.id, table.c.adjusts, table.c.amount_pico)):
            found[row.adjusts or row.id] = found.get(row.adjusts or row.id, 0) + row.amount_pico
    return found


def plainly(made: list[UsageEvent], terms: dict[str, Terms]) -> dict[str, int]:
    """Token by token in the order of usage; `terms` by the request's id, for those under any."""
    found: dict[str, int] = {}
    months: dict[bool, list[int]] = {False: [0, 0], True: [0, 0]}
    for one in sorted(made, key=lambda each: (each.finished_at, each.id)):
        quote = book(BOOK).quote(one.model, None, Instant(one.started_at))
        assert quote is not None
        plain = one.input_tokens - one.cached_input_tokens
        prices = [(quote.price.cached_input, quote.cost.cached_input)] * one.cached_input_tokens
        prices += [(quote.price.input, quote.cost.input)] * plain
        prices += [(quote.price.output, quote.cost.output)] * one.output_tokens
        if one.id not in terms:
            found[one.id] = sum(price for price, _ in prices) + quote.price.request
            continue
        rule, month = terms[one.id], months[one.finished_at >= MONTHS[1]]
        amount = int(quote.price.request)
        for price, cost in prices:
            discount = max([0, *(tier.discount_ppm for tier in rule.tiers if month[0] >= tier.above)])
            rounded = (2 * price * (10**6 - discount) + 10**6) // (2 * 10**6)
            amount += 0 if month[0] < rule.included_tokens else max(rounded, cost)
            month[0] += 1
        free = min(amount, max(0, rule.included_amount - month[1]))
        month[1] += free
        found[one.id] = amount - free
    return found


def requests(chance: random.Random, customer_id: str, count: int) -> list[UsageEvent]:
    """Requests of two months, some of them at the same instant and at the very boundary."""
    ends = [MONTHS[1], Instant(MONTHS[1] - 1)] + [
        Instant(MONTHS[0] + chance.randrange(50) * DAY_US + chance.randrange(3) * HOUR_US) for _ in range(count - 2)
    ]
    made = []
    for end in ends:
        whole = chance.choice((0, 1, 900, 2_500))
        usage = Usage(whole, chance.randrange(1_500), chance.randrange(whole + 1))
        made.append(used(customer_id, end, chance.choice("mn"), usage))
    return made


@pytest.mark.parametrize("seed", range(3))
def test_in_any_order_of_arrival_each_request_comes_to_what_its_place_says(bench: CreditBench, seed: int) -> None:
    """Late ones too, with settlements between, two at once at the end; a period ends exactly at its boundary."""
    chance = random.Random(seed)
    customer_id = bench.customer(is_prepaid=False)
    assign(bench, customer_id, on_plan(bench, TERMS, MONTHS[0]), MONTHS[0])
    made = requests(chance, customer_id, 24)
    arriving = chance.sample(made, len(made))
    while arriving:
        batch = [arriving.pop() for _ in range(min(len(arriving), chance.randrange(1, 12)))]
        record(bench, *batch)
        if arriving and chance.random() < 0.6:
            settle(bench)
    both = [threading.Thread(target=settle, args=(bench,)) for _ in range(2)]
    for each in both:
        each.start()
    for each in both:
        each.join()
    settle(bench)
    assert nets(bench) == plainly(made, dict.fromkeys((each.id for each in made), TERMS))
    assert settle(bench) == 0


def test_a_change_of_plans_in_a_period_goes_on_counting(bench: CreditBench) -> None:
    """What was used keeps its terms; usage under none does not count; what is known later changes no past request."""
    customer_id = bench.customer(is_prepaid=False)
    days = [Instant(MONTHS[0] + day * DAY_US) for day in range(8)]
    small = on_plan(bench, Terms(included_tokens=1_500), days[0], "small")
    large = on_plan(bench, Terms(included_tokens=4_000, tiers=(Tier(5_000, 100_000),)), days[0], "large")
    made = [used(customer_id, Instant(day + HOUR_US), "m", Usage(1_000, 0)) for day in days]
    assign(bench, customer_id, small, days[1])
    assign(bench, customer_id, large, days[4])
    record(bench, *made)
    under = {each.id: Terms(included_tokens=1_500) for each in made[1:4]}
    under |= {each.id: Terms(included_tokens=4_000, tiers=(Tier(5_000, 100_000),)) for each in made[4:]}
    settle(bench)
    expected = plainly(made, under)
    assert nets(bench) == expected
    fee = 1_300_000
    list_price = 1_000 * 39_000 + fee
    assert [expected[each.id] for each in made] == [
        *(list_price, fee, fee + 500 * 39_000, list_price),
        *(fee, list_price, fee + 1_000 * 35_100, fee + 1_000 * 35_100),
    ]
    with bench.database.writing() as conn:
        plan = next(each for each in plans.every(conn) if each.id == large)
        plans.assign(conn, customer_id, plan, days[0], bench.at, "test", backdate=True)
    record(bench, late := used(customer_id, Instant(days[1] + SECOND_US), "m", Usage(0, 0)))
    settle(bench)
    assert nets(bench) == {**expected, late.id: fee}


def correct(bench: CreditBench, made: UsageEvent, change: Any) -> None:
    """Correct a request as `weir adjust` does."""
    order = Order(ids.new_id("run"), str(change), "a test", "test", bench.at, USD)
    with bench.database.writing() as conn:
        adjustments.adjust(conn, [made.id], order, change)


def test_corrections_and_terms_leave_each_other_right(bench: CreditBench) -> None:
    """A recount moves what is behind it, a refund stays one, an added amount stays beside the terms."""
    customer_id = bench.customer(is_prepaid=False)
    terms = Terms(included_tokens=2_500)
    assign(bench, customer_id, on_plan(bench, terms, MONTHS[0]), MONTHS[0])
    made = [used(customer_id, Instant(MONTHS[0] + hour * HOUR_US), "m", Usage(1_000, 0)) for hour in range(1, 6)]
    record(bench, *made)
    settle(bench)
    correct(bench, made[0], Recount(input_tokens=200))
    correct(bench, made[4], Refund())
    correct(bench, made[3], Add(Pico(-1_000)))
    settle(bench)
    counted = [made[0]._replace(input_tokens=200), *made[1:]]
    expected = plainly(counted, dict.fromkeys((each.id for each in made), terms))
    expected[made[4].id] = 0
    expected[made[3].id] -= 1_000
    assert nets(bench) == expected
    assert settle(bench) == 0


def test_prepaid_credit_comes_back_and_is_never_exceeded(bench: CreditBench) -> None:
    """What an allowance gives back is credit again; a late request that takes it away charges what there is."""
    customer_id = bench.customer()
    assign(bench, customer_id, on_plan(bench, Terms(included_tokens=1_000), MONTHS[0]), MONTHS[0])
    late = used(customer_id, Instant(MONTHS[0] + HOUR_US), "m", Usage(1_000, 0))
    dear = used(customer_id, Instant(MONTHS[0] + 2 * HOUR_US), "n", Usage(1_000, 0))
    bench.grant(customer_id, late.amount_pico + dear.amount_pico)
    with bench.database.writing() as conn:
        for model in "mn":
            quote = book(BOOK).quote(model, None, MONTHS[0])
            assert quote is not None
            versions.store_quote(conn, quote)

    def pay(made: UsageEvent) -> None:
        lease = bench.lease(customer_id, made.amount_pico)
        assert bench.record(Charge(made, (Part(lease, Pico(made.amount_pico)),))) == ()
        bench.close(customer_id, lease)

    pay(dear)
    settle(bench)
    assert bench.standing(customer_id)[0] == late.amount_pico + dear.amount_pico
    pay(late)
    settle(bench)
    assert nets(bench) == {late.id: 1_300_000, dear.id: dear.amount_pico}
    assert bench.standing(customer_id)[0] == late.amount_pico - 1_300_000
