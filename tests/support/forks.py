"""`weir` as a process of its own that needs not import anything: forked from one that has done so already.

What runs is `proxy.main.main`, with its own arguments, environment, folder and output, and it ends as the program does.
Only the second that CPython takes to import and to read the vocabulary is spent once, and not for each of hundreds of
gateways; `Gateway(is_fresh=True)` and every other `weir` process of the tests is a fresh interpreter.

pytest asks a keeper over a socket; the keeper forks a watcher, and that one the process, of which it tells the pid and
the exit code. Invariant: the kernel kills a process whose watcher dies, a watcher whose keeper dies, and the keeper
ends with pytest; so nothing stays behind, however it ends.
"""

import array
import atexit
import ctypes
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, Protocol

_PR_SET_PDEATHSIG: Final = 1
_ASKED_BYTES_MAX: Final = 1 << 20
_START_LIMIT_S: Final = 60
_POLL_S: Final = 0.005


class Process(Protocol):
    """What tests do with a process: the part of `subprocess.Popen` that both kinds have."""

    @property
    def pid(self) -> int:
        """Its id."""

    def poll(self) -> int | None:
        """Its exit code, or minus the signal that killed it; None while it runs."""

    def wait(self, timeout: float | None = None) -> int:
        """The same when it has ended. Raises subprocess.TimeoutExpired."""

    def send_signal(self, sig: int) -> None:
        """Send a signal if it runs."""

    def terminate(self) -> None:
        """Send SIGTERM."""

    def kill(self) -> None:
        """Send SIGKILL."""


class Forked:
    """A process that the keeper has forked."""

    def __init__(self, told: socket.socket, arguments: Sequence[str]) -> None:
        """Wait for its pid."""
        self._told = told
        self._arguments = list(arguments)
        self._code: int | None = None
        told.settimeout(_START_LIMIT_S)
        self._text = b""
        while b"\n" not in self._text:
            piece = told.recv(64)
            assert piece, "the keeper of `weir` processes is gone"
            self._text += piece
        self.pid = int(self._text.partition(b"\n")[0])

    def poll(self) -> int | None:
        """Its exit code, or minus the signal that killed it; None while it runs."""
        if self._code is None and select.select([self._told], [], [], 0)[0]:
            while piece := self._told.recv(64):
                self._text += piece
            self._told.close()
            self._code = int(self._text.split()[1])
        return self._code

    def wait(self, timeout: float | None = None) -> int:
        """The same when it has ended. Raises subprocess.TimeoutExpired."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if deadline is not None and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(self._arguments, timeout or 0)
            select.select([self._told], [], [], _POLL_S)
        return code

    def send_signal(self, sig: int) -> None:
        """Send a signal if it runs."""
        if self.poll() is None:
            os.kill(self.pid, sig)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)


class Keeper:
    """The process from which others are forked; started by the first who asks."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._socket: socket.socket | None = None

    def fork(self, arguments: Sequence[str], *, cwd: Path, environment: Mapping[str, str], output: int) -> Forked:
        """Run `weir` with these arguments; `output` is the descriptor that its stdout and stderr go to."""
        ours, theirs = socket.socketpair()
        asked = json.dumps({"arguments": list(arguments), "cwd": str(cwd), "environment": dict(environment)})
        with self._mutex, theirs:
            descriptors = array.array("i", [theirs.fileno(), output])
            self._started().sendmsg([asked.encode()], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptors)])
        return Forked(ours, arguments)

    def _started(self) -> socket.socket:
        if self._socket is None:
            self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                keeper = subprocess.Popen(
                    [sys.executable, "-m", __name__, str(theirs.fileno())],
                    cwd=Path(__file__).parents[2],
                    stdin=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    env={"PATH": os.environ.get("PATH", os.defpath), "PYTHONWARNINGS": "default"},
                )
            atexit.register(self._end, self._socket, keeper)
        return self._socket

    @staticmethod
    def _end(ours: socket.socket, keeper: subprocess.Popen[bytes]) -> None:
        ours.close()
        keeper.wait()


keeper: Final = Keeper()


def _keep(asked: socket.socket) -> None:
    """Fork what is asked for, until pytest is gone; returns in each process that is to be `weir`."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # watchers are not waited for
    while True:
        text, descriptors, _, _ = socket.recv_fds(asked, _ASKED_BYTES_MAX, 2)
        if not text:
            sys.exit()
        keeper_pid = os.getpid()
        if os.fork() == 0:
            asked.close()
            _die_with(keeper_pid)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            told, output = descriptors
            watcher_pid = os.getpid()
            pid = os.fork()
            if pid == 0:
                _die_with(watcher_pid)
                os.close(told)
                _become(json.loads(text), output)
                return
            os.write(told, b"%d\n" % pid)
            os.close(output)
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            os.write(told, b"%d\n" % code)
            os._exit(0)
        for descriptor in descriptors:
            os.close(descriptor)


def _become(what: dict[str, object], output: int) -> None:
    os.chdir(str(what["cwd"]))
    environment, arguments = what["environment"], what["arguments"]
    assert isinstance(environment, dict)
    assert isinstance(arguments, list)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["weir", *arguments]
    for descriptor in (1, 2):
        os.dup2(output, descriptor)
    os.close(output)


def _die_with(parent: int) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _main() -> None:
    import gc

    import proxy.gateway
    import proxy.main
    from billing.tokens.vocabulary import load

    load("qwen3.5")
    gc.freeze()
    with socket.socket(fileno=int(sys.argv[1])) as asked:
        _keep(asked)
    proxy.main.main()


if __name__ == "__main__":
    _main()
