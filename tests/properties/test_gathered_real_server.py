"""A real llama.cpp server as the judge of what is gathered: Responses and Messages, byte for byte its whole answer."""

import json
import re
from typing import Any

import pytest

from proxy.meter import choose
from proxy.meter.endpoints import MESSAGES, RESPONSES
from proxy.relay.asks import forward, read
from proxy.relay.request import Ask
from tests.inference.llama_server import LlamaServer
from tests.properties.test_meter_real_server import asked

CHANGES_EACH_TIME = re.compile(
    rb'(?<="id":)"[^"]+"|(?<="call_id":)"[^"]+"|(?<=ed_at":)[0-9]+|(?<=cached_tokens":)[0-9]+'
    rb'|(?<="cache_read_input_tokens":)[0-9]+,"input_tokens":[0-9]+'
)
DIRECT = {"chat_template_kwargs": {"enable_thinking": False}}
SCHEMA = {"type": "object", "properties": {"days": {"type": "integer"}}, "required": ["days"]}
CALLS_ONE = {"tools": [{"type": "function", "name": "f", "parameters": SCHEMA}], "tool_choice": "required", **DIRECT}
USES_ONE = {"tools": [{"name": "f", "input_schema": SCHEMA}], "tool_choice": {"type": "any"}, **DIRECT}
CALLED_BY_BIAS = {**CALLS_ONE, "tool_choice": "auto", "logit_bias": {"248058": 20}, "chat_template_kwargs": {}}
SHAPE = {"text": {"format": {"type": "json_schema", "name": "x", "schema": SCHEMA}}, "max_output_tokens": 30}
BEGUN = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Hello! This"}]}
HELLO = {"role": "user", "content": "Say hello."}

ASKED = [
    *((RESPONSES, {"input": "Say hello.", **fields}) for fields in (
        {}, DIRECT, {"max_output_tokens": 1}, {"max_output_tokens": 5}, {"max_output_tokens": 15},
        {"max_output_tokens": 16}, {"max_output_tokens": 17, "reasoning_format": "none"}, {"stop": ["tiny"]},
        {"stop": ["wants"]}, CALLS_ONE, {**CALLS_ONE, "max_output_tokens": 44}, CALLED_BY_BIAS, SHAPE,
        {"instructions": "be kind \u00e9\u2028\U0001f600", "metadata": {"a": "b"}}, {"timings_per_token": True},
        {"logprobs": True, "verbose": True, "return_tokens": True}, {"input": [HELLO, BEGUN], **DIRECT},
        {"ignore_eos": True, "max_output_tokens": 1_500, **DIRECT},
    )),
    *((MESSAGES, {"messages": [HELLO], "max_tokens": 500, **fields}) for fields in (
        {}, DIRECT, {"max_tokens": 1}, {"max_tokens": 5}, {"max_tokens": 16}, {"stop_sequences": ["tiny"]},
        {"stop_sequences": ["wants"]}, {"thinking": {"type": "enabled", "budget_tokens": 1024}}, USES_ONE,
        {**USES_ONE, "max_tokens": 44}, {**USES_ONE, "max_tokens": 50}, {**USES_ONE, "max_tokens": 62},
        {"logprobs": True, "verbose": True, "timings_per_token": True}, {"reasoning_format": "none"},
        {"system": "be kind \u00e9\u2028\U0001f600", "metadata": {"user_id": "u"}},
    )),
]  # fmt: skip
IN_FAST_SUITE = {0, 2, 7, 9, 13, 18, 22, 26, 32}
"""A whole answer, a cut one, a stop text, a tool and hard text, of each endpoint; a case takes two seconds."""


def gathered(llama: LlamaServer, endpoint: str, raw: bytes) -> tuple[bytes, int]:
    """What a client of Weir gets, and the output tokens that it is billed; they are the server's count."""
    taken = read(endpoint, raw)
    assert isinstance(taken, Ask)
    forwarded = forward(taken, "m", reports_each_output=True)
    assert forwarded.gathers
    stream, generated = asked(llama, endpoint, forwarded.raw)
    meter = choose.stream_meter(choose.Plan(endpoint, gathers=True), b"text/event-stream")
    assert [meter.receive(stream[at : at + 700]) for at in range(0, len(stream), 700)]
    settled = meter.finish()
    assert settled.usage is not None
    assert settled.usage.output_tokens == generated
    return settled.raw, generated


@pytest.mark.parametrize(
    ("endpoint", "fields"),
    [pytest.param(*each, marks=() if at in IN_FAST_SUITE else pytest.mark.slow) for at, each in enumerate(ASKED)],
)
def test_a_gathered_answer_is_the_servers_whole_one_to_the_byte(
    llama: LlamaServer, endpoint: str, fields: dict[str, Any]
) -> None:
    """Ids, times and what was found in the cache apart, which differ between two whole answers, too."""
    raw = json.dumps({"model": "m", **fields}).encode()
    ours, generated = gathered(llama, endpoint, raw)
    own, also_generated = asked(llama, endpoint, raw)
    assert CHANGES_EACH_TIME.sub(b"*", ours) == CHANGES_EACH_TIME.sub(b"*", own)
    assert generated == also_generated


def test_a_message_that_continues_the_clients_own_is_asked_for_whole() -> None:
    """The server's stream lacks the part that its whole answer repeats."""
    begun = {"role": "assistant", "content": "Hello! This"}
    taken = read(MESSAGES, json.dumps({"model": "m", "max_tokens": 5, "messages": [HELLO, begun]}).encode())
    assert isinstance(taken, Ask)
    assert not forward(taken, "m", reports_each_output=True).gathers
