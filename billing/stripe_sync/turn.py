"""Whose turn it is: one process at a time pushes, and one brings accounts in step with Stripe.

The background jobs ask and go on if it is another's turn (`Database.elected`); a command waits for its own.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from billing.errors import RefusedError
from billing.ledger.database import Database

PUSH = "push"
ACCOUNTS = "inbox"
"""Webhook events, dunning and links: the answer that was fetched first must not be recorded last."""

RECONCILE = "reconcile"
"""What two comparisons find at once, both would mend."""

WAIT_S = 60
POLL_MS = 100


@contextmanager
def waited_for(database: Database, job: str, wait_s: int = WAIT_S) -> Iterator[None]:
    """Wait until it is this process's turn, and keep it for the block. Raises RefusedError after `wait_s`."""
    deadline_ns = time.monotonic_ns() + wait_s * 1_000_000_000
    while True:
        with database.elected(job) as is_mine:
            if is_mine:
                yield
                return
        if time.monotonic_ns() > deadline_ns:
            raise RefusedError(f"another process has been busy with the same ({job}) for {wait_s} s; try again later")
        time.sleep(POLL_MS / 1_000)
