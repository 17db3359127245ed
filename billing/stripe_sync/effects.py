"""What Stripe says now, held against our account: what has to change here. Pure.

Invariant: the result depends on the present state on both sides only, never on which event asked or in which order;
applied twice, it is empty the second time. `unpaid` is set and lifted here, `manual` never touched.

A customer is past due while an invoice is open whose payment failed or whose due date has passed, or while Stripe
says so of the subscription. Suspended after the grace period, or at once when Stripe gave up collecting (`unpaid`)
or when the subscription has ended: from then on usage would be counted and never invoiced.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from billing.clock import DAY_US, SECOND_US, Instant
from billing.config import Dunning
from billing.ledger.accounts import Cause, Customer
from billing.stripe_sync.port import Invoice, Item, Subscription

_ENDED = ("canceled", "incomplete_expired", "paused")
_LATE = ("past_due", "incomplete")

DELETED_REASON = "the billing account was deleted"
UNPAID_REASON = "an invoice is unpaid"
ENDED_REASON = "the subscription has ended"


@dataclass(frozen=True, slots=True)
class Seen:
    """What Stripe says of a linked customer now; `subscription` is the one that we know, None if we know none."""

    is_deleted: bool
    subscription: Subscription | None
    open_invoices: Sequence[Invoice]


@dataclass(frozen=True, slots=True)
class Unlink:
    """Forget the link: this customer of Stripe's is gone."""


@dataclass(frozen=True, slots=True)
class SetSubscription:
    """Keep the subscription's state and the period in which its item is."""

    subscription_id: str
    status: str
    period_start: Instant | None
    period_end: Instant | None


@dataclass(frozen=True, slots=True)
class SetPastDueSince:
    """Keep since when an invoice is unpaid; None: nothing is."""

    since: Instant | None


@dataclass(frozen=True, slots=True)
class Suspend:
    """Suspend for a cause; the reason is what clients are told."""

    cause: Cause
    reason: str


@dataclass(frozen=True, slots=True)
class Resume:
    """Lift a cause."""

    cause: Cause
    reason: str


Effect = Unlink | SetSubscription | SetPastDueSince | Suspend | Resume


def decide(account: Customer, seen: Seen, meter_id: str | None, dunning: Dunning, now: Instant) -> tuple[Effect, ...]:
    """Return what has to change; nothing if all is as Stripe says. The subscription's period is its metered item's."""
    if seen.is_deleted:
        gone = Suspend(Cause.STRIPE_DELETED, DELETED_REASON)
        return (Unlink(),) if _is_suspended(account, Cause.STRIPE_DELETED) else (Unlink(), gone)
    effects = _subscription_effects(account, seen.subscription, meter_id)
    since = _past_due_since(account, seen, now)
    if since != account.past_due_since:
        effects.append(SetPastDueSince(since))
    reason = _suspension_reason(seen.subscription, since, dunning, now)
    is_suspended = _is_suspended(account, Cause.UNPAID)
    if reason is not None and not is_suspended:
        effects.append(Suspend(Cause.UNPAID, reason))
    if reason is None and is_suspended and since is None:
        effects.append(Resume(Cause.UNPAID, "nothing is unpaid"))
    return tuple(effects)


def _subscription_effects(account: Customer, subscription: Subscription | None, meter_id: str | None) -> list[Effect]:
    if subscription is None:
        return []
    item = _item(subscription, meter_id)
    start = None if item is None else Instant(item.period_start_s * SECOND_US)
    end = None if item is None else Instant(item.period_end_s * SECOND_US)
    known = (
        account.stripe_subscription_id,
        account.stripe_subscription_status,
        account.period_start,
        account.period_end,
    )
    if known == (subscription.id, subscription.status, start, end):
        return []
    return [SetSubscription(subscription.id, subscription.status, start, end)]


def _item(subscription: Subscription, meter_id: str | None) -> Item | None:
    metered = [item for item in subscription.items if item.meter_id and item.meter_id == meter_id]
    candidates = metered or list(subscription.items)
    return candidates[0] if candidates else None


def _past_due_since(account: Customer, seen: Seen, now: Instant) -> Instant | None:
    """Since when; the first time that we saw it, because Stripe does not keep when an attempt failed."""
    is_late = seen.subscription is not None and seen.subscription.status in (*_LATE, "unpaid")
    if is_late or any(_is_overdue(invoice, now) for invoice in seen.open_invoices):
        return now if account.past_due_since is None else account.past_due_since
    return None


def _is_overdue(invoice: Invoice, now: Instant) -> bool:
    if invoice.amount_remaining <= 0:
        return False
    is_past_due_date = invoice.due_at_s is not None and invoice.due_at_s * SECOND_US <= now
    return invoice.attempt_count > 0 or is_past_due_date


def _suspension_reason(
    subscription: Subscription | None, past_due_since: Instant | None, dunning: Dunning, now: Instant
) -> str | None:
    if dunning.action == "none":
        return None
    if subscription is not None and subscription.status in _ENDED:
        return ENDED_REASON
    if subscription is not None and subscription.status == "unpaid":
        return UNPAID_REASON
    if past_due_since is not None and now - past_due_since >= dunning.grace_days * DAY_US:
        return UNPAID_REASON
    return None


def _is_suspended(account: Customer, cause: Cause) -> bool:
    return any(suspension.cause is cause for suspension in account.suspensions)
