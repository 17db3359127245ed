"""What a scripted answer is made of: each step is one thing that the server does; it does nothing else."""

import asyncio
import threading
from dataclasses import dataclass


class Gate:
    """A moment that the test decides: the server waits at it, and says when it has got there.

    `reached.wait(timeout)` in the test means: all bytes before this step have left the server.
    """

    def __init__(self) -> None:
        """A closed gate that nobody has reached."""
        self.reached = threading.Event()
        self._lock = threading.Lock()
        self._is_open = False
        self._waiting: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    def open(self) -> None:
        """Let all who wait go on, and all who come later pass."""
        with self._lock:
            self._is_open = True
            for loop, passing in self._waiting:
                loop.call_soon_threadsafe(passing.set)

    async def passed(self) -> None:
        """Return once the gate is open. For the server.

        Whoever waits is taken off the list before its loop can end, under the lock that `open` holds.
        """
        passing = asyncio.Event()
        entry = (asyncio.get_running_loop(), passing)
        with self._lock:
            if self._is_open:
                passing.set()
            self._waiting.append(entry)
        self.reached.set()
        try:
            await passing.wait()
        finally:
            with self._lock:
                self._waiting.remove(entry)


@dataclass(frozen=True, slots=True)
class Send:
    """Write these bytes, all at once, and go on when the kernel has taken them."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Drip:
    """Write these bytes one by one, each in a packet of its own, with a pause after each.

    The pause is the behaviour that is being played (a slow server), not a wait for something else to happen.
    """

    data: bytes
    pause_ms: int = 1


@dataclass(frozen=True, slots=True)
class Await:
    """Say nothing until the test opens the gate."""

    gate: Gate


@dataclass(frozen=True, slots=True)
class Silence:
    """Say nothing, ever: a server that hangs. It ends when the client leaves."""


@dataclass(frozen=True, slots=True)
class Close:
    """Hang up in good order (FIN), whether or not the answer was complete."""


@dataclass(frozen=True, slots=True)
class Reset:
    """Hang up like a process that died with unread data (RST)."""


Step = Send | Drip | Await | Silence | Close | Reset
