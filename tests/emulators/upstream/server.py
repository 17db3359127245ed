"""The server behind the scripts: asyncio on raw sockets, in a thread of its own so that tests may block.

Invariant: what goes over the wire is what the steps say. No header is added, no byte is held back, and a
request without a script is answered 501 and kept in `unscripted`, never guessed at.
"""

import asyncio
import socket
import ssl
import threading
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from tests.captures import load
from tests.emulators.upstream.connection import Connection
from tests.emulators.upstream.record import Record
from tests.emulators.upstream.steps import Close, Step
from tests.emulators.upstream.wire import json_answer, replay_steps

HOST: Final = "127.0.0.1"
LIMIT_S: Final = 60
SEND_BUFFER_BYTES: Final = 65_536
"""Kernel buffer for each connection: small and fixed, so that a client that does not read is felt soon."""


@dataclass(slots=True)
class _Script:
    """Steps for the requests to come on a path (None: any)."""

    path: str | None
    steps: tuple[Step, ...]
    times_left: int


ACCEPTING_STEPS: Final = 5
"""Turns of asyncio's loop that a connection takes from the listener to its protocol, and from its end to its socket's:
three, and some more. Without them a client that comes while the server ends leaves a socket that nobody closes; and
so does one whose turn comes after `Server.close` (CPython 3.11 fails it on an assertion)."""


class FakeUpstream:
    """A scripted model server; a context manager. All methods are for the test's thread.

    Requests take the first script, in order of scripting, that fits their path and is not used up; then the
    standing answer of their path. Connections are kept alive between requests unless a step hangs up.
    """

    def __init__(self, *, port: int = 0, socket_path: Path | None = None, tls: ssl.SSLContext | None = None) -> None:
        """Nothing listens yet; `port` 0 takes a free one, `socket_path` is a Unix socket's and goes before it."""
        self._wanted_port = port
        self._socket_path = socket_path
        self._tls = tls
        self._scripts: list[_Script] = []
        self._standing: dict[str, tuple[Step, ...]] = {}
        self._records: list[Record] = []
        self._unscripted: list[Record] = []
        self._errors: list[BaseException] = []
        self._open: set[Connection] = set()
        self._accepted = 0
        self._news = threading.Condition()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="fake-upstream", daemon=True)
        self._server: asyncio.Server | None = None
        self._port = 0

    def __enter__(self) -> Self:
        """Listen."""
        listener = socket.socket(socket.AF_UNIX if self._socket_path is not None else socket.AF_INET)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        if self._socket_path is not None:
            listener.bind(str(self._socket_path))
        else:
            listener.bind((HOST, self._wanted_port))
            self._port = listener.getsockname()[1]
        self._thread.start()
        self._call(self._listen(listener))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Cut all connections and stop listening. Fails if a request could not be read as HTTP."""
        self._call(self._shut())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(LIMIT_S)
        assert not self._thread.is_alive(), "the fake upstream did not stop"
        self._loop.close()
        assert not self._errors, f"the fake upstream could not serve: {self._errors}"

    @property
    def url(self) -> str:
        """The server's root, without `/v1`."""
        if self._socket_path is not None:
            return f"unix://{self._socket_path}"
        return f"{'https' if self._tls is not None else 'http'}://{HOST}:{self._port}"

    @property
    def port(self) -> int:
        """The port it listens on."""
        return self._port

    @property
    def requests(self) -> tuple[Record, ...]:
        """All requests so far, in order of arrival."""
        with self._news:
            return tuple(self._records)

    @property
    def unscripted(self) -> tuple[Record, ...]:
        """Requests for which there was no script; they were answered 501."""
        with self._news:
            return tuple(self._unscripted)

    @property
    def connections(self) -> int:
        """Connections accepted so far."""
        with self._news:
            return self._accepted

    @property
    def open_connections(self) -> int:
        """Connections that neither side has closed."""
        with self._news:
            return len(self._open)

    @property
    def scripts_left(self) -> int:
        """Requests that are scripted and have not come."""
        with self._news:
            return sum(script.times_left for script in self._scripts)

    def script(self, *steps: Step, path: str | None = None, times: int = 1) -> None:
        """Answer the next `times` requests (on `path`, if given) with these steps."""
        with self._news:
            self._scripts.append(_Script(path=path, steps=steps, times_left=times))

    def always(self, path: str, *steps: Step) -> None:
        """Answer every request on `path` so, when no script is left for it."""
        with self._news:
            self._standing[path] = steps

    def forget_requests(self) -> None:
        """Drop what was noted of the requests so far: for runs that take hours."""
        with self._news:
            self._records.clear()

    def replay(self, name: str, *, pieces: int | None = None, ending: Step | None = None, times: int = 1) -> None:
        """Answer the next request with a capture, byte for byte, then hang up as its server did.

        `pieces` ends it after so many (the head is the first), and `ending` is then how: `Reset()`,
        `Await(gate)`, ... The path does not matter. `load(name).request()` is what belongs to it.
        """
        assert pieces is None or pieces <= len(load(name).pieces), "the capture is shorter than that"
        self.script(*replay_steps(name, pieces=pieces), Close() if ending is None else ending, times=times)

    def wait_for_requests(self, count: int, timeout_s: float = LIMIT_S) -> tuple[Record, ...]:
        """All requests, once there are at least `count`."""
        with self._news:
            assert self._news.wait_for(lambda: len(self._records) >= count, timeout_s), (
                f"{len(self._records)} of {count} requests came in {timeout_s} s"
            )
            return tuple(self._records)

    def wait_for_open_connections(self, count: int, timeout_s: float = LIMIT_S) -> None:
        """Return once exactly `count` connections are open."""
        with self._news:
            assert self._news.wait_for(lambda: len(self._open) == count, timeout_s), (
                f"{len(self._open)} connections are open, not {count}, after {timeout_s} s"
            )

    # What follows runs in the server's thread.

    def connected(self, connection: Connection) -> int:
        """Count a new connection and give it its number."""
        with self._news:
            self._accepted += 1
            self._open.add(connection)
            self._news.notify_all()
            return self._accepted

    def disconnected(self, connection: Connection) -> None:
        """Forget a connection that is closed."""
        with self._news:
            self._open.discard(connection)
            self._news.notify_all()

    def failed(self, error: BaseException) -> None:
        """Keep the error of a connection that could not be served."""
        self._errors.append(error)

    def steps_for(self, record: Record) -> tuple[Step, ...]:
        """Note the request and choose its answer."""
        with self._news:
            self._records.append(record)
            self._news.notify_all()
            for script in self._scripts:
                if script.times_left and script.path in (None, record.path):
                    script.times_left -= 1
                    return script.steps
            if record.path in self._standing:
                return self._standing[record.path]
            self._unscripted.append(record)
        message = f"the fake upstream has no script for {record.method} {record.path}"
        return (json_answer({"error": {"message": message, "type": "unscripted", "code": 501}}, status=501),)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    def _call(self, coroutine: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(LIMIT_S)

    async def _listen(self, listener: socket.socket) -> None:
        if self._socket_path is not None:
            self._server = await self._loop.create_unix_server(lambda: Connection(self), sock=listener, backlog=1024)
        else:
            self._server = await self._loop.create_server(
                lambda: Connection(self), sock=listener, backlog=1024, ssl=self._tls
            )

    async def _shut(self) -> None:
        assert self._server is not None
        for listener in self._server.sockets:
            self._loop.remove_reader(listener.fileno())
        for _ in range(ACCEPTING_STEPS):
            await asyncio.sleep(0)
        with self._news:
            connections = tuple(self._open)
        for connection in connections:
            await connection.cut()
        shaking = asyncio.all_tasks() - {asyncio.current_task()}  # hands, with clients that want TLS
        for task in shaking:
            task.cancel()
        await asyncio.gather(*shaking, return_exceptions=True)
        self._server.close()
        await self._server.wait_closed()
        for _ in range(ACCEPTING_STEPS):
            await asyncio.sleep(0)
