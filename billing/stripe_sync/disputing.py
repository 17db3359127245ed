"""A disputed payment freezes its customer until it is won; one that is lost, until an admin decides.

Invariant: what froze whom is kept (`ledger.disputes`), so that an event that comes again does not overrule an admin,
and one dispute that is won does not thaw what another one froze. With `dunning.action = "none"` nothing freezes.
"""

from billing.clock import Instant
from billing.config import Config
from billing.ledger import accounts, disputes
from billing.ledger.accounts import Cause
from billing.ledger.database import Database
from billing.stripe_sync.paid_in import WITHDRAWING
from billing.stripe_sync.payments import Dispute

ACTOR = "stripe"
REASON = "a payment is disputed"


def apply(config: Config, database: Database, customer_id: str, dispute: Dispute, now: Instant) -> None:
    """Freeze or thaw a customer by what Stripe says of a dispute now."""
    is_freezing = dispute.status in WITHDRAWING and config.dunning.action != "none"
    told = (dispute.id, customer_id, dispute.status, dispute.amount, dispute.currency, now)
    with database.writing() as conn:
        if not disputes.note(conn, *told, is_freezing=is_freezing):
            return
        if is_freezing:
            accounts.suspend(conn, customer_id, Cause.DISPUTED, REASON, now, ACTOR)
        elif not disputes.is_frozen(conn, customer_id):
            accounts.resume(conn, customer_id, Cause.DISPUTED, f"{dispute.id}: {dispute.status}", now, ACTOR)
