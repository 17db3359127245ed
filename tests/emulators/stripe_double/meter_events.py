"""Meter events, v1 and v2: the checks in Stripe's order, then acceptance.

Order: parameters, meter, customer, value, digits, timestamp, identifier. Documented: 35 days back and 5
minutes ahead, 15 digits, string payloads, identifiers of at most 100 characters, decimals and negative values
allowed. Reported from the field: the sentences for an unknown meter, an unknown customer and a known
identifier; that the last has no `code` and carries `Stripe-Should-Retry: false`. Assumed: no exponents in
values, all digits count but leading zeros. v2 checks less at once: unknown customers and timestamps are
reported later, by an event.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable
from datetime import datetime
from decimal import Decimal

from . import error_reports, meters
from .account import Account, Json
from .clock import DAY_S, rfc3339
from .errors import ApiError, invalid, missing_object, v2_error
from .routing import Call, Route, route
from .usage import MeterEvent

PAST_S = 35 * DAY_S
FUTURE_S = 300
DIGITS_MAX = 15
PAYLOAD_VALUE_MAX = 100
_NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?")


def create_v1(account: Account, call: Call) -> Json:
    """POST /v1/billing/meter_events"""
    asked = call.parameters
    meter = meters.active(account, asked["event_name"])
    if meter is None:
        raise invalid(f'No active meter found for event name "{asked["event_name"]}".')
    payload: dict[str, str] = asked["payload"]
    customer = _customer_v1(account, meter, payload)
    value = value_of(meter, payload, _v1_error)
    timestamp = asked.get("timestamp", account.now())
    reason = timestamp_problem(timestamp, account.now())
    if reason is not None:
        raise invalid(reason[1], param="timestamp")
    identifier = asked.get("identifier") or str(uuid.uuid4())
    if account.usage.is_duplicate(identifier, account.now()):
        raise invalid(
            f"An event already exists with identifier {identifier}.", headers={"Stripe-Should-Retry": "false"}
        )
    event = MeterEvent(
        identifier,
        asked["event_name"],
        meter["id"],
        customer,
        value,
        timestamp,
        account.now(),
        payload,
        "v1",
        call.idempotency_key,
    )
    account.usage.append(event)
    error_reports.consider(account, event)
    return {
        "object": "billing.meter_event",
        "created": account.now(),
        "event_name": event.event_name,
        "identifier": identifier,
        "livemode": False,
        "payload": payload,
        "timestamp": timestamp,
    }


def _customer_v1(account: Account, meter: Json, payload: dict[str, str]) -> str:
    key = meter["customer_mapping"]["event_payload_key"]
    if key not in payload:
        raise invalid(f"Customer mapping key {key} not found in payload.", param="payload")
    if payload[key] not in account.objects.get("customer", {}):
        raise missing_object("customer", payload[key], param=f"payload[{key}]", status=400)
    return payload[key]


def _v1_error(code: str, message: str) -> ApiError:
    """v1 bodies carry the sentence and no code."""
    return invalid(message, param="payload")


def _v2_error(code: str, message: str) -> ApiError:
    return v2_error(400, code, message)


def value_of(meter: Json, payload: dict[str, str], refuse: Callable[[str, str], ApiError]) -> Decimal:
    """The event's value as an exact decimal; a counting meter needs none. Raises what `refuse(code, message)`
    makes.
    """
    long = next((name for name, text in payload.items() if len(text) > PAYLOAD_VALUE_MAX), None)
    if long is not None:
        raise refuse("payload_invalid_value", f"The value of {long} has more than {PAYLOAD_VALUE_MAX} characters.")
    key = meter["value_settings"]["event_payload_key"]
    text = payload.get(key)
    if text is None:
        if meter["default_aggregation"]["formula"] == "count":
            return Decimal(1)
        raise refuse("payload_no_value_defined", f"Value settings key {key} not found in payload.")
    if not _NUMBER.fullmatch(text):
        raise refuse("payload_invalid_value", f"The value in the event payload must be a number. Received {text}.")
    if digits_of(text) > DIGITS_MAX:
        raise refuse(
            "payload_invalid_value",
            f"The value in the event payload can have at most {DIGITS_MAX} digits. Received {text}.",
        )
    return Decimal(text)


def digits_of(text: str) -> int:
    """Digits from the first that is not zero; trailing zeros count (the stricter reading)."""
    return len(text.replace("-", "").replace(".", "").lstrip("0"))


def timestamp_problem(timestamp: int, now: int) -> tuple[str, str] | None:
    """The asynchronous code and the sentence for a timestamp outside the window; None inside."""
    if timestamp < now - PAST_S:
        return "timestamp_too_far_in_past", "The timestamp must be within the past 35 calendar days."
    if timestamp > now + FUTURE_S:
        return "timestamp_in_future", "The timestamp must not be more than 5 minutes in the future."
    return None


def create_v2(account: Account, call: Call) -> Json:
    """POST /v2/billing/meter_events"""
    asked = call.parameters
    meter = _meter_v2(account, asked["event_name"])
    payload: dict[str, str] = asked["payload"]
    key = meter["customer_mapping"]["event_payload_key"]
    if key not in payload:
        raise _v2_error("payload_no_customer_defined", f"Customer mapping key {key} not found in payload.")
    value = value_of(meter, payload, _v2_error)
    timestamp = parse_timestamp(account, asked)
    identifier = asked.get("identifier") or str(uuid.uuid4())
    if account.usage.is_duplicate(identifier, account.now()):
        raise _v2_error(
            "duplicate_meter_event", "A meter event with a duplicate identifier has already been submitted."
        )
    event = MeterEvent(
        identifier,
        asked["event_name"],
        meter["id"],
        payload[key],
        value,
        timestamp,
        account.now(),
        payload,
        "v2",
        call.idempotency_key,
    )
    accept_async(account, event)
    return {
        "object": "v2.billing.meter_event",
        "created": rfc3339(account.now()),
        "event_name": event.event_name,
        "identifier": identifier,
        "livemode": False,
        "payload": payload,
        "timestamp": rfc3339(timestamp),
    }


def _meter_v2(account: Account, event_name: str) -> Json:
    meter = meters.active(account, event_name)
    if meter is not None:
        return meter
    if any(each["event_name"] == event_name for each in account.all("billing.meter")):
        raise _v2_error("archived_meter", "The meter must be Active to submit events.")
    raise _v2_error("no_meter", f"No meter was found matching event_name {event_name}.")


def parse_timestamp(account: Account, asked: Json) -> int:
    """v2's RFC 3339 text as Unix seconds; now when it is left out."""
    text = asked.get("timestamp")
    if text is None:
        return account.now()
    try:
        instant = datetime.fromisoformat(text)
    except ValueError:
        instant = None
    if instant is None or instant.tzinfo is None:
        raise v2_error(400, "invalid_timestamp", f"Not an RFC 3339 instant: {text}")
    return int(instant.timestamp())


def accept_async(account: Account, event: MeterEvent) -> None:
    """Accepts an event whose customer and timestamp are only checked afterwards."""
    problem = timestamp_problem(event.timestamp, account.now())
    if event.customer not in account.objects.get("customer", {}):
        problem = "meter_event_customer_not_found", f"No such customer: '{event.customer}'"
    account.usage.append(event)
    if problem is not None:
        error_reports.reject(account, event, *problem)
    else:
        error_reports.consider(account, event)


def lane_of(account: Account, call: Call) -> tuple[str, str] | None:
    """The customer and meter between which one event at a time may be in flight."""
    meter = meters.active(account, call.parameters["event_name"])
    if meter is None:
        return None
    customer = call.parameters["payload"].get(meter["customer_mapping"]["event_payload_key"])
    return None if customer is None else (meter["id"], customer)


ROUTES: tuple[Route, ...] = (
    route("POST", "/v1/billing/meter_events", create_v1, "event_name identifier payload timestamp"),
    route("POST", "/v2/billing/meter_events", create_v2, "event_name identifier payload timestamp"),
)
