"""A customer of ours at Stripe: made or adopted, subscribed to the metered price, and linked.

Billing periods are calendar months of UTC (`billing_cycle_anchor_config`: day 1, 00:00:00). So every period ends on a
whole hour, no hour of usage lies in two periods, and a batch's timestamp can not fall into the wrong invoice. For the
same reason a subscription that bills at another time is refused, and so is a second one on the same meter, which would
bill the same usage twice.

Invariant: repeating any of this makes nothing twice. Before a creation comes a look at what we know, and the
Idempotency-Key is made of our customer's id. Stripe repeats the first answer under a key for a day even if its object
was deleted since, so what was made is looked at again, and a dead one makes the next key.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from billing import clock
from billing.clock import SECOND_US, Instant
from billing.config import Config
from billing.errors import NotFoundError, RefusedError, StripeError
from billing.ledger import accounts, outbox, stripe_objects
from billing.ledger.accounts import Cause, Customer
from billing.ledger.database import Connection, Database
from billing.ledger.stripe_objects import Kind
from billing.stripe_sync import batches, refresh, token_lanes, turn
from billing.stripe_sync.client import connect
from billing.stripe_sync.port import StripeCustomer, StripePort, Subscription
from billing.stripe_sync.retry import TIMESTAMP_AGE_US_MAX

KEY_TRIES_MAX = 5
_ENDED = ("canceled", "incomplete_expired")
_HOUR_S = clock.HOUR_US // SECOND_US
_Made = TypeVar("_Made", StripeCustomer, Subscription)


@dataclass(frozen=True, slots=True)
class Link:
    """Who pays at Stripe, and by which subscription."""

    stripe_customer_id: str
    stripe_subscription_id: str


@dataclass(frozen=True, slots=True)
class _Catalogue:
    """What setup made."""

    price_id: str
    meter_id: str


def create_for(config: Config, database: Database, customer: Customer, now: Instant, actor: str) -> Link:
    """Make the customer at Stripe and subscribe it; one that is linked already keeps its link.

    Raises StripeError, and RefusedError before the first `weir stripe setup`.
    """
    port = connect(config)
    catalogue = _catalogue(database)
    with database.reading() as conn:
        account = accounts.get_customer(conn, customer.id)
    stripe_customer_id = account.stripe_customer_id
    if stripe_customer_id is None:
        stripe_customer_id = _alive(
            lambda key: port.create_customer(account.name, account.email, account.id, key),
            lambda made: _is_living_customer(port, made),
            f"weir-customer-{account.id}-{_digest(account.name, account.email or '')}",
        ).id
    return _subscribe(config, database, port, catalogue, account.id, stripe_customer_id, now, actor)


def adopt(
    config: Config, database: Database, customer: Customer, stripe_customer_id: str, now: Instant, actor: str
) -> Link:
    """Link a customer that exists at Stripe; its subscription on our price is used, or one is made.

    Raises NotFoundError for an unknown customer, RefusedError for a deleted one or an unusable subscription.
    """
    port = connect(config)
    catalogue = _catalogue(database)
    found = port.find_customer(stripe_customer_id)
    if found is None:
        raise NotFoundError(f"Stripe has no customer {stripe_customer_id!r}; look for it in the Stripe Dashboard")
    if found.is_deleted:
        raise RefusedError(f"{stripe_customer_id} was deleted at Stripe; `weir customer link` needs a living one")
    if found.currency not in ("", config.billing.currency):
        raise RefusedError(
            f"{stripe_customer_id} is billed in {found.currency} at Stripe, and a customer has one currency there; Weir"
            f" bills in {config.billing.currency}: link another customer of Stripe's, or make one with --stripe"
        )
    with database.reading() as conn:  # Refused again by `link_stripe`, but before anything is made at Stripe.
        holder = accounts.find_by_stripe(conn, stripe_customer_id)
    if holder is not None and holder.id != customer.id:
        raise RefusedError(f"{stripe_customer_id} is linked to the customer {holder.name!r}")
    return _subscribe(config, database, port, catalogue, customer.id, stripe_customer_id, now, actor)


def choose_subscription(living: Sequence[Subscription], price_id: str, meter_id: str) -> Subscription | None:
    """Return the one that bills our meter at our price, None if nothing bills our meter. Pure. Raises RefusedError."""
    billing = [each for each in living if any(item.meter_id == meter_id for item in each.items)]
    if not billing:
        return None
    if len(billing) > 1:
        names = ", ".join(each.id for each in billing)
        raise RefusedError(f"{names} bill the same usage; cancel all but one at Stripe, then link again")
    chosen = billing[0]
    item = next(item for item in chosen.items if item.meter_id == meter_id)
    if item.price_id != price_id:
        raise RefusedError(f"{chosen.id} bills our usage at {item.price_id} instead of {price_id}; change it at Stripe")
    if chosen.status == "trialing":
        raise RefusedError(
            f"{chosen.id} is in a trial, in which Stripe bills nothing of what the ledger bills; end it at Stripe, and"
            " give the customer credit that expires instead (`weir credit grant --expires`)"
        )
    if item.period_end_s % _HOUR_S != 0:
        raise RefusedError(
            f"{chosen.id} does not bill at a whole hour, so an hour's usage would lie in two invoices; cancel it at "
            "Stripe, then link again: Weir makes one that bills calendar months"
        )
    return chosen


def _subscribe(
    config: Config,
    database: Database,
    port: StripePort,
    catalogue: _Catalogue,
    customer_id: str,
    stripe_customer_id: str,
    now: Instant,
    actor: str,
) -> Link:
    """Subscribe, then link in one transaction: what waited for the link is assigned to the first period in it."""
    subscription = choose_subscription(port.subscriptions(stripe_customer_id), catalogue.price_id, catalogue.meter_id)
    if subscription is None:
        subscription = _alive(
            lambda key: port.create_subscription(stripe_customer_id, catalogue.price_id, customer_id, key),
            lambda made: _is_living_subscription(port, made),
            f"weir-subscription-{customer_id}-{_digest(stripe_customer_id, catalogue.price_id)}",
        )
    item = next(item for item in subscription.items if item.meter_id == catalogue.meter_id)
    with database.writing() as conn:
        accounts.link_stripe(conn, customer_id, stripe_customer_id, subscription.id, now, actor)
        accounts.resume(conn, customer_id, Cause.STRIPE_DELETED, f"linked to {stripe_customer_id}", now, actor)
        event_name, opens_s = config.stripe.meter_event_name, item.period_start_s
        if config.stripe.mode == "tokens":  # The pusher assigns what waited, once its meters' items are there.
            token_lanes.open_amounts(conn, customer_id, event_name, subscription.id, opens_s, now)
        else:
            _readdress(conn, customer_id, stripe_customer_id, opens_s, now)
            _assign(conn, customer_id, event_name, opens_s, now)
    if config.stripe.mode == "tokens":
        token_lanes.TokenLanes(config, database, port, lambda: now).reopen(customer_id, subscription.id)
        with database.writing() as conn:
            _readdress(conn, customer_id, stripe_customer_id, opens_s, now)
    with turn.waited_for(database, turn.ACCOUNTS):
        refresh.refresh(config, database, port, customer_id, now, actor)
    return Link(stripe_customer_id, subscription.id)


def _readdress(conn: Connection, customer_id: str, stripe_customer_id: str, opens_s: int, now: Instant) -> None:
    """Let what was never counted for an old link go to the new one, no earlier than its subscription bills."""
    outbox.readdress(conn, customer_id, stripe_customer_id, now)
    outbox.not_before(conn, customer_id, None, opens_s, (now - TIMESTAMP_AGE_US_MAX) // SECOND_US)


def _assign(conn: Connection, customer_id: str, event_name: str, first_period_s: int, now: Instant) -> None:
    cut_at: str | None = customer_id
    while cut_at is not None:
        deltas, cut_at = outbox.pending(conn, only=customer_id, is_waiting=True)
        tails = outbox.tails(conn, [customer_id])
        plan = batches.plan(deltas, tails, now, event_name, first_period_s=first_period_s)
        outbox.append(conn, plan)
        if not plan.assigned:
            break


def _catalogue(database: Database) -> _Catalogue:
    with database.reading() as conn:
        known = stripe_objects.known(conn)
    if Kind.PRICE not in known or Kind.METER not in known:
        raise RefusedError("there is no price at Stripe yet; run `weir stripe setup` first")
    return _Catalogue(known[Kind.PRICE], known[Kind.METER])


def _alive(create: Callable[[str], _Made], is_alive: Callable[[_Made], bool], key: str) -> _Made:
    for attempt in range(1, KEY_TRIES_MAX + 1):
        made = create(key if attempt == 1 else f"{key}-{attempt}")
        if is_alive(made):
            return made
    raise StripeError(f"Stripe repeats deleted objects for {key}; try again tomorrow, when it has forgotten them")


def _is_living_customer(port: StripePort, made: StripeCustomer) -> bool:
    found = port.find_customer(made.id)
    return found is not None and not found.is_deleted


def _is_living_subscription(port: StripePort, made: Subscription) -> bool:
    found = port.find_subscription(made.id)
    return found is not None and found.status not in _ENDED


def _digest(*parts: str) -> str:
    return hashlib.sha256("|".join(parts).encode()).hexdigest()[:16]
