"""Automatic top-ups: below a balance, the customer's saved card is charged.

At most one is in flight for a customer (a unique index), and its row is there before the card is charged under the
row's own Idempotency-Key. A round that was killed or got no answer is taken up by a later one: it looks for the payment
at Stripe first, and charges again, under the same key, only while Stripe remembers it. A declined card is tried again
after days and then paused, never in a loop; a suspended customer's is left alone.
"""

import logging

from billing.clock import HOUR_US, SECOND_US, Clock, Instant
from billing.errors import StripeError
from billing.ledger import accounts, auto_topups, credit, leases, topups
from billing.ledger.auto_topups import AutoTopup
from billing.ledger.database import Connection, Database
from billing.ledger.topups import RUNNING, Origin, State, Topup
from billing.stripe_sync.minor_units import to_pico
from billing.stripe_sync.payments import Declined
from billing.stripe_sync.port import StripePort
from billing.stripe_sync.topups import ACTOR, bill_of, refresh

logger = logging.getLogger("weir.stripe")

CHARGES_MAX = 20
"""Cards charged in one round: webhooks wait for their turn meanwhile."""

SETTINGS_MAX = 10_000
UNKNOWN_US = 60 * SECOND_US
"""After that a charge without an answer is looked into."""

KEY_US = 23 * HOUR_US
"""Stripe forgets an Idempotency-Key after a day (https://docs.stripe.com/api/idempotent_requests)."""

NO_CARD = "no saved card: a payment by `weir credit topup-link` saves one"


def run(database: Database, port: StripePort, clock: Clock) -> int:
    """Charge whose balance is too low; return how many cards were. The caller holds `turn.ACCOUNTS`."""
    with database.reading() as conn:
        if not auto_topups.has_any(conn):
            return 0
        unknown = [each for each in topups.running(conn, Instant(clock() - UNKNOWN_US), CHARGES_MAX) if _is_lost(each)]
        settings = auto_topups.due(conn, clock(), SETTINGS_MAX)
    for topup in unknown:
        _attempt(database, port, topup, clock, is_again=True)
    charged = 0
    for setting in settings:
        if charged == CHARGES_MAX:
            break
        topup_or_none = _begin(database, setting, clock)
        if topup_or_none is not None:
            charged += 1
            _attempt(database, port, topup_or_none, clock, is_again=False)
    return charged


def _is_lost(topup: Topup) -> bool:
    return topup.origin is Origin.AUTO and topup.payment_intent_id is None


def _begin(database: Database, setting: AutoTopup, clock: Clock) -> Topup | None:
    """Write down that a card will be charged, if the balance is too low; None if it is not, or no card is known."""
    with database.writing() as conn:
        credit.lock(conn, setting.customer_id)
        at = leases.database_now(conn, clock)
        if not _is_wanted(conn, setting, at):
            return None
        payer = topups.payer(conn, setting.customer_id)
        if payer is None:
            auto_topups.failed(conn, setting.customer_id, NO_CARD, clock(), is_final=True)
            return None
        return topups.begin(
            conn,
            setting.customer_id,
            Origin.AUTO,
            setting.amount,
            setting.currency,
            clock(),
            ACTOR,
            stripe_customer_id=payer[0],
            payment_method_id=payer[1],
        )


def _is_wanted(conn: Connection, setting: AutoTopup, at: Instant) -> bool:
    """Tell whether the setting still holds, and the balance is below it; the customer is locked."""
    if auto_topups.find(conn, setting.customer_id) != setting:
        return False
    if any(
        each.state in RUNNING and each.origin is Origin.AUTO
        for each in topups.of_customer(conn, setting.customer_id, 20)
    ):
        return False
    if accounts.get_customer(conn, setting.customer_id).suspensions:
        return False
    balance = leases.standing(conn, setting.customer_id, at).balance
    return balance < to_pico(setting.below, setting.currency)


def _attempt(database: Database, port: StripePort, topup: Topup, clock: Clock, *, is_again: bool) -> None:
    try:
        _charge(database, port, topup, clock, is_again=is_again)
    except StripeError as error:  # The outcome is not known: the row stays in flight, and a later round looks into it.
        with database.writing() as conn:
            topups.record(conn, topup.id, clock(), note=str(error)[:300])
        logger.warning("stripe.autotopup.unknown", extra={"topup_id": topup.id, "error": str(error)})


def _charge(database: Database, port: StripePort, topup: Topup, clock: Clock, *, is_again: bool) -> None:
    """Charge the card once; one that may have been charged before is looked for first."""
    assert topup.stripe_customer_id is not None, "an automatic top-up knows its payer"
    assert topup.payment_method_id is not None, "an automatic top-up knows its card"
    intent_id = _made_before(port, topup) if is_again else None
    if intent_id is None and clock() - topup.created_at >= KEY_US:
        _fail(database, topup, "Stripe knows nothing of this payment", None, clock(), is_final=True)
        return
    if intent_id is None:
        key = f"weir-{topup.id}"
        made = port.payments.charge_saved(bill_of(topup), topup.stripe_customer_id, topup.payment_method_id, key)
        if isinstance(made, Declined):
            _fail(database, topup, made.text, made.intent_id, clock(), is_final=made.is_final)
            return
        intent_id = made.id
    with database.writing() as conn:
        topups.record(conn, topup.id, clock(), payment_intent_id=intent_id)
    refresh(database, port, topup.id, clock)


def _made_before(port: StripePort, topup: Topup) -> str | None:
    assert topup.stripe_customer_id is not None, "an automatic top-up knows its payer"
    since_s = topup.created_at // SECOND_US - 300  # Our clock may be ahead of Stripe's.
    made = port.payments.intents(topup.stripe_customer_id, since_s)
    return next((intent.id for intent in made if intent.topup_id == topup.id), None)


def _fail(database: Database, topup: Topup, note: str, intent_id: str | None, now: Instant, *, is_final: bool) -> None:
    """Record a declined card, once."""
    with database.writing() as conn:
        credit.lock(conn, topup.customer_id)
        if topups.get(conn, topup.id).state not in RUNNING:
            return
        topups.record(conn, topup.id, now, state=State.FAILED, note=note[:300], payment_intent_id=intent_id)
        auto_topups.failed(conn, topup.customer_id, note, now, is_final=is_final)
    logger.warning("stripe.autotopup.declined", extra={"topup_id": topup.id, "customer_id": topup.customer_id})
