"""A real PostgreSQL server of the tests' own: on a free port, in a temporary directory, gone with its owner.

The money tests run on both engines, and the fault tests kill the server, so both need one that is theirs
alone. Invariant: whatever way the owner ends, SIGKILL included, no process and no directory stays behind
(`postgres_guard`). The port stays the same over `stop`, `kill9` and `start`, as it does in a real outage.

PostgreSQL refuses to run as root, which CI does; then its processes get the unprivileged user that Debian's
package makes, or `nobody`.
"""

import os
import pwd
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import psycopg
from psycopg import sql

from tests.support import postgres_guard
from tests.support.ports import free_port

ADMIN = "weir_tests"
START_DEADLINE_S = 60
STOP_DEADLINE_S = 30
POLL_S = 0.01
# A killed process loses nothing that it had handed to the operating system, so kill tests need no fsync.
# They do need synchronous_commit: without it a commit is answered from memory, and the kill loses it
# (seen here: the table made just before the kill was gone).
NOT_DURABLE = ("-c", "fsync=off", "-c", "full_page_writes=off")
SETTINGS = (
    *("-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="),
    *("-c", "max_connections=200", "-c", "shared_buffers=32MB"),
    # Files in the data directory, not POSIX shared memory, which a killed server would leave in /dev/shm.
    *("-c", "dynamic_shared_memory_type=mmap"),
)


class PostgresError(Exception):
    """PostgreSQL's server programs are missing or refuse to work; the text says what to do."""


class PostgresServer:
    """One server with a data directory of its own; a context manager, running inside the block."""

    def __init__(self, *, durable: bool = False) -> None:
        """Prepare the data directory; `durable` turns fsync on, for tests that measure or pull the plug."""
        self._programs = find_programs()
        self._account = _unprivileged_account()
        self._password = secrets.token_urlsafe(16)
        self._durability = () if durable else NOT_DURABLE
        self._process: subprocess.Popen[bytes] | None = None
        self._databases = 0
        self.home = Path(tempfile.mkdtemp(prefix="weir-postgres-"))
        self._guard = _start_guard(self.home)
        try:
            self._give_away(self.home)
            self._initialise()
        except BaseException:
            self.close()
            raise
        self.port = free_port()

    def __enter__(self) -> Self:
        """Start the server."""
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the server and remove all of it."""
        self.close()

    @property
    def data(self) -> Path:
        """The data directory."""
        return self.home / "data"

    @property
    def is_running(self) -> bool:
        """Whether the postmaster runs."""
        return self._process is not None and self._process.poll() is None

    def url(self, database: str = "postgres") -> str:
        """The SQLAlchemy URL of a database of this server, with the password in it."""
        return f"postgresql+psycopg://{ADMIN}:{self._password}@127.0.0.1:{self.port}/{database}"

    def create_database(self, name: str | None = None, *, template: str = "template0") -> str:
        """The URL of a fresh database, a copy of the template: a database here to which nobody is connected.

        Copying files rather than writing the copy through the log is the cheap way where fsync is off.
        """
        if name is None:
            self._databases += 1
            name = f"test_{self._databases}"
        statement = sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY FILE_COPY")
        self._administer(statement.format(sql.Identifier(name), sql.Identifier(template)))
        return self.url(name)

    def drop_database(self, url: str) -> None:
        """Drop the database that the URL names, whoever is still connected; one already gone is fine."""
        name = url.rpartition("/")[2]
        self._administer(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))

    def start(self) -> None:
        """Start the server on its port and its data, and return when it takes connections."""
        assert not self.is_running, "the server is running already"
        deadline = time.monotonic() + START_DEADLINE_S
        with (self.home / "log").open("ab") as log:
            self._process = self._spawn(self._server_command(), log)
        while not self._is_ready(self._process.pid):
            if self._process.poll() is not None:
                raise PostgresError(f"the PostgreSQL server ended at its start:\n{self._log_tail()}")
            if time.monotonic() > deadline:
                raise PostgresError(f"PostgreSQL not ready in {START_DEADLINE_S} s:\n{self._log_tail()}")
            time.sleep(POLL_S)

    def stop(self) -> None:
        """Shut the server down in order, ending its connections; its data stays."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGINT)  # PostgreSQL's "fast shutdown"
        try:
            self._process.wait(STOP_DEADLINE_S)
        except subprocess.TimeoutExpired:
            self.kill9()
        self._process = None

    def kill9(self) -> None:
        """Kill every process of the server at once; its data stays as it is, to be recovered by `start`."""
        if self._process is None:
            return
        postgres_guard.kill_family(self.data)
        self._process.kill()
        self._process.wait()
        self._process = None

    def processes(self) -> list[int]:
        """The process ids of the postmaster and of its children now."""
        assert self._process is not None, "the server does not run"
        pid = self._process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
        return [pid, *(int(child) for child in children.split())]

    def close(self) -> None:
        """Stop the server for good; the guard, whose input ends here, removes what is left."""
        self.stop()
        assert self._guard.stdin is not None
        self._guard.stdin.close()
        self._guard.wait()

    def _server_command(self) -> list[str]:
        program = str(self._programs / "postgres")
        return [program, "-D", str(self.data), "-p", str(self.port), *SETTINGS, *self._durability]

    def _initialise(self) -> None:
        """Make the data directory, owned by a superuser whose password nobody else on the machine knows."""
        password_file = self.home / "password"
        password_file.write_text(self._password)
        self._give_away(password_file)
        command = [
            *(str(self._programs / "initdb"), "-D", str(self.data), "--no-sync", "--locale=C", "-E", "UTF8"),
            *("-U", ADMIN, "--auth=password", f"--pwfile={password_file}"),
        ]
        with (self.home / "log").open("ab") as log:
            code = self._spawn(command, log).wait()
        password_file.unlink()
        if code != 0:
            raise PostgresError(f"initdb failed:\n{self._log_tail()}")

    def _spawn(self, command: list[str], log: IO[bytes]) -> subprocess.Popen[bytes]:
        """Start a program of PostgreSQL's, unprivileged, apart from our terminal and environment."""
        account = self._account
        return subprocess.Popen(
            command,
            user=account.pw_uid if account else None,
            group=account.pw_gid if account else None,
            extra_groups=[] if account else None,
            cwd=self.home,
            env={"PATH": os.defpath, "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )

    def _give_away(self, path: Path) -> None:
        if self._account is not None:
            os.chown(path, self._account.pw_uid, self._account.pw_gid)

    def _is_ready(self, pid: int) -> bool:
        """Whether this start's postmaster says so on line 8 of its lock file, as pg_ctl does."""
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
        except OSError:
            return False
        return len(lines) >= 8 and lines[0] == str(pid) and lines[7].strip() == "ready"

    def _administer(self, statement: sql.Composed) -> None:
        parameters = self.url().replace("postgresql+psycopg", "postgresql")
        with psycopg.connect(parameters, autocommit=True) as connection:
            connection.execute(statement)

    def _log_tail(self) -> str:
        return (self.home / "log").read_text(errors="replace")[-2000:]


def find_programs() -> Path:
    """The directory of PostgreSQL's server programs: on PATH, or the newest where Debian hides them."""
    found = shutil.which("initdb")
    candidates = [Path(found).resolve().parent] if found else []
    candidates += sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=_version, reverse=True)
    for directory in candidates:
        if (directory / "initdb").exists() and (directory / "postgres").exists():
            return directory
    raise PostgresError("no PostgreSQL server programs (initdb, postgres): install the package `postgresql`")


def _version(programs: Path) -> int:
    """The major version in Debian's path; by number, because 9 comes before 15."""
    return int(re.sub(r"\D", "", programs.parent.name) or 0)


def _unprivileged_account() -> pwd.struct_passwd | None:
    """The account that the server runs as; None is our own, which will do unless we are root."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise PostgresError("PostgreSQL refuses to run as root, and there is no user `postgres` or `nobody`")


def _start_guard(home: Path) -> subprocess.Popen[bytes]:
    """The guard in a session of its own, so that a terminal's Ctrl-C ends the tests and not the guard."""
    command = [sys.executable, "-I", "-S", postgres_guard.__file__, str(home)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, cwd="/", start_new_session=True)
