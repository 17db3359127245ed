"""Reconciling with a Stripe that is late, loses, doubles and is used by strangers; and crashes in the middle of it."""

from collections.abc import Iterator

import pytest

from billing.clock import DAY_US, HOUR_US, SECOND_US, Instant
from billing.errors import RefusedError, StripeError
from billing.ledger import comparisons
from billing.ledger.outbox import State
from billing.stripe_sync import retry
from billing.stripe_sync.differences import Kind
from billing.stripe_sync.findings import Report
from tests.emulators.stripe_double import FaultKind
from tests.stripe_bench import NOON, Bench, CrashError, bench

METER_EVENTS = "/v1/billing/meter_events"
SUMMARIES = "/v1/billing/meters/*/event_summaries"


@pytest.fixture
def made(database_url: str) -> Iterator[Bench]:
    """A bench on each engine, its clock standing still."""
    with bench(database_url) as bench_:
        yield bench_


def kinds(report: Report) -> list[Kind]:
    """What each hour came to, in order."""
    return [each.finding.kind for each in sorted(report.found, key=lambda found: found.finding.hour_start)]


def states(made: Bench, customer_id: str) -> list[State]:
    """The customer's batches' states, in order."""
    return [batch.state for batch in made.batches(customer_id)]


def test_what_stripe_shows_is_confirmed_hour_by_hour(made: Bench) -> None:
    """150 hours, more than a page of Stripe's: in transit while Stripe is late, then all confirmed and kept."""
    acme = made.add("acme").id
    made.double.policy.aggregation_delay_s = 300
    for hour in range(150):
        made.record(acme, 1_000_000 * (hour + 1), at=made.now() - hour * HOUR_US)
    made.push(is_closing=True)
    assert set(kinds(made.reconcile())) == {Kind.IN_TRANSIT}
    made.double.clock.advance(minutes=5)
    report = made.reconcile()
    assert report.is_explained
    assert kinds(report) == [Kind.MATCH] * 150
    assert set(states(made, acme)) == {State.CONFIRMED}
    with made.database.reading() as conn:
        run = comparisons.last_run(conn)
        assert comparisons.unexplained(conn) == 0
    assert run is not None
    assert (run.customers, dict(run.kinds), run.finished_at) == (1, {"match": 150}, made.now())


def test_doubt_that_was_counted_is_confirmed_and_never_sent_again(made: Bench) -> None:
    """Held after 23 hours of lost answers; the summaries know."""
    acme = made.add("acme").id
    made.record(acme, 7_000_000)
    made.double.fault(FaultKind.DROP_AFTER_COMMIT, METER_EVENTS)
    made.push()
    made.double.clock.advance(hours=25)
    made.push()
    assert states(made, acme) == [State.HELD]
    made.double.clock.advance(hours=2)
    assert made.reconcile().is_explained
    assert states(made, acme) == [State.CONFIRMED]
    assert made.stripe_units(acme) == 7


def test_doubt_that_was_not_counted_is_sent_again_under_a_fresh_identifier(made: Bench) -> None:
    """After Stripe's memory; reported first, mended with --repair, matched once Stripe shows it."""
    acme = made.add("acme").id
    made.record(acme, 7_000_000)
    made.double.fault(FaultKind.DROP_BEFORE_COMMIT, METER_EVENTS)
    made.push()
    made.double.clock.advance(hours=25)
    made.push()
    made.double.clock.advance(hours=2)
    report = made.reconcile()
    assert (kinds(report), report.is_explained) == ([Kind.LOST], False)
    assert (states(made, acme), made.stripe_units(acme)) == ([State.HELD], 0)
    made.double.policy.aggregation_delay_s = 60
    mended = made.reconcile(is_repairing=True)
    assert (kinds(mended), mended.is_explained, mended.resent) == ([Kind.IN_TRANSIT], True, 1)
    assert made.stripe_units(acme) == 7
    (event,) = made.double.meter_events
    (batch,) = made.batches(acme)
    assert (event.identifier, event.timestamp) == (f"{batch.id}.r1", batch.timestamp_s)
    made.double.clock.advance(hours=1)
    assert kinds(made.reconcile(is_repairing=True)) == [Kind.MATCH]
    assert (states(made, acme), made.stripe_units(acme)) == ([State.CONFIRMED], 7)
    made.audit(acme)


def test_an_accepted_event_that_stripe_lost_is_sent_again_when_it_has_forgotten_it(made: Bench) -> None:
    """Within 23 hours under its own identifier, which Stripe still knows; after that under a fresh one."""
    acme = made.add("acme").id
    made.record(acme, 7_000_000)
    made.push()
    (batch,) = made.batches(acme)
    made.unheard.add(batch.id)
    made.double.lose_event(batch.id)
    made.double.clock.advance(hours=2)
    report = made.reconcile(is_repairing=True)
    assert (report.resent, kinds(report)) == (1, [Kind.IN_TRANSIT])
    assert len(made.double.meter_events) == 1
    made.double.clock.advance(hours=22)
    assert made.reconcile(is_repairing=True).resent == 1
    assert made.stripe_units(acme) == 7
    made.double.clock.advance(hours=2)
    assert kinds(made.reconcile()) == [Kind.MATCH]


def test_a_lost_event_that_turns_up_late_is_taken_back_once(made: Bench) -> None:
    """Doubled for as long as it takes: an adjustment cancels the second identifier; then both sums are equal."""
    acme = made.add("acme").id
    made.record(acme, 7_000_000)
    made.push()
    (batch,) = made.batches(acme)
    made.double.lose_event(batch.id)
    made.double.clock.advance(hours=25)
    made.reconcile(is_repairing=True)
    made.double.find_event(batch.id)
    made.double.clock.advance(hours=2)
    report = made.reconcile()
    assert (kinds(report), report.is_explained, made.stripe_units(acme)) == ([Kind.DOUBLED], False, 14)
    mended = made.reconcile(is_repairing=True)
    assert (mended.taken_back, made.stripe_units(acme), kinds(mended)) == (1, 7, [Kind.MATCH])
    made.double.clock.advance(hours=2)
    assert made.reconcile(is_repairing=True).taken_back == 0
    made.audit(acme)


def test_a_cancellation_whose_answer_was_lost_is_repeated(made: Bench) -> None:
    """Written down before it is asked for; asked again by the next repair, and counted once."""
    acme = made.add("acme").id
    made.record(acme, 7_000_000)
    made.push()
    (batch,) = made.batches(acme)
    made.double.lose_event(batch.id)
    made.double.clock.advance(hours=25)
    made.reconcile(is_repairing=True)
    made.double.find_event(batch.id)
    made.double.clock.advance(hours=2)
    made.double.fault(FaultKind.DROP_AFTER_COMMIT, "/v1/billing/meter_event_adjustments")
    assert made.reconcile(is_repairing=True).taken_back == 0
    assert made.reconcile(is_repairing=True).taken_back == 1
    assert made.stripe_units(acme) == 7


def test_a_strangers_usage_is_told_and_left_alone(made: Bench) -> None:
    """Also for a customer to whom nothing was sent; nothing is mended."""
    acme, ben = made.add("acme").id, made.add("ben").id
    made.record(acme, 7_000_000)
    made.push()
    for customer_id, units in ((acme, 3), (ben, 4)):
        stripe_customer = str(made.account(customer_id).stripe_customer_id)
        name = made.config.stripe.meter_event_name
        answer = made.port.send(name, stripe_customer, units, NOON, f"strange-{customer_id}", f"k-{customer_id}")
        assert answer.status == 200
    made.double.clock.advance(hours=2)
    before = len(made.double.meter_events)
    report = made.reconcile(is_repairing=True)
    assert kinds(report) == [Kind.UNKNOWN_SENDER, Kind.UNKNOWN_SENDER]
    assert {each.finding.difference for each in report.found} == {3, 4}
    assert len(made.double.meter_events) == before
    assert states(made, acme) == [State.ACCEPTED]


def test_an_hour_that_matched_and_does_not_any_more_is_noticed(made: Bench) -> None:
    """Every run ticks the old hours again, also those for which Stripe has no row left."""
    acme = made.add("acme").id
    made.record(acme, 7_000_000)
    made.push()
    made.double.clock.advance(hours=2)
    assert made.reconcile().is_explained
    (batch,) = made.batches(acme)
    made.double.lose_event(batch.id)
    made.double.clock.advance(days=2)
    (found,) = made.reconcile().found
    assert (found.finding.kind, found.was_matched) == (Kind.LOST, (7, 7))
    with made.database.reading() as conn:
        assert comparisons.unexplained(conn) == 1


def test_what_is_open_is_looked_at_beyond_a_week_and_what_is_too_old_is_left_to_a_person(made: Bench) -> None:
    """A held batch of ten days ago is found and mended; one of 40 days ago is only told."""
    acme = made.add("acme").id
    made.record(acme, 7_000_000)
    made.double.fault(FaultKind.DROP_BEFORE_COMMIT, METER_EVENTS)
    made.push()
    made.double.clock.advance(days=10)
    made.push()
    assert kinds(made.reconcile()) == [Kind.IN_TRANSIT]
    made.double.clock.advance(hours=2)
    assert kinds(made.reconcile()) == [Kind.LOST]
    made.double.clock.advance(days=30)
    report = made.reconcile(since=Instant(made.now() - 41 * DAY_US), is_repairing=True)
    assert (kinds(report), report.resent) == ([Kind.LOST], 0)
    assert made.stripe_units(acme) == 0


def test_a_customer_that_stripe_does_not_tell_about_is_named_and_the_others_are_compared(made: Bench) -> None:
    """And if it tells about nobody, that is one error."""
    acme, ben = made.add("acme").id, made.add("ben").id
    for customer_id in (acme, ben):
        made.record(customer_id, 7_000_000)
    made.push()
    made.double.clock.advance(hours=2)
    made.double.fault(FaultKind.RATE_LIMITED, SUMMARIES)
    report = made.reconcile()
    assert len(report.unreadable) == 1
    assert kinds(report) == [Kind.MATCH]
    assert not report.is_explained
    made.double.fault(FaultKind.RATE_LIMITED, SUMMARIES, times=2)
    with pytest.raises(StripeError):
        made.reconcile()
    with pytest.raises(RefusedError, match="nothing to compare"):
        made.reconciler().run(Instant(made.now() + DAY_US))


@pytest.mark.parametrize("point", ["asked", "checked", "released", "cancelled"])
def test_a_repair_that_dies_anywhere_is_finished_by_the_next_and_mends_once(made: Bench, point: str) -> None:
    """One lost, one doubled; killed between any two transitions."""
    acme, ben = made.add("acme").id, made.add("ben").id
    for customer_id in (acme, ben):
        made.record(customer_id, 7_000_000)
    made.push()
    first = {customer_id: made.batches(customer_id)[0] for customer_id in (acme, ben)}
    made.double.lose_event(first[acme].id)
    made.double.clock.advance(hours=25)
    made.reconcile(is_repairing=True)
    made.double.lose_event(first[ben].id)
    made.double.find_event(first[acme].id)
    made.double.clock.advance(hours=2)

    def die(here: str) -> None:
        if here == point:
            raise CrashError

    with pytest.raises(CrashError):
        made.reconciler(die).run(is_repairing=True)
    made.push()
    made.double.clock.advance(hours=2)
    made.reconcile(is_repairing=True)
    made.double.clock.advance(hours=2)
    assert kinds(made.reconcile()) == [Kind.MATCH, Kind.MATCH]
    for customer_id in (acme, ben):
        assert made.stripe_units(customer_id) == 7
        made.audit(customer_id)


def test_pushing_meanwhile_is_in_transit_and_nobodys_else(made: Bench) -> None:
    """What is sent after Stripe was asked is in the ledger's sum and not yet in Stripe's."""
    acme = made.add("acme").id
    made.record(acme, 7_000_000)
    made.push()
    made.double.clock.advance(hours=2)

    def push_more(point: str) -> None:
        if point == "asked":
            made.record(acme, 5_000_000, at=NOON * SECOND_US)
            made.push(is_closing=True)

    report = made.reconciler(push_more).run(is_repairing=True)
    assert kinds(report) == [Kind.IN_TRANSIT]
    assert report.resent == 0
    assert retry.RESEND_AGE_US_MAX == 23 * HOUR_US
