"""I7 for hard budgets: no day, month or key uses more than it may, by any interleaving (see `test_credit.py`).

Two workers on one ledger, a customer with a budget of the day and of the month, and a key with one of its own.
Midnights pass (in a zone with daylight saving) while requests run; workers die, stall and lose answers; what they
settled comes late, even in the next month, or twice. After every step the events alone have to prove that nothing was
exceeded.
"""

from collections import Counter
from collections.abc import Iterator
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, assume, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from billing.calendar import Per, period_of
from billing.clock import HOUR_US, Instant, parse_instant
from billing.credit.budget import Span, budget_id
from billing.credit.holds import Need
from billing.ledger import accounts, budgets, leases, schema
from billing.ledger.charges import Cap, Charge
from billing.money import Pico
from proxy.admit.purse import Hold, Moment, Purse
from tests.credit_bench import TESTS, USD, CreditBench, credit_bench, new_holder
from tests.support.examples import examples

WORKERS = 2
ZONE = ZoneInfo("Europe/Berlin")
START = parse_instant("2026-03-29T00:30:00+01:00", Instant(0))  # an hour and a half later a day of 23 hours goes on
DEAD_S = (leases.LEASE_US + leases.GRACE_US) // 1_000_000 + 1
UNTIL_MIDNIGHT = 24 * 3_600

workers = st.integers(0, WORKERS - 1)
amounts = st.integers(0, 1_500)


class Running:
    """An admitted request: its key, and its holds, one of each budget that it falls under."""

    def __init__(self, key_id: str, holds: dict[str, Hold]) -> None:
        self.key_id, self.holds = key_id, holds


class Worker:
    """A gateway process: its purses, what runs, and what it settled but did not commit yet."""

    def __init__(self) -> None:
        self.holder = new_holder()
        self.purses: dict[str, Purse] = {}
        self.running: list[Running] = []
        self.queue: list[Charge] = []

    def purse(self, named: str) -> Purse:
        """The purse of a budget."""
        return self.purses.setdefault(named, Purse(named))


class Budgets(RuleBasedStateMachine):
    """A postpaid customer with budgets, two workers, and everything that may happen."""

    bench: CreditBench

    @initialize(day=amounts, month=amounts, of_key=amounts)
    def begin(self, day: int, month: int, of_key: int) -> None:
        """The budgets are set."""
        bench = self.bench
        bench.at, bench.zone, self.ns = START, ZONE, 0
        self.acme = bench.customer(new_holder(), is_prepaid=False)
        with bench.database.writing() as conn:
            self.keys = [
                accounts.create_key(conn, self.acme, name, None, 0, 0, 0, None, bench.at, TESTS)[0].id
                for name in ("app", "other")
            ]
        self.workers = [Worker() for _ in range(WORKERS)]
        self.spool: list[Charge] = []
        self.most: Counter[str] = Counter()
        self.was_lowered = False
        self.spans = {
            budget_id(self.acme, Span.MONTH): (Per.MONTH, None),
            budget_id(self.acme, Span.DAY): (Per.DAY, None),
            budget_id(self.acme, Span.DAY, self.keys[0]): (Per.DAY, self.keys[0]),
        }
        for named, amount in zip(self.spans, (month, day, of_key), strict=True):
            self._put(named, amount)

    @property
    def now(self) -> Moment:
        return Moment(self.bench.at, self.ns)

    def _put(self, named: str, amount: int) -> None:
        per, key_id = self.spans[named]
        with self.bench.database.writing() as conn:
            given = {"is_soft": False, "currency": USD, "at": self.bench.at, "actor": TESTS}
            budgets.put(conn, self.acme, key_id, Span(per.value), Pico(amount), **given)  # type: ignore[arg-type]
        self.was_lowered |= amount < self.most[named]
        self.most[named] = max(self.most[named], amount)

    @rule(which=st.integers(0, 2), amount=amounts)
    def change(self, which: int, amount: int) -> None:
        """The admin raises a budget, or lowers it: to what was used already, it may be."""
        self._put(list(self.spans)[which], amount)

    @rule(
        worker=workers,
        key=st.integers(0, 1),
        fixed=st.integers(0, 60),
        per_token=st.integers(0, 20),
        tokens=st.integers(1, 50),
        wished=st.integers(0, 500),
        loses_answer=st.sampled_from([False] * 9 + [True]),
    )
    def admit(
        self, worker: int, key: int, fixed: int, per_token: int, tokens: int, wished: int, loses_answer: bool = False
    ) -> None:
        """A request comes: under a hold of each budget that it falls under, clamped to the least, or not at all."""
        here, need = self.workers[worker], Need(Pico(fixed), Pico(per_token), tokens)
        holds: dict[str, Hold] = {}
        for named, (_, key_id) in self.spans.items():
            if key_id in (None, self.keys[key]):
                hold = self._held(here, named, need, wished, loses_answer=loses_answer)
                if hold is None:
                    for before, given in holds.items():
                        here.purse(before).void(given, self.now)
                    return
                if hold.tokens < need.tokens:
                    need = need._replace(tokens=hold.tokens)
                    for before, given in holds.items():
                        here.purse(before).shrink(given, need.most)
                holds[named] = hold
        here.running.append(Running(self.keys[key], holds))

    def _held(self, here: Worker, named: str, need: Need, wished: int, *, loses_answer: bool) -> Hold | None:
        purse = here.purse(named)
        hold = purse.hold(need, self.now)
        if hold is None:
            missing = max(0, need.most - purse.free(self.now))
            taken = self.bench.take(named, missing, holder=here.holder, wished=missing + wished)
            if loses_answer:
                return None
            purse.add(taken.additions, self.now)
            hold = purse.hold(need, self.now) or purse.hold_clamped(need, self.now)
        return hold

    @rule(
        worker=workers, which=st.integers(0, 10), permille=st.integers(0, 1_000), over=st.sampled_from([0] * 8 + [70])
    )
    def finish(self, worker: int, which: int, permille: int, over: int) -> None:
        """A request ends, perhaps on another day; what it cost (seldom more than was held) waits for a commit."""
        here = self.workers[worker]
        assume(here.running)
        ended = here.running.pop(which % len(here.running))
        amount = min(hold.amount for hold in ended.holds.values()) * permille // 1_000 + over
        caps = tuple(
            Cap(named, here.purse(named).settle(hold, amount, self.now)) for named, hold in ended.holds.items()
        )
        hour = Instant(self.bench.at - self.bench.at % HOUR_US)
        event = self.bench.event(self.acme, amount, api_key_id=ended.key_id, window_start=hour)
        here.queue.append(Charge(event, None, False, caps, ZONE.key))

    @rule(worker=workers, which=st.integers(0, 10))
    def refuse(self, worker: int, which: int) -> None:
        """A request fails before it costs anything."""
        here = self.workers[worker]
        assume(here.running)
        for named, hold in here.running.pop(which % len(here.running)).holds.items():
            here.purse(named).void(hold, self.now)

    @rule(worker=workers, loses_answer=st.booleans())
    def commit(self, worker: int, loses_answer: bool = False) -> None:
        """What waits is recorded in one commit; where its answer is lost, it is tried again and finds itself there."""
        here = self.workers[worker]
        self._record(here.queue, worker)
        if not loses_answer:
            here.queue = []

    @rule(worker=workers)
    def delay(self, worker: int) -> None:
        """The database is away: what waits goes to a spool, and comes whenever it likes."""
        here = self.workers[worker]
        self.spool += here.queue
        here.queue = []

    @rule()
    def drain(self) -> None:
        """The spool comes."""
        self._record(self.spool, 63)
        self.spool = []

    def _record(self, queue: list[Charge], shard: int) -> None:
        recorded = {row["id"] for row in self.bench.rows(schema.usage_events, self.acme)}
        new = [charge for charge in queue if charge.event.id not in recorded]
        open_ = {row["id"] for row in self.bench.rows(schema.leases, self.acme) if row["closed_at"] is None}
        is_covered = all(
            sum(part.amount for part in cap.parts) == charge.event.amount_pico
            and all(part.lease_id in open_ for part in cap.parts)
            for charge in new
            for cap in charge.caps
        )
        today = self._period(Per.DAY, self.bench.at)
        is_of_now = all(self._period(Per.DAY, charge.event.window_start) == today for charge in new)
        losses = self.bench.record(*new, shard=shard) if new else ()
        if not self.was_lowered and is_of_now:
            assert not (is_covered and losses), "what was held on an open lease is never lost"

    def _period(self, per: Per, at: int) -> int:
        return period_of(per, at, ZONE).start

    @rule(seconds=st.integers(1, 130) | st.integers(1, 2 * UNTIL_MIDNIGHT))
    def wait(self, seconds: int) -> None:
        """Time passes for everybody: a while, or over a midnight or two, into the next month."""
        self.ns += seconds * 1_000_000_000
        self.bench.wait(seconds)

    @rule(seconds=st.integers(-4_000, 4_000))
    def step_clock(self, seconds: int) -> None:
        """Somebody sets the clock; the monotonic one does not care."""
        self.bench.wait(seconds)

    @rule(worker=workers)
    def renew(self, worker: int) -> None:
        """A worker shows that it lives, and learns what was closed."""
        here, since_ns = self.workers[worker], self.ns
        with self.bench.database.writing() as conn:
            found = leases.renew(conn, here.holder, self.bench.at)
        for purse in here.purses.values():
            purse.renewed(found, since_ns)

    @rule(worker=workers)
    def answer_recalls(self, worker: int) -> None:
        """A worker gives back what others need, or what a lower budget does not allow any more."""
        here = self.workers[worker]
        with self.bench.database.writing() as conn:
            recalled = leases.recalled(conn, here.holder)
            for purse in here.purses.values():
                leases.give_back(conn, purse.give_back(recalled), self.bench.at)

    @rule(worker=workers)
    def retire(self, worker: int) -> None:
        """A worker closes what it does not use any more, though perhaps not everything is committed."""
        for purse in self.workers[worker].purses.values():
            closed, returned = purse.retire(self.now)
            self.bench.close(self.acme, *closed)
            with self.bench.database.writing() as conn:
                leases.give_back(conn, returned, self.bench.at)

    @rule()
    def sweep(self) -> None:
        """The background job."""
        self.bench.tidy(self.acme)

    @rule(worker=workers, tokens=st.integers(1, 2_000), permille=st.integers(500, 1_000))
    def stall(self, worker: int, tokens: int, permille: int) -> None:
        """A worker stands still for longer than its leases last; the other one uses what there is; then it goes on."""
        self.wait(DEAD_S)
        self.sweep()
        other = (worker + 1) % WORKERS
        self.admit(other, key=0, fixed=0, per_token=1, tokens=tokens, wished=0)
        for each in (other, worker):
            while self.workers[each].running:
                self.finish(each, 0, permille, 0)
            self.commit(each)

    @rule(worker=workers, has_spool=st.booleans())
    def kill(self, worker: int, has_spool: bool) -> None:
        """`kill -9`: a new process knows nothing; what the old one had settled is on a disk, or lost."""
        if has_spool:
            self.spool += self.workers[worker].queue
        self.workers[worker] = Worker()

    def _used(self) -> Counter[tuple[str, int]]:
        """What each budget's periods have used, by the events alone, what was written off subtracted."""
        used: Counter[tuple[str, int]] = Counter()
        for row in self.bench.rows(schema.usage_events, self.acme):
            for named, (per, key_id) in self.spans.items():
                if key_id in (None, row["api_key_id"]):
                    used[named, self._period(per, row["window_start"])] += row["amount_pico"]
        return used

    @invariant()
    def nothing_is_exceeded(self) -> None:
        """By the events alone; and no worker uses more than it leased."""
        if not hasattr(self, "acme"):
            return
        for (named, start), amount in self._used().items():
            assert 0 <= amount <= self.most[named], f"{named} from {start}: {amount} of {self.most[named]}"
        leased = {row["id"]: row["amount_pico"] for row in self.bench.rows(schema.leases, self.acme)}
        for worker in self.workers:
            for piece in (piece for purse in worker.purses.values() for piece in purse.slices):
                assert piece.held >= 0
                assert piece.held + piece.posted <= min(piece.amount, leased[piece.lease_id])

    def teardown(self) -> None:
        """When all is quiet, whatever was not used is there again, to the unit."""
        if not hasattr(self, "acme"):
            return
        for worker in range(WORKERS):
            self._record(self.workers[worker].queue, worker)
        self.drain()
        self.nothing_is_exceeded()
        self.bench.prove()
        at = self.bench.at
        taken = [row["taken_at"] for row in self.bench.rows(schema.leases, self.acme)]
        self.bench.at = Instant(max(self.bench.at, *taken, 0) + 10**12)
        self.bench.tidy(self.acme)
        used = self._used()
        with self.bench.database.reading() as conn:
            for named, (per, _) in self.spans.items():
                found = budgets.state(conn, named, ZONE, at)
                assert found is not None
                assert (found.used, found.held) == (used[named, self._period(per, at)], 0)


@pytest.fixture
def bench(database_url: str) -> Iterator[CreditBench]:
    """A bench on each engine."""
    with credit_bench(database_url) as made:
        yield made


def _run(bench: CreditBench, count: int, steps: int) -> None:
    machine = type("BudgetsOnThisBench", (Budgets,), {"bench": bench})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=count,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        ),
    )


def test_a_hard_budget_is_never_exceeded_through_everything(bench: CreditBench) -> None:
    """A few hundred steps."""
    _run(bench, count=examples(6, 30), steps=25)


@pytest.mark.slow
def test_a_hard_budget_is_never_exceeded_through_very_much(bench: CreditBench) -> None:
    """Many thousand steps."""
    _run(bench, count=examples(60, 300), steps=50)
