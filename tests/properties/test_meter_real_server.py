"""A real llama.cpp server as the judge: what is gathered, what is billed, and what its limits allow."""

import http.client
import json
from typing import Any

import pytest

from proxy.meter.gathered import Gatherer
from proxy.relay.request import CHAT, COMPLETIONS, Ask, forward, read
from tests.inference.llama_server import Counted, LlamaServer
from tests.properties.test_admission import may_generate

CHANGES_EACH_TIME = ("created", "id", "timings", "usage")
TOOL = {
    "type": "function",
    "function": {"name": "f", "parameters": {"type": "object", "properties": {"days": {"type": "integer"}}}},
}
CHAT_FIELDS = {"messages": [{"role": "user", "content": "Say hello."}], "temperature": 0}


def asked(llama: LlamaServer, endpoint: str, raw: bytes) -> tuple[bytes, int]:
    """The server's answer, and how many tokens it generated for it by its own counter."""
    counted = Counted(llama)
    connection = http.client.HTTPConnection("127.0.0.1", llama.port, timeout=60)
    try:
        connection.request("POST", endpoint, raw, {"content-type": "application/json"})
        answer = connection.getresponse()
        body = answer.read()
    finally:
        connection.close()
    assert answer.status == 200, body
    return body, counted.output


def stable(answer: dict[str, Any]) -> list[tuple[str, Any]]:
    """The fields in their order, without what differs from one request to the next."""
    return [(name, None if name in CHANGES_EACH_TIME else value) for name, value in answer.items()]


@pytest.mark.parametrize(
    ("endpoint", "fields"),
    [
        (CHAT, {**CHAT_FIELDS, "n": 2}),
        (CHAT, {**CHAT_FIELDS, "n": 3, "max_tokens": 9, "logprobs": True, "top_logprobs": 1}),
        (CHAT, {**CHAT_FIELDS, "n_cmpl": 2, "stop": ["tiny"], "chat_template_kwargs": {"enable_thinking": False}}),
        (CHAT, {**CHAT_FIELDS, "n": 2, "max_tokens": 0, "tools": [TOOL]}),
        (CHAT, {**CHAT_FIELDS, "n": 2, "max_tokens": 3, "return_progress": True, "timings_per_token": True}),
        (COMPLETIONS, {"prompt": ["The", "Hello", "one two"], "max_tokens": 5, "temperature": 0}),
        (COMPLETIONS, {"prompt": ["The one", "Hello"], "n": 2, "max_tokens": 3, "temperature": 0, "logprobs": 1}),
        (COMPLETIONS, {"prompt": [[760], [1156, 5]], "max_tokens": 4, "temperature": 0}),
    ],
)
def test_a_gathered_answer_is_the_servers_own_and_bills_what_it_generated(
    llama: LlamaServer, endpoint: str, fields: dict[str, Any]
) -> None:
    """Field by field and in their order; and every output is paid for, not the first alone."""
    raw = json.dumps({"model": "m", **fields}).encode()
    taken = read(endpoint, raw)
    assert isinstance(taken, Ask)
    stream, generated = asked(llama, endpoint, forward(taken, "m", reports_each_output=True).raw)
    gatherer = Gatherer(taken.outputs, is_chat=endpoint == CHAT)
    gatherer.receive(stream)
    settled = gatherer.finish()
    own, _ = asked(llama, endpoint, raw)
    answer = json.loads(settled.raw)
    answer["model"] = json.loads(own)["model"]
    assert stable(answer) == stable(json.loads(own))
    assert settled.usage is not None
    assert settled.usage.output_tokens == answer["usage"]["completion_tokens"] == generated


@pytest.mark.parametrize(
    "fields",
    [
        {"max_tokens": 1, "n_predict": 6},
        {"max_tokens": 6, "n_predict": 1},
        {"max_tokens": 1, "max_completion_tokens": 6},
        {"max_completion_tokens": 1, "n_predict": 6},
        {"max_completion_tokens": 6, "n_predict": None},
        {"max_tokens": 0},
        {"max_completion_tokens": 0},
        {"max_tokens": 2, "n": 2},
        {"max_tokens": 2, "n_cmpl": 2},
        {"max_tokens": 2, "n": None, "n_cmpl": 3},
        {"max_tokens": 2, "best_of": 2},
        {"max_tokens": 2, "prompt": ["The", "Hello"]},
        {"max_tokens": 2, "prompt": ["Hello", 760]},
        {"max_tokens": 2, "prompt": [760, 1156]},
        {"max_tokens": 2, "prompt": [[760], [1156]]},
    ],
)
def test_the_server_generates_what_the_property_of_limits_takes_it_to(
    llama: LlamaServer, fields: dict[str, Any]
) -> None:
    """The anchor of `test_a_clamp_never_gives_away_what_an_honest_server_generated`, and the limit is not far off."""
    body = {"model": "m", "prompt": "The", "ignore_eos": True, **fields}
    taken = read(COMPLETIONS, json.dumps(body).encode())
    assert isinstance(taken, Ask)
    _, generated = asked(llama, COMPLETIONS, forward(taken, "m", reports_each_output=True).raw)
    assert generated == may_generate("llamacpp", COMPLETIONS, body)
    limit = taken.limit_on("llamacpp")
    assert limit is not None
    assert generated <= limit <= 6 * generated
