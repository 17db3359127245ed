"""Payment intents: what Checkout makes, and saved cards that are charged while their holder is away.

Documented (https://docs.stripe.com/payments/payment-intents): one that is confirmed `off_session` ends as `succeeded`,
as `processing` with a delayed method, or as `requires_payment_method` with a 402 whose error names the intent; only a
card that was saved for it (`setup_future_usage`) can be charged so. Which customers' cards are declined is set from the
test side.
"""

from __future__ import annotations

from . import payments
from .account import Account, Json
from .errors import ApiError, invalid
from .listing import merge_metadata, newest_first, page
from .routing import Call, Route, route


def make(account: Account, customer: str | None, amount: int, currency: str, metadata: Json) -> Json:
    """A payment intent that waits for its method."""
    return account.add(
        {
            "id": account.new_id("pi"),
            "object": "payment_intent",
            "amount": amount,
            "amount_received": 0,
            "automatic_payment_methods": None,
            "canceled_at": None,
            "cancellation_reason": None,
            "capture_method": "automatic",
            "client_secret": None,
            "confirmation_method": "automatic",
            "created": account.now(),
            "currency": currency,
            "customer": customer,
            "description": None,
            "last_payment_error": None,
            "latest_charge": None,
            "livemode": False,
            "metadata": merge_metadata({}, metadata),
            "next_action": None,
            "payment_method": None,
            "payment_method_types": ["card"],
            "processing": None,
            "receipt_email": None,
            "setup_future_usage": None,
            "status": "requires_payment_method",
        }
    )


def succeed(account: Account, intent: Json) -> Json:
    """The money is there: a charge, and the events of both."""
    charge = _charge(account, intent, "succeeded")
    intent["status"] = "succeeded"
    intent["amount_received"] = intent["amount"]
    if intent["setup_future_usage"] is not None or intent["id"] in account.off_session_intents:
        account.saved_methods.add((intent["customer"], charge["payment_method"]))
    account.emit("charge.succeeded", charge)
    account.emit("payment_intent.succeeded", intent)
    return charge


def begin(account: Account, intent: Json) -> Json:
    """A delayed method: days until the money is there."""
    charge = _charge(account, intent, "pending")
    intent["status"] = "processing"
    account.emit("charge.pending", charge)
    account.emit("payment_intent.processing", intent)
    return charge


def fail(account: Account, intent: Json, code: str = "card_declined") -> Json:
    """The attempt failed; the intent waits for another method."""
    charge = _charge(account, intent, "failed")
    charge["failure_code"] = code
    charge["failure_message"] = "Your card was declined."
    intent["status"] = "requires_payment_method"
    account.emit("charge.failed", charge)
    account.emit("payment_intent.payment_failed", intent)
    return charge


def _charge(account: Account, intent: Json, status: str) -> Json:
    """The intent's charge: a pending one is settled, otherwise there is a new one."""
    known = account.objects.get("charge", {}).get(intent["latest_charge"] or "")
    is_taken = status == "succeeded"
    if known is not None and known["status"] == "pending":
        known.update(status=status, paid=is_taken, captured=is_taken)
        known["amount_captured"] = intent["amount"] if is_taken else 0
        return known
    more: Json = {"payment_intent": intent["id"], "status": status, "paid": is_taken, "captured": is_taken}
    if intent["payment_method"] is not None:
        more["payment_method"] = intent["payment_method"]
    if not is_taken:
        more["amount_captured"] = 0
    charge = payments.new_charge(
        account, intent["customer"], intent["amount"], intent["currency"], dict(intent["metadata"]), **more
    )
    intent["latest_charge"] = charge["id"]
    intent["payment_method"] = charge["payment_method"]
    return charge


def create(account: Account, call: Call) -> Json:
    """POST /v1/payment_intents, confirmed at once for a saved card."""
    asked = call.parameters
    if not (asked.get("confirm") and asked.get("off_session")):
        raise invalid("The double models `confirm` with `off_session` only.", param="confirm", is_stored=False)
    account.get("customer", asked.get("customer", ""), param="customer")
    method = asked.get("payment_method", "")
    if (asked["customer"], method) not in account.saved_methods:
        raise invalid(f"No such PaymentMethod: '{method}'", code="resource_missing", param="payment_method")
    intent = make(account, asked["customer"], asked["amount"], asked["currency"].lower(), asked.get("metadata", {}))
    intent["payment_method"] = method
    account.off_session_intents.add(intent["id"])
    account.emit("payment_intent.created", intent)
    if asked["customer"] in account.declined_customers:
        charge = fail(account, intent, account.policy.decline_code)
        raise _declined(account, intent, charge)
    if account.policy.is_payment_delayed:
        begin(account, intent)
    else:
        succeed(account, intent)
    return intent


def _declined(account: Account, intent: Json, charge: Json) -> ApiError:
    error = {
        "type": "card_error",
        "code": account.policy.decline_code,
        "message": "Your card was declined.",
        "charge": charge["id"],
        "payment_intent": intent,
    }
    return ApiError(402, error)


def retrieve(account: Account, call: Call) -> Json:
    """GET /v1/payment_intents/{intent}"""
    return account.get("payment_intent", call.id)


def listed(account: Account, call: Call) -> Json:
    """GET /v1/payment_intents"""
    customer = call.parameters.get("customer")
    found = newest_first(account, "payment_intent", call)
    return page(call, (each for each in found if customer in (None, each["customer"])))


ROUTES: tuple[Route, ...] = (
    route(
        "POST",
        "/v1/payment_intents",
        create,
        "amount currency customer payment_method off_session confirm metadata",
    ),
    route("GET", "/v1/payment_intents", listed, "customer created"),
    route("GET", "/v1/payment_intents/{intent}", retrieve),
)
