"""Meter event summaries: usage per customer in a range, an hour or a day; eventually consistent, newest
first.

Documented and enforced: start inclusive, end exclusive, both on full minutes, on full hours or UTC days with
a grouping window; ten rows unless told otherwise, so a month of hours must be paged. `aggregated_value` is a
JSON number, hence a double: the only place where the double's sums lose exactness, as Stripe's do.
"""

from __future__ import annotations

from decimal import Decimal

from . import usage
from .account import Account, Json
from .errors import invalid
from .listing import page
from .routing import Call, Route, route


def listed(account: Account, call: Call) -> Json:
    """GET /v1/billing/meters/{id}/event_summaries"""
    asked = call.parameters
    meter = account.get("billing.meter", call.id)
    customer = asked["customer"]
    if customer not in account.deleted:
        account.get("customer", customer, param="customer")
    start, end = asked["start_time"], asked["end_time"]
    step = _step(asked.get("value_grouping_window"), start, end)
    received_by = account.now() - account.policy.aggregation_delay_s
    events = account.usage.counted(meter["id"], customer, start, end, received_by)
    buckets: dict[int, list[usage.MeterEvent]] = {}
    for event in events:
        buckets.setdefault((event.timestamp - start) // step, []).append(event)
    if account.policy.is_empty_summary_listed:
        buckets = {number: buckets.get(number, []) for number in range((end - start) // step)}
    rows = [
        _row(meter, customer, start + number * step, step, account.usage.aggregate(meter, buckets[number]))
        for number in sorted(buckets, reverse=True)
    ]
    return page(call, rows)


def _step(window: str | None, start: int, end: int) -> int:
    """The bucket's length in seconds. Raises 400 for a range that is empty or not aligned."""
    if start >= end:
        raise invalid("`start_time` must be before `end_time`.", param="start_time", is_stored=False)
    unit = 60 if window is None else usage.WINDOW_S[window]
    for name, instant in (("start_time", start), ("end_time", end)):
        if instant % unit:
            raise invalid(f"`{name}` must be aligned with {window or 'minute'} boundaries.", param=name)
    return end - start if window is None else unit


def _row(meter: Json, customer: str, start: int, step: int, value: Decimal) -> Json:
    """One summary; its id is the same at each reading, so that cursors work."""
    is_whole = value == value.to_integral_value() and abs(value) < 2**53
    return {
        "id": f"mtrusg_test_{meter['id'][4:]}{customer[4:]}{start:x}{step:x}",
        "object": "billing.meter_event_summary",
        "aggregated_value": int(value) if is_whole else float(value),
        "end_time": start + step,
        "livemode": False,
        "meter": meter["id"],
        "start_time": start,
    }


ROUTES: tuple[Route, ...] = (
    route(
        "GET",
        "/v1/billing/meters/{id}/event_summaries",
        listed,
        "customer start_time end_time value_grouping_window",
    ),
)
