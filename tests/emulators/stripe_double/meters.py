"""Billing meters: one active meter per event name; after creation only the display name changes."""

from __future__ import annotations

from .account import Account, Json
from .errors import invalid
from .listing import newest_first, page, update
from .routing import Call, Route, route

CUSTOMER_KEY = "stripe_customer_id"
VALUE_KEY = "value"


def create(account: Account, call: Call) -> Json:
    """POST /v1/billing/meters"""
    asked = call.parameters
    _refuse_second(account, asked["event_name"])
    meter: Json = {
        "id": account.new_id("mtr"),
        "object": "billing.meter",
        "created": account.now(),
        "customer_mapping": asked.get("customer_mapping", {"event_payload_key": CUSTOMER_KEY, "type": "by_id"}),
        "default_aggregation": asked["default_aggregation"],
        "display_name": asked["display_name"],
        "event_name": asked["event_name"],
        "event_time_window": asked.get("event_time_window"),
        "livemode": False,
        "status": "active",
        "status_transitions": {"deactivated_at": None},
        "updated": account.now(),
        "value_settings": asked.get("value_settings", {"event_payload_key": VALUE_KEY}),
    }
    account.add(meter)
    account.emit("billing.meter.created", meter)
    return meter


def _refuse_second(account: Account, event_name: str) -> None:
    if active(account, event_name) is not None:
        raise invalid(f'An active meter already exists for event name "{event_name}".', param="event_name")


def active(account: Account, event_name: str) -> Json | None:
    """The active meter of an event name."""
    return next(
        (
            each
            for each in account.objects.get("billing.meter", {}).values()
            if each["event_name"] == event_name and each["status"] == "active"
        ),
        None,
    )


def retrieve(account: Account, call: Call) -> Json:
    """GET /v1/billing/meters/{id}"""
    return account.get("billing.meter", call.id)


def change(account: Account, call: Call) -> Json:
    """POST /v1/billing/meters/{id}"""
    meter = account.get("billing.meter", call.id)
    previous = update(meter, call, "display_name")
    if previous:
        meter["updated"] = account.now()
        account.emit("billing.meter.updated", meter, previous)
    return meter


def deactivate(account: Account, call: Call) -> Json:
    """POST /v1/billing/meters/{id}/deactivate: no more events, no new prices."""
    meter = account.get("billing.meter", call.id)
    if meter["status"] == "active":
        meter["status"] = "inactive"
        meter["status_transitions"] = {"deactivated_at": account.now()}
        meter["updated"] = account.now()
        account.emit("billing.meter.deactivated", meter, {"status": "active"})
    return meter


def reactivate(account: Account, call: Call) -> Json:
    """POST /v1/billing/meters/{id}/reactivate"""
    meter = account.get("billing.meter", call.id)
    if meter["status"] == "inactive":
        _refuse_second(account, meter["event_name"])
        meter["status"] = "active"
        meter["status_transitions"] = {"deactivated_at": None}
        meter["updated"] = account.now()
        account.emit("billing.meter.reactivated", meter, {"status": "inactive"})
    return meter


def listed(account: Account, call: Call) -> Json:
    """GET /v1/billing/meters"""
    status = call.parameters.get("status")
    found = newest_first(account, "billing.meter", call)
    return page(call, (each for each in found if status in (None, each["status"])))


ROUTES: tuple[Route, ...] = (
    route(
        "POST",
        "/v1/billing/meters",
        create,
        "customer_mapping default_aggregation display_name event_name event_time_window value_settings",
    ),
    route("GET", "/v1/billing/meters", listed, "status"),
    route("GET", "/v1/billing/meters/{id}", retrieve),
    route("POST", "/v1/billing/meters/{id}", change, "display_name"),
    route("POST", "/v1/billing/meters/{id}/deactivate", deactivate),
    route("POST", "/v1/billing/meters/{id}/reactivate", reactivate),
)
