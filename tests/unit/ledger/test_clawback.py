"""Credit that is taken back: once, whole, and into the red where it was spent; the same on both engines."""

from collections.abc import Iterator

import pytest

from billing.credit.account import Kind
from billing.credit.holds import Part
from billing.ledger import charges, clawback, credit, leases
from billing.ledger.credit import Entry
from billing.money import Pico
from tests.credit_bench import NOON, TESTS, USD, CreditBench, credit_bench


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


def pay(bench: CreditBench, customer_id: str, amount: int) -> str:
    """Credit that was paid for."""
    with bench.database.writing() as conn:
        return credit.grant(conn, customer_id, Pico(amount), USD, bench.at, TESTS, kind=Kind.TOPUP).id


def take_back(bench: CreditBench, customer_id: str, grant_id: str, amount: int) -> None:
    """A refund."""
    with bench.database.writing() as conn:
        clawback.take_back(conn, customer_id, grant_id, Pico(amount), Kind.REFUND, "refunded", bench.at, TESTS)


def last(bench: CreditBench, customer_id: str) -> Entry:
    """The last entry."""
    with bench.database.reading() as conn:
        return credit.entries(conn, customer_id, 1)[0]


def test_what_is_left_of_a_payment_is_taken_first(bench: CreditBench, acme: str) -> None:
    """Before credit that would have burnt earlier."""
    bench.grant(acme, 50)
    paid = pay(bench, acme, 100)
    take_back(bench, acme, paid, 70)
    assert bench.standing(acme) == (80, 0, 80)
    entry = last(bench, acme)
    assert (entry.kind, entry.grant_id, entry.amount, entry.left, entry.owed) == (Kind.REFUND, paid, -70, 30, 0)


def test_credit_that_is_spent_is_owed_and_nothing_is_served_until_it_is_covered(bench: CreditBench, acme: str) -> None:
    """100 paid, 90 spent, all of it refunded: −90; a payment of 100 leaves 10."""
    paid = pay(bench, acme, 100)
    lease = bench.lease(acme, 90)
    assert bench.use(acme, 90, (lease, 90)) == ()
    bench.close(acme, lease)
    take_back(bench, acme, paid, 100)
    assert bench.standing(acme) == (-90, 0, -90)
    assert bench.take(acme, 1).additions == ()
    bench.grant(acme, 40)
    assert bench.standing(acme) == (-50, 0, -50)
    assert bench.take(acme, 1).additions == ()
    pay(bench, acme, 60)
    assert bench.standing(acme) == (10, 0, 10)
    assert sum(part.amount for part in bench.take(acme, 10).additions) == 10


def test_what_running_requests_hold_stays_theirs_and_pays_when_it_comes_back(bench: CreditBench, acme: str) -> None:
    """The holder is asked for it at once."""
    paid = pay(bench, acme, 100)
    lease = bench.lease(acme, 60)
    take_back(bench, acme, paid, 100)
    assert bench.standing(acme) == (0, 60, -60)
    with bench.database.reading() as conn:
        assert leases.recalled(conn, "a") == [lease]
    assert bench.use(acme, 25, (lease, 25)) == ()
    with bench.database.writing() as conn:
        leases.give_back(conn, [Part(lease, Pico(35))], bench.at)
    assert bench.take(acme, 1).additions == ()
    assert bench.standing(acme) == (-25, 0, -25)
    bench.close(acme, lease)
    assert bench.standing(acme) == (-25, 0, -25)


def test_other_credit_pays_for_what_a_payment_has_not_left(bench: CreditBench, acme: str) -> None:
    paid = pay(bench, acme, 10)
    lease = bench.lease(acme, 10)
    assert bench.use(acme, 10, (lease, 10)) == ()
    bench.close(acme, lease)
    bench.grant(acme, 6)
    take_back(bench, acme, paid, 10)
    assert bench.standing(acme) == (-4, 0, -4)


def test_the_balance_of_a_past_instant_knows_what_was_owed_then(bench: CreditBench, acme: str) -> None:
    paid = pay(bench, acme, 10)
    lease = bench.lease(acme, 10)
    assert bench.use(acme, 10, (lease, 10)) == ()
    bench.close(acme, lease)
    take_back(bench, acme, paid, 7)
    owed_at = bench.at
    bench.wait(60)
    pay(bench, acme, 100)
    with bench.database.reading() as conn:
        assert charges.balance_at(conn, acme, owed_at) == -7
        assert charges.balance_at(conn, acme, bench.at) == 93
        assert owed_at == NOON
