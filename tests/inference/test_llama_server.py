"""The server's process: it says how it is doing, dies when told, and never outlives its owner."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from tests.inference.llama_server import LlamaServer
from tests.inference.script import ScriptedModel

ROOT = Path(__file__).parents[2]
LIMIT_S = 30
ENDLESS: dict[str, object] = {
    "messages": [{"role": "user", "content": "Say hello."}],
    "max_tokens": 5000,
    "ignore_eos": True,
    "stream": True,
}


def until(condition: Callable[[], bool]) -> None:
    """Wait for a real process, with a deadline."""
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.01)


def is_running(pid: int) -> bool:
    """Whether a process with this id exists and is not a zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_a_client_that_leaves_stops_the_generation(llama: LlamaServer) -> None:
    """The counters tell how many tokens were computed: about what it read, not what it asked for."""
    before = llama.metrics()["tokens_predicted_total"]
    with httpx.stream(
        "POST", f"{llama.url}/v1/chat/completions", json=ENDLESS, timeout=LIMIT_S, trust_env=False
    ) as answer:
        events = (line for line in answer.iter_lines() if line)
        read = [next(events) for _ in range(20)]
    until(lambda: llama.metrics()["tokens_predicted_total"] > before)
    generated = llama.metrics()["tokens_predicted_total"] - before
    assert len(read) == 20
    assert 19 <= generated < 1000


def test_a_killed_server_cuts_its_streams_and_frees_its_port(scripted_model: ScriptedModel) -> None:
    """As when a machine dies: the stream ends without its last chunk, and a new server takes the place."""
    with LlamaServer(scripted_model) as first:
        with (
            httpx.stream(
                "POST", f"{first.url}/v1/chat/completions", json=ENDLESS, timeout=LIMIT_S, trust_env=False
            ) as answer,
            pytest.raises(httpx.TransportError),
        ):
            for _ in answer.iter_raw():
                if is_running(first.pid):
                    first.kill()
        with LlamaServer(scripted_model, port=first.port) as second:
            assert second.url == first.url
            assert httpx.get(f"{second.url}/health", trust_env=False).json() == {"status": "ok"}


def test_a_server_dies_with_an_owner_that_was_killed(scripted_model: ScriptedModel, tmp_path: Path) -> None:
    """kill -9 of the owner leaves no server behind, only its log."""
    assert scripted_model.path.exists(), "written before, so that the owner starts at once"
    owner_code = (
        "from tests.inference.llama_server import LlamaServer\n"
        "with LlamaServer() as server:\n"
        "    print(server.pid, flush=True)\n"
        "    input()\n"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", owner_code],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with owner:
        assert owner.stdout is not None
        server_pid = int(owner.stdout.readline())
        assert is_running(server_pid)
        os.kill(owner.pid, signal.SIGKILL)
        until(lambda: not is_running(server_pid))


def test_a_stopped_server_is_gone_when_stop_returns(scripted_model: ScriptedModel) -> None:
    """Nothing runs and nothing listens after the block."""
    with LlamaServer(scripted_model) as server:
        pid, port = server.pid, server.port
    assert not is_running(pid)
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    """The log is in the failure, not left in a file that is gone."""
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"not a model")
    with pytest.raises(AssertionError, match=r"broken\.gguf"), LlamaServer(ScriptedModel(broken)):
        pass


def test_a_server_with_a_key_refuses_strangers(scripted_model: ScriptedModel) -> None:
    """Upstreams behind a key are part of the configuration; /health stays open."""
    with LlamaServer(scripted_model, api_key="upstream-key") as server:
        assert httpx.get(f"{server.url}/health", trust_env=False).status_code == 200
        assert httpx.get(f"{server.url}/v1/models", trust_env=False).status_code == 401
        answer = httpx.post(f"{server.url}/v1/chat/completions", json=ENDLESS, trust_env=False)
        assert answer.status_code == 401
        assert server.metrics()["tokens_predicted_total"] == 0


def test_a_server_started_by_hand_says_where_it_is_and_ends_on_ctrl_c(scripted_model: ScriptedModel) -> None:
    """The command of the demo: without a model it serves the scripted one."""
    command = [sys.executable, "-m", "tests.inference.llama_server", "--alias", "demo"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as server:
        assert server.stdout is not None
        greeting = next(line for line in server.stdout if line.startswith(b"serving"))
        url = greeting.decode().split()[-1]
        answer = httpx.post(f"{url}/v1/chat/completions", json={**ENDLESS, "stream": False, "max_tokens": 3})
        assert answer.json()["choices"][0]["message"]["reasoning_content"] == "The user wants"
        assert answer.json()["model"] == "demo"
        server.send_signal(signal.SIGINT)
        assert server.wait(LIMIT_S) == 0
    assert scripted_model.reasoning.startswith("The user wants")
