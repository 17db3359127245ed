"""Answers that are not streamed: their usage, or their text where there is none."""

import json
import math

import pytest

from billing.tokens.vocabulary import Vocabulary
from billing.usage import Usage
from proxy.meter.steps import Settle
from proxy.meter.whole import delivered, settle
from tests.unit.proxy.meter.streams import LLAMA, VLLM, body, usage


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (f"{LLAMA}/chat_nonstream", Usage(13, 44)),
        (f"{LLAMA}/chat_nonstream_repeat_cached", Usage(13, 44, 9)),
        (f"{LLAMA}/chat_max_tokens_0", Usage(13, 1, 9)),
        (f"{LLAMA}/chat_tools_call", Usage(267, 53, 263)),
        (f"{LLAMA}/completions", Usage(1, 6)),
        (f"{VLLM}/chat_nonstream", Usage(13, 44, 0, 14)),
        (f"{VLLM}/chat_nonstream_repeat_long_cached", Usage(310, 3, 256, 3)),
        (f"{VLLM}/chat_n2_temp", Usage(13, 10, 0, 10)),
        (f"{VLLM}/chat_include_reasoning_false", Usage(13, 44, 0, 14)),
        (f"{VLLM}/completions_array", Usage(12, 18)),
    ],
)
def test_an_answer_is_billed_as_its_server_reports(name: str, expected: Usage) -> None:
    """All bytes are the last bytes; the reported object comes along for its cost."""
    answer = body(name)
    settled = settle(answer)
    assert settled[:4] == (expected, answer, False, json.loads(answer)["usage"])
    assert (settled.times is None) == name.startswith(VLLM)


@pytest.mark.parametrize(
    ("name", "tokens"), [("chat_nonstream", 44), ("chat_nothink", 28), ("completions", 6), ("chat_n2", 88)]
)
def test_an_answer_without_usage_is_counted_from_its_text(name: str, tokens: int, qwen: Vocabulary) -> None:
    """As the server counts it, for every output."""
    answer = json.loads(body(f"{LLAMA}/{name}"))
    del answer["usage"], answer["timings"]
    stripped = json.dumps(answer).encode()
    assert settle(stripped) == Settle(None, stripped)
    assert delivered(stripped).output_tokens(qwen) == tokens


def test_stop_texts_are_known_to_the_count(qwen: Vocabulary) -> None:
    """The captured answer ended with a `stop` text: six tokens, and none for an end."""
    assert delivered(body(f"{LLAMA}/chat_stop"), has_stop_texts=True).output_tokens(qwen) == 6


def test_llama_cpp_counters_stand_in_for_a_usage() -> None:
    """They are on every answer."""
    answer = json.loads(body(f"{LLAMA}/chat_nonstream_repeat_cached"))
    del answer["usage"]
    assert settle(json.dumps(answer).encode()).usage == Usage(13, 44, 9)


def test_a_report_of_no_output_beside_text_is_none() -> None:
    """Nothing is free by accident; the reported object still gets the cost of what was counted."""
    said = {"choices": [{"index": 0, "message": {"content": "Hello"}}], "usage": usage(13, 0)}
    assert settle(json.dumps(said).encode())[::3] == (None, usage(13, 0))
    silent = {"choices": [{"index": 0, "message": {"content": ""}}], "usage": usage(13, 0)}
    assert settle(json.dumps(silent).encode()).usage == Usage(13, 0)
    counters = {**said, "timings": {"prompt_n": 13, "predicted_n": 2}}
    assert settle(json.dumps(counters).encode()).usage == Usage(13, 2)


def test_a_forbidden_number_does_not_make_an_answer_free(qwen: Vocabulary) -> None:
    """Python's writer puts -Infinity among log probabilities; the report and the text are read all the same."""
    answer = {
        "choices": [{"index": 0, "logprobs": [-math.inf], "message": {"content": "Hello"}}],
        "usage": usage(13, 1),
    }
    text = json.dumps(answer).encode()
    assert settle(text).usage == Usage(13, 1)
    assert delivered(text).output_tokens(qwen) == 1


def test_an_error_inside_a_success_is_marked() -> None:
    """A 200 that says it failed."""
    assert settle(b'{"error":{"message":"no"}}').is_error
    assert not settle(b'{"error":null}').is_error


@pytest.mark.parametrize(
    "text", [b"", b"null", b"[]", b"hello", b"\xff\xfe", b'{"choices":', b'{"usage":null}', b'"usage"']
)
def test_any_body_passes(text: bytes) -> None:
    """What can not be read is not ours to judge: it has no usage and no text."""
    assert settle(text) == Settle(None, text)
    assert delivered(text).is_empty
