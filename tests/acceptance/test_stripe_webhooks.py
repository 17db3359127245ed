"""Stripe's decisions take effect here: signed webhooks, stored before the 200, processed in any order, once."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from billing.clock import DAY_US, SECOND_US, Instant
from billing.config import Config, Stripe
from billing.config import Database as DatabaseSection
from billing.ledger import accounts, inbox
from billing.ledger.accounts import Cause
from billing.ledger.database import Database
from billing.ledger.inbox import State
from billing.ledger.outbox import State as BatchState
from billing.limits import WEBHOOK_BODY_BYTES_MAX
from billing.stripe_sync import customers, process, refresh, webhook
from billing.stripe_sync.client import SdkClient
from billing.stripe_sync.webhook import Accepted, Rejected
from tests.emulators.stripe_double import FaultKind, StripeDouble
from tests.stripe_bench import SECRET
from tests.stripe_hooks import Hooked, body, hooked_on, sign


@pytest.fixture
def hooked(database_url: str) -> Iterator[Hooked]:
    """A bench with three days of grace."""
    yield from hooked_on(database_url, 3)


@pytest.fixture
def graceless(database_url: str) -> Iterator[Hooked]:
    """A bench that suspends at once."""
    yield from hooked_on(database_url, 0)


def test_what_the_official_sdk_signs_is_stored_once(hooked: Hooked) -> None:
    """The first delivery is new, the second is not; the row says what it is about."""
    raw = body()
    assert hooked.receive(raw, sign(raw, hooked)) == Accepted("evt_1", is_new=True)
    assert hooked.receive(raw, sign(raw, hooked)) == Accepted("evt_1", is_new=False)
    (event,) = hooked.events()
    assert (event.type, event.object_id, event.stripe_customer_id) == ("invoice.paid", "in_1", "cus_1")
    assert (event.created_at, event.state, event.payload) == (
        1_772_366_400 * SECOND_US,
        State.PENDING,
        raw.decode(),
    )


def test_a_secret_that_is_being_rolled_is_good_beside_the_new_one(hooked: Hooked) -> None:
    """Any configured secret; and the thin destination's is one of them."""
    rolled = hooked.bench.config.model_copy(update={"stripe": Stripe(webhook_secret="whsec_new, whsec_old")})
    for number, secret in enumerate(("whsec_old", "whsec_new")):
        raw = body(id=f"evt_{number}")
        assert isinstance(hooked.receive(raw, sign(raw, hooked, secret=secret), config=rolled), Accepted)
    raw = body(id="evt_9")
    assert isinstance(hooked.receive(raw, sign(raw, hooked, secret=SECRET), config=rolled), Rejected)


def test_what_is_not_stripes_is_400_and_leaves_nothing(hooked: Hooked) -> None:
    """However it is broken: the SDK's verifier lets other exceptions than its own out."""
    raw = body()
    good = sign(raw, hooked)
    old = sign(raw, hooked, age_s=301)
    timestamp, signature = good.split(",")
    latin = b'{"id": "\xff"}'
    not_json, a_list, no_event = b"hello", b"[1]", b'{"object": "event"}'
    deep = b"[" * 100_000
    for attempt, header in (
        (raw, ""),
        (raw, "t=abc,v1=00"),
        (raw, "v1=00"),
        (raw, timestamp),
        (raw, good.replace("v1=", "v0=")),
        (raw, f"{timestamp},v1=é"),
        (raw, sign(raw, hooked, secret="whsec_other")),
        (raw, old),
        (raw, f"{old.replace('t=', 't= ')},{timestamp}"),
        (raw, f"t= {old.partition(',')[0][2:]},{timestamp},{old.partition(',')[2]}"),
        (raw + b" ", good),
        (raw.replace(b"cus_1", b"cus_2"), good),
        (latin, f"{timestamp},{signature}"),
        (not_json, sign(not_json, hooked)),
        (a_list, sign(a_list, hooked)),
        (no_event, sign(no_event, hooked)),
        (deep, sign(deep, hooked)),
        (body(id="evt/1"), sign(body(id="evt/1"), hooked)),
        (body(id=7), sign(body(id=7), hooked)),
        (body(type="Invoice Paid"), sign(body(type="Invoice Paid"), hooked)),
        (body(object="charge"), sign(body(object="charge"), hooked)),
    ):
        answer = hooked.receive(attempt, header)
        assert isinstance(answer, Rejected), (attempt, header)
        assert answer.status == 400
    assert hooked.events() == []


def test_a_signature_is_good_for_five_minutes_of_our_clock(hooked: Hooked) -> None:
    """And one from ahead of it is good: our clock may be behind Stripe's."""
    raw = body()
    assert isinstance(hooked.receive(raw, sign(raw, hooked, age_s=300)), Accepted)
    assert isinstance(hooked.receive(raw, sign(raw, hooked, age_s=-86_400)), Accepted)


def test_without_a_secret_stripe_is_asked_to_come_again(hooked: Hooked) -> None:
    """503: it repeats for three days, so nothing is lost while the operator configures it."""
    answer = hooked.receive(body(), "t=1,v1=00", config=Config())
    assert isinstance(answer, Rejected)
    assert answer.status == 503
    assert "STRIPE_WEBHOOK_SECRET" in answer.message


def test_a_body_that_no_event_has_is_413(hooked: Hooked) -> None:
    """Before anything is computed over it."""
    answer = hooked.receive(b"x" * (WEBHOOK_BODY_BYTES_MAX + 1), "t=1,v1=00")
    assert isinstance(answer, Rejected)
    assert answer.status == 413


def test_a_database_that_is_away_is_503(hooked: Hooked, tmp_path: Path) -> None:
    """An event that was not stored is never answered with 200."""
    url = f"sqlite:///{tmp_path}/nowhere/weir.db"
    config = hooked.bench.config.model_copy(update={"database": DatabaseSection(url=url)})
    raw = body()
    answer = webhook.receive(Database(url), config, raw, sign(raw, hooked), hooked.bench.now())
    assert isinstance(answer, Rejected)
    assert answer.status == 503


def test_odd_fields_of_an_event_do_no_harm(hooked: Hooked) -> None:
    """No data, an expanded customer, a customer itself, no time, a time in words."""
    cases: list[tuple[dict[str, Any], str | None]] = [
        ({"data": None}, None),
        ({"data": {"object": {"id": 5, "customer": 7}}}, None),
        ({"data": {"object": {"customer": {"id": "cus_9"}}}, "created": None}, "cus_9"),
        ({"data": {"object": {"id": "cus_8", "object": "customer"}}, "created": True}, "cus_8"),
        ({"created": "2026-03-01T12:00:00Z"}, "cus_1"),
        ({"created": "yesterday"}, "cus_1"),
    ]
    for number, (fields, customer) in enumerate(cases):
        raw = body(**fields, id=f"evt_{number}")
        assert isinstance(hooked.receive(raw, sign(raw, hooked)), Accepted)
        event = next(each for each in hooked.events() if each.id == f"evt_{number}")
        assert (event.stripe_customer_id, event.created_at) == (customer, 1_772_366_400 * SECOND_US)


def test_a_failed_payment_suspends_after_the_grace_period_and_a_payment_resumes(hooked: Hooked) -> None:
    """Three days, by the sweep, without any event; paid: at once."""
    acme = hooked.bench.add("acme")
    hooked.bench.double.decline_payments(str(acme.stripe_customer_id))
    invoice = hooked.bench.double.fail_invoice(str(acme.stripe_customer_id))
    hooked.work()
    failed_at = hooked.bench.now()
    assert hooked.bench.account(acme.id).past_due_since == failed_at
    assert hooked.bench.account(acme.id).stripe_subscription_status == "past_due"
    hooked.bench.double.clock.advance(days=2, hours=23, minutes=59)
    assert _sweep(hooked) == 0
    assert hooked.causes(acme.id) == set()
    hooked.bench.double.clock.advance(minutes=1)
    assert _sweep(hooked) == 1
    assert hooked.causes(acme.id) == {Cause.UNPAID}
    assert _sweep(hooked) == 0
    hooked.bench.double.pay_invoice(invoice["id"])
    hooked.work()
    paid = hooked.bench.account(acme.id)
    assert (paid.suspensions, paid.past_due_since, paid.stripe_subscription_status) == ((), None, "active")


def _sweep(hooked: Hooked) -> int:
    made = hooked.bench
    return refresh.sweep_dunning(made.config, made.database, made.port, made.now())


def test_without_grace_a_failed_payment_suspends_at_once(graceless: Hooked) -> None:
    """And the admin's own suspension outlives the payment."""
    acme = graceless.bench.add("acme")
    with graceless.bench.database.writing() as conn:
        accounts.suspend(conn, acme.id, Cause.MANUAL, "because", graceless.bench.now(), "test")
    invoice = graceless.bench.double.fail_invoice(str(acme.stripe_customer_id))
    graceless.work()
    assert graceless.causes(acme.id) == {Cause.MANUAL, Cause.UNPAID}
    graceless.bench.double.pay_invoice(invoice["id"])
    graceless.work()
    assert graceless.causes(acme.id) == {Cause.MANUAL}


def test_when_stripe_gives_up_collecting_the_grace_is_over(hooked: Hooked) -> None:
    """Subscription `unpaid`."""
    acme = hooked.bench.add("acme")
    hooked.bench.double.set_subscription_status(str(acme.stripe_customer_id), "unpaid")
    hooked.work()
    assert hooked.causes(acme.id) == {Cause.UNPAID}
    hooked.bench.double.set_subscription_status(str(acme.stripe_customer_id), "active")
    hooked.work()
    assert hooked.causes(acme.id) == set()


def test_a_subscription_that_was_canceled_ends_the_service(hooked: Hooked) -> None:
    """Usage would be counted and never invoiced; linking again makes a new one."""
    acme = hooked.bench.add("acme")
    hooked.bench.double.set_subscription_status(str(acme.stripe_customer_id), "canceled")
    hooked.work()
    assert hooked.causes(acme.id) == {Cause.UNPAID}
    customers.create_for(hooked.bench.config, hooked.bench.database, acme, hooked.bench.now(), "test")
    assert hooked.causes(acme.id) == set()
    assert hooked.bench.account(acme.id).stripe_subscription_id != acme.stripe_subscription_id


def test_a_customer_deleted_at_stripe_is_unlinked_and_suspended(hooked: Hooked) -> None:
    """Its usage is kept here, and goes nowhere until it is linked again."""
    acme = hooked.bench.add("acme")
    hooked.bench.double.delete_customer(str(acme.stripe_customer_id))
    hooked.work()
    gone = hooked.bench.account(acme.id)
    assert gone.stripe_customer_id is None
    assert hooked.causes(acme.id) == {Cause.STRIPE_DELETED}
    hooked.bench.record(acme.id, 5_000_000)
    assert hooked.bench.push(is_closing=True) == []


def test_a_new_billing_period_is_kept(hooked: Hooked) -> None:
    """As the subscription's item says."""
    acme = hooked.bench.add("acme")
    hooked.bench.double.end_period(str(acme.stripe_customer_id))
    hooked.bench.double.clock.advance(hours=2)
    hooked.work()
    assert hooked.bench.account(acme.id).period_start == acme.period_end


@pytest.mark.parametrize("order", ["as it was", "backwards", "each three times"])
def test_neither_order_nor_repetition_matters(hooked: Hooked, order: str) -> None:
    """Failed, then paid, then failed again: whatever arrives first, the last state holds."""
    acme = hooked.bench.add("acme")
    hooked.work()
    hooked.bench.double.hold_events()
    first = hooked.bench.double.fail_invoice(str(acme.stripe_customer_id))
    hooked.bench.double.pay_invoice(first["id"])
    hooked.bench.double.fail_invoice(str(acme.stripe_customer_id))
    shuffles = {
        "as it was": lambda ids: ids,
        "backwards": lambda ids: ids[::-1],
        "each three times": lambda ids: ids * 3,
    }
    hooked.bench.double.release_events(shuffles[order])
    hooked.work()
    assert hooked.bench.account(acme.id).past_due_since == hooked.bench.now()
    assert hooked.events(State.PENDING) == []
    ids = [event.id for event in hooked.events()]
    assert len(set(ids)) == len(ids)


def test_other_events_are_kept_and_ignored(hooked: Hooked) -> None:
    """Also those of customers that are not ours, once a link can no longer be on its way."""
    made = hooked.bench
    made.port.create_customer("somebody else", None, "", "key-1")
    hooked.work()
    assert {event.state for event in hooked.events() if event.type == "customer.created"} == {State.IGNORED}
    raw = body(id="evt_other")
    hooked.receive(raw, sign(raw, hooked))
    hooked.work()
    (event,) = hooked.events(State.PENDING)
    assert (event.id, event.attempts) == ("evt_other", 1)
    made.double.clock.advance(minutes=2)
    hooked.work()
    assert {event.state for event in hooked.events()} == {State.IGNORED}


def test_an_event_that_comes_before_its_link_takes_effect_after_it(hooked: Hooked) -> None:
    """The webhook may be faster than the command that links the customer."""
    made = hooked.bench
    acme = made.add("acme", is_linked=False)
    stripe_customer = made.port.create_customer("acme gmbh", None, acme.id, "key-1").id
    raw = body(type="invoice.payment_failed", data={"object": {"id": "in_1", "customer": stripe_customer}})
    hooked.receive(raw, sign(raw, hooked))
    hooked.work()
    customers.adopt(made.config, made.database, acme, stripe_customer, made.now(), "test")
    made.double.clock.advance(seconds=5)
    hooked.work()
    assert next(event for event in hooked.events() if event.id == "evt_1").state is State.DONE


def test_while_stripe_is_away_events_wait_and_are_seen(graceless: Hooked) -> None:
    """Tried again with growing delays, and the error stands on the event."""
    made = graceless.bench
    acme = made.add("acme")
    graceless.work()
    made.double.fail_invoice(str(acme.stripe_customer_id))
    assert made.double.wait_delivered()
    made.double.fault(FaultKind.SERVER_ERROR, "/v1/customers/*", times=3)
    graceless.work()
    waiting = graceless.events(State.PENDING)
    assert {event.attempts for event in waiting} == {1}
    assert all("Stripe answered 500" in str(event.last_error) for event in waiting)
    assert graceless.causes(acme.id) == set()
    assert graceless.work() == 0
    made.double.clock.advance(seconds=2)
    graceless.work()
    assert graceless.events(State.PENDING) == []
    assert graceless.causes(acme.id) == {Cause.UNPAID}


def test_an_event_fails_after_three_days_and_can_be_replayed(hooked: Hooked) -> None:
    """Given up, visible, and done when somebody asks for it once more."""
    made = hooked.bench
    acme = made.add("acme")
    raw = body(data={"object": {"id": "in_1", "customer": acme.stripe_customer_id}})
    hooked.receive(raw, sign(raw, hooked))
    fault = made.double.fault(FaultKind.CONFLICT, "/v1/customers/*", times=None)
    hooked.work()
    made.double.clock.advance(days=3)
    hooked.work()
    failed = {event.id: event for event in hooked.events(State.FAILED)}
    assert failed["evt_1"].attempts == 2
    assert fault.hits > 0
    made.double.clear_faults()
    with made.database.writing() as conn:
        assert inbox.replay(conn, "evt_1", made.now())
        assert not inbox.replay(conn, "evt_2", made.now())
    hooked.work()
    assert next(event for event in hooked.events() if event.id == "evt_1").state is State.DONE


def test_a_payment_whose_event_was_lost_prevents_the_suspension(hooked: Hooked) -> None:
    """The sweep asks Stripe before it suspends."""
    made = hooked.bench
    acme = made.add("acme")
    invoice = made.double.fail_invoice(str(acme.stripe_customer_id))
    hooked.work()
    made.double.hold_events()
    made.double.pay_invoice(invoice["id"])
    made.double.clock.advance(days=4)
    assert _sweep(hooked) == 1
    assert hooked.causes(acme.id) == set()
    assert made.account(acme.id).past_due_since is None
    made.double.release_events()
    hooked.work()


def test_a_sweep_without_stripe_suspends_nobody(hooked: Hooked) -> None:
    """And looks at the next one all the same."""
    made = hooked.bench
    ids = [made.add(name).id for name in ("acme", "ben")]
    for customer_id in ids:
        stripe_customer = str(made.account(customer_id).stripe_customer_id)
        made.double.decline_payments(stripe_customer)
        made.double.fail_invoice(stripe_customer)
    hooked.work()
    made.double.clock.advance(days=3)
    made.double.fault(FaultKind.CONFLICT, f"/v1/customers/{made.account(ids[0]).stripe_customer_id}", times=3)
    assert _sweep(hooked) == 2
    assert [hooked.causes(customer_id) for customer_id in ids] == [set(), {Cause.UNPAID}]


def test_the_key_of_another_account_unlinks_nobody(hooked: Hooked) -> None:
    """Stripe does not know the customer there; a deleted one it would know."""
    made = hooked.bench
    acme = made.add("acme")
    hooked.work()
    with StripeDouble() as other:
        raw = body(type="customer.deleted", data={"object": {"id": acme.stripe_customer_id, "object": "customer"}})
        hooked.receive(raw, sign(raw, hooked))
        process.work_off(made.config, made.database, SdkClient(other.api_key, other.url, other.url), made.now)
    (event,) = hooked.events(State.PENDING)
    assert "is STRIPE_API_KEY of another account or mode?" in str(event.last_error)
    assert made.account(acme.id).stripe_customer_id == acme.stripe_customer_id


def test_usage_that_stripe_finds_invalid_afterwards_is_rejected_and_sent_again_once_mended(hooked: Hooked) -> None:
    """Answered with 200, reported later by a thin event that has to be fetched."""
    made = hooked.bench
    made.double.add_webhook(hooked.url, secret=SECRET, is_thin=True)
    acme = made.add("acme")
    made.record(acme.id, 7_000_000)
    made.double.reject_next(code="meter_event_invalid_value")
    assert [each.outcome.state for each in made.push()] == [BatchState.ACCEPTED]
    made.double.clock.advance(minutes=1)
    hooked.work()
    (batch,) = made.batches(acme.id)
    assert (batch.state, batch.first_sent_at) == (BatchState.REJECTED, None)
    text = "Stripe found it invalid after accepting it: meter_event_invalid_value; mend it"
    assert str(batch.last_answer).startswith(text)
    (report,) = [event for event in hooked.events() if event.type.startswith("v1.billing.meter.")]
    assert report.state is State.DONE
    assert str(report.last_error).startswith("1 invalid events: 1 batches rejected, 0 held")
    assert made.stripe_units(acme.id) == 0
    assert made.pusher().release_rejected() == 1
    assert [each.outcome.state for each in made.push()] == [BatchState.ACCEPTED]
    assert made.stripe_units(acme.id) == 7
    assert {each.identifier for each in made.double.meter_events} == {batch.id, f"{batch.id}.r1"}
    made.audit(acme.id)


def test_a_report_of_an_identifier_that_was_given_up_changes_nothing(hooked: Hooked) -> None:
    """It comes late, or twice: the batch has gone out under another one since."""
    made = hooked.bench
    made.double.add_webhook(hooked.url, secret=SECRET, is_thin=True)
    acme = made.add("acme")
    made.record(acme.id, 7_000_000)
    made.double.reject_next()
    made.push()
    made.double.clock.advance(minutes=1)
    hooked.work()
    made.pusher().release_rejected()
    made.push()
    (report,) = [event for event in hooked.events() if event.type.startswith("v1.billing.meter.")]
    with made.database.writing() as conn:
        inbox.replay(conn, report.id, made.now())
    hooked.work()
    assert [each.state for each in made.batches(acme.id)] == [BatchState.ACCEPTED]
    assert made.stripe_units(acme.id) == 7


def test_a_fault_of_ours_in_one_event_does_not_stop_the_others(hooked: Hooked) -> None:
    """It is recorded on its own row."""

    class Broken(SdkClient):
        """A port that fails as no port may."""

        def error_report(self, event_id: str) -> Any:
            """A mistake of ours."""
            raise KeyError(event_id)

    made = hooked.bench
    acme = made.add("acme")
    hooked.work()
    report = body(id="evt_0", object="v2.core.event", type="v1.billing.meter.error_report_triggered", data=None)
    hooked.receive(report, sign(report, hooked))
    made.double.set_subscription_status(str(acme.stripe_customer_id), "unpaid")
    assert made.double.wait_delivered()
    process.work_off(
        made.config, made.database, Broken(made.double.api_key, made.double.url, made.double.url), made.now
    )
    assert hooked.causes(acme.id) == {Cause.UNPAID}
    (event,) = hooked.events(State.PENDING)
    assert (event.id, event.last_error) == ("evt_0", "KeyError: 'evt_0'")


def test_a_burst_of_one_customers_events_costs_one_refetch(hooked: Hooked) -> None:
    """A month's end brings several at once, and Stripe counts reads."""
    made = hooked.bench
    acme = made.add("acme")
    hooked.work()
    for number in range(20):
        raw = body(id=f"evt_{number}", data={"object": {"id": "in_1", "customer": acme.stripe_customer_id}})
        hooked.receive(raw, sign(raw, hooked))
    before = made.double.request_count
    assert hooked.work() == 20
    assert made.double.request_count - before == 3
    assert {event.state for event in hooked.events() if event.type == "invoice.paid"} == {State.DONE}


def test_the_time_of_a_debt_is_kept_over_repeated_events(hooked: Hooked) -> None:
    """The grace period does not begin anew with each failed attempt."""
    made = hooked.bench
    acme = made.add("acme")
    made.double.fail_invoice(str(acme.stripe_customer_id))
    hooked.work()
    began = made.account(acme.id).past_due_since
    made.double.clock.advance(days=1)
    made.double.fail_invoice(str(acme.stripe_customer_id))
    hooked.work()
    assert made.account(acme.id).past_due_since == began == Instant(made.now() - DAY_US)
