"""The pusher against a broken Stripe, a broken network, a broken clock, and kill -9: then the units are counted."""

import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa

from billing import clock
from billing.clock import HOUR_US, SECOND_US, Instant
from billing.ledger import outbox, schema
from billing.ledger.outbox import State
from billing.money import PICO_PER_MICRO
from billing.stripe_sync import push
from billing.stripe_sync.client import SdkClient
from billing.stripe_sync.port import StripePort
from billing.stripe_sync.push import Sent
from billing.stripe_sync.retry import Answer
from tests.emulators.stripe_double import FaultKind
from tests.stripe_bench import Bench, bench, environment, weir_command

METER_EVENTS = "/v1/billing/meter_events"
DEADLINE_S = 60


@pytest.fixture
def made(database_url: str) -> Iterator[Bench]:
    """A bench on each engine, its clock standing still."""
    with bench(database_url) as bench_:
        yield bench_


@pytest.fixture
def live(database_url: str) -> Iterator[Bench]:
    """A bench on each engine, on the machine's clock, for `weir` processes."""
    with bench(database_url, now=None) as bench_:
        yield bench_


def states(sent: list[Sent]) -> list[State]:
    """What each attempt came to."""
    return [each.outcome.state for each in sent]


def until(is_true: Callable[[], bool], what: str) -> None:
    """Poll a condition until the deadline."""
    deadline = time.monotonic() + DEADLINE_S
    while not is_true():
        assert time.monotonic() < deadline, f"waited {DEADLINE_S} s for {what}"
        time.sleep(0.01)


def test_a_lost_answer_is_asked_for_again_under_the_same_key(made: Bench) -> None:
    """Stripe repeats it: counted once."""
    acme = made.add("acme").id
    made.record(acme, 7_000_000)
    made.double.fault(FaultKind.DROP_AFTER_COMMIT, METER_EVENTS)
    assert states(made.push()) == [State.UNCERTAIN]
    assert made.stripe_units(acme) == 7
    made.double.clock.advance(seconds=1)
    assert states(made.push()) == [State.ACCEPTED]
    assert [batch.idempotency_key == batch.id for batch in made.batches(acme)] == [True]
    assert made.stripe_units(acme) == 7
    made.audit(acme)


def test_a_server_error_that_stripe_repeats_for_a_day_does_not_hold_the_batch(made: Bench) -> None:
    """A new key: Stripe answers that the identifier is known, and that is a delivery."""
    acme = made.add("acme").id
    made.record(acme, 7_000_000)
    made.double.fault(FaultKind.SERVER_ERROR_AFTER_COMMIT, METER_EVENTS)
    assert states(made.push()) == [State.UNCERTAIN]
    made.double.clock.advance(seconds=1)
    (sent,) = made.push()
    assert sent.outcome.state is State.ACCEPTED
    assert sent.answer.message.startswith("An event already exists with identifier")
    assert made.stripe_units(acme) == 7


def test_doubt_of_23_hours_is_held_and_never_sent_again(made: Bench) -> None:
    """Stripe forgets the identifier after 24 hours: one more sending would be counted a second time."""
    acme = made.add("acme").id
    made.record(acme, 7_000_000)
    made.double.fault(FaultKind.DROP_AFTER_COMMIT, METER_EVENTS)
    made.push()
    made.double.clock.advance(hours=23)
    before = made.double.request_count
    assert made.push() == []
    made.double.clock.advance(hours=2)
    assert made.push(is_closing=True) == []
    assert made.double.request_count == before
    (batch,) = made.batches(acme)
    assert batch.state is State.HELD
    assert batch.last_answer == "its outcome was still unknown 23 hours after it was first sent"
    assert made.stripe_units(acme) == 7


def test_the_last_attempt_before_23_hours_still_delivers(made: Bench) -> None:
    """One second before: the same identifier and key, counted once."""
    acme = made.add("acme").id
    made.record(acme, 7_000_000)
    made.double.fault(FaultKind.DROP_AFTER_COMMIT, METER_EVENTS)
    made.push()
    made.double.clock.advance(23 * 3_600 - 1)
    assert states(made.push()) == [State.ACCEPTED]
    assert made.stripe_units(acme) == 7


def test_days_without_a_connection_hold_nothing(made: Bench) -> None:
    """What provably never left is not in doubt: one batch per hour waits, and all arrive, each in its hour."""
    acme = made.add("acme").id
    made.double.go_offline()
    for _ in range(30):
        made.record(acme, 1_500_000)
        assert State.UNCERTAIN not in states(made.push())
        made.record(acme, 1_500_000)
        made.push()
        made.double.clock.advance(hours=1)
    assert len(made.batches(acme)) <= 31
    made.double.go_online()
    made.push(is_closing=True)
    made.audit(acme)
    assert made.stripe_units(acme) == 90
    assert {batch.state for batch in made.batches(acme)} <= {State.ACCEPTED, State.CARRIED}


def test_a_wrong_key_holds_nothing_and_ends_the_round(made: Bench) -> None:
    """Three days later the key is mended, and everything goes out."""
    acme = made.add("acme").id
    made.record(acme, 7_000_000)
    wrong = SdkClient("sk_test_wrong", made.double.url, made.double.url)
    (sent,) = made.pusher(port=wrong).run()
    assert (sent.outcome.state, sent.answer.status, sent.outcome.first_sent_at) == (State.PENDING, 401, None)
    assert "sk_test" not in str(sent.outcome.last_answer)
    made.double.clock.advance(days=3)
    assert states(made.push()) == [State.ACCEPTED]


@pytest.mark.parametrize("kind", [FaultKind.CONFLICT, FaultKind.RATE_LIMITED, FaultKind.LOCK_TIMEOUT])
def test_a_refusal_of_the_moment_is_tried_again_after_its_delay(made: Bench, kind: FaultKind) -> None:
    """Pending as if never sent; not before a second has passed, unless somebody asks for it now."""
    acme = made.add("acme").id
    made.record(acme, 7_000_000)
    made.double.fault(kind, METER_EVENTS)
    assert states(made.push()) == [State.PENDING]
    assert made.push() == []
    assert states(made.push(is_closing=True)) == [State.ACCEPTED]
    assert made.batches(acme)[0].attempts == 2


def test_a_slow_answer_is_doubt_and_is_resolved(made: Bench) -> None:
    """The client gives up; Stripe had counted it; the repetition says so."""
    acme = made.add("acme").id
    made.record(acme, 7_000_000)
    hasty = SdkClient(made.double.api_key, made.double.url, made.double.url, (5, 0.2))
    made.double.fault(FaultKind.SLOW, METER_EVENTS, seconds=1.0)
    (sent,) = made.pusher(port=hasty).run()
    assert (sent.outcome.state, sent.answer.message) == (State.UNCERTAIN, "ReadTimeout")
    made.double.clock.advance(minutes=1)
    until(lambda: states(made.push(is_closing=True)) == [State.ACCEPTED], "the delivery")
    assert made.stripe_units(acme) == 7


def test_a_meter_that_was_deactivated_refuses_until_it_is_mended(made: Bench) -> None:
    """Refused, surfaced, and sent once when somebody releases it."""
    acme = made.add("acme").id
    made.record(acme, 7_000_000)
    meter = made.double.objects("billing.meter")[0]
    meter["status"] = "inactive"
    assert states(made.push()) == [State.REJECTED]
    made.double.clock.advance(hours=1)
    assert made.push() == []
    meter["status"] = "active"
    assert made.pusher().release_rejected() == 1
    assert states(made.push()) == [State.ACCEPTED]
    assert made.stripe_units(acme) == 7


def test_usage_older_than_35_days_is_held_before_it_is_sent(made: Bench) -> None:
    """Stripe would refuse the timestamp; what could not be sent is not lost from sight."""
    acme = made.add("acme").id
    made.record(acme, 7_000_000)
    made.double.clock.advance(days=36)
    assert made.push() == []
    assert made.double.meter_events == ()
    assert [batch.state for batch in made.batches(acme)] == [State.HELD]
    made.audit(acme)


def test_a_clock_that_jumps_back_holds_what_is_in_doubt(made: Bench) -> None:
    """Sent under a clock that was a day ahead, unanswered: nobody knows how old that is."""
    acme = made.add("acme").id
    made.record(acme, 7_000_000)
    made.double.fault(FaultKind.DROP_AFTER_COMMIT, METER_EVENTS)
    ahead = replace(made.pusher(), now=lambda: Instant(made.now() + 24 * HOUR_US))
    assert states(ahead.run()) == [State.UNCERTAIN]
    assert made.push(is_closing=True) == []
    assert made.batches(acme)[0].state is State.HELD


def test_when_stripe_limits_everybody_the_round_ends(made: Bench) -> None:
    """One wave of refusals, and not one for each of a thousand customers."""
    _many(made, push.LANES + 9)
    made.double.fault(FaultKind.RATE_LIMITED, METER_EVENTS, times=None)
    assert states(made.push()) == [State.PENDING] * push.LANES


def test_one_customers_failure_does_not_stop_the_others(made: Bench) -> None:
    """The broken lane waits; the rest is sent, wave after wave."""
    ids = _many(made, push.LANES + 9)
    stripe_customer = made.account(ids[0]).stripe_customer_id
    made.double.fault(FaultKind.SERVER_ERROR, METER_EVENTS, times=None, body_contains=str(stripe_customer))
    sent = made.push()
    assert sorted(states(sent)) == [State.ACCEPTED] * (push.LANES + 8) + [State.UNCERTAIN]
    assert made.stripe_units(ids[0]) == 0


def _many(made: Bench, count: int) -> list[str]:
    """Customers with a unit each; linked without Stripe's subscriptions, which these tests do not need."""
    ids = []
    for number in range(count):
        added = made.add(f"customer {number}", is_linked=False)
        stripe = made.port.create_customer(added.name, None, added.id, f"key-{number}")
        with made.database.writing() as conn:
            table = schema.customers
            conn.execute(sa.update(table).where(table.c.id == added.id).values(stripe_customer_id=stripe.id))
        made.record(added.id, 1_000_000)
        ids.append(added.id)
    return ids


class Meeting:
    """A port on which two sendings must meet before either ends, and which writes down who was inside."""

    def __init__(self, parties: int) -> None:
        self._barrier = threading.Barrier(parties, timeout=DEADLINE_S)
        self._lock = threading.Lock()
        self._inside: list[str] = []
        self.overlaps = 0

    def send(
        self, event_name: str, customer_id: str, units: int, timestamp_s: int, identifier: str, key: str
    ) -> Answer:
        """Wait for the others; count a customer that is inside already."""
        with self._lock:
            self.overlaps += customer_id in self._inside
            self._inside.append(customer_id)
        self._barrier.wait()
        with self._lock:
            self._inside.remove(customer_id)
        return Answer(200)


def test_customers_are_sent_side_by_side_and_each_customer_in_line(made: Bench) -> None:
    """Three lanes with three hours each: three in flight at a time, never two of one customer."""
    for name in ("acme", "bravo", "charlie"):
        customer_id = made.add(name).id
        for hour in range(3):
            made.record(customer_id, 1_000_000, at=made.now() - hour * HOUR_US)
    meeting = Meeting(3)
    port: StripePort = meeting  # type: ignore[assignment]
    sent = replace(made.pusher(), port=port).run(is_closing=True)
    assert states(sent) == [State.ACCEPTED] * 9
    assert meeting.overlaps == 0


def test_the_pace_is_kept_over_all_lanes(made: Bench) -> None:
    """Ten sendings at 50 a second take at least 180 ms, however many threads there are."""
    _many(made, 10)
    began = time.monotonic()
    replace(made.pusher(), sends_per_s=50).run()
    assert time.monotonic() - began >= 0.18


def test_two_pushers_at_once_count_nothing_twice(made: Bench) -> None:
    """The one that lost its election in the middle wakes up late: its answer changes nothing any more."""
    acme = made.add("acme").id
    made.record(acme, 7_000_000)
    late: list[Sent] = []

    def take_over(point: str) -> None:
        if point == "claimed" and not late:
            late.extend(made.pusher().run())  # another process found the row in `sending`

    first = made.pusher(take_over).run()
    assert states(late) == [State.ACCEPTED]
    assert states(first) == [State.ACCEPTED]
    (batch,) = made.batches(acme)
    assert (batch.state, batch.attempts) == (State.ACCEPTED, 2)
    assert made.stripe_units(acme) == 7


def test_an_answer_that_comes_after_another_process_took_over_is_dropped(made: Bench) -> None:
    """Fenced by the number of the attempt: a late 429 does not make a delivered batch pending."""
    acme = made.add("acme").id
    made.record(acme, 7_000_000)

    def take_over(point: str) -> None:
        if point == "answered":
            made.pusher().run(is_closing=True)

    made.double.fault(FaultKind.RATE_LIMITED, METER_EVENTS)
    made.pusher(take_over).run()
    assert [batch.state for batch in made.batches(acme)] == [State.ACCEPTED]


KILLS = {
    "before Stripe acts": FaultKind.SLOW_BEFORE_COMMIT,
    "after Stripe acted, before it answers": FaultKind.SLOW,
}


@pytest.mark.parametrize("moment", KILLS)
def test_kill_9_in_the_middle_of_a_sending_loses_and_doubles_nothing(live: Bench, tmp_path: Path, moment: str) -> None:
    """A `weir stripe push` process is killed while its request is at Stripe; the next one goes on."""
    acme = live.add("acme").id
    for hour in range(3):
        live.record(acme, 7_000_001, at=clock.now() - hour * HOUR_US)
    live.record(acme, 999_998)
    fault = live.double.fault(KILLS[moment], METER_EVENTS, seconds=3.0)
    command = weir_command("stripe", "push", "--now")
    process = subprocess.Popen(command, cwd=tmp_path, env=environment(live), stdout=subprocess.DEVNULL)
    try:
        until(lambda: fault.hits == 1, "the request to arrive")
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(DEADLINE_S)
    assert State.SENDING in {batch.state for batch in live.batches(acme)}
    again = subprocess.run(command, cwd=tmp_path, env=environment(live), capture_output=True, timeout=120, check=False)
    if again.returncode != 0:  # The killed request may still hold the customer's lane at Stripe: 409, try again.
        until(lambda: fault.hits == 1 and _push_again(command, live, tmp_path), "a push that is accepted")
    live.audit(acme)
    total = 3 * 7_000_001 + 999_998
    assert live.recorded_pico(acme) == total
    assert live.stripe_units(acme) == total // PICO_PER_MICRO == 22


def _push_again(command: list[str], live: Bench, folder: Path) -> bool:
    done = subprocess.run(command, cwd=folder, env=environment(live), capture_output=True, timeout=120, check=False)
    return done.returncode == 0


@pytest.mark.slow
def test_kill_9_at_random_moments_of_many_pushes_loses_and_doubles_nothing(live: Bench, tmp_path: Path) -> None:
    """Processes that are killed after ever more requests, between commits and requests alike."""
    ids = [live.add(f"customer {number}").id for number in range(4)]
    command = weir_command("stripe", "push", "--now")
    for round_ in range(5):
        for customer_id in ids:
            for hour in range(4):
                live.record(customer_id, 1_234_567, at=clock.now() - hour * HOUR_US)
        before = live.double.request_count
        process = subprocess.Popen(
            command, cwd=tmp_path, env=environment(live), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            until(
                lambda: live.double.request_count > before + 2 * round_ or process.poll() is not None,  # noqa: B023
                "some requests",
            )
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait(DEADLINE_S)
    until(lambda: _push_again(command, live, tmp_path), "a push that is accepted")
    for customer_id in ids:
        live.audit(customer_id)
        assert live.stripe_units(customer_id) == 5 * 4 * 1_234_567 // PICO_PER_MICRO
        assert {batch.state for batch in live.batches(customer_id)} <= {State.ACCEPTED, State.CARRIED}


def test_the_worker_is_killed_and_another_one_takes_over(live: Bench, tmp_path: Path) -> None:
    """`weir worker` pushes every second; the lock dies with its holder, on both engines."""
    acme = live.add("acme").id
    live.record(acme, 3_000_000)
    fault = live.double.fault(FaultKind.SLOW, METER_EVENTS, seconds=3.0)
    command = weir_command("worker")
    first = subprocess.Popen(command, cwd=tmp_path, env=environment(live), stderr=subprocess.DEVNULL)
    second = subprocess.Popen(command, cwd=tmp_path, env=environment(live), stderr=subprocess.DEVNULL)
    try:
        until(lambda: fault.hits == 1, "one of them to send")
        first.send_signal(signal.SIGKILL)
        live.record(acme, 4_000_000, at=clock.now() - HOUR_US)
        until(lambda: live.stripe_units(acme) == 7, "the other one to send the rest")
        until(lambda: {b.state for b in live.batches(acme)} == {State.ACCEPTED}, "all to be recorded")
    finally:
        for process in (first, second):
            process.send_signal(signal.SIGKILL)
            process.wait(DEADLINE_S)
    live.audit(acme)


def test_what_is_in_doubt_keeps_the_time_of_its_first_sending(made: Bench) -> None:
    """Over any number of attempts the 23 hours count from the first."""
    acme = made.add("acme").id
    made.record(acme, 7_000_000)
    began = made.now()
    made.double.fault(FaultKind.DROP_BEFORE_COMMIT, METER_EVENTS, times=3)
    for _ in range(3):
        made.push()
        made.double.clock.advance(hours=1)
    (batch,) = made.batches(acme)
    assert (batch.state, batch.first_sent_at, batch.attempts) == (State.UNCERTAIN, began, 3)
    assert batch.next_attempt_at == began + 2 * HOUR_US + 4 * SECOND_US
    with made.database.reading() as conn:
        assert [each.id for each in outbox.in_state(conn, [State.UNCERTAIN], 9)] == [batch.id]
