"""`weir stripe push --release`: a person's decision about a batch that no proof decides.

Invariant: what Stripe can not have counted is only given a time that Stripe takes; what it may have counted goes out
under a fresh identifier, with the old one in the history, and that this may count it twice is the person's decision.
"""

from billing.clock import SECOND_US, Instant
from billing.errors import NotFoundError, RefusedError
from billing.ledger import audit, periods, repairs
from billing.ledger.database import Database
from billing.ledger.outbox import Batch, State
from billing.ledger.repairs import Kind
from billing.stripe_sync import retry
from billing.stripe_sync.differences import may_be_counted

RELEASABLE = (State.HELD, State.REJECTED, State.ACCEPTED)
REASON = "released by hand"


def find(database: Database, batch_id: str) -> Batch:
    """Return the batch to release. Raises NotFoundError, and RefusedError for one that needs no release."""
    with database.reading() as conn:
        batch = repairs.find(conn, [batch_id]).get(batch_id)
    if batch is None:
        raise NotFoundError(f"there is no batch {batch_id!r}; `weir stripe status` lists what needs a person")
    if batch.state not in RELEASABLE:
        raise RefusedError(f"{batch_id} is {batch.state}; only held, rejected and (provably lost) accepted ones are")
    return batch


def warning(batch: Batch) -> str:
    """Say what releasing it means."""
    if not may_be_counted(batch):
        return f"{batch.units} units of {batch.customer_id}, never counted by Stripe, will be billed"
    return (
        f"{batch.units} units of {batch.customer_id} may be counted by Stripe already (`weir stripe reconcile` tells);"
        " released, they are sent under a fresh identifier, and could be billed twice"
    )


def release(database: Database, batch: Batch, actor: str, now: Instant) -> Instant:
    """Make a batch sendable again; return the time at which it will be billed: its own, or the open period's start.

    Raises RefusedError if the customer has no subscription whose period could take it, or it changed meanwhile.
    """
    with database.writing() as conn:
        until = periods.billed_until(conn, [batch.customer_id]).get(batch.customer_id)
        present = periods.start_of_present(conn, batch.customer_id, now)
        timestamp_s = batch.timestamp_s if until is None else max(batch.timestamp_s, until // SECOND_US)
        if now - timestamp_s * SECOND_US > retry.TIMESTAMP_AGE_US_MAX:
            if present is None:
                raise RefusedError(f"{batch.customer_id} has no subscription whose period could take it; link it first")
            timestamp_s = max(timestamp_s, present // SECOND_US)
        if may_be_counted(batch):
            kind = Kind.RESEND if timestamp_s == batch.timestamp_s else Kind.CARRY
            is_done = repairs.renew(conn, batch, kind, REASON, actor, now, timestamp_s=timestamp_s)
        else:
            key = retry.next_key(batch.identifier, batch.attempts)
            is_done = repairs.retime(conn, batch, key, timestamp_s, REASON, now)
        if not is_done:
            raise RefusedError(f"{batch.id} has changed meanwhile; look at it again")
        details = {"units": batch.units, "timestamp_s": timestamp_s, "was": str(batch.state)}
        audit.record(conn, at=now, actor=actor, action="stripe.release", subject=batch.id, details=details)
    return Instant(timestamp_s * SECOND_US)
