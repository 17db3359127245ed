"""Keys and prices as this worker knows them, at one epoch of the ledger.

A thread polls the epoch (one row by its primary key). When it grew, the prices and the keys (in use, or the newest) are
loaded again and the whole snapshot is replaced by one assignment: a request sees one epoch, old or new, never a
mixture. So a revoked key, a suspended customer or a new margin holds everywhere within a second, and a request costs
no query.
While the database is away the last snapshot holds, for as long as `[database] stale_s_max` says.
"""

import logging
import threading
import time
from dataclasses import dataclass, field
from itertools import islice

from billing.errors import DatabaseAwayError
from billing.ledger import accounts, epoch, principals, versions
from billing.ledger.accounts import Principal
from billing.ledger.database import Database, DatabaseError, is_away
from billing.pricing.book import PriceBook

POLL_INTERVAL_S = 0.25
KEYS_KEPT_MAX = 100_000
KEYS_RELOADED_MAX = 500
"""Half a millisecond each (measured): more would keep a change from holding within a second. The others are looked up
when they are shown next, which needs the database."""

log = logging.getLogger("weir.directory")


@dataclass(slots=True)
class Snapshot:
    """What is known at one epoch: prices, and the keys that were asked for (None: there is no such key)."""

    epoch: int
    book: PriceBook
    principals: dict[bytes, Principal | None] = field(default_factory=dict)


class Directory:
    """The present snapshot, and the thread that renews it."""

    def __init__(
        self, database: Database, default_margin: str, currency: str, default_rpm: int = 0, default_tpm: int = 0
    ) -> None:
        self._database = database
        self._default_margin = default_margin
        self._currency = currency
        self._defaults = default_rpm, default_tpm
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._poll, name="weir-directory", daemon=True)
        self.is_stale = False
        self._renewed_s = time.monotonic()
        self.snapshot = self._load(())

    def start(self) -> None:
        """Begin to follow the ledger."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stop.set()
        self._thread.join(timeout=5)

    def lookup(self, secret: bytes) -> Principal | None:
        """Load a key by its SHA-256 and keep it for this epoch. Blocks on the database: never on the event loop.

        Raises DatabaseAwayError, or the driver's error while the database can not answer.
        """
        snapshot = self.snapshot
        try:
            with self._database.reading() as conn:
                found = principals.load(conn, secret.hex(), *self._defaults)
        except DatabaseError as error:
            if not is_away(error):
                raise
            raise DatabaseAwayError("the database went away") from None
        if len(snapshot.principals) >= KEYS_KEPT_MAX:
            snapshot.principals.clear()
        snapshot.principals[secret] = found
        return found

    def age_s(self, now_s: float) -> float:
        """Return how long ago the ledger was last seen, at a time of the monotonic clock."""
        return now_s - self._renewed_s

    def _load(self, known: tuple[bytes, ...]) -> Snapshot:
        with self._database.reading() as conn:
            number = epoch.current(conn)
            book = versions.load_book(conn, default_margin=self._default_margin, currency=self._currency)
            newest = [bytes.fromhex(text) for text in accounts.usable_secrets(conn, KEYS_RELOADED_MAX)]
            wanted = islice(dict.fromkeys((*known, *newest)), KEYS_RELOADED_MAX)
            found = {secret: principals.load(conn, secret.hex(), *self._defaults) for secret in wanted}
        return Snapshot(number, book, found)

    def _poll(self) -> None:
        while not self._stop.wait(POLL_INTERVAL_S):
            try:
                with self._database.reading() as conn:
                    number = epoch.current(conn)
                if number != self.snapshot.epoch:
                    known = [secret for secret, found in list(self.snapshot.principals.items()) if found is not None]
                    self.snapshot = self._load(tuple(known[:KEYS_RELOADED_MAX]))
                self._renewed_s = time.monotonic()
                self.is_stale = False
            except (DatabaseAwayError, DatabaseError) as error:
                if not self.is_stale:
                    log.warning("directory.stale", extra={"error": type(error).__name__})
                self.is_stale = True
            except Exception:  # whatever else it is: without this thread a revoked key would work for ever
                log.exception("directory.failed")
                self.is_stale = True
