"""Stripe's error reports: meter events that it accepted and found invalid afterwards, marked on their batches.

Invariant: a batch that a report names is not counted, so it becomes `rejected` with what Stripe said, and gets a fresh
identifier at once: Stripe may remember the old one, and would take a second sending for the first. It waits for
`weir stripe push --retry-rejected`, since what is wrong has to be mended first. A report names samples only; what it
does not name is found missing by the summaries.

A report names events by "the request idempotency key". A v1 key begins with the batch's identifier. A call of the
stream carries many events under one key: unless all of them failed, which one did can not be known, and all are held
until the summaries tell.
"""

import logging
from collections.abc import Sequence

from billing.clock import Instant
from billing.errors import StripeError
from billing.ledger import repairs
from billing.ledger.database import Connection, Database
from billing.ledger.outbox import Batch, State
from billing.ledger.repairs import Kind
from billing.stripe_sync.port import ErrorReport, StripePort

logger = logging.getLogger("weir.stripe")

ACTOR = "stripe"
STREAM_KEY = "weir-stream-"

ADVICE = {
    "archived_meter": "run `weir stripe setup`, which brings the meter back",
    "no_meter": "run `weir stripe setup`, which makes the meter",
    "meter_event_customer_not_found": "link the customer again with `weir customer link`",
    "timestamp_too_far_in_past": "`weir stripe push --release` carries it into the present period",
    "timestamp_in_future": "set this host's clock",
}
"""What mends it, by Stripe's code; then `weir stripe push --retry-rejected`."""


def work_off(database: Database, port: StripePort, event_id: str, now: Instant) -> str:
    """Mark what a report names; return a line about it. Raises StripeError, also while a named batch is being sent."""
    report = port.error_report(event_id)
    rejected, held = 0, 0
    with database.writing() as conn:
        for key, code in dict(report.samples).items():
            if key.startswith(STREAM_KEY):
                of_call = [batch for batch in repairs.of_key(conn, key) if batch.state is State.ACCEPTED]
                is_certain = report.error_count >= len(of_call)
                for batch in of_call:
                    rejected += is_certain and _reject(conn, batch, code, now)
                    held += not is_certain and repairs.hold(conn, batch, _doubt(report, of_call, code), now)
            else:
                found = _named(conn, key)
                rejected += found is not None and _reject(conn, found, code, now)
    fields = {"event_id": event_id, "invalid": report.error_count, "rejected": rejected, "held": held}
    logger.error("stripe.meter.invalid", extra=fields)
    return f"{report.error_count} invalid events: {rejected} batches rejected, {held} held: {report.text}"[:300]


def named_by(key: str) -> tuple[str, int]:
    """Return the batch's id and the number of its fresh identifiers from a key such as `<id>.r2.5`. Pure."""
    batch_id, *rest = key.split(".")
    resend = int(rest[0][1:]) if rest and rest[0][:1] == "r" and rest[0][1:].isdecimal() else 0
    return batch_id, resend


def _named(conn: Connection, key: str) -> Batch | None:
    """Return the batch that a key names, None for an identifier that was given up, or is not ours."""
    batch_id, resend = named_by(key)
    batch = repairs.find(conn, [batch_id]).get(batch_id)
    return batch if batch is not None and batch.resend == resend else None


def _reject(conn: Connection, batch: Batch, code: str, now: Instant) -> bool:
    if batch.state is State.SENDING:
        raise StripeError(f"{batch.id} is being sent; its report is read again later")
    if batch.state not in (State.ACCEPTED, State.UNCERTAIN, State.HELD):
        return False
    advice = ADVICE.get(code, "mend it")
    reason = f"Stripe found it invalid after accepting it: {code}; {advice}, then `weir stripe push --retry-rejected`"
    return repairs.renew(
        conn, batch, Kind.REPORT, reason, ACTOR, now, timestamp_s=batch.timestamp_s, state=State.REJECTED
    )


def _doubt(report: ErrorReport, of_call: Sequence[Batch], code: str) -> str:
    return f"Stripe found {report.error_count} of {len(of_call)} events of its call invalid: {code}; see reconcile"
