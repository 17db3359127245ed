"""Late usage at period ends: within the grace on its own invoice, after it on the next; older than 35 days held."""

from collections.abc import Iterator

import pytest

from billing.clock import DAY_US, HOUR_US, SECOND_US, Instant, hour_start
from billing.errors import NotFoundError, RefusedError
from billing.ledger import periods
from billing.ledger.accounts import Customer
from billing.ledger.outbox import State
from billing.stripe_sync import release
from billing.stripe_sync.differences import Kind
from tests.emulators.stripe_double import FaultKind
from tests.stripe_bench import Bench, bench
from tests.stripe_hooks import Hooked, hooked_on

METER_EVENTS = "/v1/billing/meter_events"
INVOICES = "/v1/invoices"


@pytest.fixture
def made(database_url: str) -> Iterator[Bench]:
    """A bench on each engine, its clock standing still."""
    with bench(database_url) as bench_:
        yield bench_


@pytest.fixture
def hooked(database_url: str) -> Iterator[Hooked]:
    """A bench with a receiver of webhooks."""
    yield from hooked_on(database_url, 3)


def month_end_s(account: Customer) -> int:
    """The end of the customer's first period."""
    assert account.period_end is not None
    return account.period_end // SECOND_US


def billed(made: Bench, customer: Customer) -> list[int]:
    """The units on each of the customer's finalized invoices with a span, in order."""
    return [
        line["quantity"]
        for invoice in made.double.objects("invoice")
        if invoice["customer"] == customer.stripe_customer_id and invoice["status"] != "draft"
        for line in invoice["lines"]["data"]
        if line["period"]["end"] > line["period"]["start"]
    ]


def test_within_the_grace_late_usage_is_on_its_own_invoice(made: Bench) -> None:
    """Twenty minutes after the month's end: a draft, which counts it; nobody has to be asked."""
    acme = made.add("acme")
    made.double.clock.move_to(month_end_s(acme) + 1_200)
    made.record(acme.id, 7_000_000, at=(month_end_s(acme) - 1) * SECOND_US)
    made.push()
    made.double.clock.advance(hours=2)
    assert billed(made, acme) == [7]
    made.audit(acme.id)


def test_after_the_finalization_late_usage_is_carried_to_the_next_invoice(made: Bench) -> None:
    """No webhook came: Stripe is asked. The batch names its own hour, and is billed at the start of the open period."""
    acme = made.add("acme")
    end_s = month_end_s(acme)
    made.double.clock.move_to(end_s + 3 * 3_600)
    late = made.record(acme.id, 7_000_000, at=(end_s - 1) * SECOND_US)
    made.record(acme.id, 5_000_000)
    made.push(is_closing=True)
    first, second = made.batches(acme.id)
    assert (first.window_start, first.timestamp_s, first.units) == (hour_start(late.window_start), end_s, 7)
    assert (second.timestamp_s, second.units) == (end_s + 3 * 3_600, 5)
    made.double.end_period(str(acme.stripe_customer_id))
    made.double.clock.advance(hours=2)
    assert billed(made, acme) == [0, 12]
    made.audit(acme.id)


def test_an_invoice_with_a_longer_grace_still_takes_it(made: Bench) -> None:
    """The Dashboard allows up to 72 hours: asked, Stripe shows a draft."""
    made.double.policy.finalization_grace_s = 72 * 3_600
    acme = made.add("acme")
    made.double.clock.move_to(month_end_s(acme) + 48 * 3_600)
    made.record(acme.id, 7_000_000, at=(month_end_s(acme) - 1) * SECOND_US)
    made.push()
    made.double.clock.advance(days=2)
    assert billed(made, acme) == [7]


def test_while_stripe_does_not_tell_late_usage_waits_and_the_others_go(made: Bench) -> None:
    """Sent into a closed period it would be on no invoice."""
    acme, ben = made.add("acme"), made.add("ben")
    made.double.clock.move_to(month_end_s(acme) + 3 * 3_600)
    made.record(acme.id, 7_000_000, at=(month_end_s(acme) - 1) * SECOND_US)
    made.record(ben.id, 5_000_000)
    made.double.fault(FaultKind.RATE_LIMITED, INVOICES)
    made.push()
    assert (made.batches(acme.id), made.stripe_units(ben.id)) == ([], 5)
    made.push()
    assert made.stripe_units(acme.id) == 7


def test_a_batch_that_could_not_be_sent_before_the_finalization_is_carried_forward(made: Bench) -> None:
    """Planned in its hour, refused by a busy Stripe for two hours: it has never been counted, so it may move."""
    acme = made.add("acme")
    end_s = month_end_s(acme)
    made.double.clock.move_to(end_s - 60)
    made.record(acme.id, 7_000_000)
    made.double.fault(FaultKind.RATE_LIMITED, METER_EVENTS, times=None)
    made.push()
    made.double.clock.move_to(end_s + 7_200)
    made.push(is_closing=True)
    made.double.clear_faults()
    made.push(is_closing=True)
    (batch,) = made.batches(acme.id)
    assert (batch.state, batch.timestamp_s) == (State.ACCEPTED, end_s)
    made.audit(acme.id)


def test_what_was_counted_after_its_invoice_was_finalized_is_found_by_the_invoice_and_carried_forward(
    hooked: Hooked,
) -> None:
    """In doubt at the period's end, delivered an hour too late: the line lacks it, and --repair sends it once more."""
    made = hooked.bench
    acme = made.add("acme")
    end_s = month_end_s(acme)
    made.double.clock.move_to(end_s - 60)
    made.record(acme.id, 7_000_000, at=made.now() - HOUR_US)
    made.push()
    made.record(acme.id, 5_000_000)
    made.double.fault(FaultKind.DROP_BEFORE_COMMIT, METER_EVENTS)
    made.push()
    made.double.clock.move_to(end_s + 7_200)
    made.push(is_closing=True)
    hooked.work()
    assert (billed(made, acme), made.stripe_units(acme.id)) == ([7], 12)
    report = made.reconcile()
    (check,) = report.invoices
    assert (check.kind, check.invoiced_units, check.ledger_units, report.is_explained) == (Kind.LATE, 7, 12, False)
    mended = made.reconcile(is_repairing=True)
    assert ([each.kind for each in mended.invoices], mended.resent) == ([Kind.MATCH], 1)
    made.double.end_period(str(acme.stripe_customer_id))
    made.double.clock.advance(hours=2)
    assert billed(made, acme) == [7, 5]
    kinds = {each.finding.kind for each in made.reconcile(since=Instant((end_s - 7_200) * SECOND_US)).found}
    assert kinds == {Kind.MATCH, Kind.CARRIED}


def test_a_finalized_invoice_is_compared_as_soon_as_stripe_tells(hooked: Hooked) -> None:
    """`invoice.finalized`: the check is written, and it is known until when all is invoiced."""
    made = hooked.bench
    acme = made.add("acme")
    made.record(acme.id, 7_000_000)
    made.push()
    made.double.end_period(str(acme.stripe_customer_id))
    made.double.clock.advance(hours=2)
    hooked.work()
    with made.database.reading() as conn:
        assert periods.billed_until(conn, [acme.id]) == {acme.id: acme.period_end}
    report = made.reconcile()
    assert (report.invoices, report.is_explained) == ([], True)


def test_usage_older_than_35_days_is_held_until_somebody_decides(made: Bench) -> None:
    """Held with the choice in its answer; released, it is billed in the present period, and says so."""
    acme = made.add("acme")
    old = made.now()
    made.double.clock.advance(days=40)
    made.record(acme.id, 7_000_000, at=old)
    assert made.push(is_closing=True) == []
    (batch,) = made.batches(acme.id)
    assert (batch.state, "--release" in str(batch.last_answer)) == (State.HELD, True)
    assert "will be billed" in release.warning(batch)
    start = release.release(made.database, batch, "test", made.now())
    assert old < start <= made.now()
    made.push()
    (sent,) = made.batches(acme.id)
    assert (sent.state, sent.window_start, sent.timestamp_s) == (State.ACCEPTED, batch.window_start, start // SECOND_US)
    assert made.stripe_units(acme.id) == 7
    with pytest.raises(RefusedError, match="changed meanwhile"):
        release.release(made.database, batch, "test", made.now())
    with pytest.raises(NotFoundError):
        release.find(made.database, "weir-unknown")


def test_doubt_that_a_person_releases_gets_a_fresh_identifier_and_a_warning(made: Bench) -> None:
    """It may be counted twice, and that is said."""
    acme = made.add("acme")
    made.record(acme.id, 7_000_000)
    made.double.fault(FaultKind.DROP_BEFORE_COMMIT, METER_EVENTS)
    made.push()
    made.double.clock.advance(hours=24)
    made.push()
    batch = release.find(made.database, made.batches(acme.id)[0].id)
    assert "billed twice" in release.warning(batch)
    release.release(made.database, batch, "test", made.now())
    made.push()
    assert [each.identifier for each in made.double.meter_events] == [f"{batch.id}.r1"]
    with pytest.raises(RefusedError, match="is confirmed"):
        made.double.clock.advance(hours=2)
        made.reconcile()
        release.find(made.database, batch.id)
    assert made.now() - batch.created_at < 35 * DAY_US
