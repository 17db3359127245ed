"""Money that goes other ways at the Stripe double: dunning, credits, Checkout, refunds, disputes, seats."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import stripe

from tests.contract.stripe_double_support import DAY_S, World, client_of, types_since, world


@pytest.fixture
def w() -> Iterator[World]:
    with world() as made:
        yield made


# -- dunning ---


def test_a_declined_payment_makes_the_subscription_past_due_until_it_is_paid(w: World) -> None:
    subscription = w.subscribe()
    w.use("1000000", "e1")
    w.double.decline_payments(w.customer)
    invoice_id = w.double.end_period(w.customer)["id"]
    before = len(w.double.events)
    w.double.clock.advance(hours=1)
    invoice = w.client.v1.invoices.retrieve(invoice_id)
    assert (invoice.status, invoice.attempt_count, invoice.amount_remaining) == ("open", 1, 100)
    assert w.client.v1.subscriptions.retrieve(subscription.id).status == "past_due"
    assert types_since(w, before) == [
        "invoice.finalized",
        "invoice.payment_failed",
        "customer.subscription.updated",
    ]
    with pytest.raises(stripe.CardError):
        w.client.v1.invoices.pay(invoice_id)
    w.double.decline_payments(w.customer, is_declined=False)
    assert w.client.v1.invoices.pay(invoice_id).status == "paid"
    assert w.client.v1.subscriptions.retrieve(subscription.id).status == "active"


@pytest.mark.parametrize("end", ["canceled", "unpaid", "past_due"])
def test_after_the_last_attempt_dunning_ends_as_the_account_says(w: World, end: str) -> None:
    w.double.policy.dunning_end = end
    subscription = w.subscribe()
    w.use("1000000", "e1")
    w.double.decline_payments(w.customer)
    invoice_id = w.double.end_period(w.customer)["id"]
    w.double.clock.advance(days=16)
    assert w.client.v1.invoices.retrieve(invoice_id).attempt_count == 4
    assert w.client.v1.subscriptions.retrieve(subscription.id).status == end


def test_the_levers_of_the_test_side_emit_what_stripe_would(w: World) -> None:
    w.subscribe()
    before = len(w.double.events)
    invoice = w.double.fail_invoice(w.customer, 1_500)
    assert (invoice["status"], invoice["amount_remaining"]) == ("open", 1_500)
    assert w.double.subscription_of(w.customer)["status"] == "past_due"
    w.double.pay_invoice(invoice["id"])
    w.double.set_subscription_status(w.customer, "unpaid")
    w.double.set_subscription_status(w.customer, "canceled")
    updated = "customer.subscription.updated"
    assert types_since(w, before) == [
        "invoice.created",
        "invoice.finalized",
        "invoice.payment_failed",
        updated,
        "charge.succeeded",
        "invoice_payment.paid",
        "invoice.paid",
        "invoice.payment_succeeded",
        updated,
        updated,
        "customer.subscription.deleted",
    ]
    changes = [event["data"]["previous_attributes"] for event in w.double.events[before:] if event["type"] == updated]
    assert [change["status"] for change in changes] == ["active", "past_due", "active"]


def test_only_open_invoices_are_voided_or_given_up(w: World) -> None:
    w.subscribe()
    first, second = (w.double.fail_invoice(w.customer)["id"] for _ in range(2))
    assert w.client.v1.invoices.void_invoice(first).status == "void"
    assert w.client.v1.invoices.mark_uncollectible(second).status == "uncollectible"
    for refused in (
        w.client.v1.invoices.void_invoice,
        w.client.v1.invoices.pay,
        w.client.v1.invoices.finalize_invoice,
    ):
        with pytest.raises(stripe.InvalidRequestError):
            refused(first)


# -- credits, top-ups, money back ---


def _grant(w: World, value: int, **more: Any) -> Any:
    asked: Any = {
        "customer": w.customer,
        "amount": {"type": "monetary", "monetary": {"currency": "usd", "value": value}},
        "applicability_config": {"scope": {"price_type": "metered"}},
        **more,
    }
    return w.client.v1.billing.credit_grants.create(asked)


def test_credits_pay_metered_lines_in_stripes_order(w: World) -> None:
    """1,000 cents of usage: the urgent grant of 300 first, then the promotional 200, then 500 of the paid
    800.
    """
    paid, promotional = _grant(w, 800), _grant(w, 200, category="promotional")
    urgent = _grant(w, 300, priority=0)
    w.subscribe()
    w.use("10600000", "e1")
    w.double.decline_payments(w.customer)
    w.double.policy.charge_minimum = 1
    invoice_id = w.double.end_period(w.customer)["id"]
    _grant(w, 60, effective_at=w.double.clock.now() + 1)
    w.double.clock.advance(hours=1)
    invoice = w.client.v1.invoices.retrieve(invoice_id)
    assert (invoice.subtotal, invoice.total, invoice.status) == (1_060, 0, "paid")
    debits = w.client.v1.billing.credit_balance_transactions.list({"customer": w.customer}).data
    used = {
        each.credit_grant: each.debit.amount.monetary.value
        for each in debits
        if each.debit is not None and each.debit.amount.monetary is not None
    }
    assert used == {urgent.id: 300, promotional.id: 200, paid.id: 560}
    asked: Any = {
        "customer": w.customer,
        "filter": {"type": "applicability_scope", "applicability_scope": {"price_type": "metered"}},
    }
    left = w.client.v1.billing.credit_balance_summary.retrieve(asked).balances[0].available_balance
    assert left.monetary is not None
    assert left.monetary.value == 240 + 60


def test_a_voided_invoice_returns_its_credits(w: World) -> None:
    grant = _grant(w, 300)
    w.subscribe()
    w.use("10000000", "e1")
    w.double.decline_payments(w.customer)
    invoice_id = w.double.end_period(w.customer)["id"]
    w.double.clock.advance(hours=1)
    assert w.client.v1.invoices.retrieve(invoice_id).amount_remaining == 700
    with pytest.raises(stripe.InvalidRequestError):
        w.client.v1.billing.credit_grants.void_grant(grant.id)
    w.client.v1.invoices.void_invoice(invoice_id)
    asked: Any = {"customer": w.customer, "filter": {"type": "credit_grant", "credit_grant": grant.id}}
    left = w.client.v1.billing.credit_balance_summary.retrieve(asked).balances[0].ledger_balance
    assert left.monetary is not None
    assert left.monetary.value == 300


def test_a_top_up_through_checkout_carries_its_metadata_to_session_and_charge(w: World) -> None:
    tags = {"weir_customer": "c1", "weir_topup": "t1"}
    asked: Any = {
        "mode": "payment",
        "customer": w.customer,
        "success_url": "https://example.com/ok",
        "metadata": tags,
        "payment_intent_data": {"metadata": tags},
        "line_items": [
            {
                "quantity": 2,
                "price_data": {"currency": "usd", "unit_amount": 1_000, "product_data": {"name": "Credit"}},
            }
        ],
    }
    session = w.client.v1.checkout.sessions.create(asked)
    assert (session.amount_total, session.payment_status, session.status) == (2_000, "unpaid", "open")
    w.double.complete_checkout(session.id)
    event = w.double.events[-1]
    assert event["type"] == "checkout.session.completed"
    assert (event["data"]["object"]["payment_status"], event["data"]["object"]["metadata"]) == ("paid", tags)
    (charge,) = w.double.charges_of(w.customer)
    assert (charge["amount"], charge["metadata"]) == (2_000, tags)
    with pytest.raises(stripe.InvalidRequestError):
        w.client.v1.checkout.sessions.expire(session.id)


def test_an_unpaid_checkout_session_expires_after_a_day(w: World) -> None:
    asked: Any = {
        "mode": "payment",
        "line_items": [
            {
                "price_data": {"currency": "usd", "unit_amount": 1_000, "product_data": {"name": "Credit"}},
                "quantity": 1,
            }
        ],
    }
    session = w.client.v1.checkout.sessions.create(asked)
    w.double.clock.advance(DAY_S)
    assert w.client.v1.checkout.sessions.retrieve(session.id).status == "expired"
    assert w.double.events[-1]["type"] == "checkout.session.expired"


def test_refunds_add_up_to_the_charge_and_no_further(w: World) -> None:
    w.subscribe()
    w.double.pay_invoice(w.double.fail_invoice(w.customer, 1_000)["id"])
    charge = w.double.charges_of(w.customer)[0]["id"]
    w.client.v1.refunds.create({"charge": charge, "amount": 400})
    assert w.client.v1.charges.retrieve(charge).refunded is False
    with pytest.raises(stripe.InvalidRequestError):
        w.client.v1.refunds.create({"charge": charge, "amount": 601})
    w.double.refund(charge)
    done = w.client.v1.charges.retrieve(charge)
    assert (done.refunded, done.amount_refunded) == (True, 1_000)
    assert [event["type"] for event in w.double.events[-2:]] == ["refund.created", "charge.refunded"]


def test_a_dispute_opens_and_closes_with_its_events(w: World) -> None:
    w.subscribe()
    w.double.pay_invoice(w.double.fail_invoice(w.customer, 1_000)["id"])
    before = len(w.double.events)
    dispute = w.double.open_dispute(w.double.charges_of(w.customer)[0]["id"])
    w.double.close_dispute(dispute["id"], is_won=True)
    assert types_since(w, before) == [
        "charge.dispute.created",
        "charge.dispute.funds_withdrawn",
        "charge.dispute.closed",
        "charge.dispute.funds_reinstated",
    ]
    assert w.client.v1.disputes.retrieve(dispute["id"]).status == "won"


def test_a_licensed_price_is_billed_in_advance(w: World) -> None:
    asked: Any = {
        "currency": "usd",
        "product": w.product,
        "unit_amount": 900,
        "recurring": {"interval": "month"},
    }
    seat = w.client.v1.prices.create(asked).id
    w.subscribe(items=[{"price": w.price}, {"price": seat, "quantity": 2}])
    first = w.client.v1.invoices.list().data[0]
    assert (first.total, first.status) == (1_800, "paid")
    w.use("1000000", "e1")
    assert w.double.end_period(w.customer)["total"] == 1_900
    assert client_of(w.double).v1.charges.list({"customer": w.customer}).data[0].amount == 1_800
