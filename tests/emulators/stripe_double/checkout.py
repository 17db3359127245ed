"""Checkout sessions of mode `payment`: the top-up path. The test side plays the customer who pays."""

from __future__ import annotations

from decimal import Decimal

from . import payments
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
    intent = asked.get("payment_intent_data", {}).get("metadata", {})
    account.checkout_metadata[session_id] = merge_metadata({}, intent)
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


def complete(account: Account, session: Json) -> Json:
    """The customer pays: a charge, and the two events."""
    assert session["status"] == "open", f"the session is {session['status']}"
    charge = payments.new_charge(
        account,
        session["customer"],
        session["amount_total"],
        session["currency"],
        account.checkout_metadata[session["id"]],
    )
    session["status"] = "complete"
    session["payment_status"] = "paid"
    session["payment_intent"] = charge["payment_intent"]
    session["url"] = None
    account.emit("charge.succeeded", charge)
    account.emit("checkout.session.completed", session)
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
        " cancel_url expires_at",
    ),
    route("GET", "/v1/checkout/sessions", listed, "customer payment_intent status created"),
    route("GET", "/v1/checkout/sessions/{session}", retrieve),
    route("POST", "/v1/checkout/sessions/{session}/expire", expire),
)
