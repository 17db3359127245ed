"""Budgets by the ledger: what is left of them, in which period, and what happens to what no lease covers."""

from collections.abc import Iterator
from zoneinfo import ZoneInfo

import pytest

from billing import ids
from billing.clock import HOUR_US, Instant, parse_instant
from billing.credit.budget import Span, budget_id
from billing.credit.holds import Part
from billing.errors import UsageError
from billing.ledger import accounts, budgets, leases, principals, proof, schema, settings
from billing.ledger.budgets import State
from billing.ledger.charges import Cap, Charge
from billing.limits import GRANT_PICO_MAX
from billing.money import Pico
from billing.usage import UsageEvent
from tests.credit_bench import TESTS, USD, CreditBench, credit_bench

BERLIN = ZoneInfo("Europe/Berlin")
KOLKATA = ZoneInfo("Asia/Kolkata")
SUMS = ("amount", "credit", "assigned")


@pytest.fixture
def bench(database_url: str) -> Iterator[CreditBench]:
    """A bench on each engine."""
    with credit_bench(database_url) as made:
        yield made


@pytest.fixture
def acme(bench: CreditBench) -> str:
    """A postpaid customer."""
    with bench.database.writing() as conn:
        return accounts.add_customer(conn, "acme", None, bench.at, TESTS).id


def put(bench: CreditBench, customer_id: str, amount: int, span: Span = Span.DAY, key_id: str | None = None) -> str:
    """Set a budget, and return its id."""
    with bench.database.writing() as conn:
        budgets.put(
            conn, customer_id, key_id, span, Pico(amount), is_soft=False, currency=USD, at=bench.at, actor=TESTS
        )
    return budget_id(customer_id, span, key_id)


def new_key(bench: CreditBench, customer_id: str) -> str:
    """A key of the customer."""
    with bench.database.writing() as conn:
        return accounts.create_key(conn, customer_id, "key", None, 0, 0, 0, None, bench.at, TESTS)[0].id


def state(bench: CreditBench, named: str) -> State:
    """How a budget stands now."""
    with bench.database.reading() as conn:
        found = budgets.state(conn, named, bench.zone, bench.at)
    assert found is not None
    return found


def record(
    bench: CreditBench, customer_id: str, amount: int, *caps: Cap, at: int | None = None, key: str = "key_app"
) -> tuple[UsageEvent, ...]:
    """Record a request of a postpaid customer; return what was written off."""
    when = Instant(bench.at if at is None else at)
    event = bench.event(customer_id, amount, api_key_id=key, finished_at=when, window_start=when)
    return bench.record(Charge(event, None, False, caps, bench.zone.key))


def lease(bench: CreditBench, named: str, amount: int, holder: str = "a") -> Part:
    """Lease so much of a budget, which must be there."""
    (added,) = bench.take(named, amount, holder=holder).additions
    assert added.amount == amount
    return Part(added.lease_id, added.amount)


def test_what_is_used_and_what_is_leased_is_not_left(bench: CreditBench, acme: str) -> None:
    day = put(bench, acme, 1_000)
    part = lease(bench, day, 300)
    assert state(bench, day)[2:] == (0, 300)
    assert record(bench, acme, 100, Cap(day, (part._replace(amount=Pico(100)),))) == ()
    assert state(bench, day)[2:] == (100, 200)
    taken = bench.take(day, 701, holder="b")
    assert [added.amount for added in taken.additions] == [700]
    assert (taken.standing.balance, taken.standing.held, taken.standing.available) == (900, 900, 0)
    assert taken.is_recalling


def test_a_new_period_is_granted_anew_but_for_what_still_runs(bench: CreditBench, acme: str) -> None:
    """A lease of yesterday is used today, so that it counts today."""
    bench.zone = BERLIN
    day = put(bench, acme, 1_000)
    record(bench, acme, 600, Cap(day, (lease(bench, day, 600),)))
    running = lease(bench, day, 400)
    midnight = state(bench, day).period.end
    assert midnight == parse_instant("2026-03-01T23:00:00Z", Instant(0))
    bench.at = Instant(midnight - 1)
    assert state(bench, day).free == 0
    bench.at = midnight
    assert state(bench, day).free == 600
    assert record(bench, acme, 400, Cap(day, (running,))) == ()
    assert (state(bench, day).used, state(bench, day).free) == (400, 600)


def test_a_budget_is_of_its_period_and_of_its_key(bench: CreditBench, acme: str) -> None:
    app, other = new_key(bench, acme), new_key(bench, acme)
    names = [put(bench, acme, 10_000, span) for span in (Span.MONTH, Span.DAY)]
    names += [put(bench, acme, 10_000, Span.DAY, app), put(bench, acme, 10_000, Span.MONTH, other)]
    record(bench, acme, 1, key=app, at=bench.at - 24 * HOUR_US)  # the month before
    record(bench, acme, 10, key=app)
    record(bench, acme, 100, key=other)
    bench.at = Instant(bench.at + 24 * HOUR_US)
    record(bench, acme, 1_000, key=app)
    assert [state(bench, each).used for each in names] == [1_110, 1_000, 1_000, 100]
    with bench.database.reading() as conn:
        assert [each.id for each in budgets.applying(conn, acme, app)] == names[:3]
        assert [each.id for each in budgets.of_customer(conn, acme)][:2] == names[:2]


def test_a_day_may_begin_within_an_hour(bench: CreditBench, acme: str) -> None:
    """In India at half past six in the evening, UTC: windows that begin there keep the days apart."""
    bench.zone = KOLKATA
    day = put(bench, acme, 1_000)
    midnight = state(bench, day).period.end
    assert midnight % HOUR_US == HOUR_US // 2
    record(bench, acme, 7, at=midnight - HOUR_US // 2)
    record(bench, acme, 70, at=midnight)
    assert state(bench, day).used == 7
    bench.at = midnight
    assert state(bench, day).used == 70


def test_an_unpaid_amount_is_what_credit_did_not_pay_since_the_last_payment(bench: CreditBench, acme: str) -> None:
    limit = put(bench, acme, 1_000, Span.UNPAID)
    record(bench, acme, 300)
    bench.grant(acme, 50)
    event = bench.event(acme, 80)
    assert bench.record(Charge(event, (), False)) == ()
    assert state(bench, limit).used == 330
    assert bench.standing(acme) == (0, 0, 0)
    with bench.database.writing() as conn:
        settings.set_paid_until(conn, acme, Instant(bench.at + HOUR_US), bench.at, TESTS)
    assert state(bench, limit).used == 0


def test_who_is_not_prepaid_uses_credit_first_and_the_rest_is_metered(bench: CreditBench, acme: str) -> None:
    bench.grant(acme, 1_000)
    event = bench.event(acme, 400)
    part = bench.lease(acme, 300)
    assert bench.record(Charge(event, (Part(part, Pico(300)),), False)) == ()
    assert bench.standing(acme) == (600, 0, 600)
    assert bench.record(Charge(bench.event(acme, 1_000), (), False)) == ()
    assert bench.standing(acme) == (0, 0, 0)
    rollups = bench.rows(schema.usage_hourly, acme)
    sums = [sum(row[f"{name}_micro"] * 10**6 + row[f"{name}_pico"] for row in rollups) for name in SUMS]
    assert sums == [1_400, 1_000, 1_000]


def test_what_no_lease_covers_takes_what_is_free_and_the_rest_is_written_off(bench: CreditBench, acme: str) -> None:
    """A lease that was closed meanwhile, or a prompt that was longer than its bound."""
    day = put(bench, acme, 1_000)
    part = lease(bench, day, 300)
    other = lease(bench, day, 500, holder="b")
    bench.close(acme, part.lease_id)
    (loss,) = record(bench, acme, 600, Cap(day, (part,)))
    assert (loss.amount_pico, loss.anomaly) == (-100, "uncovered")
    assert state(bench, day)[2:] == (500, 500)
    assert record(bench, acme, 500, Cap(day, (other,))) == ()
    assert state(bench, day)[2:] == (1_000, 0)


def test_the_proof_of_the_ledger_knows_budgets_from_credit(bench: CreditBench, acme: str) -> None:
    """The only findings are that the made-up amounts are of no price."""
    day = put(bench, acme, 1_000)
    bench.grant(acme, 350)
    part = lease(bench, day, 600)
    record(bench, acme, 500, Cap(day, (part._replace(amount=Pico(500)),)))
    bench.record(Charge(bench.event(acme, 700), (), False, (Cap(day, ()),)))
    bench.close(acme, part.lease_id)
    with bench.database.reading() as conn:
        findings = [found.audit for found in proof.run(conn)]
    assert set(findings) <= {"amount = tokens × prices"}, findings


def test_what_comes_late_from_yesterday_is_held_against_yesterday(bench: CreditBench, acme: str) -> None:
    """A spool that drains after midnight: today's leases take nothing from what yesterday had left."""
    day = put(bench, acme, 1_000)
    yesterday = bench.at
    record(bench, acme, 300, Cap(day, (lease(bench, day, 300),)))
    bench.wait(24 * 3_600)
    lease(bench, day, 950)
    assert record(bench, acme, 700, Cap(day, ()), at=yesterday) == ()
    (loss,) = record(bench, acme, 50, Cap(day, ()), at=yesterday)
    assert loss.amount_pico == -50


def test_events_of_one_commit_are_forgiven_once(bench: CreditBench, acme: str) -> None:
    day = put(bench, acme, 1_000)
    made = [bench.event(acme, 700), bench.event(acme, 700), bench.event(acme, 100)]
    losses = bench.record(*(Charge(event, None, False, (Cap(day, ()),)) for event in made))
    assert sum(loss.amount_pico for loss in losses) == -500
    assert state(bench, day).used == 1_000


def test_what_a_budget_does_not_let_through_credit_does_not_pay(bench: CreditBench) -> None:
    """Both fall short of a request that cost more than it held: it is written off once, and credit keeps the rest."""
    prepaid = bench.customer("prepaid")
    bench.grant(prepaid, 5_000)
    day = put(bench, prepaid, 1_000)
    (loss,) = bench.record(Charge(bench.event(prepaid, 1_700), (), True, (Cap(day, ()),)))
    assert loss.amount_pico == -700
    assert bench.standing(prepaid) == (4_000, 0, 4_000)
    assert state(bench, day).used == 1_000
    bench.audit(prepaid)


def test_what_a_dead_worker_leased_is_free_again_and_counts_once(bench: CreditBench, acme: str) -> None:
    day = put(bench, acme, 1_000)
    part = lease(bench, day, 1_000)
    record(bench, acme, 250, Cap(day, (part._replace(amount=Pico(250)),)))
    assert bench.take(day, 1, holder="b").additions == ()
    bench.wait((leases.LEASE_US + leases.GRACE_US) // 1_000_000 + 1)
    with bench.database.reading() as conn:
        assert leases.budget_standing(conn, day, bench.zone, bench.at).available == 750
    (added,) = bench.take(day, 1_000, holder="b").additions
    assert added.amount == 750
    assert bench.rows(schema.credit_entries, acme) == []


def test_a_lower_budget_asks_back_what_is_not_used(bench: CreditBench, acme: str) -> None:
    day = put(bench, acme, 1_000)
    part = lease(bench, day, 400)
    put(bench, acme, 100)
    with bench.database.reading() as conn:
        assert leases.recalled(conn, "a") == [part.lease_id]
    assert state(bench, day).free == 0
    bench.give_back(part.lease_id, 400)
    assert state(bench, day).free == 100
    with bench.database.writing() as conn:
        assert budgets.remove(conn, acme, None, Span.DAY, bench.at, TESTS)
        assert not budgets.remove(conn, acme, None, Span.DAY, bench.at, TESTS)
        assert budgets.state(conn, day, bench.zone, bench.at) is None
    assert bench.take(day, 10**9).additions[0].amount == 10**9, "who does not know yet is not kept waiting"


def test_sums_of_budgets_are_exact_beyond_63_bits(bench: CreditBench, acme: str) -> None:
    month = put(bench, acme, GRANT_PICO_MAX, Span.MONTH)
    for _ in range(3):
        record(bench, acme, 2**63 - 1)
    assert state(bench, month).used == 3 * (2**63 - 1)
    assert state(bench, month).left == GRANT_PICO_MAX - 3 * (2**63 - 1)


@pytest.mark.parametrize("amount", [-1, GRANT_PICO_MAX + 1])
def test_what_is_no_budget_is_refused(bench: CreditBench, acme: str, amount: int) -> None:
    with pytest.raises(UsageError, match="is not between 0 and 1000000000 usd"):
        put(bench, acme, amount)


def test_a_principal_knows_what_its_requests_are_held_on(bench: CreditBench, acme: str) -> None:
    def purses_of(customer_id: str) -> tuple[str, ...] | None:
        with bench.database.writing() as conn:
            _, secret = accounts.create_key(conn, customer_id, "k", None, 0, 0, 0, None, bench.at, TESTS)
            found = principals.load(conn, ids.key_hash(secret.encode()).hex())
        assert found is not None
        return found.purses

    assert purses_of(acme) is None
    bench.grant(acme, 5)
    assert purses_of(acme) == ()
    month, limit = put(bench, acme, 1, Span.MONTH), put(bench, acme, 1, Span.UNPAID)
    with bench.database.writing() as conn:
        budgets.put(conn, acme, None, Span.DAY, Pico(1), is_soft=True, currency=USD, at=bench.at, actor=TESTS)
    assert purses_of(acme) == (limit, month)
    prepaid = bench.customer("prepaid")
    assert purses_of(prepaid) == (prepaid,)
