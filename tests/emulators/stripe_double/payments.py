"""Payments: charges for invoices, declines and their retries, refunds, disputes.

Which customers' payments fail is set from the test side (`account.declined_customers`); nothing else is known
about their cards. A failed payment leaves the invoice open and the subscription `past_due`; after the last
retry the subscription gets `policy.dunning_end` (at Stripe a Dashboard setting). Each change emits what
Stripe documents.
"""

from __future__ import annotations

from typing import Any

from . import subscriptions
from .account import Account, Json
from .errors import ApiError, invalid
from .listing import merge_metadata, newest_first, page, update
from .routing import Call, Route, route


def declined() -> ApiError:
    """402, as for a card without funds."""
    error = {
        "type": "card_error",
        "code": "card_declined",
        "decline_code": "insufficient_funds",
        "message": "Your card has insufficient funds.",
    }
    return ApiError(402, error)


def attempt(account: Account, invoice: Json) -> bool:
    """Charges an open invoice once; says whether it was paid."""
    invoice["attempted"] = True
    invoice["attempt_count"] += 1
    if invoice["customer"] in account.declined_customers:
        _fail(account, invoice)
        return False
    charge = new_charge(account, invoice["customer"], invoice["amount_remaining"], invoice["currency"], {})
    settle(account, invoice, charge)
    return True


def _fail(account: Account, invoice: Json) -> None:
    """The invoice stays open; the next attempt is planned, or dunning ends."""
    retries = account.policy.payment_retry_s
    number = invoice["attempt_count"] - 1
    next_at = account.now() + retries[number] if number < len(retries) else None
    invoice["next_payment_attempt"] = next_at
    account.emit("invoice.payment_failed", invoice)
    subscription = subscription_of(account, invoice)
    if next_at is not None:
        account.schedule(next_at, lambda: _retry(account, invoice, next_at))
    if subscription is not None and subscription["status"] not in subscriptions.ENDED:
        status = "past_due" if next_at is not None else account.policy.dunning_end
        if invoice["billing_reason"] == "subscription_create":
            status = "incomplete"
        subscriptions.set_status(account, subscription, status)


def _retry(account: Account, invoice: Json, at: int) -> None:
    if invoice["status"] == "open" and invoice["next_payment_attempt"] == at:
        attempt(account, invoice)


def settle(account: Account, invoice: Json, charge: Json | None) -> None:
    """The invoice is paid, by a charge or without one; an overdue subscription is active again."""
    amount = invoice["amount_remaining"]
    invoice["status"] = "paid"
    invoice["attempted"] = True
    invoice["amount_paid"] = amount
    invoice["amount_remaining"] = 0
    invoice["next_payment_attempt"] = None
    invoice["status_transitions"]["paid_at"] = account.now()
    if charge is not None:
        payment = _invoice_payment(account, invoice, charge, amount)
        account.emit("charge.succeeded", charge)
        account.emit("invoice_payment.paid", payment)
    account.emit("invoice.paid", invoice)
    account.emit("invoice.payment_succeeded", invoice)
    subscription = subscription_of(account, invoice)
    if subscription is not None and subscription["status"] in ("past_due", "unpaid", "incomplete"):
        is_owing = any(
            other["status"] == "open" and subscription_of(account, other) is subscription
            for other in account.all("invoice")
        )
        if not is_owing:
            subscriptions.set_status(account, subscription, "active")


def subscription_of(account: Account, invoice: Json) -> Json | None:
    """The subscription that an invoice belongs to."""
    parent = invoice["parent"]
    return None if parent is None else account.find(parent["subscription_details"]["subscription"])


def _invoice_payment(account: Account, invoice: Json, charge: Json, amount: int) -> Json:
    payment: Json = {
        "id": account.new_id("inpay"),
        "object": "invoice_payment",
        "amount_paid": amount,
        "amount_requested": amount,
        "created": account.now(),
        "currency": invoice["currency"],
        "invoice": invoice["id"],
        "is_default": True,
        "livemode": False,
        "payment": {"type": "payment_intent", "payment_intent": charge["payment_intent"]},
        "status": "paid",
        "status_transitions": {"canceled_at": None, "paid_at": account.now()},
    }
    account.hidden[invoice["id"]] = {
        "payments": {"object": "list", "data": [payment], "has_more": False, "url": "/v1/invoice_payments"}
    }
    return account.add(payment)


def new_charge(account: Account, customer: str | None, amount: int, currency: str, metadata: Json, **more: Any) -> Json:
    """A succeeded charge, or what `more` makes of it."""
    return account.add(
        {
            "id": account.new_id("ch"),
            "object": "charge",
            "amount": amount,
            "amount_captured": amount,
            "amount_refunded": 0,
            "balance_transaction": account.new_id("txn"),
            "billing_details": {"address": None, "email": None, "name": None, "phone": None, "tax_id": None},
            "captured": True,
            "created": account.now(),
            "currency": currency,
            "customer": customer,
            "description": None,
            "disputed": False,
            "failure_code": None,
            "failure_message": None,
            "livemode": False,
            "metadata": metadata,
            "paid": True,
            "payment_intent": account.new_id("pi"),
            "payment_method": account.new_id("pm"),
            "refunded": False,
            "status": "succeeded",
            **more,
        }
    )


def refund(account: Account, charge: Json, amount: int | None, reason: str | None, metadata: Json) -> Json:
    """Returns money of a charge, all that is left unless told; emits the two documented events."""
    left = charge["amount"] - charge["amount_refunded"]
    amount = left if amount is None else amount
    if left == 0:
        raise invalid(f"Charge {charge['id']} has already been refunded.", code="charge_already_refunded")
    if not 0 < amount <= left:
        raise invalid(f"Refund amount ({amount}) is greater than unrefunded amount on charge ({left}).", param="amount")
    document = account.add(
        {
            "id": account.new_id("re"),
            "object": "refund",
            "amount": amount,
            "balance_transaction": account.new_id("txn"),
            "charge": charge["id"],
            "created": account.now(),
            "currency": charge["currency"],
            "metadata": merge_metadata({}, metadata),
            "payment_intent": charge["payment_intent"],
            "reason": reason,
            "receipt_number": None,
            "source_transfer_reversal": None,
            "status": "succeeded",
            "transfer_reversal": None,
        }
    )
    previous = {"amount_refunded": charge["amount_refunded"], "refunded": charge["refunded"]}
    charge["amount_refunded"] += amount
    charge["refunded"] = charge["amount_refunded"] == charge["amount"]
    account.emit("refund.created", document)
    account.emit("charge.refunded", charge, previous)
    return document


def fail_refund(account: Account, document: Json) -> Json:
    """The payer's bank returns a refund: the money is the account's again."""
    charge = account.get("charge", document["charge"])
    document["status"] = "failed"
    document["failure_reason"] = "lost_or_stolen_card"
    charge["amount_refunded"] -= document["amount"]
    charge["refunded"] = False
    account.emit("refund.failed", document)
    account.emit("refund.updated", document, {"status": "succeeded"})
    return document


def open_dispute(account: Account, charge: Json, reason: str, amount: int | None = None) -> Json:
    """The cardholder's bank takes the money back for now; emits the two documented events."""
    charge["disputed"] = True
    dispute = account.add(
        {
            "id": account.new_id("dp"),
            "object": "dispute",
            "amount": charge["amount"] if amount is None else amount,
            "balance_transactions": [],
            "charge": charge["id"],
            "created": account.now(),
            "currency": charge["currency"],
            "enhanced_eligibility_types": [],
            "evidence": dict.fromkeys(_EVIDENCE.split()) | {"enhanced_evidence": {}},
            "evidence_details": {
                "due_by": account.now() + 7 * 86_400,
                "enhanced_eligibility": {},
                "has_evidence": False,
                "past_due": False,
                "submission_count": 0,
            },
            "is_charge_refundable": False,
            "livemode": False,
            "metadata": {},
            "payment_intent": charge["payment_intent"],
            "reason": reason,
            "status": "needs_response",
        }
    )
    account.emit("charge.dispute.created", dispute)
    account.emit("charge.dispute.funds_withdrawn", dispute)
    return dispute


_EVIDENCE = (
    "access_activity_log billing_address cancellation_policy cancellation_policy_disclosure"
    " cancellation_rebuttal customer_communication customer_email_address customer_name"
    " customer_purchase_ip customer_signature duplicate_charge_documentation"
    " duplicate_charge_explanation duplicate_charge_id product_description receipt refund_policy"
    " refund_policy_disclosure refund_refusal_explanation service_date service_documentation"
    " shipping_address shipping_carrier shipping_date shipping_documentation shipping_tracking_number"
    " uncategorized_file uncategorized_text"
)


def close_dispute(account: Account, dispute: Json, *, is_won: bool) -> Json:
    """The bank decided; a dispute that was won returns the money."""
    previous = {"status": dispute["status"]}
    dispute["status"] = "won" if is_won else "lost"
    account.emit("charge.dispute.closed", dispute, previous)
    if is_won:
        account.emit("charge.dispute.funds_reinstated", dispute)
    return dispute


def create_refund(account: Account, call: Call) -> Json:
    """POST /v1/refunds by charge or payment intent."""
    asked = call.parameters
    charge = next(
        (
            each
            for each in account.all("charge")
            if asked.get("charge") == each["id"] or asked.get("payment_intent") == each["payment_intent"]
        ),
        None,
    )
    if charge is None:
        raise invalid("No such charge or payment_intent.", code="resource_missing", param="charge")
    return refund(account, charge, asked.get("amount"), asked.get("reason"), asked.get("metadata", {}))


def retrieve_charge(account: Account, call: Call) -> Json:
    """GET /v1/charges/{charge}"""
    return account.get("charge", call.id)


def change_charge(account: Account, call: Call) -> Json:
    """POST /v1/charges/{charge}"""
    charge = account.get("charge", call.id)
    previous = update(charge, call, "metadata description")
    if previous:
        account.emit("charge.updated", charge, previous)
    return charge


def list_charges(account: Account, call: Call) -> Json:
    """GET /v1/charges"""
    asked = call.parameters
    return page(
        call,
        (
            each
            for each in newest_first(account, "charge", call)
            if asked.get("customer") in (None, each["customer"])
            and asked.get("payment_intent") in (None, each["payment_intent"])
        ),
    )


def retrieve_refund(account: Account, call: Call) -> Json:
    """GET /v1/refunds/{refund}"""
    return account.get("refund", call.id)


def list_refunds(account: Account, call: Call) -> Json:
    """GET /v1/refunds"""
    asked = call.parameters
    return page(
        call,
        (
            each
            for each in newest_first(account, "refund", call)
            if asked.get("charge") in (None, each["charge"])
            and asked.get("payment_intent") in (None, each["payment_intent"])
        ),
    )


def retrieve_dispute(account: Account, call: Call) -> Json:
    """GET /v1/disputes/{dispute}"""
    return account.get("dispute", call.id)


def list_disputes(account: Account, call: Call) -> Json:
    """GET /v1/disputes"""
    charge = call.parameters.get("charge")
    return page(call, (each for each in newest_first(account, "dispute", call) if charge in (None, each["charge"])))


def list_invoice_payments(account: Account, call: Call) -> Json:
    """GET /v1/invoice_payments"""
    asked = call.parameters
    intent = asked.get("payment", {}).get("payment_intent")
    return page(
        call,
        (
            each
            for each in newest_first(account, "invoice_payment", call)
            if asked.get("invoice") in (None, each["invoice"]) and intent in (None, each["payment"]["payment_intent"])
        ),
    )


ROUTES: tuple[Route, ...] = (
    route("GET", "/v1/charges", list_charges, "customer payment_intent created"),
    route("GET", "/v1/charges/{charge}", retrieve_charge),
    route("POST", "/v1/charges/{charge}", change_charge, "metadata description"),
    route("POST", "/v1/refunds", create_refund, "charge payment_intent amount reason metadata"),
    route("GET", "/v1/refunds", list_refunds, "charge payment_intent created"),
    route("GET", "/v1/refunds/{refund}", retrieve_refund),
    route("GET", "/v1/disputes", list_disputes, "charge created"),
    route("GET", "/v1/disputes/{dispute}", retrieve_dispute),
    route("GET", "/v1/invoice_payments", list_invoice_payments, "invoice payment"),
)
