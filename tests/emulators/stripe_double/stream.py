"""The high-throughput path: a session token for 15 minutes, then up to 100 events per request, judged
afterwards.

Documented: the stream takes the session's token only; an expired one is answered with
`temporary_session_expired`; the answer is always `{}`, and whatever was wrong with an event comes later as an
error report. Assumed: 401 as the status of an expired token (the code is what the SDK reads), and that a
known identifier is dropped in silence, since the list of asynchronous codes has none for it.
"""

from __future__ import annotations

import secrets
import uuid
from decimal import Decimal

from . import error_reports, meter_events, meters
from .account import Account, Json
from .clock import rfc3339
from .errors import ApiError, unauthorized, v2_error
from .routing import Call, Route, route
from .usage import MeterEvent, Rejection

PATH = "/v2/billing/meter_event_stream"
TOKEN_LIFE_S = 15 * 60
EVENTS_MAX = 100
EXPIRED_STATUS = 401


def create_session(account: Account, call: Call) -> Json:
    """POST /v2/billing/meter_event_session"""
    token = f"token_test_{secrets.token_urlsafe(24)}"
    account.session_tokens[token] = account.now() + TOKEN_LIFE_S
    return {
        "id": account.new_id("mes_test"),
        "object": "v2.billing.meter_event_session",
        "authentication_token": token,
        "created": rfc3339(account.now()),
        "expires_at": rfc3339(account.now() + TOKEN_LIFE_S),
        "livemode": False,
    }


def authorize(account: Account, token: str | None) -> None:
    """Accepts session tokens and nothing else, above all no secret key."""
    expires_at = account.session_tokens.get(token or "")
    if expires_at is None:
        raise unauthorized("The meter event stream needs the authentication token of a meter event session.")
    if account.now() >= expires_at:
        raise v2_error(
            EXPIRED_STATUS,
            "billing_meter_event_session_expired",
            "The meter event session has expired. Create a new one.",
            kind="temporary_session_expired",
        )


def send(account: Account, call: Call) -> Json:
    """POST /v2/billing/meter_event_stream"""
    events = call.parameters["events"]
    if not 1 <= len(events) <= EVENTS_MAX:
        raise v2_error(400, "invalid_fields", f"`events` holds 1 to {EVENTS_MAX} events.")
    for asked in events:
        _take(account, asked, call.idempotency_key)
    return {}


def _take(account: Account, asked: Json, key: str | None) -> None:
    """Counts the event or reports why not."""
    identifier = asked.get("identifier") or str(uuid.uuid4())
    meter = meters.active(account, asked["event_name"])
    if meter is None:
        _report_meter(account, asked["event_name"], identifier, key)
        return
    customer_key = meter["customer_mapping"]["event_payload_key"]
    customer = asked["payload"].get(customer_key)
    try:
        value = meter_events.value_of(meter, asked["payload"], lambda code, text: v2_error(400, code, text))
        timestamp = meter_events.parse_timestamp(account, asked)
    except ApiError as refusal:
        code = _async_code(refusal)
        rejection = Rejection(meter["id"], code, refusal.error["message"], identifier, key)
        error_reports.report(account, rejection)
        return
    if customer is None:
        text = f"Customer mapping key {customer_key} not found in payload."
        error_reports.report(account, Rejection(meter["id"], "meter_event_no_customer_defined", text, identifier, key))
        return
    if not account.usage.is_duplicate(identifier, account.now()):
        event = MeterEvent(
            identifier,
            asked["event_name"],
            meter["id"],
            customer,
            Decimal(value),
            timestamp,
            account.now(),
            asked["payload"],
            "stream",
            key,
        )
        meter_events.accept_async(account, event)


def _async_code(refusal: ApiError) -> str:
    """The asynchronous twin of a synchronous refusal."""
    is_long = "digits" in refusal.error["message"]
    return "meter_event_value_too_many_digits" if is_long else "meter_event_invalid_value"


def _report_meter(account: Account, event_name: str, identifier: str, key: str | None) -> None:
    """An archived meter is named in its report; one that never was is not."""
    known = next((each for each in account.all("billing.meter") if each["event_name"] == event_name), None)
    if known is not None:
        text = "The meter must be Active to submit events."
        error_reports.report(account, Rejection(known["id"], "archived_meter", text, identifier, key))
        return
    text = f"No meter was found matching event_name {event_name}."
    error_reports.report(account, Rejection(None, "no_meter", text, identifier, key))


ROUTES: tuple[Route, ...] = (
    route("POST", "/v2/billing/meter_event_session", create_session),
    route("POST", PATH, send, "events"),
)
