"""Processes on a core of their own: start, find the tree, read its CPU time and memory, end all of it.

Invariant: what is started here ends with us. Each process asks the kernel for SIGTERM at its parent's
death, and stands in a session of its own so that `end` reaches its children.
"""

import contextlib
import http.client
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.bench.programs import BenchError

END_DEADLINE_S = 10
POLL_S = 0.02
CALM_DEADLINE_S = 10
CALM_WINDOW_S = 0.2


@dataclass(frozen=True, slots=True)
class Cores:
    """The core of the gateway under test, and that of load and stand-in: the same where there is only one."""

    gateway: int
    load: int


def choose_cores() -> Cores:
    """The first and the last core that we may use."""
    allowed = sorted(os.sched_getaffinity(0))
    return Cores(gateway=allowed[0], load=allowed[-1])


def pinned(core: int, command: Sequence[str | Path]) -> list[str]:
    """The command, on one core, ending when its parent does (setpriv and taskset are in util-linux)."""
    prefix = ["setpriv", "--pdeathsig", "TERM", "taskset", "-c", str(core)]
    return [*prefix, *(str(word) for word in command)]


@contextlib.contextmanager
def running(
    core: int, command: Sequence[str | Path], *, home: Path, env: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """The command as a process within the block; its output goes to a log file in its home directory."""
    environment = {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(home), **(env or {})}
    with (home / "log").open("ab") as log:
        process = subprocess.Popen(
            pinned(core, command),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=home,
            env=environment,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    """End the process in order; then kill what is left of its session."""
    process.terminate()
    try:
        process.wait(END_DEADLINE_S)
    except subprocess.TimeoutExpired:
        process.kill()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def wait_until_ready(process: subprocess.Popen[bytes], is_ready: Callable[[], bool], deadline_s: int) -> None:
    """Return when the server answers; raise when it ended or the deadline passed."""
    deadline = time.monotonic() + deadline_s
    while not is_ready():
        if process.poll() is not None:
            raise BenchError(f"it ended at its start with code {process.returncode}")
        if time.monotonic() > deadline:
            raise BenchError(f"it was not ready within {deadline_s} s")
        time.sleep(POLL_S)


def status_of(port: int, path: str, *, method: str = "GET", key: str = "") -> int | None:
    """The status that the server answers, or None while it doesn't."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request(method, path, headers={"Authorization": f"Bearer {key}"} if key else {})
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def tree(root: int) -> list[int]:
    """The process and all its descendants, as they are now."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(stat.parent.name))
    found = [root]
    for pid in found:
        found.extend(children.get(pid, []))
    return found


def cpu_ns(root: int) -> dict[int, int]:
    """User and system time of each process of the tree, all its threads, ended ones too, in nanoseconds.

    It is what /proc/PID/stat tells as utime + stime, but in nanoseconds instead of ticks of 10 ms, of which a
    short round would have a handful. The id of another process's CPU clock is made as clock_getcpuclockid(3)
    makes it on Linux: the inverted pid above the three bits that say "all threads, scheduler's time".
    """
    times = {}
    for pid in tree(root):
        with contextlib.suppress(OSError):
            times[pid] = time.clock_gettime_ns((~pid << 3) | 2)
    return times


def wait_until_calm(root: int) -> None:
    """Return when the tree uses less than a tenth of a core, or at a deadline.

    Behind a load that was given up it may still be clearing away, on the core of whoever is measured next.
    """
    deadline = time.monotonic() + CALM_DEADLINE_S
    used = sum(cpu_ns(root).values())
    while time.monotonic() < deadline:
        time.sleep(CALM_WINDOW_S)
        before, used = used, sum(cpu_ns(root).values())
        if used - before < CALM_WINDOW_S * 1e9 / 10:
            return


def rss_kib(root: int) -> int:
    """The resident memory of the tree, pages that its processes share counted in each."""
    total = 0
    for pid in tree(root):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/status").read_text().splitlines():
                if line.startswith("VmRSS:"):
                    total += int(line.split()[1])
    return total
