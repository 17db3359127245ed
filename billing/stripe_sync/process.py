"""Works off the stored webhook events: what they are about is fetched from Stripe, and the account brought in step.

Invariant: an event becomes `done` only after its effects were committed; what fails is tried again with growing
delays for as long as Stripe itself would have (three days), and is then `failed`: visible, and replayable. Several
events of one customer cost one refetch: the order in which they came does not matter.
"""

import logging
from collections.abc import Callable, Iterable
from functools import partial

from billing.clock import DAY_US, SECOND_US, Clock, Instant
from billing.config import Config
from billing.errors import DatabaseAwayError, StripeError
from billing.ledger import accounts, inbox
from billing.ledger.database import Database, DatabaseError
from billing.ledger.inbox import State, StoredEvent
from billing.stripe_sync import reported
from billing.stripe_sync.port import StripePort
from billing.stripe_sync.refresh import refresh
from billing.stripe_sync.retry import backoff_us

logger = logging.getLogger("weir.stripe")

BATCH_ROWS_MAX = 200
RETRY_AGE_US_MAX = 3 * DAY_US
LINK_WAIT_US = 60 * SECOND_US
"""An event of a customer that is not linked may come before the command that links it has committed."""

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
METER_TYPES = frozenset({"v1.billing.meter.error_report_triggered", "v1.billing.meter.no_meter_found"})


class _NotLinkedError(StripeError):
    """No customer of ours is linked to the event's."""


def work_off(config: Config, database: Database, port: StripePort, now: Clock) -> int:
    """Process the events that are due; return how many were looked at. Raises DatabaseAwayError, DatabaseError."""
    with database.reading() as conn:
        events = inbox.due(conn, now(), BATCH_ROWS_MAX)
    groups: dict[str, list[StoredEvent]] = {}
    for event in events:
        if event.type in METER_TYPES:
            _attempt(database, [event], now, partial(reported.work_off, database, port, event.id, now()))
        elif event.type in ACCOUNT_TYPES and event.stripe_customer_id is not None:
            groups.setdefault(event.stripe_customer_id, []).append(event)
        else:
            _settle(database, [event], State.IGNORED, None, now())
    for stripe_customer_id, group in groups.items():
        _attempt(database, group, now, partial(_step, config, database, port, stripe_customer_id, now()))
    return len(events)


def _attempt(database: Database, events: list[StoredEvent], now: Clock, act: Callable[[], str | None]) -> None:
    """Act for these events, and record how it went on each."""
    try:
        note = act()
    except (DatabaseAwayError, DatabaseError):
        raise
    except Exception as error:  # The edge of one task: whatever one event runs into must not stop those behind it.
        if not isinstance(error, StripeError):
            logger.exception("stripe.inbox.fault", extra={"event_id": events[0].id})
        _postpone(database, events, error, now())
        return
    _settle(database, events, State.DONE, note, now())


def _step(config: Config, database: Database, port: StripePort, stripe_customer_id: str, now: Instant) -> str | None:
    with database.reading() as conn:
        account = accounts.find_by_stripe(conn, stripe_customer_id)
    if account is None:
        raise _NotLinkedError(f"no customer is linked to {stripe_customer_id}")
    refresh(config, database, port, account.id, now)
    return None


def _postpone(database: Database, events: Iterable[StoredEvent], error: Exception, now: Instant) -> None:
    text = f"{type(error).__name__}: {error}" if not isinstance(error, StripeError) else str(error)
    with database.writing() as conn:
        for event in events:
            age = now - event.received_at
            if isinstance(error, _NotLinkedError) and age >= LINK_WAIT_US:
                inbox.settle(conn, [event.id], State.IGNORED, text, now)
            elif age >= RETRY_AGE_US_MAX:
                inbox.settle(conn, [event.id], State.FAILED, text[:300], now)
            else:
                again = Instant(now + backoff_us(event.attempts + 1))
                inbox.postpone(conn, event, text[:300], again)
    logger.warning("stripe.inbox.postponed", extra={"error": type(error).__name__})


def _settle(database: Database, events: Iterable[StoredEvent], state: State, note: str | None, now: Instant) -> None:
    with database.writing() as conn:
        inbox.settle(conn, [event.id for event in events], state, note, now)
