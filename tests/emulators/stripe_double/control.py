"""The control API under `/_double/`, so that another process can use the levers: JSON in, JSON out, no key.

GET  state | totals?customer=&event_name=&start=&end= | faults | violations | deliveries | objects/<type>
POST faults {kind, path, …} | clock {advance_s} or {move_to} | webhooks {url, events?, secret?, is_thin?}
     | policy {name: value} | do/<lever> {arguments of the method of StripeDouble}
DELETE faults | violations
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from .dispatch import Reply, Request
from .errors import ApiError

if TYPE_CHECKING:
    from .double import StripeDouble

PREFIX = "/_double/"
LEVERS = frozenset(
    [
        "set_subscription_status",
        "decline_payments",
        "fail_invoice",
        "pay_invoice",
        "finalize_invoice",
        "end_period",
        "delete_customer",
        "refund",
        "fail_refund",
        "settle_checkout",
        "settle_intent",
        "open_dispute",
        "close_dispute",
        "complete_checkout",
        "reject_event",
        "reject_next",
        "hold_events",
        "release_events",
        "delay_events",
        "roll_secret",
        "wait_delivered",
        "charges_of",
        "subscription_of",
    ]
)


class BadControl(Exception):
    """The control request makes no sense."""


def answer(double: StripeDouble, request: Request) -> Reply:
    """Runs one control request; mistakes in it are 400 with a sentence."""
    try:
        asked = json.loads(request.body) if request.body else {}
        result = _run(double, request.method, request.path.removeprefix(PREFIX), asked, parse_qs(request.query))
    except (BadControl, ApiError, ValueError, TypeError, AssertionError, StopIteration) as error:
        return Reply(400, json.dumps({"error": f"{type(error).__name__}: {error}"}).encode())
    return Reply(200, json.dumps(result, default=str).encode())


def _run(double: StripeDouble, method: str, name: str, asked: dict[str, Any], query: dict[str, list[str]]) -> Any:
    head, _, tail = name.partition("/")
    match method, head:
        case "GET", "state":
            return state(double)
        case "GET", "totals":
            return totals(double, {key: values[0] for key, values in query.items()})
        case "GET", "objects":
            return double.objects(tail)
        case "GET", "deliveries":
            return [asdict(each) for each in double.deliveries]
        case "GET", "violations":
            return double.violations
        case "DELETE", "violations":
            double.violations.clear()
            return {}
        case "GET", "faults":
            return double.described_faults()
        case "POST", "faults":
            return asdict(double.fault(**asked))
        case "DELETE", "faults":
            double.clear_faults()
            return {}
        case "POST", "do" if tail in LEVERS:
            return getattr(double, tail)(**asked)
        case "POST", ("clock" | "webhooks" | "policy"):
            return _set(double, head, asked)
    raise BadControl(f"no control request {method} {PREFIX}{name}")


def _set(double: StripeDouble, head: str, asked: dict[str, Any]) -> Any:
    if head == "clock":
        now = double.clock.move_to(asked["move_to"]) if "move_to" in asked else double.clock.advance(asked["advance_s"])
        return {"now": now}
    if head == "webhooks":
        return asdict(double.add_webhook(**asked))
    for name, value in asked.items():
        if not hasattr(double.policy, name):
            raise BadControl(f"no policy {name}")
        setattr(double.policy, name, tuple(value) if isinstance(value, list) else value)
    return vars(double.policy)


def state(double: StripeDouble) -> dict[str, Any]:
    """Counts of everything, the clock, and what went wrong."""
    account = double.account
    with account.lock:
        return {
            "now": double.clock.now(),
            "requests": double.request_count,
            "objects": {kind: len(objects) for kind, objects in account.objects.items()},
            "meter_events": [{**asdict(each), "value": str(each.value)} for each in account.usage.events],
            "webhooks": [asdict(each) for each in account.targets.values()],
            "violations": list(account.violations),
        }


def totals(double: StripeDouble, query: dict[str, str]) -> dict[str, Any]:
    """The exact total as decimal text, and how many events count."""
    bounds = {name: int(query[name]) for name in ("start", "end") if name in query}
    names = {name: query[name] for name in ("customer", "event_name") if name in query}
    counted = [
        each
        for each in double.meter_events
        if each.status == "counted"
        and all(getattr(each, name) == value for name, value in names.items())
        and bounds.get("start", each.timestamp) <= each.timestamp < bounds.get("end", each.timestamp + 1)
    ]
    with double.account.lock:
        total = double.account.usage.total(
            names.get("customer"), names.get("event_name"), bounds.get("start"), bounds.get("end")
        )
    return {"total": format(total, "f"), "events": len(counted)}
