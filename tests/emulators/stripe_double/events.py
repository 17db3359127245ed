"""Snapshot events: what happened, kept for 30 days and listed newest first."""

from __future__ import annotations

from .account import Account, Json
from .clock import DAY_S
from .errors import missing_object
from .listing import newest_first, page
from .routing import Call, Route, route
from .targets import matches

KEPT_S = 30 * DAY_S


def retrieve(account: Account, call: Call) -> Json:
    """GET /v1/events/{id}"""
    event = account.get("event", call.id)
    if account.now() - event["created"] > KEPT_S:
        raise missing_object("event", call.id, param="id")
    return event


def listed(account: Account, call: Call) -> Json:
    """GET /v1/events; `type` may end in `.*`."""
    asked = call.parameters
    wanted = asked.get("types", [asked["type"]] if "type" in asked else None)
    return page(
        call,
        (
            event
            for event in newest_first(account, "event", call)
            if account.now() - event["created"] <= KEPT_S
            and (wanted is None or any(matches(event["type"], pattern) for pattern in wanted))
            and ("delivery_success" not in asked or asked["delivery_success"] == (event["pending_webhooks"] == 0))
        ),
    )


ROUTES: tuple[Route, ...] = (
    route("GET", "/v1/events", listed, "type types created delivery_success"),
    route("GET", "/v1/events/{id}", retrieve),
)
