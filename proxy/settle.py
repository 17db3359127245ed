"""Settlement: usage becomes a priced event, the event is durable, and only then may the last bytes leave (I1).

`Recorder` is a group commit: one thread writes, all events that arrive during a commit go into the next one, so that
many requests share one fsync. While the database is away events go to the spool, which is as durable. What can not be
recorded is not released; and as long as nothing can be recorded, new requests are refused (`is_failing`), since what
they would be given could never be billed.

Idle, an event is handed over at once; under load the hand-over lingers two milliseconds, because waking a thread for
each event costs more than SQLite does (24 against 18 µs, measured in facts/performance.md).
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import NamedTuple
from zoneinfo import ZoneInfo

from billing import clock
from billing.calendar import Per, period_of
from billing.drain import LAST_CHUNK_WITHIN_S
from billing.errors import DatabaseAwayError
from billing.ledger import charges, due, events, inflight, versions
from billing.ledger.accounts import Principal
from billing.ledger.charges import Charge, Payment
from billing.ledger.database import Connection, Database, DatabaseError, is_away
from billing.ledger.due import Due
from billing.ledger.spool import Spool, SpoolError
from billing.limits import RECORD_BATCH_ROWS_MAX, RECORD_QUEUE_ROWS_MAX, TOKENS_PER_EVENT_MAX
from billing.pricing.quote import Quote
from billing.usage import Anomaly, Usage, UsageEvent, provable, uncached_media

LINGER_S = 0.002
LINGER_FROM_ROWS = 4
RETRY_FOR_S = 8.0
SPOOL_AFTER_S = 0.5
"""How long the first events wait for a database that is away before they are spooled; those after them do not wait."""

STUCK_AFTER_S = 3.0
"""How long a commit on PostgreSQL may take before its connection is cut: a server may be there and say nothing."""

CLOSE_WITHIN_S = 20.0
RETRY_PAUSE_S = 0.05
PROBE_INTERVAL_S = 0.5
"""How often a recorder that fails tries whether it could write again."""

log = logging.getLogger("weir.record")

Done = Callable[[bool], None]


class Entry(NamedTuple):
    """One event on its way to the ledger; `done(True)` is called on the event loop once it is durable.

    `payment` is what pays for it and which budgets it falls under, None where nothing was held and there is no credit.
    `is_checkpointed`: a checkpoint may be in the ledger, and if this worker was taken for dead, an event made of it.
    """

    event: UsageEvent
    quote: Quote
    done: Done
    payment: Payment | None = None
    is_checkpointed: bool = False


def judged(reported: Usage, output_tokens_max: int | None, found: tuple[Anomaly, ...] = ()) -> tuple[Usage, str | None]:
    """Return the provable part of a reported usage, and the names of what was wrong, None if nothing was.

    `found` is what a count had found before (`proxy/relay/doubt.py`).
    """
    limit = TOKENS_PER_EVENT_MAX if output_tokens_max is None else min(output_tokens_max, TOKENS_PER_EVENT_MAX)
    usage, anomalies = provable(reported, limit)
    if not anomalies and not found and usage.input_tokens <= TOKENS_PER_EVENT_MAX:
        return usage, None
    names = [anomaly.value for anomaly in (*anomalies, *found)]
    if usage.input_tokens > TOKENS_PER_EVENT_MAX:
        cached = min(usage.cached_input_tokens, TOKENS_PER_EVENT_MAX)
        media = uncached_media(TOKENS_PER_EVENT_MAX, cached, usage.image_input_tokens, usage.audio_input_tokens)
        usage = Usage(TOKENS_PER_EVENT_MAX, usage.output_tokens, cached, usage.reasoning_tokens, *media)
        names.append(Anomaly.INPUT_IMPLAUSIBLE.value)
    return usage, ",".join(names) or None


class Days:
    """The calendar days of a zone, of which the last one asked for is at hand; for any thread."""

    def __init__(self, zone: ZoneInfo) -> None:
        self._zone = zone
        self._day = period_of(Per.DAY, 0, zone)

    def start_of(self, instant: int) -> int:
        """Return when the day began that holds the instant."""
        day = self._day
        if not day.holds(instant):
            day = self._day = period_of(Per.DAY, instant, self._zone)
        return day.start


def window_start(principal: Principal, instant: int, day_start: int = 0) -> int:
    """Return the billing window of an instant in a customer's periods, and in a zone's day (`billing.clock`)."""
    return clock.window_start(instant, principal.period_start, principal.period_end, day_start)


class Recorder:
    """Events in, durable rows out; callbacks on the event loop."""

    def __init__(
        self, database: Database, loop: asyncio.AbstractEventLoop, shard: int, spool: Spool | None = None
    ) -> None:
        self._spool = spool
        self._committing_since: float | None = None
        self._database = database
        self._loop = loop
        self._shard = shard
        self._waiting: list[Entry] = []
        self._is_busy = False
        self._batches: SimpleQueue[list[Entry] | None] = SimpleQueue()
        self._stored_refs: set[str] = set()
        self._held: list[Connection] = []
        self._thread = threading.Thread(target=self._run, name="weir-recorder", daemon=True)
        self._drained: asyncio.Event = asyncio.Event()
        self._drained.set()
        self.is_away = False
        self.is_failing = False
        self.recorded = 0

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    async def close(self) -> None:
        """Wait until all that was submitted is durable, then end the thread."""
        await self._drained.wait()
        self._batches.put(None)
        await self._loop.run_in_executor(None, self._thread.join, CLOSE_WITHIN_S)

    @property
    def is_full(self) -> bool:
        """Whether more events wait than should: new requests are refused until it falls."""
        return len(self._waiting) >= RECORD_QUEUE_ROWS_MAX

    @property
    def spool_state(self) -> str:
        """Say in words what the spool holds: "ok" if nothing."""
        if self._spool is None:
            return "unavailable: see the log"
        if self._spool.refused:
            return f"{self._spool.refused} events were refused by the ledger: see the log"
        return f"{self._spool.rows} events wait for the database" if self._spool.rows else "ok"

    @property
    def spooled_rows(self) -> int:
        """How many events wait in the spool."""
        return 0 if self._spool is None else self._spool.rows

    def check_time(self, now: float) -> None:
        """Cut the connection of a commit that does not return; `now` is the monotonic clock's."""
        since = self._committing_since
        if since is not None and now - since > STUCK_AFTER_S:
            self._database.interrupt(self._held)

    def submit(self, entry: Entry) -> None:
        """Take an event; `entry.done` is called when it is durable, or when it can not be made so."""
        self._waiting.append(entry)
        if not self._is_busy:
            self._hand_over()

    def _hand_over(self) -> None:
        self._is_busy = bool(self._waiting)
        if self._is_busy:
            self._drained.clear()
            batch = self._waiting[:RECORD_BATCH_ROWS_MAX]
            del self._waiting[:RECORD_BATCH_ROWS_MAX]
            self._batches.put(batch)
        else:
            self._drained.set()

    def _written(self, batch: list[Entry], failed: frozenset[str]) -> None:
        self.recorded += len(batch) - len(failed)
        for entry in batch:
            try:
                entry.done(entry.event.id not in failed)
            except Exception:  # one request's fault must not keep the others from their last bytes
                log.exception("record.delivery_failed", extra={"event": entry.event.id})
        if len(batch) >= LINGER_FROM_ROWS and len(self._waiting) < RECORD_BATCH_ROWS_MAX:
            self._loop.call_later(LINGER_S, self._hand_over)
        else:
            self._hand_over()

    # the thread's side

    def _run(self) -> None:
        while (batch := self._next()) is not None:
            failed = frozenset(entry.event.id for entry in self._store(batch))
            self._loop.call_soon_threadsafe(self._written, batch, failed)
        for connection in self._held:
            connection.close()

    def _next(self) -> list[Entry] | None:
        """Wait for a batch; while it is away, find out meanwhile whether the database takes writes again."""
        while self.is_failing or self.is_away:
            try:
                return self._batches.get(timeout=PROBE_INTERVAL_S)
            except Empty:
                self._commit_once([], is_retry=False)
        return self._batches.get()

    def _store(self, batch: list[Entry]) -> list[Entry]:
        """Make a batch durable, after what is spooled already; return those entries with which that can not be done."""
        if self._spool is not None and self._spool.rows:
            with self._spool.turn(LAST_CHUNK_WITHIN_S):
                if self._spool.rows:
                    return self._spooled(batch)
        return self._undurable(batch, is_retry=False)

    def _spooled(self, batch: list[Entry]) -> list[Entry]:
        fault = "there is no spool"
        if self._spool is not None:
            try:
                self._spool.append([Due(entry.event, entry.quote, entry.payment) for entry in batch])
            except SpoolError as error:
                fault = str(error)
            else:
                self.is_failing = False
                return []
        log.error("record.failed", extra={"rows": len(batch), "error": fault})
        self.is_failing = True
        return batch

    def _undurable(self, batch: list[Entry], *, is_retry: bool) -> list[Entry]:
        """Make the batch durable, and return those of its entries with which that can not be done."""
        deadline = time.monotonic() + (RETRY_FOR_S if self._spool is None else SPOOL_AFTER_S)
        while not self._commit_once(batch, is_retry=is_retry):
            if not self.is_away:
                return self._refused(batch)
            if not is_retry:
                log.warning("record.waiting", extra={"rows": len(batch)})
            is_retry = True
            if self.is_failing or time.monotonic() > deadline:
                return self._spooled(batch)
            time.sleep(RETRY_PAUSE_S)
        return []

    def _refused(self, batch: list[Entry]) -> list[Entry]:
        """Find what the database refuses by halves: one event that it can not take must not cost the others."""
        if len(batch) == 1:
            log.error("record.refused", extra={"event": batch[0].event.id})
            return batch
        middle = len(batch) // 2
        return [entry for half in (batch[:middle], batch[middle:]) for entry in self._undurable(half, is_retry=True)]

    def _commit_once(self, batch: list[Entry], *, is_retry: bool) -> bool:
        """Commit the batch, or tell that it failed; `is_away` then says whether the database was not to be had."""
        self._committing_since = time.monotonic()
        try:
            self._commit(batch, is_retry=is_retry)
        except DatabaseAwayError:
            self.is_away = True
        except DatabaseError as error:
            self.is_away = is_away(error)
            if not self.is_away:
                log.exception("record.error")
        except Exception:  # at the thread's edge: without it nothing would ever be recorded again
            self.is_away = False
            log.exception("record.error")
        else:
            self.is_away = self.is_failing = False
            return True
        finally:
            self._committing_since = None
        return False

    def _commit(self, batch: list[Entry], *, is_retry: bool) -> None:
        rows = [entry.event for entry in batch]
        if not is_retry and all(self._is_plain(entry) for entry in batch):
            with self._database.appending_on(self._held) as cursor:
                if rows:
                    events.append_on(cursor, rows, self._shard, is_sqlite=self._database.is_sqlite)
            return
        new = {entry.quote.ref: entry.quote for entry in batch if entry.quote.ref not in self._stored_refs}
        with self._database.writing_on(self._held) as conn:
            for ref in sorted(new):  # in one order, so that two workers can not deadlock
                versions.store_quote(conn, new[ref])
            if is_retry or any(entry.is_checkpointed for entry in batch):
                losses = self._append_unrecorded(conn, batch)
            else:
                losses = self._append(conn, rows, batch) if rows else ()
        self._stored_refs.update(new)
        for loss in losses:
            log.error("credit.uncovered", extra={"event": loss.adjusts, "amount_pico": -loss.amount_pico})

    def _is_plain(self, entry: Entry) -> bool:
        """Whether an event needs nothing but to be appended, as nearly all do."""
        return entry.payment is None and not entry.is_checkpointed and entry.quote.ref in self._stored_refs

    def _append_unrecorded(self, conn: Connection, batch: list[Entry]) -> Sequence[UsageEvent]:
        """Append what is not there: the answer of an earlier commit may be lost, or a checkpoint was recovered."""
        dues = [Due(entry.event, entry.quote, entry.payment) for entry in batch]
        return due.append(conn, inflight.resolved(conn, dues), self._shard, clock.now())

    def _append(self, conn: Connection, rows: list[UsageEvent], batch: list[Entry]) -> Sequence[UsageEvent]:
        """Append the events, and charge them to credit and budgets; return what had to be written off."""
        charged = [Charge(entry.event, *entry.payment) for entry in batch if entry.payment is not None]
        if charged:
            return charges.append(conn, rows, charged, self._shard, clock.now())
        events.append(conn, rows, self._shard)
        return ()
