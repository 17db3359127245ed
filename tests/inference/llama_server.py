"""One real llama.cpp server in a process of its own, and the handle by which tests hold it.

    python -m tests.inference.llama_server --port 8080 --metrics

By hand, as here, it serves the tiny scripted model until Ctrl-C; `--help` has the rest.

The HTTP server is llama.cpp's own (xllamacpp embeds it), so bytes, scheduling and cancellation are those that
users have.

Invariant: the process never outlives whoever started it. It holds the read end of a pipe and ends when that
closes, which the kernel does for a parent that was killed, too. (PR_SET_PDEATHSIG is bound to the parent's
thread and would end the server with a short-lived helper thread.)
"""

import argparse
import http.client
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from tests.inference.script import ScriptedModel
from tests.inference.tiny_model import cached_model

HOST: Final = "127.0.0.1"
START_LIMIT_S: Final = 60
STOP_LIMIT_S: Final = 30
_ROOT: Final = Path(__file__).parents[2]


class LlamaServer:
    """A running server; a context manager. It decodes greedily unless a request says otherwise.

    To keep it busy for as long as a test needs (a client that leaves midway, a kill, a full house of slots),
    ask for `ignore_eos: true` with a large `max_tokens`: about 450 tokens a second, up to the slot's `ctx //
    parallel` tokens.
    """

    def __init__(
        self,
        model: ScriptedModel | None = None,
        *,
        alias: str = ScriptedModel.name,
        parallel: int = 4,
        ctx: int = 32_768,
        port: int = 0,
        metrics: bool = True,
        api_key: str | None = None,
        embeddings: bool = False,
    ) -> None:
        """Nothing runs yet. Without `model` the cached scripted one is used; `port` 0 takes a free one."""
        self.model = model or cached_model()
        self._directory = tempfile.TemporaryDirectory(prefix="weir-llama-")
        self.log_path = Path(self._directory.name) / "server.log"
        self._port_file = Path(self._directory.name) / "port"
        self._arguments = [
            *("--model", str(self.model.path), "--alias", alias),
            *("--parallel", str(parallel), "--ctx", str(ctx), "--port", str(port)),
            *("--port-file", str(self._port_file), "--end-with-stdin"),
            *(("--metrics",) if metrics else ()),
            *(("--embeddings",) if embeddings else ()),
            *(("--api-key", api_key) if api_key else ()),
        ]
        self._api_key = api_key
        self._process: subprocess.Popen[bytes] | None = None
        self._port = 0

    def __enter__(self) -> Self:
        """Start the process and return once the model is loaded and the port is open."""
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.inference.llama_server", *self._arguments],
                cwd=_ROOT,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            self._port = self._await_port()
        except BaseException:
            self.kill()
            self._release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the process and remove its log."""
        self.stop()
        self._release()

    @property
    def url(self) -> str:
        """The server's root, without `/v1`."""
        return f"http://{HOST}:{self._port}"

    @property
    def port(self) -> int:
        """The port it listens on."""
        return self._port

    @property
    def pid(self) -> int:
        """The server's process id."""
        return self._running().pid

    @property
    def log(self) -> str:
        """All that the server has logged so far."""
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    def metrics(self) -> dict[str, int]:
        """The server's own whole-numbered counters, under their names without prefix.

        `tokens_predicted_total`, `prompt_tokens_total` (which leaves out cached ones),
        `prompt_tokens_cached_total` and so on. `Counted` reads them as differences.
        """
        return dict(_counters(self._ask("GET", "/metrics")))

    @property
    def requests_processing(self) -> int:
        """Requests that its slots work on now."""
        lines = self._ask("GET", "/metrics").splitlines()
        (line,) = [line for line in lines if line.startswith("llamacpp:requests_processing ")]
        return int(line.split()[1])

    def post(self, path: str, body: Mapping[str, object]) -> Any:
        """What the server itself answers to a JSON body; it must be a success."""
        return json.loads(self._ask("POST", path, json.dumps(body)))

    def _ask(self, method: str, path: str, body: str | None = None) -> str:
        connection = http.client.HTTPConnection(HOST, self._port, timeout=START_LIMIT_S)
        try:
            headers = {"Authorization": f"Bearer {self._api_key}"} if self._api_key else {}
            connection.request(method, path, body, {"Content-Type": "application/json", **headers})
            answer = connection.getresponse()
            text = answer.read().decode()
        finally:
            connection.close()
        assert answer.status == http.client.OK, f"{path} answered {answer.status}: {text}"
        return text

    def kill(self) -> None:
        """SIGKILL, as a machine that dies: no goodbye to anybody. Returns when the process is gone."""
        process = self._running()
        process.kill()
        process.wait(STOP_LIMIT_S)

    def stop(self) -> None:
        """End the process in good order, if it still runs."""
        process = self._running()
        assert process.stdin is not None
        process.stdin.close()
        try:
            process.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            self.kill()

    def _running(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "the server is started by `with`"
        return self._process

    def _await_port(self) -> int:
        """The port, once the server has written it down; fails with the log if it ends or takes too long."""
        process = self._running()
        deadline = time.monotonic() + START_LIMIT_S
        while not self._port_file.exists():
            assert process.poll() is None, f"the server ended with {process.returncode}:\n{self.log}"
            assert time.monotonic() < deadline, f"the server did not start in {START_LIMIT_S} s:\n{self.log}"
            time.sleep(0.02)
        return int(self._port_file.read_text())

    def _release(self) -> None:
        pipe = self._running().stdin
        if pipe is not None:
            pipe.close()
        self._directory.cleanup()


class Counted:
    """What a server has computed since this was made, by its own counters: the anchor for what was billed.

    A request's tokens are in it by the time its answer is complete. Exact while nobody else uses the server.
    """

    def __init__(self, server: LlamaServer) -> None:
        """Start to count."""
        self._server = server
        self._before = server.metrics()

    @property
    def output(self) -> int:
        """Tokens generated."""
        return self._gained("tokens_predicted_total")

    @property
    def prompt(self) -> int:
        """Prompt tokens, computed or taken from the cache."""
        return self._gained("prompt_tokens_total") + self.cached_prompt

    @property
    def cached_prompt(self) -> int:
        """Prompt tokens taken from the cache."""
        return self._gained("prompt_tokens_cached_total")

    def _gained(self, name: str) -> int:
        return self._server.metrics()[name] - self._before[name]


def _counters(text: str) -> Mapping[str, int]:
    """Counters of a Prometheus text, without the server's prefix; those of seconds are left out."""
    names = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE") and line.endswith(" counter")}
    pairs = (line.rsplit(" ", 1) for line in text.splitlines() if line and not line.startswith("#"))
    whole = {name: value for name, value in pairs if name in names and not name.endswith("_seconds_total")}
    return {name.removeprefix("llamacpp:"): int(value) for name, value in whole.items()}


def main() -> None:
    """Run a server until standard input ends (`--end-with-stdin`) or a signal comes."""
    # The library is imported here and not above: who only holds the handle does without its 100 MB.
    import xllamacpp  # type: ignore[import-untyped]  # the wheel has no types

    options = _options()
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(options.model or cached_model().path)
    parameters.model_alias = {options.alias}
    parameters.hostnames = [HOST]
    parameters.port = options.port
    parameters.n_parallel = options.parallel
    parameters.n_ctx = options.ctx
    parameters.api_keys = [options.api_key] if options.api_key else []
    parameters.endpoint_metrics = options.metrics
    parameters.embedding = options.embeddings
    if options.embeddings:
        parameters.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    parameters.sampling.temp = 0
    # One thread per pool: the model is tiny, and spinning threads starve the tests that share the cores.
    parameters.cpuparams.n_threads = 1
    parameters.cpuparams_batch.n_threads = 1
    server = xllamacpp.Server(parameters)
    print(f"serving {options.alias} at {server.listening_address}", flush=True)
    if options.port_file:
        partial = options.port_file.with_suffix(".partial")
        partial.write_text(server.listening_address.rsplit(":", 1)[1])
        partial.replace(options.port_file)
    with suppress(KeyboardInterrupt):
        if options.end_with_stdin:
            sys.stdin.buffer.read()
        else:
            signal.pause()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Run one real llama.cpp server on 127.0.0.1.")
    parser.add_argument("--model", type=Path, help="GGUF file; without it the tiny scripted model")
    parser.add_argument("--alias", default=ScriptedModel.name, help="name under which the model is listed")
    parser.add_argument("--parallel", type=int, default=4, help="slots: requests served at once")
    parser.add_argument("--ctx", type=int, default=32_768, help="context tokens of all slots together")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--port-file", type=Path, help="the port is written here when the server is ready")
    parser.add_argument("--api-key", help="require this bearer token")
    parser.add_argument("--metrics", action="store_true", help="serve /metrics")
    parser.add_argument("--embeddings", action="store_true", help="embed instead of generating")
    parser.add_argument("--end-with-stdin", action="store_true", help="end when standard input closes")
    return parser.parse_args()


if __name__ == "__main__":
    main()
