"""A whole gateway as its users run it: `weir` sets it up, `weir serve` is a process, its ledger is read from outside.

Invariant: whatever way a test ends, no process stays behind (the kernel kills the gateway with its parent), and a
traceback in the gateway's log fails the test that caused it.
"""

import contextlib
import http.client
import io
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar
from urllib.parse import urlsplit

import psycopg
from psycopg.rows import dict_row

import proxy.main  # noqa: F401 -- it mounts every command on the root
from billing.cli import app
from tests.support.forks import Process, keeper
from tests.support.ports import free_port

MODEL: Final = "qwen3.5-0.8b"
UNPRICED: Final = "nobody-set-a-price"
CUSTOMER: Final = "acme"
LIMIT_S: Final = 60
POLL_S: Final = 0.01
COST_INPUT, COST_OUTPUT, MARGIN = "0.03", "0.12", "30%"
# What that comes to by hand: 0.03 usd per 1M tokens is 30,000 picounits a token, and 30 % more is 39,000.
INPUT_PICO: Final = 39_000
OUTPUT_PICO: Final = 156_000

_FAILURES: Final = ("Traceback (most recent call last)", "Exception ignored in", "was never retrieved")

Row = dict[str, Any]
Value = TypeVar("Value")


def eventually(probe: Callable[[], Value | None], what: str, *, limit_s: float = LIMIT_S) -> Value:
    """The probe's first answer that is neither None nor false; fails after the limit."""
    deadline = time.monotonic() + limit_s
    while True:
        found = probe()
        if found:
            return found
        assert time.monotonic() < deadline, f"not within {limit_s} s: {what}"
        time.sleep(POLL_S)


def price(input_tokens: int, output_tokens: int) -> int:
    """What a request costs at the harness' prices, in picounits."""
    return input_tokens * INPUT_PICO + output_tokens * OUTPUT_PICO


@dataclass(frozen=True, slots=True)
class Upstream:
    """One `[[upstreams]]` entry; `options` are its other keys, such as `weight`, `kind` or time-outs."""

    url: str
    name: str = "local"
    models: Mapping[str, str] = field(default_factory=lambda: {MODEL: MODEL})
    options: Mapping[str, int | str] = field(default_factory=dict)

    @property
    def toml(self) -> str:
        """The entry."""
        models = ", ".join(f"{json.dumps(public)} = {json.dumps(own)}" for public, own in self.models.items())
        lines = ["[[upstreams]]", f"name = {json.dumps(self.name)}", f"url = {json.dumps(self.url)}"]
        lines += [f"models = {{ {models} }}", *(f"{key} = {json.dumps(value)}" for key, value in self.options.items())]
        return "\n".join(lines) + "\n"


@dataclass(frozen=True, slots=True)
class Key:
    """An API key, as `weir key create` printed it."""

    id: str
    secret: str
    customer: str

    @property
    def header(self) -> str:
        """The value of `Authorization`."""
        return f"Bearer {self.secret}"


class Gateway:
    """`weir serve` on a port of its own, with a priced model, a customer and a key; a context manager.

    `settings` are keys of `[gateway]`, `audit` those of `[audit]`: without it nothing is sampled, so that a scripted
    upstream is asked nothing by chance. The ledger is SQLite in `home` unless `database_url` names another.
    """

    def __init__(
        self,
        home: Path,
        *upstreams: Upstream,
        database_url: str | None = None,
        settings: Mapping[str, int] | None = None,
        audit: Mapping[str, str] | None = None,
        is_fresh: bool = False,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Nothing is written or runs yet; `is_fresh`: in an interpreter of its own (`tests/support/forks.py`).

        `environment` is what its environment has besides.
        """
        self.home = home
        self.port = free_port()
        self.database_url = database_url or f"sqlite:///{home}/weir.db"
        self.config_path = home / "weir.toml"
        self.log_path = home / "gateway.log"
        self._upstreams = upstreams
        self._settings = dict(settings or {})
        self._audit = {"sample": "0%", **(audit or {})}
        self._is_fresh = is_fresh
        self._environment = dict(environment or {})
        self._process: Process | None = None
        self._log_seen = 0
        self._key: Key | None = None

    def __enter__(self) -> Self:
        """Set everything up through the command line, and start."""
        self.set_up()
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the process, whatever state it is in; fail for what its log says if nothing failed before."""
        self.end()
        if error is None:
            self.assert_no_failure()

    # setting up

    def set_up(self) -> None:
        """Write the configuration, make the database, the prices, the customer and its key."""
        self.home.mkdir(parents=True, exist_ok=True)
        self.write_config()
        self.weir("db", "upgrade")
        models = {MODEL, *(model for upstream in self._upstreams for model in upstream.models)}
        for model in sorted(models - {UNPRICED}):
            self.weir("cost", "set", model, "--input", COST_INPUT, "--output", COST_OUTPUT)
        self.weir("margin", "set", MARGIN)
        self.weir("customer", "add", CUSTOMER)
        self._key = self.new_key()

    def write_config(self) -> None:
        """Write `weir.toml`."""
        settings = {"host": "127.0.0.1", "port": self.port, **self._settings}
        lines = ["[gateway]", *(f"{key} = {json.dumps(value)}" for key, value in settings.items())]
        lines += ["[database]", f"url = {json.dumps(self.database_url)}", "[stripe]", "enabled = false"]
        lines += ["[audit]", *(f"{key} = {json.dumps(value)}" for key, value in self._audit.items())]
        lines += [upstream.toml for upstream in self._upstreams]
        self.config_path.write_text("\n".join(lines), encoding="utf-8")

    def weir(self, *words: str) -> str:
        """Run a command of `weir` and return what it printed; it must succeed."""
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = app.run(["--config", str(self.config_path), *words])
        assert code == 0, f"`weir {' '.join(words)}` ended with {code}: {err.getvalue()}"
        return out.getvalue()

    def new_key(self, *options: str, customer: str = CUSTOMER) -> Key:
        """Make a key, such as `new_key("--rpm", "3")`."""
        made = json.loads(self.weir("key", "create", customer, *options, "--json"))
        return Key(id=made["id"], secret=made["key"], customer=customer)

    def share_key(self, key: Key) -> None:
        """Use the key that another gateway on the same ledger has made."""
        self._key = key

    def new_customer(self, name: str) -> Key:
        """Add a customer, and return a key of it."""
        self.weir("customer", "add", name)
        return self.new_key(customer=name)

    # the process

    def start(self) -> None:
        """Start the process, and return when it is ready."""
        self.spawn()
        eventually(self._is_ready, "the gateway is ready")

    def spawn(self) -> Process:
        """Start the process, and do not wait."""
        assert self._process is None, "it runs already"
        words = ["--config", str(self.config_path), "serve"]
        path = os.environ.get("PATH", os.defpath)
        environment = {"PATH": path, "HOME": str(self.home), "PYTHONWARNINGS": "default", **self._environment}
        with self.log_path.open("ab") as log:
            if self._is_fresh:
                command = ["setpriv", "--pdeathsig", "KILL", str(Path(sys.executable).with_name("weir")), *words]
                self._process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.home, env=environment
                )
            else:
                self._process = keeper.fork(words, cwd=self.home, environment=environment, output=log.fileno())
        return self._process

    def _is_ready(self) -> bool:
        assert self._process is not None
        code = self._process.poll()
        assert code is None, f"the gateway ended at its start with {code}:\n{self.log}"
        return self.status("/readyz") == http.client.OK

    def status(self, path: str) -> int | None:
        """The status of a GET on the control plane; None while nobody answers."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", path)
            return connection.getresponse().status
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()

    def page(self, path: str) -> str:
        """The text of a GET on the control plane."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=LIMIT_S)
        try:
            connection.request("GET", path)
            return connection.getresponse().read().decode()
        finally:
            connection.close()

    @property
    def readiness(self) -> Any:
        """What `/readyz` says."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=LIMIT_S)
        try:
            connection.request("GET", "/readyz")
            return json.loads(connection.getresponse().read())
        finally:
            connection.close()

    def await_changes(self) -> None:
        """Return when the (one) worker has looked twice for changes: what was committed before holds now.

        Twice, since a look may have begun before; a look comes every quarter of a second, by the gateway's own clock.
        """
        before = self._polls()
        eventually(lambda: self._polls() >= before + 2, "the gateway looks for changes")

    def _polls(self) -> int:
        lines = self.page("/metrics").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("weir_directory_polls_total "))

    def await_drained(self) -> None:
        """Return when nothing is left in the spool."""
        eventually(lambda: self.readiness["status"] == "ready", "the spool is drained")

    def kill9(self) -> None:
        """SIGKILL, as a machine that dies. Returns when the process is gone."""
        process = self._running()
        process.kill()
        process.wait(LIMIT_S)
        self._process = None

    def terminate(self, number: signal.Signals = signal.SIGTERM) -> Process:
        """Send SIGTERM, and return the process to wait for."""
        process = self._running()
        process.send_signal(number)
        return process

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Tell it to end; the exit code."""
        code = self.terminate(number).wait(LIMIT_S)
        self.forget()
        return code

    def forget(self) -> None:
        """Take note that the process has ended."""
        assert self._running().poll() is not None, "it runs"
        self._process = None

    def restart(self) -> None:
        """Stop in good order, and start again with the configuration as it is now."""
        self.stop()
        self.start()

    def end(self) -> None:
        """Make sure that nothing runs any more."""
        process, self._process = self._process, None
        if process is None or process.poll() is not None:
            return
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _running(self) -> Process:
        assert self._process is not None, "it does not run"
        return self._process

    @property
    def workers(self) -> list[int]:
        """The process ids of the workers, where there are several."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text(encoding="ascii")
        return [int(pid) for pid in children.split()]

    @property
    def pid(self) -> int:
        """The process id."""
        return self._running().pid

    @property
    def rss_kib(self) -> int:
        """Resident memory of the process."""
        status = Path(f"/proc/{self.pid}/status").read_text(encoding="utf-8")
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:"))

    @property
    def url(self) -> str:
        """The gateway's root, without `/v1`."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def key(self) -> Key:
        """The first customer's first key."""
        assert self._key is not None, "made by set_up"
        return self._key

    # what it wrote

    @property
    def log(self) -> str:
        """All that it logged."""
        return self.log_path.read_text(encoding="utf-8", errors="replace") if self.log_path.exists() else ""

    def assert_no_failure(self) -> None:
        """Fail if the log since the last call holds a traceback."""
        log = self.log
        new, self._log_seen = log[self._log_seen :], len(log)
        assert not any(mark in new for mark in _FAILURES), f"the gateway failed:\n{new[-6000:]}"
        assert "wk_" not in new, "a key is in the log"

    @contextlib.contextmanager
    def reading(self) -> Iterator[Callable[[str], list[Row]]]:
        """A function that gives the rows of a query, past all code of ours; all its answers are of one moment."""
        if self.database_url.startswith("sqlite"):
            path = self.database_url.removeprefix("sqlite:///")
            with contextlib.closing(sqlite3.connect(path, timeout=LIMIT_S, isolation_level=None)) as lite:
                lite.row_factory = sqlite3.Row
                lite.execute("BEGIN")
                yield lambda query: [dict(row) for row in lite.execute(query)]
            return
        url = self.database_url.replace("postgresql+psycopg", "postgresql")
        with psycopg.connect(url, row_factory=dict_row) as post:
            post.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            yield lambda query: post.execute(query.encode()).fetchall()

    def rows(self, query: str) -> list[Row]:
        """The rows of one query."""
        with self.reading() as read:
            return read(query)

    def events(self) -> list[Row]:
        """All usage events, oldest first."""
        return self.rows("SELECT * FROM usage_events ORDER BY id")

    def event(self, request_id: str) -> Row:
        """The one event of a request, once it is there."""

        def found() -> Row | None:
            rows = [row for row in self.events() if row["id"] == request_id]
            assert len(rows) <= 1, "an id is unique"
            return rows[0] if rows else None

        return eventually(found, f"the event {request_id} is recorded")

    def assert_sums_agree(self) -> None:
        """Fail unless the hourly rollups are the sums of the events, to the unit."""
        names = ("input_tokens", "cached_input_tokens", "output_tokens", "reasoning_tokens")
        with self.reading() as read:
            events, hours = read("SELECT * FROM usage_events"), read("SELECT * FROM usage_hourly")
            works = read("SELECT * FROM upstream_hourly")
        assert sum(row["requests"] for row in hours) == sum(event["adjusts"] is None for event in events)
        for name in names:
            assert sum(row[name] for row in hours) == sum(event[name] for event in events), name
        for name in ("cost", "amount"):
            rolled = sum(row[f"{name}_micro"] * 10**6 + row[f"{name}_pico"] for row in hours)
            assert rolled == sum(event[f"{name}_pico"] for event in events), name
        for name in ("prompt_us", "generation_us", *names[:3]):
            assert sum(row[name] for row in works) == sum(event[name] for event in events), name


@contextlib.contextmanager
def sqlite_locked(gateway: Gateway) -> Iterator[sqlite3.Connection]:
    """Hold the ledger's write lock until the block ends, or until `rollback` is called on what is given."""
    path = gateway.database_url.removeprefix("sqlite:///")
    with contextlib.closing(sqlite3.connect(path, timeout=LIMIT_S, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield connection


def host_of(url: str) -> str:
    """The host and port of a URL."""
    return urlsplit(url).netloc
