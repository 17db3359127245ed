"""Works off the stored webhook events: what they are about is fetched from Stripe, and the account brought in step.

Invariant: an event becomes `done` only after its effects were committed; what fails is tried again with growing
delays for as long as Stripe itself would have (three days), and is then `failed`: visible, and replayable. Several
events of one customer cost one refetch: the order in which they came does not matter.
"""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

from billing.clock import DAY_US, SECOND_US, Clock, Instant
from billing.config import Config
from billing.errors import DatabaseAwayError, StripeError
from billing.ledger import accounts, inbox, periods
from billing.ledger import topups as ledger_topups
from billing.ledger.database import Database, DatabaseError
from billing.ledger.inbox import State, StoredEvent
from billing.ledger.topups import Origin
from billing.stripe_sync import disputing, invoices, reported, subjects, topups
from billing.stripe_sync.port import StripePort
from billing.stripe_sync.refresh import refresh
from billing.stripe_sync.retry import backoff_us
from billing.stripe_sync.subjects import (
    ACCOUNT_TYPES,
    CHECKOUT_TYPES,
    DISPUTE_TYPES,
    FINAL_TYPES,
    METER_TYPES,
    PAYMENT_TYPES,
    Subject,
    subject_of,
)

logger = logging.getLogger("weir.stripe")

BATCH_ROWS_MAX = 200
RETRY_AGE_US_MAX = 3 * DAY_US
LINK_WAIT_US = 60 * SECOND_US
"""An event of a customer that is not linked may come before the command that links it has committed."""


class _NotLinkedError(StripeError):
    """No customer of ours is linked to the event's."""


class _NotOursError(StripeError):
    """The event is about nothing of ours."""


@dataclass(frozen=True, slots=True)
class _Desk:
    """What every step works with."""

    config: Config
    database: Database
    port: StripePort
    now: Clock


def work_off(config: Config, database: Database, port: StripePort, now: Clock) -> int:
    """Process the events that are due; return how many were looked at. Raises DatabaseAwayError, DatabaseError."""
    with database.reading() as conn:
        events = inbox.due(conn, now(), BATCH_ROWS_MAX)
    desk = _Desk(config, database, port, now)
    groups: dict[str, list[StoredEvent]] = {}
    for event in events:
        if subjects.type_of(event) in ACCOUNT_TYPES and event.stripe_customer_id is not None:
            groups.setdefault(event.stripe_customer_id, []).append(event)
            continue
        act = _step_for(desk, event)
        if act is None:
            _settle(database, [event], State.IGNORED, None, now())
        else:
            _attempt(database, [event], now, act)
    for stripe_customer_id, group in groups.items():
        _attempt(database, group, now, partial(_step, desk, stripe_customer_id))
    return len(events)


def _step_for(desk: _Desk, event: StoredEvent) -> Callable[[], str | None] | None:
    """Return what an event asks for, None if nothing."""
    kind = subjects.type_of(event)
    if kind in METER_TYPES:
        return partial(reported.work_off, desk.database, desk.port, event.id, desk.now())
    if kind in FINAL_TYPES:
        return partial(_check, desk, event.stripe_customer_id, subject_of(event))
    if kind in ACCOUNT_TYPES:
        return partial(_step_unnamed, desk, subject_of(event))
    if kind in CHECKOUT_TYPES:
        return partial(_pay_in, desk, subject_of(event))
    if kind in PAYMENT_TYPES:
        return partial(_pay, desk, subject_of(event))
    if kind in DISPUTE_TYPES:
        return partial(_dispute, desk, subject_of(event))
    return None


def _attempt(database: Database, events: list[StoredEvent], now: Clock, act: Callable[[], str | None]) -> None:
    """Act for these events, and record how it went on each."""
    try:
        note = act()
    except (DatabaseAwayError, DatabaseError):
        raise
    except _NotOursError as error:
        _settle(database, events, State.IGNORED, str(error), now())
        return
    except Exception as error:  # The edge of one task: whatever one event runs into must not stop those behind it.
        if not isinstance(error, StripeError):
            logger.exception("stripe.inbox.fault", extra={"event_id": events[0].id})
        _postpone(database, events, error, now())
        return
    _settle(database, events, State.DONE, note, now())


def _step(desk: _Desk, stripe_customer_id: str) -> str | None:
    with desk.database.reading() as conn:
        account = accounts.find_by_stripe(conn, stripe_customer_id)
    if account is None:
        raise _NotLinkedError(f"no customer is linked to {stripe_customer_id}")
    refresh(desk.config, desk.database, desk.port, account.id, desk.now())
    return None


def _step_unnamed(desk: _Desk, subject: Subject) -> str | None:
    """A thin event names its object and not whose it is."""
    return _step(desk, _named(desk, subject))


def _named(desk: _Desk, subject: Subject) -> str:
    named = subject.object_id
    if named is not None and subject.kind != "customer":
        named = desk.port.payments.find_payer_of(subject.kind, named)
    if named is None:
        raise _NotOursError("it names no customer")
    return named


def _check(desk: _Desk, stripe_customer_id: str | None, subject: Subject) -> str | None:
    """Compare the customer's finalized invoices with the ledger, and learn from them what is invoiced for good."""
    named = _named(desk, subject) if stripe_customer_id is None else stripe_customer_id
    with desk.database.reading() as conn:
        boundary = periods.boundary_of(conn, named, desk.now())
    if boundary is None:
        raise _NotLinkedError(f"no customer with a period is linked to {named}")
    found = invoices.check(desk.database, desk.port, boundary, desk.now())
    wrong = [check for check, _ in found if not check.is_explained]
    for check in wrong:
        logger.error("stripe.invoice.differs", extra={"invoice": check.invoice_id, "kind": check.kind})
    return "; ".join(f"{check.invoice_id}: {check.explanation}" for check in wrong)[:300] or None


def _pay_in(desk: _Desk, subject: Subject) -> str | None:
    """A Checkout session: the one that the event names, which says itself what it is for."""
    checkout = None if subject.object_id is None else desk.port.payments.find_checkout(subject.object_id)
    topup = None if checkout is None else topups.claim(desk.database, checkout, desk.now())
    if topup is None:
        raise _NotOursError("no top-up of ours")
    return str(topups.refresh(desk.database, desk.port, topup.id, desk.now).state)


def _pay(desk: _Desk, subject: Subject) -> str | None:
    """A payment intent, a charge of it, or a refund."""
    payments, intent_id = desk.port.payments, subject.intent_id
    if intent_id is None and subject.kind == "charge" and subject.object_id is not None:
        charge = payments.find_charge(subject.object_id)
        intent_id = None if charge is None else charge.intent_id
    if intent_id is None and subject.kind == "refund" and subject.object_id is not None:
        intent_id = payments.find_refunded_intent(subject.object_id)
    with desk.database.writing() as conn:
        topup = ledger_topups.find(conn, topup_id=subject.topup_id, intent_id=intent_id)
        if topup is not None and topup.origin is Origin.AUTO and topup.payment_intent_id is None:
            ledger_topups.record(conn, topup.id, desk.now(), payment_intent_id=intent_id)
    if topup is None:
        raise _NotOursError("no top-up of ours")
    return str(topups.refresh(desk.database, desk.port, topup.id, desk.now).state)


def _dispute(desk: _Desk, subject: Subject) -> str | None:
    """A disputed payment, of credit or of an invoice."""
    dispute = None if subject.object_id is None else desk.port.payments.find_dispute(subject.object_id)
    charge = None if dispute is None else desk.port.payments.find_charge(dispute.charge_id)
    if dispute is None or charge is None:
        raise _NotOursError("no payment that can be found")
    with desk.database.reading() as conn:
        topup = ledger_topups.find(conn, topup_id=None, intent_id=charge.intent_id)
        payer = charge.stripe_customer_id
        account = None if payer is None else accounts.find_by_stripe(conn, payer)
    if topup is not None:
        topups.refresh(desk.database, desk.port, topup.id, desk.now)
        customer_id = topup.customer_id
    elif account is not None:
        customer_id = account.id
    else:
        raise _NotLinkedError(f"the payment {charge.id} is of no customer of ours")
    disputing.apply(desk.config, desk.database, customer_id, dispute, desk.now())
    return dispute.status


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
