"""Asynchronous validation: an event that was answered with 200 and turns out not to count.

Rejections are gathered in windows of ten seconds; each window becomes one thin event per meter, whose webhook
body has no `data`: only GET /v2/core/events/{id} shows the codes, the counts and a sample of the identifiers.
The sample's `request` comes in the two shapes that Stripe's documentation shows, in turns, so that clients
read both.
"""

from __future__ import annotations

from typing import Any

from .account import Account, Json
from .clock import rfc3339
from .errors import missing_object
from .routing import Call, Route, route
from .usage import MeterEvent, Rejection

WINDOW_S = 10
SAMPLES_MAX = 5
KIND = "v1.billing.meter.error_report_triggered"
NO_METER_KIND = "v1.billing.meter.no_meter_found"


def consider(account: Account, event: MeterEvent) -> None:
    """Rejects a just accepted event when a test ordered so."""
    if account.rejections.ordered:
        reject(account, event, *account.rejections.ordered.pop(0))


def reject(account: Account, event: MeterEvent, code: str, message: str) -> None:
    """The event no longer counts; a report follows when the window closes."""
    event.status = "rejected"
    report(account, Rejection(event.meter, code, message, event.identifier, event.idempotency_key))


def report(account: Account, rejection: Rejection) -> None:
    """Puts a rejection into the current window."""
    start = account.now() // WINDOW_S * WINDOW_S
    if start not in account.rejections.open:
        account.rejections.open[start] = []
        account.schedule(start + WINDOW_S, lambda: _close(account, start))
    account.rejections.open[start].append(rejection)


def _close(account: Account, start: int) -> None:
    found = account.rejections.open.pop(start, [])
    for meter in dict.fromkeys(rejection.meter for rejection in found):
        _emit(account, meter, [each for each in found if each.meter == meter], start)


def _emit(account: Account, meter: str | None, found: list[Rejection], start: int) -> None:
    """One thin event for a meter's window; without a meter it is the other type, without a related object."""
    event: Json = {
        "id": account.new_id("evt_test"),
        "object": "v2.core.event",
        "created": rfc3339(account.now()),
        "livemode": False,
        "type": NO_METER_KIND if meter is None else KIND,
    }
    if meter is not None:
        event["related_object"] = {"id": meter, "type": "billing.meter", "url": f"/v1/billing/meters/{meter}"}
    plural = "is 1 invalid event" if len(found) == 1 else f"are {len(found)} invalid events"
    is_first_shape = len(account.all("v2.core.event")) % 2 == 0
    data = {
        "developer_message_summary": f"There {plural}",
        "reason": {"error_count": len(found), "error_types": _types(found, is_first_shape=is_first_shape)},
        "validation_start": rfc3339(start),
        "validation_end": rfc3339(start + WINDOW_S),
    }
    account.add({**event, "data": data})
    account.verify("v2.core.event", {**event, "data": data})
    for sink in account.event_sinks:
        sink(event)


def _types(found: list[Rejection], *, is_first_shape: bool) -> list[Json]:
    """Counts per code with at most five samples each: never the full list, as at Stripe."""
    types = []
    for code in dict.fromkeys(rejection.code for rejection in found):
        same = [rejection for rejection in found if rejection.code == code]
        samples = [
            {"error_message": each.message, "request": _request(each, is_first_shape=is_first_shape)}
            for each in same[:SAMPLES_MAX]
        ]
        types.append({"code": code, "error_count": len(same), "sample_errors": samples})
    return types


def _request(rejection: Rejection, *, is_first_shape: bool) -> dict[str, Any]:
    key = rejection.idempotency_key or rejection.identifier
    return {"identifier": key} if is_first_shape else {"id": "", "idempotency_key": key}


def retrieve(account: Account, call: Call) -> Json:
    """GET /v2/core/events/{id}, with the data that the webhook lacked."""
    found = account.objects.get("v2.core.event", {}).get(call.id)
    if found is None:
        raise missing_object("event", call.id, param="id")
    return found


def listed(account: Account, call: Call) -> Json:
    """GET /v2/core/events, newest first, one page."""
    asked = call.parameters
    found = [
        event
        for event in reversed(account.all("v2.core.event"))
        if ("types" not in asked or event["type"] in asked["types"])
        and asked.get("object_id") in (None, event.get("related_object", {}).get("id"))
    ]
    return {"data": found[: asked.get("limit", 20)], "next_page_url": None, "previous_page_url": None}


ROUTES: tuple[Route, ...] = (
    route("GET", "/v2/core/events", listed, "types object_id"),
    route("GET", "/v2/core/events/{id}", retrieve),
)
