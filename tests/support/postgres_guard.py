"""A small process that outlives the tests by one moment, to clean up behind a PostgreSQL server of theirs.

`PostgresServer` starts one guard per server and holds the write end of its standard input. When that end
closes, because the owner is done or because it was killed in whatever way, the guard ends the server's
processes, frees the System V segment that a killed server leaves, and removes the directory. So there is one
way of cleaning up, and it is exercised by every run, not only by the crashes that need it.

Only the standard library is imported and the package is not: the guard must start in any environment, within
milliseconds. Processes are recognised through /proc (Linux). Elsewhere nothing is signalled, and a server
whose directory is gone ends itself within a minute or two (it re-checks its lock file that often).
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

DEATH_DEADLINE_S = 20
POLL_S = 0.005


def postmaster_of(data: Path) -> int | None:
    """The pid of the live postmaster that serves the data directory, or None.

    A stale lock file may name a pid that now is somebody else's process, so the command line has to agree.
    """
    try:
        pid = int((data / "postmaster.pid").read_text().split("\n", 1)[0])
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (OSError, ValueError):
        return None
    return pid if str(data).encode() in command else None


def kill_family(data: Path) -> None:
    """Kill the server at once, every process of it, as a power cut would; return when all are dead.

    The postmaster is stopped first so that it starts no child behind our back. Children that survived their
    postmaster would hold its shared memory, and the next start would be refused.
    """
    postmaster = postmaster_of(data)
    if postmaster is None:
        return
    _send(postmaster, signal.SIGSTOP)
    family = _family_of(postmaster)
    for pid in family:
        _send(pid, signal.SIGKILL)
    deadline = time.monotonic() + DEATH_DEADLINE_S
    while any(_is_alive(pid) for pid in family):
        if time.monotonic() > deadline:
            raise TimeoutError(f"PostgreSQL processes {family} survive SIGKILL")
        time.sleep(POLL_S)


def _family_of(postmaster: int) -> list[int]:
    """The postmaster and its children; they have no children of their own."""
    family = [postmaster]
    for stat in Path("/proc").glob("[0-9]*/stat"):
        fields = _stat_fields(stat)
        if fields and int(fields[1]) == postmaster:
            family.append(int(stat.parent.name))
    return family


def _is_alive(pid: int) -> bool:
    """Whether the process still runs; one that waits to be reaped holds nothing and counts as dead."""
    fields = _stat_fields(Path(f"/proc/{pid}/stat"))
    return bool(fields) and fields[0] not in ("Z", "X")


def _stat_fields(stat: Path) -> list[str]:
    """The fields behind the command's name, which may itself hold blanks and brackets (proc(5))."""
    try:
        return stat.read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _send(pid: int, number: signal.Signals) -> None:
    """Send the signal; a process that is gone already is what the caller wants."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def free_segment(data: Path) -> None:
    """Free the small System V segment that PostgreSQL uses as an interlock and leaves when it is killed.

    Its id is the second number on line 7 of the lock file (miscadmin.h, LOCK_FILE_LINE_SHMEM_KEY).
    A server that ended by itself has removed the file and the segment.
    """
    try:
        segment = (data / "postmaster.pid").read_text().splitlines()[6].split()[1]
        subprocess.run(["ipcrm", "-m", segment], check=False, stderr=subprocess.DEVNULL)
    except (OSError, IndexError):
        return


def clean_up(home: Path) -> None:
    """End the server that lives in the directory, if any, and leave nothing of it."""
    kill_family(home / "data")
    free_segment(home / "data")
    shutil.rmtree(home, ignore_errors=True)


def main() -> None:
    """Wait for the owner's end, or for a signal to end, then clean up the directory named as argument."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        sys.stdin.buffer.read()
    finally:
        clean_up(Path(sys.argv[1]))


if __name__ == "__main__":
    main()
