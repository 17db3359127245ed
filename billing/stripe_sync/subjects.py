"""What an event is about: whose account, which payment, which dispute. Pure.

A snapshot carries its object, a thin (v2) notification only names it; the twins of v1 events have the same type with
`v1.` before it. Nothing but ids is read here: what is true is fetched.
"""

import json
from dataclasses import dataclass
from typing import Any

from billing.ledger.inbox import StoredEvent

METER_TYPES = frozenset({"v1.billing.meter.error_report_triggered", "v1.billing.meter.no_meter_found"})
ACCOUNT_TYPES = frozenset(
    {
        "customer.deleted",
        "customer.subscription.created",
        "customer.subscription.updated",
        "customer.subscription.deleted",
        "customer.subscription.paused",
        "customer.subscription.resumed",
        "invoice.paid",
        "invoice.payment_failed",
        "invoice.payment_action_required",
        "invoice.overdue",
        "invoice.marked_uncollectible",
        "invoice.voided",
    }
)
FINAL_TYPES = frozenset({"invoice.finalized"})
CHECKOUT_TYPES = frozenset(
    f"checkout.session.{what}" for what in ("completed", "async_payment_succeeded", "async_payment_failed", "expired")
)
PAYMENT_TYPES = frozenset(
    {
        *(f"payment_intent.{what}" for what in ("succeeded", "payment_failed", "processing", "canceled")),
        *(f"charge.{what}" for what in ("succeeded", "failed", "refunded", "refund.updated")),
        *(f"refund.{what}" for what in ("created", "updated", "failed")),
    }
)
DISPUTE_TYPES = frozenset(
    f"charge.dispute.{what}" for what in ("created", "updated", "closed", "funds_withdrawn", "funds_reinstated")
)


@dataclass(frozen=True, slots=True)
class Subject:
    """The ids that an event names; `topup_id` is our own mark, if its object carries one."""

    kind: str
    object_id: str | None
    intent_id: str | None
    topup_id: str | None


def type_of(event: StoredEvent) -> str:
    """Return an event's type as its snapshot has it; meter reports exist as thin events only, and stay as they are."""
    return event.type if event.type in METER_TYPES else event.type.removeprefix("v1.")


def subject_of(event: StoredEvent) -> Subject:
    """Return what a stored event is about; its body was checked when it was stored, and may still lack anything."""
    body = json.loads(event.payload)
    data = body.get("data")
    found = data.get("object") if isinstance(data, dict) else body.get("related_object")
    subject: dict[str, Any] = found if isinstance(found, dict) else {}
    kind = subject.get("object") or subject.get("type") or ""
    intent = subject.get("payment_intent")
    marks = subject.get("metadata")
    return Subject(
        kind=kind if isinstance(kind, str) else "",
        object_id=event.object_id,
        intent_id=event.object_id if kind == "payment_intent" else _text(intent),
        topup_id=_text(marks.get("weir_topup")) if isinstance(marks, dict) else None,
    )


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None
