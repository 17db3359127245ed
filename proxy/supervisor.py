"""Several gateway processes on one listening socket: `[gateway] workers`.

The parent binds the socket, forks, and from then on only watches: a worker that dies is replaced, SIGTERM and SIGINT
go to all workers and the parent waits for them. It opens no database and no event loop, so that there is nothing that a
fork could share by accident. A worker whose parent dies, however it dies, is told to stop by the kernel.
"""

import ctypes
import logging
import os
import signal
import sys
import time
from collections.abc import Callable

PR_SET_PDEATHSIG = 1
RESTART_PAUSE_S = 1.0

log = logging.getLogger("weir.supervisor")


class Supervisor:
    """Runs `work(index)` in so many processes until it is told to stop."""

    def __init__(self, workers: int, work: Callable[[int], None]) -> None:
        self._workers = workers
        self._work = work
        self._index_of: dict[int, int] = {}
        self._is_stopping = False

    def run(self) -> None:
        """Return when every worker has ended after a signal to stop."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        for index in range(self._workers):
            self._start(index)
        while self._index_of:
            pid, status = os.wait()
            index = self._index_of.pop(pid)
            if not self._is_stopping:
                log.error("worker.died", extra={"worker": index, "status": os.waitstatus_to_exitcode(status)})
                time.sleep(RESTART_PAUSE_S)
            if not self._is_stopping:
                self._start(index)

    def _start(self, index: int) -> None:
        parent = os.getpid()
        pid = os.fork()
        if pid:
            self._index_of[pid] = index
            return
        code = 1
        try:
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_DFL)
            _end_with(parent)
            self._work(index)
            code = 0
        except Exception:  # the end of this process: nobody else would tell why
            log.exception("worker.failed", extra={"worker": index})
        finally:
            sys.stderr.flush()
            os._exit(code)

    def _stop(self, number: int, _frame: object) -> None:
        self._is_stopping = True
        for pid in self._index_of:
            os.kill(pid, number)


def _end_with(parent: int) -> None:
    """Ask Linux to send SIGTERM when the parent dies; elsewhere an orphan has to be stopped by hand."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(1)
