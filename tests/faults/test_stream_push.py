"""The meter event stream, taken by itself for a large backlog: as safe as v1, though Stripe answers nothing but {}."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import sqlalchemy as sa

from billing.clock import HOUR_US
from billing.ledger import schema
from billing.ledger.outbox import State
from billing.stripe_sync.differences import Kind
from billing.stripe_sync.push import Sent
from tests.emulators.stripe_double import FaultKind
from tests.stripe_bench import SECRET, Bench, CrashError, bench
from tests.stripe_hooks import Hooked, hooked_on

STREAM = "/v2/billing/meter_event_stream"


@pytest.fixture
def made(database_url: str) -> Iterator[Bench]:
    """A bench on each engine, its clock standing still."""
    with bench(database_url) as bench_:
        yield bench_


@pytest.fixture
def hooked(database_url: str) -> Iterator[Hooked]:
    """A bench with a receiver of webhooks."""
    yield from hooked_on(database_url, 3)


def many(made: Bench, count: int) -> list[str]:
    """Customers with 3 units each; linked without Stripe's subscriptions, which these tests do not need."""
    ids = []
    for number in range(count):
        added = made.add(f"customer {number}", is_linked=False)
        stripe = made.port.create_customer(added.name, None, added.id, f"key-{number}")
        with made.database.writing() as conn:
            table = schema.customers
            conn.execute(sa.update(table).where(table.c.id == added.id).values(stripe_customer_id=stripe.id))
        made.record(added.id, 3_000_000)
        ids.append(added.id)
    return ids


def push(made: Bench, backlog: int = 3) -> list[Sent]:
    """A round that takes the stream from so many batches on."""
    return replace(made.pusher(), stream_rows_min=backlog).run(is_closing=True)


def test_a_large_backlog_goes_by_the_stream_a_hundred_in_a_call(made: Bench) -> None:
    """103 customers in two calls, and a session before them; the next few batches go by v1 again."""
    ids = many(made, 103)
    before = made.double.request_count
    assert {each.outcome.state for each in push(made, 103)} == {State.ACCEPTED}
    assert made.double.request_count == before + 3
    assert {event.via for event in made.double.meter_events} == {"stream"}
    for customer_id in ids[:3]:
        made.audit(customer_id)
        assert made.stripe_units(customer_id) == 3
    made.record(ids[0], 1_000_000)
    push(made, 103)
    assert made.double.meter_events[-1].via == "v1"
    assert {each.finding.kind for each in made.reconcile().found} == {Kind.MATCH}


@pytest.mark.parametrize("kind", [FaultKind.DROP_AFTER_COMMIT, FaultKind.DROP_BEFORE_COMMIT, FaultKind.SERVER_ERROR])
def test_a_lost_answer_is_sent_by_the_stream_again_and_counted_once(made: Bench, kind: FaultKind) -> None:
    """Also when the backlog is small by then: the two ways may not know each other's identifiers."""
    ids = many(made, 3)
    made.double.fault(kind, STREAM)
    assert {each.outcome.state for each in push(made)} == {State.UNCERTAIN}
    made.double.clock.advance(minutes=10)
    assert {each.outcome.state for each in push(made, 1_000)} == {State.ACCEPTED}
    assert {event.via for event in made.double.meter_events} == {"stream"}
    for customer_id in ids:
        assert made.stripe_units(customer_id) == 3
        made.audit(customer_id)


@pytest.mark.parametrize("point", ["claimed", "answered"])
def test_a_crash_around_a_call_doubles_and_loses_nothing(made: Bench, point: str) -> None:
    """The batches are in `sending`, with their way: the next pusher takes it again."""
    ids = many(made, 3)

    def die(here: str) -> None:
        if here == point:
            raise CrashError

    with pytest.raises(CrashError):
        replace(made.pusher(die), stream_rows_min=3).run(is_closing=True)
    assert {batch.state for batch in made.batches()} == {State.SENDING}
    push(made)
    for customer_id in ids:
        assert made.stripe_units(customer_id) == 3
        made.audit(customer_id)


def test_a_session_that_ended_is_renewed_within_the_call(made: Bench) -> None:
    """Stripe ends it after 15 minutes of its own clock, whatever ours says."""
    ids = many(made, 3)
    push(made)
    made.double.clock.advance(hours=1)
    for customer_id in ids:
        made.record(customer_id, 2_000_000)
    assert {each.outcome.state for each in push(made)} == {State.ACCEPTED}
    assert [made.stripe_units(customer_id) for customer_id in ids] == [5, 5, 5]


def test_where_there_is_no_stream_everything_goes_by_v1_in_the_same_round(made: Bench) -> None:
    """A sandbox may refuse it as a whole: nothing was looked at, so nothing is in doubt."""
    ids = many(made, 3)
    made.double.fault(FaultKind.SERVER_ERROR, STREAM, times=None, status=404)
    states = [each.outcome.state for each in push(made)]
    assert states == [State.PENDING] * 3 + [State.ACCEPTED] * 3
    assert {event.via for event in made.double.meter_events} == {"v1"}
    assert [made.stripe_units(customer_id) for customer_id in ids] == [3, 3, 3]


def test_a_report_about_a_call_holds_its_batches_until_the_summaries_tell(hooked: Hooked) -> None:
    """One of three was invalid, and the report names the call: two are confirmed, one is sent again."""
    made = hooked.bench
    made.double.add_webhook(hooked.url, secret=SECRET, is_thin=True)
    ids = many(made, 3)
    made.double.reject_next()
    push(made)
    made.double.clock.advance(minutes=1)
    hooked.work()
    assert {batch.state for batch in made.batches()} == {State.HELD}
    made.double.clock.advance(hours=2)
    report = made.reconcile()
    assert sorted(each.finding.kind for each in report.found) == [Kind.LOST, Kind.MATCH, Kind.MATCH]
    made.double.clock.advance(hours=23)
    assert made.reconcile(is_repairing=True).resent == 1
    assert [made.stripe_units(customer_id) for customer_id in ids] == [3, 3, 3]
    for customer_id in ids:
        made.audit(customer_id)
    assert made.now() > HOUR_US
