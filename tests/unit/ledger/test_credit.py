"""Credit in the ledger: given, leased, used, given back, expired; the same on both engines, and never overspent."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sqlalchemy as sa

from billing import ids
from billing.clock import Instant
from billing.credit.account import Kind
from billing.credit.holds import Part
from billing.errors import NotFoundError, RefusedError, UsageError
from billing.ledger import charges, credit, leases, schema
from billing.ledger.charges import Charge
from billing.limits import GRANT_PICO_MAX, GRANTS_LIVE_MAX, LEASE_PICO_MAX
from billing.money import Pico
from tests.credit_bench import NOON, TESTS, USD, CreditBench, credit_bench

MINUTE_S, HOUR_S = 60, 3_600
LEASE_S = leases.LEASE_US // 1_000_000
DEAD_S = LEASE_S + leases.GRACE_US // 1_000_000 + 1


@pytest.fixture
def bench(database_url: str) -> Iterator[CreditBench]:
    """A bench on each engine."""
    with credit_bench(database_url) as made:
        yield made


@pytest.fixture
def acme(bench: CreditBench) -> Iterator[str]:
    """A prepaid customer, whose rows agree when the test is over."""
    customer_id = bench.customer()
    yield customer_id
    bench.audit(customer_id)


def in_seconds(seconds: int) -> Instant:
    """An instant after noon."""
    return Instant(NOON + seconds * 1_000_000)


def test_credit_is_there_once_it_is_given(bench: CreditBench, acme: str) -> None:
    assert bench.standing(acme) == (0, 0, 0)
    bench.grant(acme, 5_000_000)
    bench.grant(acme, 2)
    assert bench.standing(acme) == (5_000_002, 0, 5_000_002)
    assert bench.history(acme) == [("grant", 5_000_000, 5_000_000), ("grant", 2, 2)]


def test_an_entry_tells_who_gave_what_and_why(bench: CreditBench, acme: str) -> None:
    expiry = in_seconds(HOUR_S)
    with bench.database.writing() as conn:
        given = credit.grant(conn, acme, Pico(7), USD, NOON, TESTS, expires_at=expiry, reason="a mishap", priority=3)
        (entry,) = credit.entries(conn, acme, 10)
        log = conn.execute(sa.select(schema.audit_log).where(schema.audit_log.c.subject == acme)).all()
    assert entry == given
    assert (entry.seq, entry.at, entry.kind, entry.amount, entry.left) == (1, NOON, Kind.GRANT, 7, 7)
    assert (entry.currency, entry.priority, entry.expires_at, entry.reason) == (USD, 3, expiry, "a mishap")
    assert (entry.grant_id, entry.lease_id, entry.source) == (entry.id, None, None)
    assert [(row.actor, row.action) for row in log] == [(TESTS, "customer.add"), (TESTS, "credit.grant")]


@pytest.mark.parametrize("amount", [0, -1, GRANT_PICO_MAX + 1])
def test_an_amount_that_is_no_credit_is_refused(bench: CreditBench, acme: str, amount: int) -> None:
    with pytest.raises(UsageError, match="is not between 0 and 1000000000 usd"):
        bench.grant(acme, amount)


def test_the_largest_credits_add_up_past_63_bits_without_losing_a_unit(bench: CreditBench, acme: str) -> None:
    bench.grant(acme, GRANT_PICO_MAX)
    bench.grant(acme, GRANT_PICO_MAX - 1)
    assert bench.standing(acme)[0] == 2 * GRANT_PICO_MAX - 1


def test_a_lease_is_never_larger_than_its_column_allows(bench: CreditBench, acme: str) -> None:
    """However much is needed, and however much one worker has leased already."""
    bench.grant(acme, GRANT_PICO_MAX)
    for _ in range(10):
        bench.take(acme, GRANT_PICO_MAX)
    assert {lease["amount_pico"] for lease in bench.rows(schema.leases, acme)} == {LEASE_PICO_MAX}
    assert len(bench.rows(schema.leases, acme)) == 10


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"expires_at": NOON}, "which is past"),
        ({"priority": 101}, "is not between 0"),
        ({"reason": "two\nlines"}, "one line"),
        ({"reason": "x" * 501}, "at most 500"),
    ],
)
def test_what_can_not_be_is_refused(bench: CreditBench, acme: str, given: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        bench.grant(acme, 1, **given)


def test_currencies_do_not_meet(bench: CreditBench, acme: str) -> None:
    """Neither in the history nor in a lease."""
    bench.grant(acme, 100)
    with bench.database.writing() as conn, pytest.raises(RefusedError, match="credit is in usd"):
        credit.grant(conn, acme, Pico(1), "eur", NOON, TESTS)
    assert bench.take(acme, 10, currency="eur").additions == ()


def test_a_customer_can_have_no_more_than_a_hundred_credits_alive(bench: CreditBench, acme: str) -> None:
    for _ in range(GRANTS_LIVE_MAX):
        bench.grant(acme, 1)
    with pytest.raises(RefusedError, match="has 100 credits that are not used up"):
        bench.grant(acme, 1)


def test_nobody_gets_credit_who_does_not_exist(bench: CreditBench) -> None:
    with pytest.raises(NotFoundError, match="there is no customer 'cust_none'"):
        bench.grant("cust_none", 1)


def test_what_a_topup_came_from_gives_once(bench: CreditBench, acme: str) -> None:
    """A webhook that comes twice."""
    first = bench.grant(acme, 100, kind=Kind.TOPUP, source="cs_1")
    assert bench.grant(acme, 100, kind=Kind.TOPUP, source="cs_1") == first
    assert bench.standing(acme)[0] == 100


def test_a_lease_takes_what_is_needed_and_what_can_be_spared(bench: CreditBench, acme: str) -> None:
    bench.grant(acme, 1_600)
    assert [added.amount for added in bench.take(acme, 10, wished=10_000).additions] == [100]
    assert bench.standing(acme) == (1_600, 100, 1_500)
    assert [added.amount for added in bench.take(acme, 1_000, holder="b").additions] == [1_000]
    assert [added.amount for added in bench.take(acme, 1_000, holder="c").additions] == [500]
    assert bench.take(acme, 1, holder="d").additions == ()


def test_the_same_worker_has_one_lease_of_a_grant_that_grows(bench: CreditBench, acme: str) -> None:
    bench.grant(acme, 1_000)
    first, second = bench.lease(acme, 10), bench.lease(acme, 20)
    assert first == second
    assert [lease["amount_pico"] for lease in bench.rows(schema.leases, acme)] == [30]


def test_an_old_lease_is_followed_by_a_new_one(bench: CreditBench, acme: str) -> None:
    bench.grant(acme, 1_000)
    first = bench.lease(acme, 10)
    for _ in range(60):
        bench.wait(MINUTE_S)
        with bench.database.writing() as conn:
            assert leases.renew(conn, "a", bench.at) == {first: acme}
    assert bench.lease(acme, 10) != first


def test_usage_is_on_its_lease_and_burns_when_that_is_closed(bench: CreditBench, acme: str) -> None:
    bench.grant(acme, 1_000)
    lease = bench.lease(acme, 100)
    assert bench.use(acme, 30, (lease, 30)) == ()
    assert bench.standing(acme) == (970, 70, 900)
    assert bench.history(acme) == [("grant", 1_000, 1_000)]
    bench.close(acme, lease)
    assert bench.standing(acme) == (970, 0, 970)
    assert bench.history(acme) == [("grant", 1_000, 1_000), ("burn", -30, 970)]


def test_an_unused_lease_leaves_no_trace_in_the_history(bench: CreditBench, acme: str) -> None:
    bench.grant(acme, 1_000)
    bench.close(acme, bench.lease(acme, 100))
    assert bench.history(acme) == [("grant", 1_000, 1_000)]
    assert bench.standing(acme) == (1_000, 0, 1_000)


def test_credit_burns_by_priority_then_expiry_then_what_was_given_then_age(bench: CreditBench, acme: str) -> None:
    """Stripe's order: https://docs.stripe.com/billing/subscriptions/usage-based/billing-credits."""
    soon, late = in_seconds(HOUR_S), in_seconds(2 * HOUR_S)
    last = bench.grant(acme, 1, priority=51, expires_at=soon)
    paid_old = bench.grant(acme, 1, kind=Kind.TOPUP)
    bench.wait(1)
    given = bench.grant(acme, 1)
    paid_new = bench.grant(acme, 1, kind=Kind.TOPUP)
    dated_late = bench.grant(acme, 1, expires_at=late, kind=Kind.TOPUP)
    dated_soon = bench.grant(acme, 1, expires_at=soon, kind=Kind.TOPUP)
    first = bench.grant(acme, 1, priority=0)
    taken = bench.take(acme, 7).additions
    assert [added.order for added in taken] == sorted(added.order for added in taken)
    order = {lease["id"]: lease["grant_id"] for lease in bench.rows(schema.leases, acme)}
    expected = [first, dated_soon, dated_late, given, paid_old, paid_new, last]
    assert [order[added.lease_id] for added in taken] == expected


def test_credit_that_expired_can_not_be_leased_and_is_written_off(bench: CreditBench, acme: str) -> None:
    """The instant of the expiry belongs to the time after."""
    bench.grant(acme, 100, expires_at=in_seconds(MINUTE_S))
    bench.grant(acme, 7)
    bench.wait(MINUTE_S - 1)
    assert bench.standing(acme) == (107, 0, 107)
    bench.wait(1)
    assert bench.standing(acme) == (7, 0, 7)
    assert [added.amount for added in bench.take(acme, 50).additions] == [7]
    with bench.database.reading() as conn:
        newest = credit.entries(conn, acme, 1)[0]
    assert (newest.kind, newest.amount, newest.left, newest.at) == (Kind.EXPIRY, -100, 0, in_seconds(MINUTE_S))


def test_what_was_leased_before_the_expiry_pays_for_what_it_was_held_for(bench: CreditBench, acme: str) -> None:
    """And the rest of it lapses when the lease is closed."""
    bench.grant(acme, 100, expires_at=in_seconds(MINUTE_S))
    lease = bench.lease(acme, 40)
    bench.wait(MINUTE_S)
    bench.tidy(acme)
    assert bench.standing(acme) == (40, 40, 0)
    assert bench.use(acme, 25, (lease, 25)) == ()
    bench.close(acme, lease)
    kinds = [("grant", 100, 100), ("expiry", -60, 40), ("burn", -25, 15), ("expiry", -15, 0)]
    assert bench.history(acme) == kinds
    assert bench.standing(acme) == (0, 0, 0)


def test_a_worker_that_dies_loses_its_lease_and_nothing_else(bench: CreditBench, acme: str) -> None:
    """What it used stays used to the unit; the rest is there again after the lease and its grace."""
    bench.grant(acme, 1_000)
    lease = bench.lease(acme, 1_000)
    bench.use(acme, 30, (lease, 30))
    bench.wait(DEAD_S - 1)
    assert bench.take(acme, 1, holder="b").additions == ()
    bench.wait(1)
    assert bench.standing(acme) == (970, 0, 970)
    assert [added.amount for added in bench.take(acme, 1_000, holder="b").additions] == [970]


def test_a_worker_that_renews_keeps_its_lease(bench: CreditBench, acme: str) -> None:
    bench.grant(acme, 1_000)
    lease = bench.lease(acme, 1_000)
    for _ in range(5):
        bench.wait(LEASE_S)
        with bench.database.writing() as conn:
            assert leases.renew(conn, "a", bench.at) == {lease: acme}
            assert leases.renew(conn, "b", bench.at) == {}
        assert bench.take(acme, 1, holder="b").additions == ()
    bench.wait(DEAD_S)
    bench.tidy(acme)
    with bench.database.writing() as conn:
        assert leases.renew(conn, "a", bench.at) == {}


def test_customers_with_dead_leases_are_found(bench: CreditBench, acme: str) -> None:
    bench.grant(acme, 1_000)
    bench.lease(acme, 10)
    for seconds, expected in ((DEAD_S - 1, []), (1, [acme])):
        bench.wait(seconds)
        with bench.database.reading() as conn:
            assert leases.dead_customers(conn, bench.at, 10) == expected
    bench.tidy(acme)
    with bench.database.reading() as conn:
        assert leases.dead_customers(conn, bench.at, 10) == []


def test_an_event_whose_lease_was_closed_is_paid_from_what_is_free(bench: CreditBench, acme: str) -> None:
    """A worker that was stopped for longer than its lease lasted goes on and records what it had delivered."""
    bench.grant(acme, 1_000)
    lease = bench.lease(acme, 100)
    bench.wait(DEAD_S)
    bench.tidy(acme)
    assert bench.use(acme, 80, (lease, 80)) == ()
    assert bench.standing(acme) == (920, 0, 920)
    assert bench.history(acme) == [("grant", 1_000, 1_000), ("burn", -80, 920)]


def test_what_no_credit_pays_for_is_written_off_and_never_overspent(bench: CreditBench, acme: str) -> None:
    """The others spent the rest meanwhile: the event stays at its price, an adjustment takes back what is uncovered."""
    bench.grant(acme, 100)
    lost = bench.lease(acme, 90)
    bench.wait(DEAD_S)
    lease = bench.lease(acme, 70, holder="b")
    bench.use(acme, 70, (lease, 70))
    (loss,) = bench.use(acme, 80, (lost, 80), output_tokens=9)
    assert (loss.amount_pico, loss.outcome, loss.anomaly, loss.output_tokens) == (-50, "adjustment", "uncovered", 0)
    assert bench.spent(acme) == 100
    assert bench.standing(acme) == (0, 0, 0)
    assert {row["adjusts"] for row in bench.rows(schema.usage_events, acme)} == {None, loss.adjusts}


def test_an_event_that_costs_more_than_it_held_takes_the_rest_elsewhere(bench: CreditBench, acme: str) -> None:
    """A prompt that no estimate foresaw: first its lease, then what is free; never another request's hold."""
    bench.grant(acme, 100)
    lease = bench.lease(acme, 10)
    other = bench.lease(acme, 60, holder="b")
    assert bench.use(acme, 35, (lease, 10)) == ()
    (loss,) = bench.use(acme, 25)
    assert loss.amount_pico == -20
    assert bench.use(acme, 60, (other, 60)) == ()
    assert bench.spent(acme) == 100


def test_leases_pay_in_the_order_that_they_are_named(bench: CreditBench, acme: str) -> None:
    first, second = bench.grant(acme, 10, priority=0), bench.grant(acme, 10)
    one, two = (added.lease_id for added in bench.take(acme, 15).additions)
    bench.use(acme, 12, (one, 10), (two, 2))
    bench.close(acme, one, two)
    with bench.database.reading() as conn:
        burns = [entry for entry in credit.entries(conn, acme, 10) if entry.kind is Kind.BURN]
    assert {(entry.grant_id, entry.amount) for entry in burns} == {(first, -10), (second, -2)}


def test_a_commit_of_many_requests_is_posted_whole(bench: CreditBench, acme: str) -> None:
    """Some with their lease, some without, and one that was recorded by an earlier commit."""
    zeta = bench.customer("zeta")
    bench.grant(acme, 1_000)
    bench.grant(zeta, 1_000)
    lease, other = bench.lease(acme, 100), bench.lease(zeta, 100)
    gone = bench.lease(acme, 5, holder="gone")
    bench.close(acme, gone)
    earlier = Charge(bench.event(acme, 1), (Part(lease, Pico(1)),))
    bench.record(earlier)
    charged = [
        Charge(bench.event(acme, 40), (Part(lease, Pico(40)),)),
        Charge(bench.event(zeta, 50), (Part(other, Pico(50)),)),
        Charge(bench.event(acme, 5), (Part(gone, Pico(5)),)),
        Charge(bench.event(acme, 0), ()),
    ]
    with bench.database.writing() as conn:
        rows = [charge.event for charge in charged]
        assert charges.append(conn, rows, [earlier, *charged], 3, bench.at) == ()
    assert bench.standing(acme) == (954, 59, 895)
    assert bench.standing(zeta) == (950, 50, 900)
    bench.audit(zeta)


def test_a_request_is_charged_once_however_often_its_commit_is_tried(bench: CreditBench, acme: str) -> None:
    """The id refuses a second insert, and with it the second charge."""
    bench.grant(acme, 1_000)
    lease = bench.lease(acme, 100)
    charge = Charge(bench.event(acme, 40), (Part(lease, Pico(40)),))
    bench.record(charge)
    with pytest.raises(sa.exc.IntegrityError):
        bench.record(charge)
    assert bench.standing(acme) == (960, 60, 900)


def test_what_is_given_back_is_free_at_once(bench: CreditBench, acme: str) -> None:
    """And never what was used."""
    bench.grant(acme, 100)
    lease = bench.lease(acme, 100)
    bench.use(acme, 30, (lease, 30))
    bench.give_back(lease, 60)
    assert bench.standing(acme) == (70, 10, 60)
    bench.give_back(lease, 11)
    assert bench.standing(acme) == (70, 10, 60)


def test_who_needs_more_asks_the_others_once(bench: CreditBench, acme: str) -> None:
    """And may come again until they have answered, or for two seconds."""
    bench.grant(acme, 100)
    lease = bench.lease(acme, 90)
    assert not bench.take(acme, 10, holder="b").is_recalling
    assert bench.take(acme, 5, holder="b").is_recalling
    with bench.database.reading() as conn:
        assert leases.recalled(conn, "a") == [lease]
        assert leases.recalled(conn, "b") == []
    assert bench.take(acme, 5, holder="b").is_recalling
    bench.give_back(lease, 50)
    with bench.database.reading() as conn:
        assert leases.recalled(conn, "a") == []
    assert not bench.take(acme, 51, holder="b").is_recalling
    bench.wait(2)
    assert bench.take(acme, 51, holder="b").is_recalling
    bench.wait(2)
    assert not bench.take(acme, 51, holder="b").is_recalling


def test_a_lease_that_is_used_up_is_not_asked_for(bench: CreditBench, acme: str) -> None:
    bench.grant(acme, 100)
    lease = bench.lease(acme, 100)
    bench.use(acme, 100, (lease, 100))
    assert not bench.take(acme, 1, holder="b").is_recalling


def test_credit_can_be_taken_back_as_far_as_it_is_not_in_use(bench: CreditBench, acme: str) -> None:
    """What requests hold of it stays theirs, and lapses as they end."""
    wrong = bench.grant(acme, 100)
    bench.grant(acme, 7)
    lease = bench.lease(acme, 30)
    with bench.database.writing() as conn:
        assert credit.end_grant(conn, wrong, Kind.REVERSAL, "a mistake", bench.at, TESTS) == 70
        assert credit.end_grant(conn, wrong, Kind.REVERSAL, "again", bench.at, TESTS) == 0
    assert bench.standing(acme) == (37, 30, 7)
    bench.use(acme, 20, (lease, 20))
    bench.close(acme, lease)
    assert bench.standing(acme) == (7, 0, 7)
    with bench.database.writing() as conn, pytest.raises(NotFoundError, match="there is no credit 'credit_none'"):
        credit.end_grant(conn, "credit_none", Kind.REVERSAL, "?", bench.at, TESTS)


def test_the_balance_of_any_instant_of_the_past_is_known(bench: CreditBench, acme: str) -> None:
    """Before the first credit, between requests on an open lease, and after an expiry that nobody had noticed."""
    bench.grant(acme, 1_000)
    bench.wait(10)
    bench.grant(acme, 500, expires_at=in_seconds(100))
    lease = bench.lease(acme, 100)
    bench.wait(10)
    bench.use(acme, 30, (lease, 30))
    bench.wait(10)
    bench.use(acme, 40, (lease, 40))
    bench.close(acme, lease)
    bench.wait(300)
    bench.tidy(acme)
    expected = {-1: 0, 0: 1_000, 9: 1_000, 10: 1_500, 19: 1_500, 20: 1_470, 29: 1_470, 30: 1_430, 99: 1_430, 100: 1_000}
    with bench.database.reading() as conn:
        found = {at: charges.balance_at(conn, acme, in_seconds(at)) for at in expected}
    assert found == expected


def test_a_clock_that_goes_back_does_not_disorder_the_history(bench: CreditBench, acme: str) -> None:
    bench.grant(acme, 1_000)
    lease = bench.lease(acme, 100)
    bench.use(acme, 30, (lease, 30))
    bench.wait(-HOUR_S)
    bench.close(acme, lease)
    bench.grant(acme, 5)
    with bench.database.reading() as conn:
        assert [entry.at for entry in credit.entries(conn, acme, 10)] == [NOON] * 3


def test_a_clock_that_leaps_ahead_closes_leases_but_loses_nothing(bench: CreditBench, acme: str) -> None:
    bench.grant(acme, 100)
    lease = bench.lease(acme, 60)
    bench.wait(HOUR_S)
    bench.take(acme, 10, holder="b")
    assert bench.use(acme, 60, (lease, 60)) == ()
    assert bench.standing(acme) == (40, 10, 30)


def test_the_database_refuses_what_the_code_would_never_write(bench: CreditBench, acme: str) -> None:
    """Above all a lease that is used beyond its amount."""
    bench.grant(acme, 100)
    lease = bench.lease(acme, 60)
    table = schema.leases
    with pytest.raises(sa.exc.IntegrityError), bench.database.writing() as conn:
        conn.execute(sa.update(table).where(table.c.id == lease).values(used_pico=61))
    with bench.database.writing() as conn:
        before = credit.read(conn, acme)
    with pytest.raises(sa.exc.IntegrityError), bench.database.writing() as conn:
        credit.write(conn, before, Kind.ADJUSTMENT, before.grants[0], Pico(-1), bench.at)
        credit.write(conn, before, Kind.ADJUSTMENT, before.grants[0], Pico(-1), bench.at)


def test_the_time_is_the_servers_where_there_is_one(bench: CreditBench) -> None:
    with bench.database.reading() as conn:
        found = leases.database_now(conn, bench.now)
    assert (found == NOON) is bench.database.is_sqlite
    assert found >= NOON


def test_a_lease_is_read_in_the_order_of_its_columns(bench: CreditBench, acme: str) -> None:
    bench.grant(acme, 100)
    bench.lease(acme, 60)
    with bench.database.reading() as conn:
        (found,) = leases.open_leases(conn, acme)
    (row,) = bench.rows(schema.leases, acme)
    assert {name: getattr(found, name) for name in row} == row


HISTORY = 20_000
PLANS: dict[str, tuple[str, Callable[[sa.Connection, str], object]]] = {
    "credit.read": ("credit_entries", lambda conn, acme: credit.read(conn, acme)),
    "leases.open": ("leases", lambda conn, acme: leases.open_leases(conn, acme)),
    "leases.recalled": ("leases", lambda conn, acme: leases.recalled(conn, "a")),
}


def test_a_long_history_costs_nothing(bench: CreditBench) -> None:
    """EXPLAIN, with 20,000 closed leases and their burns: each question reads an index."""
    acme = bench.customer()
    bench.grant(acme, 100)
    _fill(bench, acme)
    for name in PLANS:
        _reads_an_index(bench, acme, name)


def _reads_an_index(bench: CreditBench, acme: str, name: str) -> None:
    table, ask = PLANS[name]
    plans: list[str] = []

    def explain(conn: Any, _cursor: Any, statement: str, parameters: Any, _context: Any, _is_many: bool) -> None:
        if f"weir:{name} " in statement:
            prefix = "EXPLAIN QUERY PLAN " if bench.database.is_sqlite else "EXPLAIN "
            rows = conn.connection.cursor().execute(prefix + statement, parameters).fetchall()
            plans.append("\n".join(str(row) for row in rows))

    with bench.database.writing() as conn:
        sa.event.listen(conn, "before_cursor_execute", explain)
        ask(conn, acme)
    (plan,) = plans
    assert "ix_leases" in plan or "customer_id_seq" in plan or "autoindex" in plan, plan
    assert f"Seq Scan on {table}" not in plan
    assert f"SCAN {table} " not in plan


def _fill(bench: CreditBench, acme: str) -> None:
    grant_id = bench.rows(schema.credit_entries, acme)[0]["id"]
    lease = {"customer_id": acme, "grant_id": grant_id, "holder": "a", "amount_pico": 1, "used_pico": 1}
    times = {"taken_at": NOON, "valid_until": NOON, "closed_at": NOON}
    entry = {"customer_id": acme, "at": NOON, "kind": "burn", "grant_id": grant_id, "amount_micro": 0}
    entry |= {"amount_pico": 0, "left_micro": 0, "left_pico": 0, "currency": USD, "priority": 50, "grants": "[]"}
    with bench.database.writing() as conn:
        many = range(2, HISTORY)
        conn.execute(sa.insert(schema.leases), [{**lease, **times, "id": ids.uuid7()} for _ in many])
        conn.execute(sa.insert(schema.credit_entries), [{**entry, "id": ids.uuid7(), "seq": seq} for seq in many])
        if not bench.database.is_sqlite:  # Autovacuum does so.
            conn.execute(sa.text("ANALYZE"))
