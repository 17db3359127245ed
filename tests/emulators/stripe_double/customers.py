"""Customers. A deleted one answers as a stub; its subscriptions end at once, its usage is refused."""

from __future__ import annotations

from . import subscriptions
from .account import Account, Json
from .listing import merge_metadata, newest_first, page, update
from .routing import Call, Route, route

FIELDS = "email name description phone metadata"


def create(account: Account, call: Call) -> Json:
    """POST /v1/customers"""
    return make(account, call.parameters)


def make(account: Account, asked: Json) -> Json:
    """A new customer, with its event."""
    customer: Json = {
        "id": account.new_id("cus"),
        "object": "customer",
        "address": None,
        "balance": asked.get("balance", 0),
        "created": account.now(),
        "currency": None,
        "default_source": None,
        "delinquent": False,
        "description": asked.get("description"),
        "email": asked.get("email"),
        "invoice_prefix": f"W{len(account.all('customer')):07d}",
        "invoice_settings": {
            "custom_fields": None,
            "default_payment_method": None,
            "footer": None,
            "rendering_options": None,
        },
        "livemode": False,
        "metadata": merge_metadata({}, asked.get("metadata")),
        "name": asked.get("name"),
        "next_invoice_sequence": 1,
        "phone": asked.get("phone"),
        "preferred_locales": [],
        "shipping": None,
        "tax_exempt": "none",
        "test_clock": None,
    }
    account.add(customer)
    account.emit("customer.created", customer)
    return customer


def retrieve(account: Account, call: Call) -> Json:
    """GET /v1/customers/{customer}; a deleted customer is 200 with `deleted: true`."""
    return account.deleted.get(call.id) or account.get("customer", call.id)


def change(account: Account, call: Call) -> Json:
    """POST /v1/customers/{customer}"""
    customer = account.get("customer", call.id)
    previous = update(customer, call, FIELDS + " balance")
    if previous:
        account.emit("customer.updated", customer, previous)
    return customer


def delete(account: Account, call: Call) -> Json:
    """DELETE /v1/customers/{customer}"""
    return remove(account, call.id)


def remove(account: Account, customer_id: str) -> Json:
    """Ends the customer's subscriptions, then the customer; irreversible, as at Stripe."""
    customer = account.get("customer", customer_id)
    for subscription in account.all("subscription"):
        if subscription["customer"] == customer_id and subscription["status"] not in subscriptions.ENDED:
            subscriptions.end(account, subscription, reason="cancellation_requested")
    account.emit("customer.deleted", customer)
    return account.remove("customer", customer_id)


def listed(account: Account, call: Call) -> Json:
    """GET /v1/customers; `email` is compared exactly."""
    email = call.parameters.get("email")
    found = newest_first(account, "customer", call)
    return page(call, (each for each in found if email is None or each["email"] == email))


ROUTES: tuple[Route, ...] = (
    route("POST", "/v1/customers", create, FIELDS + " balance"),
    route("GET", "/v1/customers", listed, "email created"),
    route("GET", "/v1/customers/{customer}", retrieve),
    route("POST", "/v1/customers/{customer}", change, FIELDS + " balance"),
    route("DELETE", "/v1/customers/{customer}", delete),
)
