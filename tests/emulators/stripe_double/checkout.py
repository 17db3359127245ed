"""Checkout sessions of mode `payment`: the top-up path. The test side plays the customer who pays.

Documented (https://docs.stripe.com/payments/checkout/fulfill-orders): with a delayed method the session completes with
`payment_status=unpaid`, and `async_payment_succeeded` or `async_payment_failed` follows; a declined card leaves the
session open.
"""

from __future__ import annotations

from decimal import Decimal

from . import customers, intents
from .account import Account, Json
from .clock import DAY_S
from .errors import invalid
from .lines import rounded
from .listing import merge_metadata, newest_first, page
from .routing import Call, Route, route


def create(account: Account, call: Call) -> Json:
    """POST /v1/checkout/sessions"""
    asked = call.parameters
    if asked.get("mode") != "payment":
        raise invalid("The double models Checkout for `mode=payment` only.", param="mode", is_stored=False)
    if "customer" in asked:
        account.get("customer", asked["customer"], param="customer")
    lines = [_priced(account, line) for line in asked.get("line_items", [])]
    if not lines:
        raise invalid("`line_items` is required.", param="line_items", is_stored=False)
    if len({currency for _, currency in lines}) > 1:
        raise invalid("All prices of a session must have the same currency.", param="line_items")
    total = sum(amount for amount, _ in lines)
    session_id = account.new_id("cs_test")
    session: Json = {
        "id": session_id,
        "object": "checkout.session",
        "amount_subtotal": total,
        "amount_total": total,
        "automatic_tax": {"enabled": False, "liability": None, "provider": None, "status": None},
        "cancel_url": asked.get("cancel_url"),
        "client_reference_id": asked.get("client_reference_id"),
        "created": account.now(),
        "currency": lines[0][1],
        "custom_fields": [],
        "custom_text": {
            "after_submit": None,
            "shipping_address": None,
            "submit": None,
            "terms_of_service_acceptance": None,
        },
        "customer": asked.get("customer"),
        "customer_details": None,
        "customer_email": asked.get("customer_email"),
        "expires_at": asked.get("expires_at", account.now() + DAY_S),
        "invoice": None,
        "livemode": False,
        "metadata": merge_metadata({}, asked.get("metadata")),
        "mode": "payment",
        "payment_intent": None,
        "payment_method_types": ["card"],
        "payment_status": "unpaid",
        "shipping_options": [],
        "status": "open",
        "subscription": None,
        "success_url": asked.get("success_url"),
        "url": f"https://checkout.stripe.com/c/pay/{session_id}",
    }
    account.add(session)
    account.checkout_plans[session_id] = {
        **asked.get("payment_intent_data", {}),
        "is_customer_made": asked.get("customer_creation") == "always",
    }
    at: int = session["expires_at"]
    account.schedule(at, lambda: _expire(account, session))
    return session


def _priced(account: Account, line: Json) -> tuple[int, str]:
    """(amount, currency) of one line."""
    source = line.get("price_data") or account.get("price", line.get("price", ""), param="line_items")
    unit = source.get("unit_amount_decimal") or str(source.get("unit_amount"))
    return rounded(Decimal(unit) * line.get("quantity", 1)), source["currency"].lower()


def _expire(account: Account, session: Json) -> None:
    if session["status"] == "open":
        session["status"] = "expired"
        session["url"] = None
        account.emit("checkout.session.expired", session)


def complete(account: Account, session: Json, *, is_delayed: bool = False) -> Json:
    """The customer pays: a payment intent, a charge, and the events; a delayed method leaves both unsettled."""
    assert session["status"] == "open", f"the session is {session['status']}"
    plan = account.checkout_plans[session["id"]]
    if session["customer"] is None and plan["is_customer_made"]:
        session["customer"] = customers.make(account, {"email": session["customer_email"]})["id"]
    intent = intents.make(
        account, session["customer"], session["amount_total"], session["currency"], plan.get("metadata", {})
    )
    intent["setup_future_usage"] = plan.get("setup_future_usage")
    session["status"] = "complete"
    session["payment_intent"] = intent["id"]
    session["url"] = None
    session["payment_status"] = "unpaid" if is_delayed else "paid"
    if is_delayed:
        intents.begin(account, intent)
    else:
        intents.succeed(account, intent)
    account.emit("checkout.session.completed", session)
    return session


def settle(account: Account, session: Json, *, is_paid: bool) -> Json:
    """The delayed payment of a completed session arrives, or does not."""
    assert (session["status"], session["payment_status"]) == ("complete", "unpaid"), "nothing is awaited"
    intent = account.get("payment_intent", session["payment_intent"])
    if is_paid:
        session["payment_status"] = "paid"
        intents.succeed(account, intent)
    else:
        intents.fail(account, intent)
    account.emit(f"checkout.session.async_payment_{'succeeded' if is_paid else 'failed'}", session)
    return session


def retrieve(account: Account, call: Call) -> Json:
    """GET /v1/checkout/sessions/{session}"""
    return account.get("checkout.session", call.id)


def expire(account: Account, call: Call) -> Json:
    """POST /v1/checkout/sessions/{session}/expire"""
    session = account.get("checkout.session", call.id)
    if session["status"] != "open":
        raise invalid('Only Checkout Sessions with a status in ["open"] can be expired.')
    _expire(account, session)
    return session


def listed(account: Account, call: Call) -> Json:
    """GET /v1/checkout/sessions"""
    asked = call.parameters
    return page(
        call,
        (
            each
            for each in newest_first(account, "checkout.session", call)
            if all(asked.get(name) in (None, each[name]) for name in ("customer", "payment_intent", "status"))
        ),
    )


ROUTES: tuple[Route, ...] = (
    route(
        "POST",
        "/v1/checkout/sessions",
        create,
        "mode customer customer_email client_reference_id line_items metadata payment_intent_data success_url"
        " cancel_url expires_at customer_creation",
    ),
    route("GET", "/v1/checkout/sessions", listed, "customer payment_intent status created"),
    route("GET", "/v1/checkout/sessions/{session}", retrieve),
    route("POST", "/v1/checkout/sessions/{session}/expire", expire),
)
