"""Reconciliation under any interleaving: usage, both transports, faults, crashes, losses, days without an answer.

For every customer: what Stripe counts + the carry + what is held = Σ of the amounts assigned, and no unit twice. The
clock runs over Stripe's memory of identifiers again and again, so that nothing is saved by that alone.
"""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from billing.clock import DAY_US, HOUR_US, Instant
from billing.errors import StripeError
from billing.ledger.outbox import State
from billing.money import PICO_PER_MICRO
from billing.stripe_sync import reported
from tests.emulators.stripe_double import FaultKind, MeterEvent
from tests.stripe_bench import Bench, CrashError, bench
from tests.support.examples import examples

FAULTS = (
    FaultKind.DROP_BEFORE_COMMIT,
    FaultKind.DROP_AFTER_COMMIT,
    FaultKind.RATE_LIMITED,
    FaultKind.SERVER_ERROR,
    FaultKind.SERVER_ERROR_AFTER_COMMIT,
)
PATHS = ("/v1/billing/meter_events", "/v2/billing/meter_event_stream", "/v1/billing/meters/*")
PUSH_POINTS = ("planned", "claimed", "answered", "recorded")
RECONCILE_POINTS = ("asked", "checked", "released", "cancelled")
SETTLING_ROUNDS_MAX = 6
SHOWN_AFTER_S = 50 * 60
"""Stripe's summaries are late: what was sent in the last 50 minutes is not in them."""


@pytest.fixture
def made(database_url: str) -> Iterator[Bench]:
    """A bench on each engine."""
    with bench(database_url) as bench_:
        yield bench_


def dying_at(point: str, number: int) -> Callable[[str], None]:
    """Raise at the number-th passing of a point."""
    left = number

    def reached(here: str) -> None:
        nonlocal left
        left -= here == point
        if left == 0:
            raise CrashError

    return reached


class Reconciling(RuleBasedStateMachine):
    """Two linked customers, months of hours, and everything that may happen to their usage on its way."""

    bench: Bench

    def __init__(self) -> None:
        super().__init__()
        self.customers = [self.bench.add(f"customer {id(self)} {number}").id for number in range(2)]
        self.began = self.bench.now()

    def _since(self) -> Instant:
        return Instant(self.began - 3 * HOUR_US)

    @rule(
        who=st.integers(0, 1),
        amounts=st.lists(st.integers(0, 4_000_000), min_size=1, max_size=3),
        hours_ago=st.integers(0, 2),
    )
    def record(self, who: int, amounts: list[int], hours_ago: int) -> None:
        """Usage, and late usage."""
        self.bench.record_all(self.customers[who], amounts, at=self.bench.now() - hours_ago * HOUR_US)

    @rule(minutes=st.sampled_from([1, 30, 61, 120, 11 * 60, 24 * 60]))
    def wait(self, minutes: int) -> None:
        """Time passes at both ends, also beyond Stripe's memory."""
        if self.bench.now() - self.began < 12 * DAY_US:
            self.bench.double.clock.advance(minutes=minutes)

    @rule(kind=st.sampled_from(FAULTS), path=st.sampled_from(PATHS), times=st.integers(1, 3))
    def break_something(self, kind: FaultKind, path: str, times: int) -> None:
        """The network, or Stripe, for the next few requests."""
        self.bench.double.fault(kind, path, times=times)

    @rule(is_streaming=st.booleans(), point=st.none() | st.sampled_from(PUSH_POINTS), number=st.integers(1, 2))
    def push(self, is_streaming: bool, point: str | None, number: int) -> None:
        """A round by either way, which may die."""
        pusher = self.bench.pusher() if point is None else self.bench.pusher(dying_at(point, number))
        with suppress(CrashError), self.bench.database.elected("push"):
            replace(pusher, stream_rows_min=1 if is_streaming else 1_000).run(is_closing=True)

    @rule(is_repairing=st.booleans(), point=st.none() | st.sampled_from(RECONCILE_POINTS), number=st.integers(1, 2))
    def reconcile(self, is_repairing: bool, point: str | None, number: int) -> None:
        """A comparison, which may mend, and may die."""
        made = self.bench
        reconciler = made.reconciler() if point is None else made.reconciler(dying_at(point, number))
        with suppress(CrashError, StripeError):
            reconciler.run(self._since(), is_repairing=is_repairing)

    @rule(
        who=st.integers(0, 1),
        amount=st.integers(1_000_000, 9_000_000),
        kind=st.none() | st.sampled_from(FAULTS),
        minutes=st.sampled_from([0, 10, 70]),
        is_streaming=st.booleans(),
    )
    def hurry(self, who: int, amount: int, kind: FaultKind | None, minutes: int, is_streaming: bool) -> None:
        """Usage is sent, perhaps through a fault, and a repair follows at once, and another push."""
        self.bench.record(self.customers[who], amount)
        if kind is not None:
            self.bench.double.fault(kind, PATHS[is_streaming])
        self.push(is_streaming, None, 1)
        self.bench.double.clock.advance(minutes=minutes)
        self.reconcile(True, None, 1)
        self.push(is_streaming, None, 1)

    @rule(which=st.integers(0, 5))
    def lose(self, which: int) -> None:
        """Stripe forgets an event that it had accepted, for good."""
        counted = [each for each in self._own_events() if each.status == "counted"]
        if counted:
            event = counted[which % len(counted)]
            self.bench.unheard.add(reported.named_by(event.identifier)[0])
            self.bench.double.lose_event(event.identifier)

    def _own_events(self) -> list[MeterEvent]:
        ours = {self.bench.account(customer_id).stripe_customer_id for customer_id in self.customers}
        return [each for each in self.bench.double.meter_events if each.customer in ours]

    @invariant()
    def holds(self) -> None:
        """Σ units + carry = Σ assigned; and no batch is counted twice, under whichever identifiers."""
        for customer_id in self.customers:
            self.bench.audit(customer_id)

    def teardown(self) -> None:
        """Without faults, a few days of pushes and repairs bring Stripe's count to the ledger's, to the unit."""
        made = self.bench
        made.double.clear_faults()
        for _ in range(SETTLING_ROUNDS_MAX):
            made.push(is_closing=True)
            made.double.clock.advance(hours=24)
            made.push(is_closing=True)
            made.double.clock.advance(hours=2)
            made.reconcile(is_repairing=True, since=self._since())
        made.double.clock.advance(hours=2)
        report = made.reconcile(since=self._since())
        ours = [each for each in report.found if each.subject.customer_id in self.customers]
        assert {str(each.finding.kind) for each in ours} <= {"match"}
        for customer_id in self.customers:
            made.audit(customer_id)
            batches = made.batches(customer_id)
            carry = batches[-1].carry_pico if batches else 0
            assert made.stripe_units(customer_id) * PICO_PER_MICRO + carry == made.recorded_pico(customer_id)
            assert {batch.state for batch in batches} <= {State.CONFIRMED, State.CARRIED}


def test_reconciliation_brings_every_unit_to_stripe_once_through_everything(made: Bench) -> None:
    """I6, whatever happens in whatever order, by both ways, beyond Stripe's memory."""
    made.double.policy.aggregation_delay_s = SHOWN_AFTER_S
    machine = type("ReconcilingOnThisBench", (Reconciling,), {"bench": made})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples(4, 24),
            stateful_step_count=15,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        ),
    )
