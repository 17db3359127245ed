"""This worker's spool: opened with the worker, emptied by a thread as soon as the ledger is to be had again.

The recorder writes to it; this thread only takes away. While it holds something the recorder goes on writing to it, so
that events keep their order and no request waits for a database that may not answer.
"""

import logging
import threading
from pathlib import Path

from billing import clock
from billing.drain import drain
from billing.errors import DatabaseAwayError
from billing.ledger.database import Database, DatabaseError, is_away
from billing.ledger.spool import Spool, SpoolError

PROBE_INTERVAL_S = 0.25
"""How often it is tried whether the ledger takes events again."""

STOP_WITHIN_S = 10

log = logging.getLogger("weir.spool")


def open_spool(folder: Path) -> Spool | None:
    """Open this worker's spool; None where that can not be: then requests are refused while the database is away."""
    try:
        return Spool.new(folder)
    except SpoolError as error:
        log.error("spool.unavailable", extra={"error": str(error)})  # noqa: TRY400 -- its text says what to do
        return None


class Drainer:
    """Empties one spool whenever there is something in it."""

    def __init__(self, database: Database, spool: Spool, shard: int) -> None:
        self._database = database
        self._spool = spool
        self._shard = shard
        self._told = ""
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="weir-spool", daemon=True)

    def start(self) -> None:
        """Begin to watch it."""
        self._thread.start()

    def stop(self) -> None:
        """End; what is left is drained by whoever finds it, at the latest by the next start."""
        self._stopping.set()
        self._thread.join(STOP_WITHIN_S)
        if self._spool.rows:
            self._round()
        self._spool.close()

    def _run(self) -> None:
        while not self._stopping.wait(PROBE_INTERVAL_S):
            if self._spool.rows:
                self._round()

    def _round(self) -> None:
        try:
            drained = drain(self._database, self._spool, self._shard, clock.now)
            log.warning("spool.drained", extra={"rows": drained})
        except (DatabaseError, DatabaseAwayError) as error:
            if isinstance(error, DatabaseError) and not is_away(error):
                log.exception("spool.failed")
        except SpoolError as error:
            if str(error) != self._told:
                log.error("spool.failed", extra={"error": str(error)})  # noqa: TRY400 -- it says why
            self._told = str(error)
        except Exception:  # at the thread's edge: without it the spool would never be emptied
            log.exception("spool.failed")
