"""Money that customers pay in becomes credit once, whatever webhooks come, how often and in which order."""

import itertools
import random
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from billing.clock import SECOND_US, Instant
from billing.credit.account import Kind
from billing.ledger import accounts, auto_topups, credit, inbox, leases, topups
from billing.ledger.accounts import Cause, Customer
from billing.ledger.inbox import State as EventState
from billing.ledger.topups import Origin, State, Topup
from billing.money import PICO_PER_MAJOR, Pico
from billing.stripe_sync import autotopup
from billing.stripe_sync import topups as paying
from billing.stripe_sync.minor_units import to_pico
from tests.stripe_hooks import Hooked, hooked_on
from tests.support.examples import examples

USD = "usd"


@pytest.fixture
def hooked(database_url: str) -> Iterator[Hooked]:
    """A bench with a receiver of webhooks."""
    yield from hooked_on(database_url, 3)


def add(hooked: Hooked, name: str = "acme") -> Customer:
    """A prepaid customer that Stripe does not know."""
    with hooked.bench.database.writing() as conn:
        return accounts.add_customer(conn, name, None, hooked.bench.now(), "test", is_prepaid=True)


def link(hooked: Hooked, customer: Customer, minor: int = 2_500) -> paying.Link:
    """A page where a customer pays."""
    made = hooked.bench
    return paying.open_link(made.config, made.database, made.port, customer, minor, made.now(), "test")


def balance(hooked: Hooked, customer: Customer) -> int:
    """The customer's balance in minor units."""
    with hooked.bench.database.reading() as conn:
        found = leases.standing(conn, customer.id, hooked.bench.now()).balance
    whole, rest = divmod(found, to_pico(1, USD))
    assert rest == 0
    return whole


def kinds(hooked: Hooked, customer: Customer) -> list[str]:
    """What happened to the customer's credit, oldest first."""
    with hooked.bench.database.reading() as conn:
        return [entry.kind.value for entry in reversed(credit.entries(conn, customer.id, 1_000))]


def topup(hooked: Hooked, topup_id: str) -> Topup:
    """A payment as it is now."""
    with hooked.bench.database.reading() as conn:
        return topups.get(conn, topup_id)


def charge_of(hooked: Hooked, link_: paying.Link) -> str:
    """The charge that paid a link."""
    session = next(each for each in hooked.bench.double.objects("checkout.session") if each["id"] == link_.checkout.id)
    intents = {each["payment_intent"]: each["id"] for each in hooked.bench.double.objects("charge")}
    return str(intents[session["payment_intent"]])


def spend(hooked: Hooked, customer: Customer, minor: int) -> None:
    """Usage that credit pays for, settled."""
    with hooked.bench.database.writing() as conn:
        at = leases.database_now(conn, hooked.bench.now)
        leases.burn(conn, credit.lock(conn, customer.id), to_pico(minor, USD), at)


def test_what_is_paid_on_stripes_page_is_credited(hooked: Hooked) -> None:
    """The page carries our marks; nothing is there before it is paid."""
    acme = add(hooked)
    made = link(hooked, acme)
    (session,) = hooked.bench.double.objects("checkout.session")
    assert session["metadata"] == {"weir_customer": acme.id, "weir_topup": made.topup.id}
    assert (session["amount_total"], session["currency"], session["url"]) == (2_500, "usd", made.checkout.url)
    hooked.work()
    assert balance(hooked, acme) == 0
    hooked.bench.double.complete_checkout(made.checkout.id)
    hooked.work()
    assert balance(hooked, acme) == 2_500
    assert kinds(hooked, acme) == ["topup"]
    paid = topup(hooked, made.topup.id)
    assert (paid.state, paid.received, paid.credited) == (State.PAID, 2_500, 2_500)


def test_every_delivery_again_credits_nothing_more(hooked: Hooked) -> None:
    """The same events, new events about the same, and replays of all."""
    acme = add(hooked)
    made = link(hooked, acme)
    hooked.bench.double.complete_checkout(made.checkout.id)
    hooked.work()
    for event in hooked.bench.double.events:
        hooked.bench.double.deliver(event, times=2)
        hooked.bench.double.deliver({**event, "id": f"{event['id']}again"})
    hooked.work()
    with hooked.bench.database.writing() as conn:
        for stored in inbox.listed(conn, None, 1_000):
            inbox.replay(conn, stored.id, hooked.bench.now())
    hooked.work()
    assert hooked.events(EventState.PENDING) == hooked.events(EventState.FAILED) == []
    assert balance(hooked, acme) == 2_500
    assert kinds(hooked, acme) == ["topup"]


@pytest.mark.parametrize("is_paid", [True, False])
def test_a_delayed_payment_is_credited_when_it_arrives(hooked: Hooked, is_paid: bool) -> None:
    """The session completes unpaid; days later the bank pays, or does not."""
    acme = add(hooked)
    made = link(hooked, acme)
    hooked.bench.double.complete_checkout(made.checkout.id, is_delayed=True)
    hooked.work()
    assert (balance(hooked, acme), topup(hooked, made.topup.id).state) == (0, State.PROCESSING)
    hooked.bench.double.settle_checkout(made.checkout.id, is_paid=is_paid)
    hooked.work()
    assert balance(hooked, acme) == (2_500 if is_paid else 0)
    assert topup(hooked, made.topup.id).state is (State.PAID if is_paid else State.FAILED)


def test_a_payment_is_credited_without_any_webhook(hooked: Hooked) -> None:
    """The sweep looks after what was never heard of again, also when the page expires."""
    acme = add(hooked)
    first, second = link(hooked, acme), link(hooked, acme, 700)
    hooked.bench.double.hold_events()
    hooked.bench.double.complete_checkout(first.checkout.id)
    made = hooked.bench
    assert paying.sweep(made.database, made.port, made.now) == 0
    made.double.clock.advance(minutes=16)
    assert paying.sweep(made.database, made.port, made.now) == 2
    assert balance(hooked, acme) == 2_500
    made.double.clock.advance(days=1)
    refreshed = paying.refresh(made.database, made.port, second.topup.id, made.now)
    assert refreshed.state is State.EXPIRED
    assert balance(hooked, acme) == 2_500


def test_a_crash_before_the_session_is_noted_loses_nothing(hooked: Hooked) -> None:
    """The session itself says what it is for."""
    acme = add(hooked)
    made = link(hooked, acme)
    with hooked.bench.database.writing() as conn:
        topups.record(conn, made.topup.id, hooked.bench.now(), checkout_session_id=None)
    hooked.bench.double.complete_checkout(made.checkout.id)
    hooked.work()
    assert balance(hooked, acme) == 2_500


def test_a_session_of_somebody_else_is_nobodys_credit(hooked: Hooked) -> None:
    """Neither one without our marks, nor one that names another customer's payment."""
    acme, ben = add(hooked), add(hooked, "ben")
    made = link(hooked, acme)
    foreign = {"weir_customer": ben.id, "weir_topup": made.topup.id}
    for marks in (
        {},
        foreign,
        {"weir_customer": acme.id, "weir_topup": "topup_0"},
        {**foreign, "weir_customer": acme.id},
    ):
        session = hooked.bench.port._v1.checkout.sessions.create(
            {
                "mode": "payment",
                "success_url": "http://127.0.0.1/",
                "metadata": marks,
                "line_items": [
                    {
                        "quantity": 1,
                        "price_data": {"currency": "usd", "unit_amount": 900, "product_data": {"name": "A shirt"}},
                    }
                ],
            }
        )
        hooked.bench.double.complete_checkout(session.id)
    hooked.work()
    assert balance(hooked, acme) == balance(hooked, ben) == 0
    assert hooked.events(EventState.PENDING) == []


def test_refunds_take_back_once_and_in_parts(hooked: Hooked) -> None:
    acme = add(hooked)
    made = link(hooked, acme)
    hooked.bench.double.complete_checkout(made.checkout.id)
    hooked.bench.double.refund(charge_of(hooked, made), 1_000)
    hooked.work()
    assert balance(hooked, acme) == 1_500
    refund = hooked.bench.double.refund(charge_of(hooked, made), 200)
    hooked.work()
    hooked.bench.double.refund(charge_of(hooked, made))
    hooked.work()
    assert balance(hooked, acme) == 0
    hooked.bench.double.fail_refund(refund["id"])
    hooked.work()
    assert balance(hooked, acme) == 200
    with hooked.bench.database.reading() as conn:
        history = [(entry.kind, entry.amount // to_pico(1, USD)) for entry in credit.entries(conn, acme.id, 10)]
    assert sum(amount for _, amount in history) == 200
    assert history[0] == (Kind.REVERSAL, 200)


def test_a_refund_of_spent_credit_leaves_a_debt_that_the_next_payment_covers(hooked: Hooked) -> None:
    """Nothing is served until then."""
    acme = add(hooked)
    first = link(hooked, acme)
    hooked.bench.double.complete_checkout(first.checkout.id)
    hooked.work()
    spend(hooked, acme, 2_400)
    hooked.bench.double.refund(charge_of(hooked, first))
    hooked.work()
    assert balance(hooked, acme) == -2_400
    with hooked.bench.database.writing() as conn:
        assert leases.take(conn, acme.id, "worker", USD, 1, 1, hooked.bench.now()).additions == ()
    second = link(hooked, acme, 3_000)
    hooked.bench.double.complete_checkout(second.checkout.id)
    hooked.work()
    assert balance(hooked, acme) == 600
    with hooked.bench.database.writing() as conn:
        taken = leases.take(conn, acme.id, "worker", USD, int(PICO_PER_MAJOR), 1, hooked.bench.now())
    assert sum(each.amount for each in taken.additions) == PICO_PER_MAJOR


def test_a_dispute_takes_back_and_freezes_and_one_that_is_won_gives_back(hooked: Hooked) -> None:
    acme = add(hooked)
    made = link(hooked, acme)
    hooked.bench.double.complete_checkout(made.checkout.id)
    hooked.work()
    dispute = hooked.bench.double.open_dispute(charge_of(hooked, made), amount=2_000)
    hooked.work()
    assert (balance(hooked, acme), hooked.causes(acme.id)) == (500, {Cause.DISPUTED})
    hooked.bench.double.close_dispute(dispute["id"], is_won=True)
    hooked.work()
    assert (balance(hooked, acme), hooked.causes(acme.id)) == (2_500, set())


def test_a_dispute_that_is_lost_stays_lost_and_an_admin_may_thaw(hooked: Hooked) -> None:
    """The same events again do not overrule the admin."""
    acme = add(hooked)
    made = link(hooked, acme)
    hooked.bench.double.complete_checkout(made.checkout.id)
    dispute = hooked.bench.double.open_dispute(charge_of(hooked, made))
    hooked.bench.double.close_dispute(dispute["id"], is_won=False)
    hooked.work()
    assert (balance(hooked, acme), hooked.causes(acme.id)) == (0, {Cause.DISPUTED})
    with hooked.bench.database.writing() as conn:
        accounts.resume(conn, acme.id, Cause.DISPUTED, "they called", hooked.bench.now(), "test")
        for stored in inbox.listed(conn, None, 1_000):
            inbox.replay(conn, stored.id, hooked.bench.now())
    hooked.work()
    assert (balance(hooked, acme), hooked.causes(acme.id)) == (0, set())


def test_a_disputed_invoice_freezes_its_customer_too(hooked: Hooked) -> None:
    acme = hooked.bench.add("acme")
    invoice = hooked.bench.double.fail_invoice(str(acme.stripe_customer_id))
    hooked.bench.double.pay_invoice(invoice["id"])
    (charge,) = hooked.bench.double.charges_of(str(acme.stripe_customer_id))
    dispute = hooked.bench.double.open_dispute(charge["id"])
    hooked.work()
    assert hooked.causes(acme.id) == {Cause.DISPUTED}
    hooked.bench.double.close_dispute(dispute["id"], is_won=True)
    hooked.work()
    assert hooked.causes(acme.id) == set()


def test_another_currency_than_the_credits_is_refused_and_said(hooked: Hooked) -> None:
    """The money stays visible: it has to be refunded."""
    acme = add(hooked)
    with hooked.bench.database.writing() as conn:
        credit.grant(conn, acme.id, Pico(1), "eur", hooked.bench.now(), "test")
    made = link(hooked, acme)
    hooked.bench.double.complete_checkout(made.checkout.id)
    hooked.work()
    refused = topup(hooked, made.topup.id)
    assert (refused.state, refused.received, refused.credited) == (State.REFUSED, 2_500, 0)
    assert refused.note == "the customer's credit is in eur, not usd: refund it at Stripe"
    assert kinds(hooked, acme) == ["grant"]


@settings(max_examples=examples(8, 80), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_order_and_number_of_deliveries_comes_to_the_same(hooked: Hooked, data: st.DataObject) -> None:
    """A life of a payment, its webhooks dropped, doubled and shuffled: the credit is what Stripe holds for us."""
    made = hooked.bench
    acme = add(hooked, f"acme {next(_numbers)}")
    page = link(hooked, acme)
    made.double.hold_events()
    session = made.double.complete_checkout(page.checkout.id, is_delayed=data.draw(st.booleans(), label="delayed"))
    if session["payment_status"] == "unpaid":
        made.double.settle_checkout(page.checkout.id, is_paid=data.draw(st.booleans(), label="paid"))
    expected = 2_500 if session["payment_status"] == "paid" else 0
    if expected:
        for part in data.draw(st.lists(st.integers(1, 800), max_size=3), label="refunds"):
            refund = made.double.refund(charge_of(hooked, page), part)
            if data.draw(st.booleans(), label="fails"):
                made.double.fail_refund(refund["id"])
            else:
                expected -= part
        if data.draw(st.booleans(), label="disputed"):
            dispute = made.double.open_dispute(charge_of(hooked, page), amount=expected)
            is_won = data.draw(st.sampled_from([None, True, False]), label="won")
            if is_won is not None:
                made.double.close_dispute(dispute["id"], is_won=is_won)
            expected = expected if is_won else 0
    spent = data.draw(st.integers(0, 2_500), label="spent")

    seed = data.draw(st.integers(0, 2**32), label="order")

    def order(ids: list[str]) -> list[str]:
        """Each at least once, some again, shuffled."""
        chance = random.Random(seed)
        return chance.sample([*ids, *ids, *ids], k=3 * len(ids)) if seed % 2 else chance.sample(ids, k=len(ids))

    made.double.release_events(order)
    hooked.work()
    if expected:
        spend(hooked, acme, min(spent, expected))
        expected -= min(spent, expected)
    assert balance(hooked, acme) == expected
    assert hooked.events(EventState.PENDING) == hooked.events(EventState.FAILED) == []


_numbers = itertools.count()


# -- automatic top-ups ---


def saved(hooked: Hooked, *, below: int = 1_000, amount: int = 2_000) -> Customer:
    """A customer with an automatic top-up, who has paid 25 dollars by a card that may be charged again."""
    acme = add(hooked)
    with hooked.bench.database.writing() as conn:
        auto_topups.put(conn, acme.id, below, amount, USD, hooked.bench.now(), "test")
    made = link(hooked, acme)
    hooked.bench.double.complete_checkout(made.checkout.id)
    hooked.work()
    return acme


def top_up(hooked: Hooked) -> int:
    """One round of the job."""
    made = hooked.bench
    return autotopup.run(made.database, made.port, made.now)


def stripe_customer(hooked: Hooked, customer: Customer) -> str:
    """Who pays for the customer at Stripe."""
    with hooked.bench.database.reading() as conn:
        payer = topups.payer(conn, customer.id)
    assert payer is not None
    return payer[0]


def autos(hooked: Hooked, customer: Customer) -> list[Topup]:
    """The customer's automatic payments, newest first."""
    with hooked.bench.database.reading() as conn:
        return [each for each in topups.of_customer(conn, customer.id, 100) if each.origin is Origin.AUTO]


def test_a_low_balance_charges_the_saved_card_once(hooked: Hooked) -> None:
    """Not at the threshold, but below it; and again only when it is below again."""
    acme = saved(hooked)
    spend(hooked, acme, 1_500)
    assert top_up(hooked) == 0
    spend(hooked, acme, 1)
    assert top_up(hooked) == 1
    assert balance(hooked, acme) == 2_999
    assert top_up(hooked) == 0
    hooked.work()
    assert balance(hooked, acme) == 2_999
    assert [each.state for each in autos(hooked, acme)] == [State.PAID]


def test_a_delayed_automatic_payment_is_one_in_flight(hooked: Hooked) -> None:
    acme = saved(hooked)
    hooked.bench.double.policy.is_payment_delayed = True
    spend(hooked, acme, 2_500)
    assert top_up(hooked) == 1
    assert top_up(hooked) == 0
    (flying,) = autos(hooked, acme)
    assert (flying.state, balance(hooked, acme)) == (State.PROCESSING, 0)
    hooked.bench.double.settle_intent(str(flying.payment_intent_id), is_paid=False)
    hooked.work()
    hooked.work()
    assert autos(hooked, acme)[0].state is State.FAILED
    assert top_up(hooked) == 0
    with hooked.bench.database.reading() as conn:
        setting = auto_topups.find(conn, acme.id)
    assert setting is not None
    assert setting.failures == 1


def test_a_declined_card_is_tried_after_days_and_then_left_alone(hooked: Hooked) -> None:
    """Three charges in all; a payment by the page lets it go on."""
    acme = saved(hooked)
    hooked.bench.double.decline_payments(stripe_customer(hooked, acme))
    spend(hooked, acme, 2_500)
    attempts = 0
    for _ in range(20):
        attempts += sum(top_up(hooked) for _ in range(3))
        hooked.work()
        hooked.bench.double.clock.advance(hours=12)
    assert attempts == len(autos(hooked, acme)) == 3
    assert balance(hooked, acme) == 0
    with hooked.bench.database.reading() as conn:
        setting = auto_topups.find(conn, acme.id)
    assert setting is not None
    assert setting.paused_at is not None
    hooked.bench.double.decline_payments(stripe_customer(hooked, acme), is_declined=False)
    made = link(hooked, acme, 500)
    hooked.bench.double.complete_checkout(made.checkout.id)
    hooked.work()
    assert top_up(hooked) == 1
    assert balance(hooked, acme) == 2_500


def test_a_card_that_asks_for_its_holder_is_not_tried_again(hooked: Hooked) -> None:
    acme = saved(hooked)
    hooked.bench.double.policy.decline_code = "authentication_required"
    hooked.bench.double.decline_payments(stripe_customer(hooked, acme))
    spend(hooked, acme, 2_500)
    assert top_up(hooked) == 1
    with hooked.bench.database.reading() as conn:
        setting = auto_topups.find(conn, acme.id)
    assert setting is not None
    assert setting.paused_at is not None
    hooked.bench.double.clock.advance(days=30)
    assert top_up(hooked) == 0


def test_nobody_without_a_card_or_under_suspension_is_charged(hooked: Hooked) -> None:
    acme = add(hooked)
    with hooked.bench.database.writing() as conn:
        auto_topups.put(conn, acme.id, 1_000, 2_000, USD, hooked.bench.now(), "test")
    assert top_up(hooked) == 0
    with hooked.bench.database.reading() as conn:
        setting = auto_topups.find(conn, acme.id)
    assert setting is not None
    assert setting.note == autotopup.NO_CARD
    made = link(hooked, acme, 500)
    hooked.bench.double.complete_checkout(made.checkout.id)
    hooked.work()
    with hooked.bench.database.writing() as conn:
        accounts.suspend(conn, acme.id, Cause.MANUAL, "because", hooked.bench.now(), "test")
    assert top_up(hooked) == 0
    with hooked.bench.database.writing() as conn:
        accounts.resume(conn, acme.id, Cause.MANUAL, None, hooked.bench.now(), "test")
    assert top_up(hooked) == 1
    assert balance(hooked, acme) == 2_500


@pytest.mark.parametrize("fault", ["drop_after_commit", "server_error_after_commit", "drop_before_commit"])
def test_an_answer_that_is_lost_charges_nobody_twice(hooked: Hooked, fault: str) -> None:
    """The payment is looked for before it is made again, under the same key."""
    acme = saved(hooked)
    spend(hooked, acme, 2_500)
    hooked.bench.double.fault(fault, "/v1/payment_intents", method="POST", times=3)
    assert top_up(hooked) == 1
    assert top_up(hooked) == 0
    (lost,) = autos(hooked, acme)
    assert (lost.state, lost.payment_intent_id) == (State.OPEN, None)
    hooked.bench.double.clear_faults()
    made = hooked.bench
    later = max(made.now(), lost.checked_at) + 61 * SECOND_US
    autotopup.run(made.database, made.port, lambda: Instant(later))
    hooked.work()
    assert balance(hooked, acme) == 2_000
    charges = [each for each in made.double.charges_of(stripe_customer(hooked, acme)) if each["status"] == "succeeded"]
    assert [each["amount"] for each in charges] == [2_500, 2_000]
