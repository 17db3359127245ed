"""Keeps on this host what its workers know of keys and prices, so that one can start while the database is away.

A thread of each worker looks at the worker's snapshot. When its epoch is another than the kept file's, the file is
removed first, and then written anew (`billing/ledger/memo.py`): a file is never older than the change that a worker has
seen. While nothing changes, the file is touched now and then: its time says when the ledger was last seen.

The workers of a host share one file. Large ledgers are not written all the time: writing takes at most a
`1 / REST` of one core (10,000 customers: 0.13 s); between a change and the next writing there is no file.
"""

import logging
import threading
import time
from pathlib import Path

from billing.errors import DatabaseAwayError
from billing.ledger import memo
from billing.ledger.database import Database, DatabaseError
from proxy.admit.directory import Directory

LOOK_INTERVAL_S = 0.25
TOUCH_INTERVAL_S = 5.0
REST = 20
STOP_WITHIN_S = 10

log = logging.getLogger("weir.directory")


class Remembering:
    """The thread that keeps the file true."""

    def __init__(self, database: Database, directory: Directory, path: Path) -> None:
        self._database = database
        self._directory = directory
        self._path = path
        self._epoch: int | None = None
        self._next_s = self._touch_s = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="weir-memory", daemon=True)

    def start(self) -> None:
        """Begin to keep it."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread; the file stays."""
        self._stop.set()
        self._thread.join(STOP_WITHIN_S)

    def _run(self) -> None:
        while True:
            try:
                self.look(time.monotonic())
            except (DatabaseAwayError, DatabaseError):
                pass  # the directory has said so
            except OSError as error:
                log.warning("directory.not_kept", extra={"error": error.strerror})
                self._next_s = time.monotonic() + TOUCH_INTERVAL_S
            except Exception:  # at the thread's edge: without it no start would find anything
                log.exception("directory.not_kept")
            if self._stop.wait(LOOK_INTERVAL_S):
                return

    def look(self, now_s: float) -> None:
        """Make the file what this worker knows, at a time of the monotonic clock.

        Raises OSError, DatabaseAwayError or DatabaseError where that can not be done now.
        """
        if self._directory.is_stale:
            return
        epoch = self._directory.snapshot.epoch
        if epoch != self._epoch:
            if memo.epoch_of(self._path) == epoch:
                self._epoch = epoch
            else:
                self._path.unlink(missing_ok=True)
                if now_s < self._next_s:
                    return
                self._write(now_s)
        if now_s >= self._touch_s:
            self._touch_s = now_s + TOUCH_INTERVAL_S
            memo.touch(self._path)

    def _write(self, now_s: float) -> None:
        since_s = time.monotonic()
        with self._database.reading() as conn:
            self._epoch = memo.write(conn, self._path)
        self._next_s = now_s + REST * (time.monotonic() - since_s)
