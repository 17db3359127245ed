"""Closes a customer's account: its keys end, its last usage is sent and invoiced, then its subscription ends.

Invariant: the subscription is cancelled only when Stripe has counted every unit that the ledger holds for its running
period, since what comes later would be on no invoice (https://docs.stripe.com/api/subscriptions/cancel: `invoice_now`).
Each step may be repeated: a closing that was cut off, or that waits for Stripe, goes on when it is asked for again.
"""

import time

from billing import clock
from billing.clock import SECOND_US, Instant
from billing.config import Config
from billing.errors import RefusedError, StripeError
from billing.ledger import accounts, bills
from billing.ledger.accounts import Cause, Customer
from billing.ledger.database import Database
from billing.stripe_sync import previews, push, turn
from billing.stripe_sync.client import connect
from billing.stripe_sync.port import StripePort
from billing.stripe_sync.previews import Preview

COUNT_WAIT_S = 60
"""Stripe counts with a delay of which it says nothing; up to two minutes were seen."""

POLL_MS = 500
GAP_S = 3
"""The last invoice ends, exclusive, in the second of the cancellation by Stripe's clock: usage of that second would be
on no invoice. So the last usage has to be older, and the clocks may differ by this much."""

CLOSED_REASON = "the account was closed"
_ENDED = ("canceled", "incomplete_expired")


def stop(database: Database, customer: Customer, now: Instant, actor: str) -> int:
    """Revoke every key and suspend: no usage comes after this. Return how many keys were revoked."""
    with database.writing() as conn:
        keys = [key for key in accounts.list_keys(conn, customer.id) if key.revoked_at is None]
        for key in keys:
            accounts.revoke_key(conn, key.id, now, actor)
        accounts.suspend(conn, customer.id, Cause.MANUAL, CLOSED_REASON, now, actor)
    return len(keys)


def settle(config: Config, database: Database, customer: Customer, wait_s: int = COUNT_WAIT_S) -> None:
    """Send and invoice the last usage, and end the subscription. Raises RefusedError while something is not sent."""
    if customer.stripe_subscription_id is None or customer.stripe_subscription_status in _ENDED:
        return
    port = connect(config)
    found = port.find_subscription(customer.stripe_subscription_id)
    if found is None or found.status in _ENDED:
        return
    with turn.waited_for(database, turn.PUSH):
        push.pusher(config, database, port, clock.now).run(is_closing=True)
        _await_count(database, port, customer, wait_s)
        port.payments.cancel_subscription(found.id, f"weir-close-{found.id}")


def _await_count(database: Database, port: StripePort, customer: Customer, wait_s: int) -> None:
    deadline_ns = time.monotonic_ns() + wait_s * 1_000_000_000
    while True:
        seen = previews.look(database, port, customer.id)
        if seen.ledger.units_unsent or seen.ledger.unassigned:
            raise RefusedError(
                f"{seen.ledger.units_unsent} units of {customer.name!r} are not accepted by Stripe; see "
                "`weir stripe status`, then close it again"
            )
        if seen.unexplained == 0 and _last_second(database, customer, seen) + GAP_S < clock.now() // SECOND_US:
            return
        if time.monotonic_ns() > deadline_ns:
            raise StripeError(
                f"Stripe has not counted all usage of {customer.name!r} yet; close it again in a minute, or see "
                "`weir stripe reconcile`"
            )
        time.sleep(POLL_MS / 1_000)


def _last_second(database: Database, customer: Customer, seen: Preview) -> int:
    with database.reading() as conn:
        sent = bills.batches_in(conn, customer.id, seen.start, seen.end)
    return max((batch.timestamp_s for batch in sent), default=0)
