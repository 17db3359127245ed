"""What limited keys and customers have used, in memory that all workers of a host share.

The parent makes it before it forks. A row is a handful of 64-bit integers: whose it is (a hash), the two buckets, and
how many requests each worker has in flight, so that a worker that dies takes nothing with it: the one that replaces it
begins with an empty column. Instants are microseconds of the monotonic clock, which is one for all processes of a host.

Invariant: a row is read and written under the lock, a POSIX record lock, which the kernel gives back when its holder
dies. Each holder needs it for a few microseconds; should one be stopped (SIGSTOP) just then, the others go on without
it after a moment: better an error of one request than a gateway that stands still.
"""

import fcntl
import mmap
import tempfile
import time
from hashlib import blake2b
from pathlib import Path

from proxy.admit.limits import Buckets

ROWS = 16_384
"""Keys and customers with limits that are in use; whoever comes after that is limited in each worker by itself."""

PROBES_MAX = 64
SPINS = 100
WAIT_MS = 250
"""A holder that the kernel took off its core comes back within some 10 ms; longer than this it is stopped."""

IMPATIENT_MS = 5_000
"""How long after that nobody waits: else each limited request would take that long while a worker is stopped."""

_FINE = 1_000_000
_DEBT_MAX = 10**18
"""A bucket is overdrawn by at most 11 days, in picoseconds."""

_TAG, _REQUESTS_AT, _REQUESTS, _TOKENS_AT, _TOKENS, _IN_FLIGHT = range(6)


class Table:
    """The rows. Each worker calls `join` first."""

    def __init__(self, workers: int, rows: int = ROWS) -> None:
        self._workers = workers
        self._rows = rows
        self._width = _IN_FLIGHT + workers
        self._memory = mmap.mmap(-1, 8 * rows * self._width)
        self._cells = memoryview(self._memory).cast("q")
        self._lock, path = tempfile.mkstemp(prefix="weir-limits-")  # open as long as this process lives
        Path(path).unlink()
        self._own = _IN_FLIGHT
        self._found: dict[str, int] = {}
        self._impatient_until_ms = 0

    def join(self, worker: int) -> None:
        """Be this worker: whatever one of this number had in flight before is over."""
        self._own = _IN_FLIGHT + worker
        self.acquire()
        for row in range(self._rows):
            if self._cells[row * self._width]:
                self._cells[row * self._width + self._own] = 0
        self.release()

    def acquire(self) -> None:
        """Take the lock, or go on without it after a moment."""
        if self._workers == 1:
            return
        tries, began_ms = 0, _now_ms()
        while not self._is_locked():
            tries += 1
            if tries < SPINS:
                continue
            if began_ms < self._impatient_until_ms:
                return
            if _now_ms() - began_ms > WAIT_MS:
                self._impatient_until_ms = began_ms + IMPATIENT_MS
                return
            time.sleep(0)

    def _is_locked(self) -> bool:
        try:
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True

    def release(self) -> None:
        """Give the lock back."""
        if self._workers > 1:
            fcntl.lockf(self._lock, fcntl.LOCK_UN)

    def row_of(self, owner_id: str) -> int | None:
        """Return where a key's or customer's row begins, a new one if there is none; None if all are taken.

        The lock is held.
        """
        start = self._found.get(owner_id)
        if start is not None:
            return start
        tag = int.from_bytes(blake2b(owner_id.encode(), digest_size=8).digest(), signed=True) or 1
        for probe in range(PROBES_MAX):
            start = (tag + probe) % self._rows * self._width
            if self._cells[start] in (0, tag):
                self._cells[start] = tag
                self._found[owner_id] = start
                return start
        return None

    def read(self, start: int) -> Buckets:
        """Return a row; `in_flight` is that of all workers."""
        cells = self._cells
        return Buckets(
            requests_until=cells[start + _REQUESTS_AT] * _FINE + cells[start + _REQUESTS],
            tokens_until=cells[start + _TOKENS_AT] * _FINE + cells[start + _TOKENS],
            in_flight=sum(cells[start + _IN_FLIGHT : start + self._width]),
        )

    def write(self, start: int, buckets: Buckets, now: int, *, flown: int) -> None:
        """Keep what a row has become by an instant in microseconds, and `flown` more of this worker in flight."""
        cells = self._cells
        for at, until in ((_REQUESTS_AT, buckets.requests_until), (_TOKENS_AT, buckets.tokens_until)):
            cells[start + at] = now
            cells[start + at + 1] = min(_DEBT_MAX, max(0, until - now * _FINE))
        cells[start + self._own] = max(0, cells[start + self._own] + flown)


def _now_ms() -> int:
    return time.monotonic_ns() // 1_000_000
