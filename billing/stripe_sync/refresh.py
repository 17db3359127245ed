"""Brings one account in step with Stripe: fetch what is true there now, decide, record; and the dunning sweep.

Invariant: no transaction is open while Stripe is asked, and what is asked is decided on as a whole. Two refreshes of
the same account must not overlap (the older answer could be recorded last), so all run under `turn.ACCOUNTS`.
"""

import logging
from collections.abc import Iterable

from billing.clock import DAY_US, Instant
from billing.config import Config
from billing.errors import StripeError
from billing.ledger import accounts, inbox, stripe_objects
from billing.ledger.database import Database
from billing.ledger.stripe_objects import Kind
from billing.stripe_sync import drift, effects
from billing.stripe_sync.effects import (
    Effect,
    Resume,
    Seen,
    SetPastDueSince,
    SetSubscription,
    Suspend,
    Unlink,
)
from billing.stripe_sync.port import StripePort

logger = logging.getLogger("weir.stripe")

ACTOR = "stripe"


def refresh(
    config: Config, database: Database, port: StripePort, customer_id: str, now: Instant, actor: str = ACTOR
) -> tuple[Effect, ...]:
    """Refetch a linked customer and apply what follows; return the effects. Raises StripeError."""
    with database.reading() as conn:
        account = accounts.get_customer(conn, customer_id)
        known = stripe_objects.known(conn)
        meter_id, price_id = known.get(Kind.METER), known.get(Kind.PRICE)
    if account.stripe_customer_id is None:
        return ()
    seen = _fetch(port, account.stripe_customer_id, account.stripe_subscription_id)
    _tell_of_items(seen, meter_id, price_id, customer_id)
    decided = effects.decide(account, seen, meter_id, config.dunning, now)
    if decided:
        _apply(database, customer_id, decided, now, actor)
    for effect in decided:
        logger.info("stripe.effect", extra={"customer_id": customer_id, "effect": type(effect).__name__})
    return decided


def sweep_dunning(config: Config, database: Database, port: StripePort, now: Instant) -> int:
    """Suspend whose grace period is over, without waiting for an event; return how many were looked at.

    Each is refetched first: a payment whose event was lost must not end in a suspension.
    """
    if config.dunning.action == "none":
        return 0
    with database.reading() as conn:
        overdue = inbox.overdue_customers(conn, Instant(now - config.dunning.grace_days * DAY_US))
    for customer_id in overdue:
        try:
            refresh(config, database, port, customer_id, now)
        except StripeError as error:  # The next sweep comes in a minute; the others must not wait for this one.
            logger.warning("stripe.dunning.failed", extra={"customer_id": customer_id, "error": str(error)})
    return len(overdue)


def _fetch(port: StripePort, stripe_customer_id: str, subscription_id: str | None) -> Seen:
    customer = port.find_customer(stripe_customer_id)
    if customer is None:
        # A deleted customer is still found. One that is not found is another account's, or the other mode's: taken
        # for deleted, one wrong API key would unlink everybody.
        raise StripeError(f"Stripe does not know {stripe_customer_id}; is STRIPE_API_KEY of another account or mode?")
    if customer.is_deleted:
        return Seen(is_deleted=True, subscription=None, open_invoices=())
    subscription = None if subscription_id is None else port.find_subscription(subscription_id)
    return Seen(is_deleted=False, subscription=subscription, open_invoices=port.open_invoices(stripe_customer_id))


def _tell_of_items(seen: Seen, meter_id: str | None, price_id: str | None, customer_id: str) -> None:
    """Log an error if somebody changed what a living subscription bills; Stripe shows ten of its items at first."""
    subscription = seen.subscription
    if subscription is None or meter_id is None or price_id is None or subscription.status in drift.ENDED:
        return
    found = drift.of_items(subscription.items, meter_id, price_id, subscription.id)
    if found is not None and len(subscription.items) < drift.ITEMS_SHOWN_MAX:
        fields = {"customer_id": customer_id, "subscription": subscription.id}
        logger.error("stripe.subscription.drift", extra=fields | {"fault": found.fault, "advice": found.remedy})


def _apply(database: Database, customer_id: str, decided: Iterable[Effect], now: Instant, actor: str) -> None:
    with database.writing() as conn:
        for effect in decided:
            match effect:
                case Unlink():
                    accounts.unlink(conn, customer_id, now, actor)
                case SetSubscription(subscription_id, status, start, end):
                    accounts.set_subscription(conn, customer_id, subscription_id, status, start, end, now, actor)
                case SetPastDueSince(since):
                    accounts.set_past_due_since(conn, customer_id, since, now, actor)
                case Suspend(cause, reason):
                    accounts.suspend(conn, customer_id, cause, reason, now, actor)
                case Resume(cause, reason):
                    accounts.resume(conn, customer_id, cause, reason, now, actor)
