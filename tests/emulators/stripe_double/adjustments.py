"""Meter event adjustments: take back one event, within 24 hours of its receipt.

Documented: the only type is `cancel`, by identifier; finalized invoices stay as they are; the documentation's
example answer is `pending`. Assumed: an identifier that is unknown or too old is refused with 400, a second
cancellation of the same event changes nothing.
"""

from __future__ import annotations

from .account import Account, Json
from .clock import rfc3339
from .errors import ApiError, invalid, v2_error
from .routing import Call, Route, route


def create_v1(account: Account, call: Call) -> Json:
    """POST /v1/billing/meter_event_adjustments"""
    identifier = call.parameters.get("cancel", {}).get("identifier")
    if identifier is None:
        raise invalid("`cancel[identifier]` is required.", param="cancel", is_stored=False)
    refusal = invalid(f"No meter event of the last 24 hours has the identifier {identifier}.", param="cancel")
    _cancel(account, call.parameters["event_name"], identifier, refusal)
    return {"object": "billing.meter_event_adjustment", **_common(call, identifier)}


def create_v2(account: Account, call: Call) -> Json:
    """POST /v2/billing/meter_event_adjustments"""
    identifier = call.parameters["cancel"]["identifier"]
    refusal = v2_error(400, "invalid_cancel_configuration", "The event does not exist or is older than 24 hours.")
    _cancel(account, call.parameters["event_name"], identifier, refusal)
    own = {
        "id": account.new_id("mtr_event_adj"),
        "object": "v2.billing.meter_event_adjustment",
        "created": rfc3339(account.now()),
    }
    return {**own, **_common(call, identifier)}


def _common(call: Call, identifier: str) -> Json:
    return {
        "cancel": {"identifier": identifier},
        "event_name": call.parameters["event_name"],
        "livemode": False,
        "status": "pending",
        "type": "cancel",
    }


def _cancel(account: Account, event_name: str, identifier: str, refusal: ApiError) -> None:
    event = account.usage.received_within(identifier, account.now())
    if event is None or event.event_name != event_name:
        raise refusal
    event.status = "canceled"


ROUTES: tuple[Route, ...] = (
    route("POST", "/v1/billing/meter_event_adjustments", create_v1, "cancel event_name type"),
    route("POST", "/v2/billing/meter_event_adjustments", create_v2, "cancel event_name type"),
)
