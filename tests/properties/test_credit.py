"""I7 under any interleaving of workers, crashes, stalls, lost answers, late commits, expiries and clock steps.

Workers are purses, as the gateway uses them, on one ledger. A crash forgets a purse and what it held; a stall is a
worker that acts on what it knew long ago; a late commit is an event that reaches the ledger whenever it likes (from a
spool), or never. After every step the ledger's rows alone have to prove that nothing was overspent.
"""

from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from billing.clock import Instant
from billing.credit import account
from billing.credit.account import Grant, Kind
from billing.credit.holds import Need, Part, affordable_tokens, spread, worst_case
from billing.ledger import credit, leases, schema
from billing.ledger.charges import Charge
from billing.money import Pico, PicoPerToken
from billing.pricing.quote import UnitPrices
from billing.usage import Usage
from proxy.admit.purse import Hold, Moment, Purse
from tests.credit_bench import TESTS, CreditBench, credit_bench, new_holder
from tests.support.examples import examples

WORKERS = 2
DEAD_S = (leases.LEASE_US + leases.GRACE_US) // 1_000_000 + 1

prices = st.integers(0, 10**6)
counts = st.integers(0, 10**5)


@st.composite
def unit_prices(draw: st.DrawFn) -> UnitPrices:
    """Any prices, parts dearer than their wholes too."""
    whole, cached, output, reasoning, request, image, audio = (draw(prices) for _ in range(7))
    return UnitPrices(
        input=PicoPerToken(whole),
        cached_input=PicoPerToken(cached),
        output=PicoPerToken(output),
        reasoning=PicoPerToken(reasoning),
        request=Pico(request),
        image_input=PicoPerToken(image),
        audio_input=PicoPerToken(audio),
    )


@given(unit_prices(), counts, st.integers(0, 10**4), st.integers(1, 8), st.data())
def test_a_request_never_costs_more_than_its_worst_case(
    price: UnitPrices, prompt: int, tokens: int, outputs: int, data: st.DataObject
) -> None:
    need = worst_case(price, prompt_tokens_max=prompt, tokens=tokens, outputs=outputs)
    input_tokens = data.draw(st.integers(0, prompt))
    output_tokens = data.draw(st.integers(0, need.tokens * outputs))
    cached, reasoning = data.draw(st.integers(0, input_tokens)), data.draw(st.integers(0, output_tokens))
    image = data.draw(st.integers(0, input_tokens - cached))
    audio = data.draw(st.integers(0, input_tokens - cached - image))
    assert price.charge(Usage(input_tokens, output_tokens, cached, reasoning, image, audio)) <= need.most


@given(unit_prices(), counts, st.integers(0, 10**4), st.integers(1, 8), st.integers(0, 10**12))
def test_what_is_affordable_is_affordable_and_not_one_token_less(
    price: UnitPrices, prompt: int, tokens: int, outputs: int, available: int
) -> None:
    need = worst_case(price, prompt_tokens_max=prompt, tokens=tokens, outputs=outputs)
    got = affordable_tokens(need, available)
    assert 0 <= got <= need.tokens
    assert got == 0 or need.amount(got) <= available
    assert got == need.tokens or need.amount(got + 1) > available


parts = st.lists(st.tuples(st.text("abc", min_size=1, max_size=3), st.integers(0, 100)), unique_by=lambda p: p[0])


@given(st.integers(0, 300), parts)
def test_an_amount_is_spread_without_losing_a_unit(amount: int, given_parts: list[tuple[str, int]]) -> None:
    taken, rest = spread(amount, [Part(lease, Pico(share)) for lease, share in given_parts])
    assert sum(part.amount for part in taken) + rest == amount
    room = dict(given_parts)
    assert all(0 < part.amount <= room[part.lease_id] for part in taken)
    assert rest == 0 or sum(part.amount for part in taken) == sum(room.values())


@given(st.integers(0, 10**9), st.integers(0, 10**9), st.integers(0, 10**9))
def test_a_lease_is_as_large_as_needed_and_leaves_the_others_their_share(available: int, need: int, more: int) -> None:
    size = account.lease_size(available, need, need + more)
    assert 0 <= size <= available
    assert size >= min(need, available)
    assert size <= max(need, available // account.LEASE_SHARES)


grants = st.builds(
    Grant,
    id=st.uuids().map(str),
    kind=st.sampled_from([Kind.GRANT, Kind.TOPUP]),
    priority=st.integers(0, 100),
    expires_at=st.none() | st.integers(0, 100).map(Instant),
    granted_at=st.integers(0, 100).map(Instant),
    left=st.integers(1, 10**24).map(Pico),
)


@given(st.lists(grants, unique_by=lambda grant: grant.id, max_size=5), st.integers(0, 100), st.integers(0, 10**25))
def test_what_is_usable_and_what_lapses_are_all_that_is_left(made: list[Grant], at: int, size: int) -> None:
    """Each grant is one or the other, the text of an entry keeps them, and a lease takes the first ones first."""
    ordered = account.ordered(made)
    assert account.from_text(account.to_text(ordered)) == ordered
    usable, lapsed = account.usable(ordered, {}, at), account.lapsed(ordered, {}, at)
    assert sum(amount for _, amount in usable) + sum(amount for _, amount in lapsed) == sum(g.left for g in made)
    cut = account.slices(usable, size)
    assert sum(amount for _, amount in cut) == min(size, sum(amount for _, amount in usable))
    assert cut[:-1] == usable[: max(0, len(cut) - 1)]


class Running:
    """An admitted request."""

    def __init__(self, need: Need, hold: Hold) -> None:
        self.need, self.hold = need, hold


class Worker:
    """A gateway process: its purse, what runs, and what it settled but did not commit yet."""

    def __init__(self) -> None:
        self.holder = new_holder()
        self.purse = Purse("acme")
        self.running: list[Running] = []
        self.queue: list[Charge] = []


workers = st.integers(0, WORKERS - 1)


class Credit(RuleBasedStateMachine):
    """A prepaid customer, two workers, and everything that may happen."""

    bench: CreditBench

    @initialize(amount=st.integers(1, 2_000))
    def begin(self, amount: int) -> None:
        """There is some credit."""
        self.ns = 0
        self.acme = self.bench.customer(new_holder())
        self.workers = [Worker() for _ in range(WORKERS)]
        self.spool: list[Charge] = []
        self.bench.grant(self.acme, amount)

    @property
    def now(self) -> Moment:
        return Moment(self.bench.at, self.ns)

    @rule(amount=st.integers(1, 1_000), lasts=st.none() | st.integers(1, 200), first=st.booleans())
    def grant(self, amount: int, lasts: int | None, first: bool) -> None:
        """More credit, for ever or not."""
        expires_at = None if lasts is None else Instant(self.bench.at + lasts * 1_000_000)
        self.bench.grant(self.acme, amount, expires_at=expires_at, priority=0 if first else 50)

    @rule(nth=st.integers(0, 3))
    def end_grant(self, nth: int) -> None:
        """The admin takes back what is left of a credit."""
        given_ = [row["id"] for row in self.bench.rows(schema.credit_entries, self.acme) if row["kind"] == "grant"]
        if nth < len(given_):
            with self.bench.database.writing() as conn:
                credit.end_grant(conn, given_[nth], Kind.REVERSAL, "test", self.bench.at, TESTS)

    @rule(
        worker=workers,
        fixed=st.integers(0, 60),
        per_token=st.integers(0, 20),
        tokens=st.integers(1, 50),
        wished=st.integers(0, 500),
        loses_answer=st.sampled_from([False] * 9 + [True]),
    )
    def admit(
        self, worker: int, fixed: int, per_token: int, tokens: int, wished: int, loses_answer: bool = False
    ) -> None:
        """A request comes: from the leases at hand, or with a new one, clamped perhaps, or not at all."""
        here, need = self.workers[worker], Need(Pico(fixed), Pico(per_token), tokens)
        hold = here.purse.hold(need, self.now)
        if hold is None:
            missing = max(0, need.most - here.purse.free(self.now))
            taken = self.bench.take(self.acme, missing, holder=here.holder, wished=missing + wished)
            if loses_answer:
                return
            here.purse.add(taken.additions, self.now)
            hold = here.purse.hold(need, self.now) or here.purse.hold_clamped(need, self.now)
        if hold is not None:
            assert hold.amount == need.amount(hold.tokens)
            here.running.append(Running(need, hold))

    @rule(
        worker=workers, which=st.integers(0, 10), permille=st.integers(0, 1_000), over=st.sampled_from([0] * 8 + [70])
    )
    def finish(self, worker: int, which: int, permille: int, over: int) -> None:
        """A request ends; what it cost (seldom more than its worst case) waits for a commit."""
        here = self.workers[worker]
        assume(here.running)
        ended = here.running.pop(which % len(here.running))
        amount = ended.hold.amount * permille // 1_000 + over
        paid = here.purse.settle(ended.hold, amount, self.now)
        here.queue.append(Charge(self.bench.event(self.acme, amount), paid))

    @rule(worker=workers, which=st.integers(0, 10))
    def refuse(self, worker: int, which: int) -> None:
        """A request fails before it costs anything."""
        here = self.workers[worker]
        assume(here.running)
        here.purse.void(here.running.pop(which % len(here.running)).hold, self.now)

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
            sum(part.amount for part in charge.all_parts) == charge.event.amount_pico
            and all(part.lease_id in open_ for part in charge.all_parts)
            for charge in new
        )
        losses = self.bench.record(*new, shard=shard) if new else ()
        assert not (is_covered and losses), "what was held on an open lease is never lost"
        free = self.bench.standing(self.acme)[2]
        assert not (losses and free), "nothing is lost while there is credit that nobody holds"

    @rule(seconds=st.integers(1, 130))
    def wait(self, seconds: int) -> None:
        """Time passes for everybody."""
        self.ns += seconds * 1_000_000_000
        self.bench.wait(seconds)

    @rule(seconds=st.integers(-4_000, 4_000))
    def step_clock(self, seconds: int) -> None:
        """Somebody sets the clock; the monotonic one does not care."""
        self.bench.wait(seconds)

    @rule(worker=workers, tokens=st.integers(1, 5_000), permille=st.integers(0, 1_000), goes_on=st.booleans())
    def stall(self, worker: int, tokens: int, permille: int, goes_on: bool) -> None:
        """A worker stands still for longer than its leases last, while the other one uses up much of what there is."""
        self.wait(DEAD_S)
        self.sweep()
        other = (worker + 1) % WORKERS
        self.admit(other, fixed=0, per_token=1, tokens=tokens, wished=0)
        for each in (other, worker) if goes_on else (other,):
            while self.workers[each].running:
                self.finish(each, 0, permille, 0)
            self.commit(each)

    @rule()
    def pass_an_expiry(self) -> None:
        """The next credit that expires does, and somebody notices."""
        with self.bench.database.reading() as conn:
            times = [grant.expires_at for grant in credit.read(conn, self.acme).grants if grant.expires_at is not None]
        coming = [at for at in times if at > self.bench.at]
        assume(coming)
        self.wait(-(-(min(coming) - self.bench.at) // 1_000_000))
        self.bench.tidy(self.acme)

    @rule(worker=workers)
    def renew(self, worker: int) -> None:
        """A worker shows that it lives, and learns what was closed."""
        here, since_ns = self.workers[worker], self.ns
        with self.bench.database.writing() as conn:
            found = leases.renew(conn, here.holder, self.bench.at)
        here.purse.renewed(found, since_ns)

    @rule(worker=workers)
    def answer_recalls(self, worker: int) -> None:
        """A worker gives back what others need."""
        here = self.workers[worker]
        with self.bench.database.writing() as conn:
            leases.give_back(conn, here.purse.give_back(leases.recalled(conn, here.holder)), self.bench.at)

    @rule(worker=workers)
    def retire(self, worker: int) -> None:
        """A worker closes what it does not use any more, though perhaps not everything is committed."""
        closed, returned = self.workers[worker].purse.retire(self.now)
        self.bench.close(self.acme, *closed)
        with self.bench.database.writing() as conn:
            leases.give_back(conn, returned, self.bench.at)

    @rule()
    def sweep(self) -> None:
        """The background job."""
        self.bench.tidy(self.acme)

    @rule(worker=workers, has_spool=st.booleans())
    def kill(self, worker: int, has_spool: bool) -> None:
        """`kill -9`: a new process knows nothing; what the old one had settled is on a disk, or lost."""
        if has_spool:
            self.spool += self.workers[worker].queue
        self.workers[worker] = Worker()

    @invariant()
    def nothing_is_overspent(self) -> None:
        """By the rows alone; and no worker uses more than it leased."""
        if hasattr(self, "acme"):
            self.bench.audit(self.acme)
            leased = {row["id"]: row["amount_pico"] for row in self.bench.rows(schema.leases, self.acme)}
            for piece in (piece for worker in self.workers for piece in worker.purse.slices):
                assert piece.held >= 0
                assert piece.held + piece.posted <= min(piece.amount, leased[piece.lease_id])

    def teardown(self) -> None:
        """When all is quiet, whatever was not used is there again, to the unit."""
        if not hasattr(self, "acme"):
            return
        for worker in range(WORKERS):
            self._record(self.workers[worker].queue, worker)
        self.drain()
        taken = [row["taken_at"] for row in self.bench.rows(schema.leases, self.acme)]
        self.bench.at = Instant(max(self.bench.at, *taken, 0) + 10**12)
        self.bench.tidy(self.acme)
        self.bench.audit(self.acme)
        sums: Counter[str] = Counter()
        for row in self.bench.rows(schema.credit_entries, self.acme):
            sums[row["kind"]] += row["amount_micro"] * 10**6 + row["amount_pico"]
        assert -sums["burn"] == self.bench.spent(self.acme)
        assert self.bench.standing(self.acme) == (sums.total(), 0, sums.total())


@pytest.fixture
def bench(database_url: str) -> Iterator[CreditBench]:
    """A bench on each engine."""
    with credit_bench(database_url) as made:
        yield made


def _run(bench: CreditBench, count: int, steps: int) -> None:
    machine = type("CreditOnThisBench", (Credit,), {"bench": bench})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=count,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        ),
    )


def test_credit_is_never_overspent_through_everything(bench: CreditBench) -> None:
    """A few hundred steps."""
    _run(bench, count=examples(6, 50), steps=30)


@pytest.mark.slow
def test_credit_is_never_overspent_through_a_long_time_of_everything(bench: CreditBench) -> None:
    """Thousands of steps."""
    _run(bench, count=150, steps=60)
