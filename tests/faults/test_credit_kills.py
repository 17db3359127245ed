"""Credit and budgets through `kill -9` of workers, stopped workers and a killed PostgreSQL: then the money is counted.

What the clients were told is in logs that nobody kills; what the ledger says is read from its rows. Every answered
request is recorded once at its price, and all usage together is never more than the credit, or than a hard budget.
"""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from billing import clock
from billing.calendar import Per, period_of
from billing.clock import Instant
from billing.credit.budget import Span
from billing.ledger import accounts, budgets, schema
from billing.money import Pico
from tests.credit_bench import CreditBench, credit_bench
from tests.support.postgres import PostgresServer

WORKERS = 3
GRANT = 200_000
LIMIT_S = 90
LEAST = 310 + 10
"""What the dearest smallest request needs: with less than this a client may be refused."""


class Workers:
    """Worker processes on one ledger, and the logs of their clients."""

    def __init__(
        self, url: str, customer_id: str, home: Path, seed: int, limits: Sequence[Sequence[str]] = ((),)
    ) -> None:
        """`limits` are keys with the budgets that they fall under; workers use them in turn."""
        self.url, self.customer_id, self.home, self.limits = url, customer_id, home, limits
        self.random = random.Random(seed)
        self.started = 0
        self.running: list[subprocess.Popen[str]] = []

    def start(self) -> None:
        """Start one, and return when it runs."""
        self.started += 1
        log = self.home / f"client-{self.started}.log"
        command = [sys.executable, "-m", "tests.faults.credit_worker", self.url, self.customer_id, str(log)]
        limits = self.limits[self.started % len(self.limits)]
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *command, str(self.started), *limits],
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
            text=True,
        )
        self.running.append(process)
        assert process.stdout is not None
        with process.stdout as told:
            assert told.readline() == "ready\n"

    def pick(self) -> subprocess.Popen[str]:
        """One that runs, at random."""
        return self.random.choice(self.running)

    def kill(self) -> None:
        """`kill -9` one, and start another."""
        process = self.pick()
        process.kill()
        process.wait()
        self.running.remove(process)
        self.start()

    def pause(self, seconds: float) -> None:
        """SIGSTOP one for a while."""
        process = self.pick()
        process.send_signal(signal.SIGSTOP)
        time.sleep(seconds)
        process.send_signal(signal.SIGCONT)

    def finish(self) -> None:
        """Wait until all have used up what they can get."""
        for process in self.running:
            assert process.wait(LIMIT_S) == 0
        self.running = []

    def end(self) -> None:
        """Leave nothing behind."""
        for process in self.running:
            process.kill()
            process.wait()

    def answered(self) -> dict[str, int]:
        """What clients were told: the amount of each request."""
        lines = [line.split() for log in self.home.glob("client-*.log") for line in log.read_text().splitlines()]
        assert len({line[0] for line in lines}) == len(lines)
        return {line[0]: int(line[1]) for line in lines}


@pytest.fixture
def bench(database_url: str) -> Iterator[CreditBench]:
    """A bench on each engine, in the present."""
    with credit_bench(database_url) as made:
        made.at = clock.now()
        yield made


def prepaid(bench: CreditBench) -> str:
    """A customer with two credits."""
    customer_id = bench.customer()
    bench.grant(customer_id, GRANT, priority=1)
    bench.grant(customer_id, GRANT)
    return customer_id


def settled(bench: CreditBench, workers: Workers) -> None:
    """What the dead held is free again once their leases ran out; one more worker uses it up; then count."""
    bench.at = Instant(clock.now() + 10**12)
    bench.tidy(workers.customer_id)
    bench.audit(workers.customer_id)
    workers.start()
    workers.finish()
    bench.audit(workers.customer_id)
    events = bench.rows(schema.usage_events, workers.customer_id)
    assert not [event for event in events if event["adjusts"]], "no pause outlived a lease: nothing is written off"
    recorded = {event["id"]: event["amount_pico"] for event in events}
    told = workers.answered()
    assert {event_id: recorded.get(event_id) for event_id in told} == told
    balance, held, _ = bench.standing(workers.customer_id)
    assert held == 0
    assert balance == 2 * GRANT - sum(recorded.values())
    assert 0 <= balance < LEAST
    assert len(told) > 500, "the run was long enough to mean something"


def budgeted(bench: CreditBench, customer_id: str) -> tuple[tuple[str, ...], ...]:
    """Two keys with the budgets that they fall under: all of the customer's, and one of them has its own."""
    with bench.database.writing() as conn:
        keys = [
            accounts.create_key(conn, customer_id, name, None, 0, 0, 0, None, bench.at, "tests")[0].id
            for name in ("app", "other")
        ]
        for key_id, span, amount in ((None, Span.UNPAID, 2 * GRANT), (keys[0], Span.MONTH, GRANT // 4)):
            given = {"is_soft": False, "currency": "usd", "at": bench.at, "actor": "tests"}
            budgets.put(conn, customer_id, key_id, span, Pico(amount), **given)  # type: ignore[arg-type]
        applying = [budgets.applying(conn, customer_id, key_id) for key_id in keys]
    return tuple((key_id, *(each.id for each in found)) for key_id, found in zip(keys, applying, strict=True))


@pytest.mark.slow
def test_workers_that_are_killed_and_stopped_never_exceed_a_budget(bench: CreditBench, tmp_path: Path) -> None:
    """Who pays later, up to a limit, with a key that may use less; on both engines: the overshoot is 0."""
    seed = int.from_bytes(os.urandom(4))
    print(f"seed {seed}")
    customer_id = bench.customer(is_prepaid=False)
    limits = budgeted(bench, customer_id)
    assert [len(each) for each in limits] == [3, 2]
    workers = Workers(bench.database.url.render_as_string(hide_password=False), customer_id, tmp_path, seed, limits)
    try:
        for _ in range(WORKERS):
            workers.start()
        for _ in range(6):
            time.sleep(workers.random.random() / 4)
            workers.kill() if workers.random.random() < 0.7 else workers.pause(workers.random.random() / 4)
        workers.finish()
        bench.at = Instant(clock.now() + 10**12)
        bench.tidy(customer_id)
        for _ in limits:  # what the dead held is free again: one more worker for each key uses it up
            workers.start()
        workers.finish()
    finally:
        workers.end()
    bench.prove()
    events = bench.rows(schema.usage_events, customer_id)
    assert not [event for event in events if event["adjusts"]], "no pause outlived a lease: nothing is written off"
    recorded = {event["id"]: event["amount_pico"] for event in events}
    told = workers.answered()
    assert {event_id: recorded.get(event_id) for event_id in told} == told
    assert 2 * GRANT - LEAST < sum(recorded.values()) <= 2 * GRANT
    months: Counter[int] = Counter()
    for event in events:
        if event["api_key_id"] == limits[0][0]:
            months[period_of(Per.MONTH, event["window_start"], bench.zone).start] += event["amount_pico"]
    assert GRANT // 4 - LEAST < max(months.values()) <= GRANT // 4


def test_workers_that_are_killed_and_stopped_never_overspend(bench: CreditBench, tmp_path: Path) -> None:
    """On both engines; the seed is in the output of a failure."""
    seed = int.from_bytes(os.urandom(4))
    print(f"seed {seed}")
    workers = Workers(bench.database.url.render_as_string(hide_password=False), prepaid(bench), tmp_path, seed)
    try:
        for _ in range(WORKERS):
            workers.start()
        for _ in range(4):
            time.sleep(workers.random.random() / 4)
            workers.kill() if workers.random.random() < 0.7 else workers.pause(workers.random.random() / 4)
        workers.finish()
        settled(bench, workers)
    finally:
        workers.end()


@pytest.mark.slow
def test_a_killed_postgresql_loses_no_credit_and_gives_none_away(tmp_path: Path) -> None:
    """Workers go on with what they have leased, wait for what they have not, and record each request once."""
    seed = int.from_bytes(os.urandom(4))
    print(f"seed {seed}")
    with PostgresServer() as server, credit_bench(server.create_database()) as bench:
        bench.at = clock.now()
        url = bench.database.url.render_as_string(hide_password=False)
        workers = Workers(url, prepaid(bench), tmp_path, seed)
        try:
            for _ in range(WORKERS):
                workers.start()
            for _ in range(2):
                time.sleep(workers.random.random() / 2)
                server.kill9()
                time.sleep(workers.random.random() / 2)
                server.start()
                workers.kill()
            workers.finish()
            bench.database.engine.dispose()
            settled(bench, workers)
        finally:
            workers.end()
