"""Several calls at once, at a pace: the threads that send, and nothing about what they send.

Daemon threads and not a ThreadPoolExecutor, whose threads Python joins when it ends: a request that hangs at Stripe
would keep a process from ending for as long as it hangs, and leaving it is safe here. The threads live for a round, so
that each keeps its connection from one call to the next.
"""

import threading
import time
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from types import TracebackType
from typing import Generic, Self, TypeVar

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class Lanes(Generic[_Item, _Result]):
    """Calls a function for several items at once, on up to `lanes_max` threads; a context manager."""

    def __init__(self, function: Callable[[_Item], _Result], lanes_max: int) -> None:
        self._function = function
        self._lanes_max = lanes_max
        self._tasks: SimpleQueue[tuple[int, _Item] | None] = SimpleQueue()
        self._results: SimpleQueue[tuple[int, _Result | BaseException]] = SimpleQueue()
        self._count = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for _ in range(self._count):
            self._tasks.put(None)

    def run(self, items: Sequence[_Item]) -> list[_Result]:
        """Return the results in the order of the items; raises what a call raised, once all have ended."""
        while self._count < min(len(items), self._lanes_max):
            self._count += 1
            threading.Thread(target=self._work, name=f"weir-lane-{self._count}", daemon=True).start()
        for task in enumerate(items):
            self._tasks.put(task)
        found = dict(self._results.get() for _ in items)
        results: list[_Result] = []
        for number in range(len(items)):
            result = found[number]
            if isinstance(result, BaseException):
                raise result
            results.append(result)
        return results

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            number, item = task
            try:
                self._results.put((number, self._function(item)))
            except BaseException as error:  # noqa: BLE001 (raised again by `run`, in the caller's thread)
                self._results.put((number, error))


class Pace:
    """At most so many calls a second, evenly spaced, over all threads."""

    def __init__(self, per_s: int) -> None:
        self._interval_ns = 1_000_000_000 // per_s
        self._next_ns = 0
        self._lock = threading.Lock()

    def wait(self) -> None:
        """Return when it is this caller's turn."""
        with self._lock:
            turn_ns = max(self._next_ns, time.monotonic_ns())
            self._next_ns = turn_ns + self._interval_ns
        delay_ns = turn_ns - time.monotonic_ns()
        if delay_ns > 0:
            time.sleep(delay_ns / 1_000_000_000)
