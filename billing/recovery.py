"""What dead workers left: their streams become interrupted events (I3), at the start and ever after, on every host.

Each process looks; none is elected, since the transaction that takes a worker's streams holds whoever comes second.
A worker is taken for dead only when it was silent for too long twice, a round apart: after the database itself was away
all workers look dead, until they have had time to say that they are not.
"""

import logging

from billing.clock import Clock
from billing.ledger import inflight, leases
from billing.ledger.database import Database
from billing.ledger.inflight import Suspect
from billing.usage import UsageEvent

log = logging.getLogger("weir.recovery")


class Recovery:
    """The rounds of one process; it remembers whom it suspected in the last one."""

    def __init__(self, database: Database, shard: int, now: Clock) -> None:
        self._database = database
        self._shard = shard
        self._now = now
        self._suspects: frozenset[Suspect] = frozenset()

    def run(self) -> list[UsageEvent]:
        """Look once, and return what was recorded."""
        with self._database.reading() as conn:
            found = inflight.suspects(conn, leases.database_now(conn, self._now))
        confirmed = [suspect for suspect in found if suspect in self._suspects]
        self._suspects = frozenset(found)
        recorded = [event for suspect in confirmed for event in self._recover(suspect)]
        if recorded:
            log.warning("recovery.interrupted", extra={"rows": len(recorded)})
        return recorded

    def _recover(self, suspect: Suspect) -> list[UsageEvent]:
        recorded: list[UsageEvent] = []
        while True:
            with self._database.writing() as conn:
                some = inflight.recover(conn, suspect, self._shard, leases.database_now(conn, self._now))
            if some is None:
                return recorded
            recorded += some
