"""What Stripe says of a payment for credit now: what it has to have credited. Pure.

Invariant: the verdict depends on the payment's present state only, never on which event asked, in which order or how
often. What has to be credited is what was received, less what went back and what a dispute withdrew; the difference to
what is credited already is what changes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from billing.ledger.topups import State, Topup
from billing.stripe_sync.payments import Charge, Checkout, Dispute, Refund

GONE = frozenset(("failed", "canceled"))
"""A refund in these states did not take place: the money came back to us."""

WITHDRAWING = frozenset(("needs_response", "under_review", "lost"))
"""While a dispute is open or lost the money is not ours; an inquiry (`warning_…`) withdraws nothing yet."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What Stripe says now; `session` is None for an automatic top-up. Refunds and disputes are of all charges."""

    session: Checkout | None
    charges: Sequence[Charge]
    refunds: Sequence[Refund]
    disputes: Sequence[Dispute]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is true of a payment; `credited` is what it has to have added to the credit, in minor units."""

    state: State
    received: int
    refunded: int
    withdrawn: int
    credited: int
    note: str | None


def decide(topup: Topup, seen: Seen) -> Verdict:
    """Judge a payment by what Stripe says of it now."""
    taken = [charge for charge in seen.charges if charge.status == "succeeded"]
    session = seen.session
    is_paid_for = session is not None and session.payment_status == "paid"
    if not taken and not is_paid_for:
        return Verdict(_unpaid_state(seen), 0, 0, 0, 0, _failure(seen))
    currencies = {charge.currency for charge in taken}
    received = sum(charge.amount for charge in taken)
    if session is not None and not taken:  # Paid without a charge that can be seen: the session says how much.
        currencies, received = {session.currency}, session.amount
    if currencies != {topup.currency}:
        told = ", ".join(sorted(currencies))
        return Verdict(State.REFUSED, 0, 0, 0, 0, f"paid in {told} instead of {topup.currency}: refund it at Stripe")
    refunded = min(received, sum(refund.amount for refund in seen.refunds if refund.status not in GONE))
    withdrawn = sum(dispute.amount for dispute in seen.disputes if dispute.status in WITHDRAWING)
    withdrawn = min(received - refunded, withdrawn)
    return Verdict(State.PAID, received, refunded, withdrawn, received - refunded - withdrawn, None)


def _unpaid_state(seen: Seen) -> State:
    session, statuses = seen.session, {charge.status for charge in seen.charges}
    if "pending" in statuses:
        return State.PROCESSING
    if session is None:
        return State.FAILED if "failed" in statuses else State.OPEN
    if session.status == "expired":
        return State.EXPIRED
    if session.status == "open":  # A declined card leaves the page open for another one.
        return State.OPEN
    return State.FAILED if "failed" in statuses else State.PROCESSING


def _failure(seen: Seen) -> str | None:
    return next((f"declined: {charge.failure}" for charge in seen.charges if charge.failure), None)
