"""A real llama.cpp server that is killed in the middle of its streams, and started again on its port."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.acceptance.harness import Gateway, Upstream
from tests.acceptance.raw import Answer, Raw, ask, body, request
from tests.inference.llama_server import LlamaServer
from tests.inference.script import ScriptedModel
from tests.support.ports import free_port

STREAMS = 4
DELTAS_BEFORE_KILL = 20
DIRECT = {"chat_template_kwargs": {"enable_thinking": False}}


def deltas(events: list[bytes]) -> str:
    """The text that was delivered."""
    chunks = [json.loads(data) for data in events]
    return "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)


@pytest.mark.slow
def test_what_a_killed_server_had_delivered_is_billed_and_its_successor_is_used(
    scripted_model: ScriptedModel, tmp_path: Path
) -> None:
    port = free_port()
    with (
        LlamaServer(scripted_model, port=port, parallel=2 * STREAMS, ctx=65_536) as server,
        Gateway(tmp_path / "gateway", Upstream(server.url)) as gateway,
    ):
        content = body("Say hello.", stream=True, max_tokens=5_000, ignore_eos=True, **DIRECT)

        def stream(_number: int) -> Answer:
            with Raw(gateway) as client:
                return client.ask(request(gateway.key, content))

        with ThreadPoolExecutor(STREAMS) as threads, Raw(gateway) as watcher:
            answers = threads.map(stream, range(STREAMS))
            watcher.send(request(gateway.key, content))
            watcher.head()
            for _ in range(DELTAS_BEFORE_KILL):
                watcher.chunk()
            server.kill()
            told = list(answers)
        refused = ask(gateway, request(gateway.key))
        assert (refused.status, refused.code) in ((503, "no_upstream"), (502, "upstream_error"))
        for answer in told:
            *seen, last = answer.events
            assert Answer(502, (), last).code == "upstream_error"
            row = gateway.event(answer.id)
            assert row["outcome"] == "upstream_error"
            assert scripted_model.text_without_end(row["output_tokens"]).startswith(deltas(seen)[:200])
            assert abs(row["output_tokens"] - len(seen)) <= 3, "about one token an event"
        with LlamaServer(scripted_model, port=port):
            answer = ask(gateway, request(gateway.key, body("Say hello.", **DIRECT)))
            assert answer.json["choices"][0]["message"]["content"] == scripted_model.answer
            assert gateway.event(answer.id)["output_tokens"] == 28
        gateway.assert_sums_agree()
