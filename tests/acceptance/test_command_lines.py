"""Command-line clients that people use, unchanged, through Weir to a real llama.cpp: the bill is the server's count.

curl runs with every suite. `llm` (OpenAI's protocol) and Claude Code (Anthropic's) are fetched from their package
indexes, so they are in the slow one; nothing but loopback is open to them: the proxy that they are told to use is not
there.
"""

import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import pytest

from tests.acceptance.harness import MODEL, Gateway, Row, Upstream, price
from tests.inference.llama_server import Counted, LlamaServer
from tests.inference.script import ScriptedModel
from tests.support import programs

LLM: Final = "0.36"
CLAUDE_CODE: Final = "2.1.330"
HELLO: Final = "Say hello."
RUN_LIMIT_S: Final = 300


@pytest.fixture(scope="module")
def roomy(scripted_model: ScriptedModel) -> Iterator[LlamaServer]:
    """A server with room for the 12,000 tokens that Claude Code sends ahead of a question."""
    with LlamaServer(scripted_model, parallel=4, ctx=262_144) as server:
        yield server


@pytest.fixture(scope="module")
def shared(roomy: LlamaServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with Gateway(tmp_path_factory.mktemp("gateway"), Upstream(roomy.url, "llama")) as gateway:
        yield gateway


@pytest.fixture
def gateway(shared: Gateway) -> Iterator[Gateway]:
    yield shared
    shared.assert_no_failure()


def run(home: Path, command: list[str], **environment: str) -> str:
    """What a program prints; it must succeed, and can reach nothing but this machine."""
    outside = {"HTTPS_PROXY": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9", "NO_PROXY": "127.0.0.1"}
    whole = {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(home), **outside, **environment}
    done = subprocess.run(
        command, env=whole, cwd=home, stdin=subprocess.DEVNULL, capture_output=True, timeout=RUN_LIMIT_S, check=False
    )
    assert done.returncode == 0, f"{command[0]} ended with {done.returncode}: {done.stderr.decode()[-2000:]}"
    return done.stdout.decode()


def assert_booked(rows: list[Row], counted: Counted, endpoint: str) -> None:
    """The new events are whole, on this path, and their sums are the server's own counters."""
    assert {(row["endpoint"], row["outcome"], row["count_source"]) for row in rows} == {
        (endpoint, "completed", "upstream")
    }
    assert sum(row["input_tokens"] for row in rows) == counted.prompt
    assert sum(row["cached_input_tokens"] for row in rows) == counted.cached_prompt
    assert sum(row["output_tokens"] for row in rows) == counted.output
    assert all(row["amount_pico"] == price(row["input_tokens"], row["output_tokens"]) for row in rows)


CURLED: Final[Mapping[str, tuple[str, dict[str, object]]]] = {
    "chat": ("/v1/chat/completions", {"messages": [{"role": "user", "content": HELLO}]}),
    "completions": ("/v1/completions", {"prompt": "Hello", "max_tokens": 9}),
    "responses": ("/v1/responses", {"input": HELLO}),
    "messages": ("/v1/messages", {"messages": [{"role": "user", "content": HELLO}], "max_tokens": 60}),
}


@pytest.mark.parametrize("streams", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize(("path", "body"), CURLED.values(), ids=CURLED.keys())
def test_curl(
    gateway: Gateway, roomy: LlamaServer, tmp_path: Path, path: str, body: dict[str, object], streams: bool
) -> None:
    counted, before = Counted(roomy), len(gateway.events())
    content = json.dumps({"model": MODEL, **body, "stream": streams})
    header = f"Authorization: {gateway.key.header}"
    command = ["curl", "--silent", "--show-error", "--fail", "-N", f"{gateway.url}{path}", "-H", header, "-d", content]
    printed = run(tmp_path, command)
    assert "Hello" in printed or "usage" in printed
    rows = gateway.events()[before:]
    assert len(rows) == 1
    assert_booked(rows, counted, path)


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["--no-stream"], ["--usage"]], ids=["stream", "plain", "usage"])
def test_llm(gateway: Gateway, roomy: LlamaServer, tmp_path: Path, options: list[str]) -> None:
    program = programs.from_pypi("llm", LLM) / "llm"
    models = f"- model_id: weir\n  model_name: {MODEL}\n  api_base: {gateway.url}/v1\n  api_key_name: weir\n"
    (tmp_path / "extra-openai-models.yaml").write_text(models, encoding="utf-8")
    counted, before = Counted(roomy), len(gateway.events())
    command = [str(program), "-m", "weir", "--key", gateway.key.secret, *options, HELLO]
    printed = run(tmp_path, command, LLM_USER_PATH=str(tmp_path))
    assert printed.strip() == ScriptedModel.answer
    rows = gateway.events()[before:]
    assert [(row["input_tokens"], row["output_tokens"]) for row in rows] == [(13, 44)]
    assert_booked(rows, counted, "/v1/chat/completions")


@pytest.mark.slow
def test_claude_code(gateway: Gateway, roomy: LlamaServer, tmp_path: Path) -> None:
    """In print mode: one question, answered; what it reports is what was booked."""
    program = programs.from_npm("@anthropic-ai/claude-code", CLAUDE_CODE) / "claude"
    counted, before = Counted(roomy), len(gateway.events())
    printed = run(
        tmp_path,
        [str(program), "-p", HELLO, "--output-format", "json"],
        ANTHROPIC_BASE_URL=gateway.url,
        ANTHROPIC_API_KEY=gateway.key.secret,
        ANTHROPIC_MODEL=MODEL,
        ANTHROPIC_SMALL_FAST_MODEL=MODEL,
        CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC="1",
        DISABLE_AUTOUPDATER="1",
        DISABLE_TELEMETRY="1",
    )
    told = json.loads(printed)
    assert told["is_error"] is False
    assert told["result"].strip().startswith("Hello! This is the tiny Qwen3-5 test model speaking")
    rows = gateway.events()[before:]
    assert_booked(rows, counted, "/v1/messages")
    usage = told["usage"]
    assert usage["input_tokens"] + usage["cache_read_input_tokens"] == rows[-1]["input_tokens"]
    assert usage["output_tokens"] == rows[-1]["output_tokens"]
