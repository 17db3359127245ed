"""Receives Stripe's webhooks: verify the raw bytes, store, and only then say 200. Nothing acts on an event here.

Invariant: an event that was answered with 200 is in the database. What can not be verified, whatever the way in which
it is broken, is answered with 400 and leaves nothing (the SDK's verifier lets a TypeError out for a signature that is
not ASCII, a UnicodeDecodeError for a body that is not UTF-8: so every exception of it is a refusal). A database that is
away is 503, and Stripe sends again for three days.

Both kinds of destination, snapshot and thin, may point here; each has a secret of its own, as has a secret that is
being rolled: every configured one is tried.
"""

import json
import re
from dataclasses import dataclass
from typing import Any

from billing import clock
from billing.clock import SECOND_US, Instant
from billing.config import Config
from billing.errors import DatabaseAwayError, UsageError
from billing.ledger import inbox
from billing.ledger.database import Database, DatabaseError, is_away
from billing.ledger.inbox import State, StoredEvent
from billing.limits import WEBHOOK_BODY_BYTES_MAX
from billing.stripe_sync import client

SIGNATURE_AGE_S_MAX = 300
"""Stripe's own libraries refuse older signatures; each delivery attempt is signed anew."""

_ID = re.compile(r"[A-Za-z0-9_]{1,255}", re.ASCII)
_TYPE = re.compile(r"[a-z0-9_.]{1,255}", re.ASCII)
_SIGNED_AT = re.compile(r"t=([0-9]{1,12})", re.ASCII)


@dataclass(frozen=True, slots=True)
class Accepted:
    """Answer 200: the event is stored; `is_new` is False for a repeated delivery."""

    event_id: str
    is_new: bool


@dataclass(frozen=True, slots=True)
class Rejected:
    """Answer this status with this message; nothing was stored."""

    status: int
    message: str


class _BrokenEventError(Exception):
    """A signed body is not an event."""


def receive(database: Database, config: Config, raw: bytes, signature: str, now: Instant) -> Accepted | Rejected:
    """Verify and store one delivery; `signature` is the header Stripe-Signature, "" if there was none."""
    if not config.stripe.webhook_secrets:
        return Rejected(503, "no webhook secret is configured: set STRIPE_WEBHOOK_SECRET")
    if len(raw) > WEBHOOK_BODY_BYTES_MAX:
        return Rejected(413, "the body is too large for an event")
    if not any(_is_signed(raw, signature, secret) for secret in config.stripe.webhook_secrets):
        return Rejected(400, "the signature does not match the body")
    if not _is_recent(signature, now):
        return Rejected(400, "the signature is too old")
    try:
        event = parse(raw, now)
    except _BrokenEventError as error:
        return Rejected(400, str(error))
    try:
        with database.writing() as conn:
            is_new = inbox.store(conn, event)
    except (DatabaseAwayError, DatabaseError) as error:
        if isinstance(error, DatabaseError) and not is_away(error):
            raise
        return Rejected(503, "the database does not answer; send it again")
    return Accepted(event.id, is_new)


def parse(raw: bytes, now: Instant) -> StoredEvent:
    """Read a verified body: a snapshot event, or the notification of a thin one. Raises _BrokenEventError."""
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError):
        raise _BrokenEventError("the body is not JSON") from None
    if not isinstance(body, dict) or body.get("object") not in ("event", "v2.core.event"):
        raise _BrokenEventError("the body is not an event")
    event_id, event_type = body.get("id"), body.get("type")
    if not isinstance(event_id, str) or not _ID.fullmatch(event_id):
        raise _BrokenEventError("the event has no id")
    if not isinstance(event_type, str) or not _TYPE.fullmatch(event_type):
        raise _BrokenEventError("the event has no type")
    subject = _subject(body)
    return StoredEvent(
        id=event_id,
        type=event_type,
        object_id=_id_of(subject.get("id")),
        stripe_customer_id=_customer_id(subject),
        created_at=_created_at(body.get("created"), now),
        received_at=now,
        state=State.PENDING,
        attempts=0,
        next_attempt_at=now,
        settled_at=None,
        last_error=None,
        payload=raw.decode(),
    )


def _is_signed(raw: bytes, signature: str, secret: str) -> bool:
    try:
        client.verify(raw, signature, secret)
    except Exception:  # noqa: BLE001 (whatever is wrong with a stranger's bytes, they are not Stripe's)
        return False
    return True


def _is_recent(signature: str, now: Instant) -> bool:
    """Judge by our clock. A time ahead of it is fine: it is Stripe's, under the signature, and our clock may be late.

    The first `t` is the signed one, as the SDK reads it; a second could claim any age.
    """
    first = next((item for item in signature.split(",") if item.partition("=")[0] == "t"), "")
    match = _SIGNED_AT.fullmatch(first)
    return match is not None and now // SECOND_US - int(match[1]) <= SIGNATURE_AGE_S_MAX


def _subject(body: dict[str, Any]) -> dict[str, Any]:
    data = body.get("data")
    subject = data.get("object") if isinstance(data, dict) else body.get("related_object")
    return subject if isinstance(subject, dict) else {}


def _customer_id(subject: dict[str, Any]) -> str | None:
    if subject.get("object") == "customer":
        return _id_of(subject.get("id"))
    customer = subject.get("customer")
    return _id_of(customer.get("id") if isinstance(customer, dict) else customer)


def _id_of(value: object) -> str | None:
    return value if isinstance(value, str) and _ID.fullmatch(value) else None


def _created_at(value: object, now: Instant) -> Instant:
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 10**11:
        return Instant(value * SECOND_US)
    if isinstance(value, str):
        try:
            return clock.parse_instant(value, now)
        except UsageError:
            return now
    return now
