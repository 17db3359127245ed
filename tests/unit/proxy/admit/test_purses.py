"""Workers that share prepaid credit: who waits, who is clamped, who is refused, and what is given back.

Each test runs on both engines, with the product's threads and an event loop. Workers are `Purses` on one database.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from billing import clock
from billing.credit.holds import Need, Part
from billing.ledger import schema
from billing.ledger.charges import Charge
from billing.ledger.database import Database
from billing.money import Pico
from proxy.admit.purse import Hold
from proxy.admit.purses import AHEAD_MIN, Answer, Pace, Purses, Short, Unavailable
from tests.credit_bench import USD, CreditBench, credit_bench

LIMIT_S = 60
QUICK = Pace(tick_s=0.05, renew_ticks=2, poll_s=0.05, retry_s=0.05)


@pytest.fixture
def bench(database_url: str) -> Iterator[CreditBench]:
    """A bench on each engine, in the present."""
    with credit_bench(database_url) as made:
        made.at = clock.now()
        yield made


@pytest.fixture
def acme(bench: CreditBench) -> Iterator[str]:
    """A prepaid customer, whose rows agree when the test is over."""
    customer_id = bench.customer()
    yield customer_id
    bench.audit(customer_id)


Time = Callable[[], int]


@asynccontextmanager
async def worker(
    database: Database, pace: Pace = QUICK, monotonic_ns: Time = time.monotonic_ns
) -> AsyncIterator[Purses]:
    """A worker that leases, until the block ends."""
    purses = Purses(database, asyncio.get_running_loop(), USD, ZoneInfo("UTC"), pace=pace, monotonic_ns=monotonic_ns)
    purses.start()
    try:
        yield purses
    finally:
        await purses.close()


def need(fixed: int, per_token: int = 0, tokens: int = 1) -> Need:
    """A request."""
    return Need(Pico(fixed), Pico(per_token), tokens)


async def ask(purses: Purses, customer_id: str, wanted: Need) -> Answer:
    """Admit a request, now or later."""
    later: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
    now = purses.hold(customer_id, wanted, later.set_result)
    return now if now is not None else await asyncio.wait_for(later, LIMIT_S)


async def held(purses: Purses, customer_id: str, wanted: Need) -> Hold:
    """Admit a request that must be possible."""
    answer = await ask(purses, customer_id, wanted)
    assert isinstance(answer, Hold), answer
    return answer


async def until(probe: Callable[[], bool], what: str) -> None:
    """Wait for something that other threads do."""
    deadline = time.monotonic() + LIMIT_S
    while not await asyncio.to_thread(probe):
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.01)


def run(scenario: Coroutine[Any, Any, None]) -> None:
    """Run a scenario to its end."""
    asyncio.run(scenario)


def test_the_first_request_waits_for_a_lease_and_the_next_ones_do_not(bench: CreditBench, acme: str) -> None:
    bench.grant(acme, 1_000_000)

    async def scenario() -> None:
        async with worker(bench.database) as purses:
            await held(purses, acme, need(100))
            for _ in range(AHEAD_MIN - 10):
                assert isinstance(purses.hold(acme, need(100), lambda _: None), Hold)

    run(scenario())
    assert bench.standing(acme) == (1_000_000, 0, 1_000_000)


def test_what_requests_cost_is_recorded_on_the_lease_and_burns_at_the_end(bench: CreditBench, acme: str) -> None:
    bench.grant(acme, 1_000)

    async def scenario() -> None:
        async with worker(bench.database) as purses:
            hold = await held(purses, acme, need(100))
            parts = purses.settle(acme, hold, 30)
            bench.record(Charge(bench.event(acme, 30), parts))
            purses.void(acme, await held(purses, acme, need(100)))

    run(scenario())
    assert bench.standing(acme) == (970, 0, 970)
    assert bench.history(acme) == [("grant", 1_000, 1_000), ("burn", -30, 970)]


def test_requests_that_come_together_are_admitted_as_far_as_the_credit_goes(bench: CreditBench, acme: str) -> None:
    """In the order in which they came: ten are covered, one is clamped, the others are refused with the reason."""
    bench.grant(acme, 1_060)

    async def scenario() -> None:
        async with worker(bench.database) as purses:
            answers = await asyncio.gather(*(ask(purses, acme, need(50, 10, 5)) for _ in range(20)))
            kinds = [answer.tokens if isinstance(answer, Hold) else answer for answer in answers]
            assert kinds[:10] == [5] * 10
            assert kinds[10] == 1
            assert all(isinstance(kind, Short) for kind in kinds[11:])
            short = answers[-1]
            assert isinstance(short, Short)
            assert (short.standing.balance, short.available, short.need.least) == (1_060, 0, 60)

    run(scenario())


def test_who_has_no_credit_is_refused_until_there_is_some(bench: CreditBench, acme: str) -> None:
    """The refusal is remembered for half a second, so that a customer without credit does not busy the ledger."""

    async def scenario() -> None:
        async with worker(bench.database) as purses:
            assert isinstance(await ask(purses, acme, need(1)), Short)
            assert isinstance(purses.hold(acme, need(1), lambda _: None), Short)
            bench.grant(acme, 5)
            while isinstance(answer := await ask(purses, acme, need(1)), Short):
                await asyncio.sleep(0.01)
            assert isinstance(answer, Hold)

    run(scenario())


def test_a_worker_gets_what_another_one_does_not_use(bench: CreditBench, acme: str) -> None:
    """And not what the other's requests hold; what nobody has is not waited for."""
    bench.grant(acme, 100)

    async def scenario() -> None:
        patient = worker(bench.database, monotonic_ns=lambda: time.monotonic_ns() // 20)
        async with worker(bench.database) as one, patient as two:
            running, ended = await held(one, acme, need(40)), await held(one, acme, need(60))
            one.void(acme, ended)
            await held(two, acme, need(60))
            short = await ask(two, acme, need(1))
            assert isinstance(short, Short)
            assert (short.standing.balance, short.available) == (100, 0)
            one.settle(acme, running, 0)

    run(scenario())


def test_two_workers_use_every_unit_and_not_one_more(bench: CreditBench, acme: str) -> None:
    """Many requests at once in both, until nothing is left."""
    bench.grant(acme, 5_000)
    bench.grant(acme, 3_333, priority=1)

    async def client(purses: Purses, shard: int) -> None:
        while isinstance(answer := await ask(purses, acme, need(3, 1, 40)), Hold):
            await asyncio.sleep(0)
            amount = 3 + answer.tokens // 2
            parts = purses.settle(acme, answer, amount)
            assert sum(part.amount for part in parts) == amount
            charge = Charge(bench.event(acme, amount), parts)
            losses = await asyncio.to_thread(bench.record, charge, shard=shard)
            assert losses == ()

    async def scenario() -> None:
        async with worker(bench.database) as one, worker(bench.database) as two:
            await asyncio.gather(*(client((one, two)[n % 2], n % 2) for n in range(8)))
            while bench.standing(acme)[0] >= 4:  # what those who came last held and did not use
                await client(two, 1)

    run(scenario())
    balance, waiting, _ = bench.standing(acme)
    assert (balance < 4, waiting) == (True, 0)
    assert bench.spent(acme) == 8_333 - balance


def test_an_idle_lease_is_given_back(bench: CreditBench, acme: str) -> None:
    bench.grant(acme, 100)
    ahead_ns = 0

    async def scenario() -> None:
        nonlocal ahead_ns
        async with worker(bench.database, monotonic_ns=lambda: time.monotonic_ns() + ahead_ns) as purses:
            purses.void(acme, await held(purses, acme, need(100)))
            ahead_ns = 11 * 10**9
            await until(lambda: bench.standing(acme)[2] == 100, "the lease is closed")

    run(scenario())


def test_leases_are_renewed_and_one_that_nobody_knows_is_closed(bench: CreditBench, acme: str) -> None:
    """The answer to its taking was lost: without this it would be renewed for ever."""
    bench.grant(acme, 100)

    async def scenario() -> None:
        async with worker(bench.database) as purses:
            await held(purses, acme, need(10))
            (before,) = bench.rows(schema.leases, acme)
            lost = bench.lease(bench_other, 7, holder=purses.holder)
            await until(lambda: bench.rows(schema.leases, acme)[0]["valid_until"] > before["valid_until"], "renewed")
            await until(lambda: bench.rows(schema.leases, bench_other)[0]["closed_at"] is not None, "closed")
            assert bench.rows(schema.leases, bench_other)[0]["id"] == lost
            assert bench.rows(schema.leases, acme)[0]["closed_at"] is None

    bench_other = bench.customer("zeta")
    bench.grant(bench_other, 100)
    run(scenario())


def test_a_lease_that_was_closed_behind_a_workers_back_is_not_used_any_more(bench: CreditBench, acme: str) -> None:
    """A worker learns it when it renews; what it had admitted before is paid from what is free."""
    bench.grant(acme, 100)

    async def scenario() -> None:
        async with worker(bench.database) as purses:
            hold = await held(purses, acme, need(100))
            bench.close(acme, bench.rows(schema.leases, acme)[0]["id"])
            parts = purses.settle(acme, hold, 40)
            assert bench.record(Charge(bench.event(acme, 40), parts)) == ()
            await until(lambda: not purses._accounts, "the purse is empty")
            assert (await held(purses, acme, need(60))).amount == 60

    run(scenario())


def test_without_the_database_nothing_is_admitted_that_is_not_leased(tmp_path: Any) -> None:
    """And nobody waits longer than the database takes to say no."""
    database = Database("postgresql+psycopg://nobody@127.0.0.1:1/none")

    async def scenario() -> None:
        async with worker(database) as purses:
            assert isinstance(await ask(purses, "cust_acme", need(10)), Unavailable)

    run(scenario())
    database.close()


def test_what_is_leased_goes_on_while_the_database_is_away(bench: CreditBench, acme: str) -> None:
    """And what is not is told to come again, not that there is no credit."""
    bench.grant(acme, 1_000_000)

    async def scenario() -> None:
        async with worker(bench.database) as purses:
            await held(purses, acme, need(100))
            present, purses._database = purses._database, Database("postgresql+psycopg://nobody@127.0.0.1:1/none")
            for _ in range(AHEAD_MIN - 10):
                await held(purses, acme, need(100))
            assert isinstance(await ask(purses, acme, need(10**6)), Unavailable)
            purses._database = present

    run(scenario())


def test_a_parts_list_fits_what_the_ledger_takes(bench: CreditBench, acme: str) -> None:
    """Two credits, one request on both: a part for each lease, in burn order."""
    bench.grant(acme, 10, priority=1)
    bench.grant(acme, 10)

    async def scenario() -> None:
        async with worker(bench.database) as purses:
            hold = await held(purses, acme, need(15))
            parts = purses.settle(acme, hold, 15)
            assert [part.amount for part in parts] == [10, 5]
            assert all(isinstance(part, Part) for part in parts)
            bench.record(Charge(bench.event(acme, 15), parts))

    run(scenario())
    assert bench.standing(acme) == (5, 0, 5)
