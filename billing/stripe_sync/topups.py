"""Money that customers pay in: the page where they do, and its way into their credit, once.

`refresh` is the only place where a payment becomes credit: it fetches what Stripe says now, decides (`paid_in`), and
changes the credit by the difference, in one transaction with the payment's row. So webhooks may come late, twice, in
any order or never (`sweep` looks after payments of which nothing final is known), and a process may be killed between
any two steps.

Invariant: refreshes of a payment do not overlap (the older answer could be recorded last); all run under
`turn.ACCOUNTS`.
"""

import logging
from dataclasses import dataclass

from billing.clock import DAY_US, SECOND_US, Clock, Instant
from billing.config import Config
from billing.credit.account import Kind
from billing.errors import StripeError
from billing.ledger import auto_topups, clawback, credit, leases, topups
from billing.ledger.accounts import Customer
from billing.ledger.database import Connection, Database
from billing.ledger.topups import RUNNING, Origin, State, Topup
from billing.stripe_sync import paid_in
from billing.stripe_sync.minor_units import to_pico
from billing.stripe_sync.paid_in import Seen, Verdict
from billing.stripe_sync.payments import Bill, Checkout, Payer
from billing.stripe_sync.port import StripePort

logger = logging.getLogger("weir.stripe")

ACTOR = "stripe"
SWEEP_AGE_US = 900 * SECOND_US
"""How long a webhook is waited for before a payment is looked at without one."""

SWEEP_ROWS_MAX = 100
SESSION_US = 2 * DAY_US
"""A Checkout session lives for a day; one that never got to our row is over by then."""


@dataclass(frozen=True, slots=True)
class Link:
    """A page where a customer pays, and the payment that it is for."""

    topup: Topup
    checkout: Checkout


def open_link(
    config: Config, database: Database, port: StripePort, customer: Customer, amount: int, now: Instant, actor: str
) -> Link:
    """Make a Checkout page for an amount in minor units. Raises StripeError; then nothing can be paid by it."""
    with database.writing() as conn:
        is_saved = auto_topups.find(conn, customer.id) is not None
        topup = topups.begin(conn, customer.id, Origin.CHECKOUT, amount, config.billing.currency, now, actor)
    payer = Payer(customer.stripe_customer_id or _known_payer(database, customer.id), customer.email)
    checkout = port.payments.create_checkout(
        bill_of(topup), payer, config.stripe_return_url, f"weir-{topup.id}", is_saved=is_saved
    )
    with database.writing() as conn:
        topups.record(conn, topup.id, now, checkout_session_id=checkout.id)
        return Link(topups.get(conn, topup.id), checkout)


def bill_of(topup: Topup) -> Bill:
    """Return what Stripe is asked to collect."""
    return Bill(topup.id, topup.customer_id, topup.amount, topup.currency)


def refresh(database: Database, port: StripePort, topup_id: str, clock: Clock) -> Verdict:
    """Fetch what is true of a payment, and let the customer's credit follow. Raises StripeError, NotFoundError."""
    with database.reading() as conn:
        topup = topups.get(conn, topup_id)
    session = None
    if topup.checkout_session_id is not None:
        session = port.payments.find_checkout(topup.checkout_session_id)
    intent_id = topup.payment_intent_id or (None if session is None else session.intent_id)
    seen = look(port, session, intent_id)
    with database.writing() as conn:
        credit.lock(conn, topup.customer_id)
        return _apply(conn, topups.get(conn, topup_id), seen, intent_id, clock)


def look(port: StripePort, session: Checkout | None, intent_id: str | None) -> Seen:
    """Fetch the charges of a payment, and what went back of them."""
    charges = [] if intent_id is None else port.payments.charges(intent_id)
    refunds = [refund for charge in charges if charge.has_refunds for refund in port.payments.refunds(charge.id)]
    disputes = [each for charge in charges if charge.is_disputed for each in port.payments.disputes(charge.id)]
    return Seen(session, charges, refunds, disputes)


def claim(database: Database, checkout: Checkout, now: Instant) -> Topup | None:
    """Return the payment that a session is for, None for a stranger's; our row learns the session's id if need be."""
    with database.writing() as conn:
        topup = topups.find(conn, session_id=checkout.id, topup_id=checkout.topup_id or None)
        if topup is None or topup.customer_id != checkout.customer_id:
            return None
        if topup.checkout_session_id is None:
            topups.record(conn, topup.id, now, checkout_session_id=checkout.id)
        elif topup.checkout_session_id != checkout.id:
            return None
        return topup


def sweep(database: Database, port: StripePort, clock: Clock) -> int:
    """Look at payments of which nothing final was heard; return how many."""
    with database.reading() as conn:
        waiting = topups.running(conn, Instant(clock() - SWEEP_AGE_US), SWEEP_ROWS_MAX)
    for topup in waiting:
        if topup.checkout_session_id is None and topup.payment_intent_id is None:
            _give_up(database, topup, clock())
            continue
        try:
            refresh(database, port, topup.id, clock)
        except StripeError as error:  # The others must not wait for this one; it comes again in a while.
            logger.warning("stripe.topup.failed", extra={"topup_id": topup.id, "error": str(error)})
    return len(waiting)


def _known_payer(database: Database, customer_id: str) -> str | None:
    with database.reading() as conn:
        known = topups.payer(conn, customer_id)
    return None if known is None else known[0]


def _give_up(database: Database, topup: Topup, now: Instant) -> None:
    """Asked for, and never confirmed by Stripe: by now its page is over, if there was one."""
    if topup.origin is Origin.AUTO:  # Looked into by the automatic top-up itself.
        return
    is_over = now - topup.created_at >= SESSION_US
    with database.writing() as conn:
        topups.record(conn, topup.id, now, state=State.EXPIRED if is_over else topup.state)


def _apply(conn: Connection, topup: Topup, seen: Seen, intent_id: str | None, clock: Clock) -> Verdict:
    """Record what is true, and move the credit by the difference; the customer is locked.

    Credit is dated by the database's clock, as its leases are.
    """
    at, now = leases.database_now(conn, clock), clock()
    verdict = paid_in.decide(topup, seen)
    known = credit.read(conn, topup.customer_id).currency
    if verdict.credited and known not in (None, topup.currency):
        note = f"the customer's credit is in {known}, not {topup.currency}: refund it at Stripe"
        verdict = Verdict(State.REFUSED, verdict.received, verdict.refunded, verdict.withdrawn, 0, note)
    grant_id = topup.grant_id
    moved = verdict.credited - topup.credited
    if moved > 0:
        grant_id = _give(conn, topup, moved, at)
    elif moved < 0:
        _take(conn, topup, verdict, -moved, at)
    paid = next((charge for charge in seen.charges if charge.status == "succeeded"), None)
    topups.record(
        conn,
        topup.id,
        now,
        state=verdict.state,
        received=verdict.received,
        refunded=verdict.refunded,
        withdrawn=verdict.withdrawn,
        credited=verdict.credited,
        moves=topup.moves + (moved != 0),
        grant_id=grant_id,
        payment_intent_id=intent_id,
        stripe_customer_id=topup.stripe_customer_id if paid is None else paid.stripe_customer_id,
        payment_method_id=topup.payment_method_id if paid is None else paid.payment_method_id,
        note=verdict.note,
    )
    if verdict.state is State.PAID and topup.state is not State.PAID:
        auto_topups.succeeded(conn, topup.customer_id)
    if verdict.state is State.FAILED and topup.state in RUNNING and topup.origin is Origin.AUTO:
        auto_topups.failed(conn, topup.customer_id, verdict.note or "the payment failed", now, is_final=False)
    if moved:
        logger.info("stripe.topup", extra={"topup_id": topup.id, "customer_id": topup.customer_id, "moved": moved})
    return verdict


def _give(conn: Connection, topup: Topup, minor: int, at: Instant) -> str:
    """Credit what was paid, or what came back of a refund that failed or a dispute that was won."""
    is_first = topup.grant_id is None
    entry = credit.grant(
        conn,
        topup.customer_id,
        to_pico(minor, topup.currency),
        topup.currency,
        at,
        ACTOR,
        kind=Kind.TOPUP if is_first else Kind.REVERSAL,
        reason="paid" if is_first else "a refund failed or a dispute was won",
        source=topup.id if is_first else f"{topup.id}.{topup.moves}",
    )
    return topup.grant_id or entry.id


def _take(conn: Connection, topup: Topup, verdict: Verdict, minor: int, at: Instant) -> None:
    assert topup.grant_id is not None, "what is taken back was given"
    is_refund = verdict.refunded > topup.refunded
    kind, reason = (Kind.REFUND, "refunded") if is_refund else (Kind.REVERSAL, "the payment is disputed")
    amount = to_pico(minor, topup.currency)
    clawback.take_back(conn, topup.customer_id, topup.grant_id, amount, kind, reason, at, ACTOR)
