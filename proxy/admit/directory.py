"""Keys and prices as this worker knows them, at one epoch of the ledger.

A thread polls the epoch (one row by its primary key). When it grew, the prices and the keys (in use, or the newest) are
loaded again and the whole snapshot is replaced by one assignment: a request sees one epoch, old or new, never a
mixture. So a revoked key, a suspended customer or a new margin holds everywhere within a second, and a request costs
no query.

While the database is away the last snapshot holds, for as long as `[database] stale_s_max` says. A worker that starts
meanwhile begins with what its host has kept (`remembering.py`), which is as old as the file says; where nothing was
kept it knows no key and no price, refuses everybody for now, and begins to serve when the database is back.
"""

import logging
import threading
import time
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from billing.errors import DatabaseAwayError
from billing.ledger import accounts, epoch, memo, principals, versions
from billing.ledger.accounts import Principal
from billing.ledger.database import Connection, Database, DatabaseError, is_away
from billing.ledger.memo import MemoError
from billing.pricing.book import PriceBook
from billing.pricing.margins import parse_margin

POLL_INTERVAL_S = 0.25
KEYS_KEPT_MAX = 100_000
KEYS_RELOADED_MAX = 500
"""Half a millisecond each (measured): more would keep a change from holding within a second. The others are looked up
when they are shown next, in the database or, while it is away, in what this host has kept."""

NO_EPOCH = -1
NEVER = float("-inf")

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
        self,
        database: Database,
        default_margin: str,
        currency: str,
        default_rpm: int = 0,
        default_tpm: int = 0,
        *,
        memory: Path | None = None,
    ) -> None:
        """`memory` is the file that this host keeps of keys and prices, if any."""
        self._database = database
        self._default_margin = default_margin
        self._currency = currency
        self._defaults = default_rpm, default_tpm
        self._memory = memory
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="weir-directory", daemon=True)
        self.is_stale = False
        self.polls = 0
        self._renewed_s = time.monotonic()
        self.snapshot = self._first()

    def start(self) -> None:
        """Begin to follow the ledger."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stop.set()
        self._thread.join(timeout=5)

    def lookup(self, secret: bytes) -> Principal | None:
        """Load a key by its SHA-256 and keep it for this epoch. Blocks on the database: never on the event loop.

        While the database is away, what this host has kept is asked first: a silent database takes seconds to fail.
        Raises DatabaseAwayError, or the driver's error where the database can not answer.
        """
        snapshot = self.snapshot
        found = self._remembered(secret, snapshot) if self.is_stale else None
        if found is None:
            found = self._asked(secret)
        if len(snapshot.principals) >= KEYS_KEPT_MAX:
            snapshot.principals.clear()
        snapshot.principals[secret] = found
        return found

    def _asked(self, secret: bytes) -> Principal | None:
        try:
            with self._database.reading() as conn:
                return principals.load(conn, secret.hex(), *self._defaults)
        except DatabaseError as error:
            if not is_away(error):
                raise
            raise DatabaseAwayError("the database went away") from None

    def _remembered(self, secret: bytes, snapshot: Snapshot) -> Principal | None:
        """Return a key as this host has kept it at the snapshot's epoch; what it has not may have been made since."""
        if self._memory is None:
            return None
        try:
            with memo.reading(self._memory) as conn:
                is_same = epoch.current(conn) == snapshot.epoch
                return principals.load(conn, secret.hex(), *self._defaults) if is_same else None
        except MemoError:
            return None

    def age_s(self, now_s: float) -> float:
        """Return how long ago the ledger was last seen, at a time of the monotonic clock."""
        return now_s - self._renewed_s

    def _first(self) -> Snapshot:
        """Load from the ledger, or, while it is away, from what this host has kept; nothing is known otherwise."""
        try:
            with self._database.reading() as conn:
                return self._load(conn, ())
        except DatabaseAwayError as error:
            fault: Exception = error
        except DatabaseError as error:
            if not is_away(error):
                raise
            fault = error
        self.is_stale = True
        log.warning("directory.stale", extra={"error": type(fault).__name__})
        if self._memory is not None:
            try:
                with memo.reading(self._memory) as conn:
                    snapshot = self._load(conn, ())
                self._renewed_s -= memo.age_s(self._memory)
            except MemoError as error:
                log.error("directory.nothing_kept", extra={"error": str(error)})  # noqa: TRY400 -- it says why
            else:
                log.warning("directory.remembered", extra={"epoch": snapshot.epoch})
                return snapshot
        self._renewed_s = NEVER
        return Snapshot(NO_EPOCH, PriceBook((), (), parse_margin(self._default_margin), self._currency))

    def _load(self, conn: Connection, known: tuple[bytes, ...]) -> Snapshot:
        number = epoch.current(conn)
        book = versions.load_book(conn, default_margin=self._default_margin, currency=self._currency)
        newest = [bytes.fromhex(text) for text in accounts.usable_secrets(conn, KEYS_RELOADED_MAX)]
        wanted = islice(dict.fromkeys((*known, *newest)), KEYS_RELOADED_MAX)
        found = {secret: principals.load(conn, secret.hex(), *self._defaults) for secret in wanted}
        return Snapshot(number, book, found)

    def _run(self) -> None:
        while not self._stop.wait(POLL_INTERVAL_S):
            self.poll()

    def poll(self) -> None:
        """Look once whether the ledger has changed, and take the change over; what was committed before holds then."""
        try:
            with self._database.reading() as conn:
                number = epoch.current(conn)
            if number != self.snapshot.epoch:
                known = [secret for secret, found in list(self.snapshot.principals.items()) if found is not None]
                with self._database.reading() as conn:
                    self.snapshot = self._load(conn, tuple(known[:KEYS_RELOADED_MAX]))
            self._renewed_s = time.monotonic()
            self.is_stale = False
        except (DatabaseAwayError, DatabaseError) as error:
            if not self.is_stale:
                log.warning("directory.stale", extra={"error": type(error).__name__})
            self.is_stale = True
        except Exception:  # whatever else it is: without this thread a revoked key would work for ever
            log.exception("directory.failed")
            self.is_stale = True
        self.polls += 1
