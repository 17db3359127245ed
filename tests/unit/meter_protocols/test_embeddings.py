"""`/v1/embeddings` and `/v1/rerank`: the prompt alone, without parsing the numbers."""

import json
from typing import Any

import orjson
import pytest

from billing.tokens.vocabulary import Vocabulary
from billing.usage import Usage
from proxy.meter import embeddings
from proxy.meter.embeddings import skeleton
from proxy.meter.reading import with_cost
from proxy.meter.steps import Settle
from tests.unit.meter_protocols.streams import body

MISC = "llama-server_misc"
NUMBERS = [{"object": "embedding", "index": 0, "embedding": [0.5, -0.25]}]
TOLD: dict[str, Any] = {"prompt_tokens": 8, "total_tokens": 8}
VLLM_TOLD = {**TOLD, "completion_tokens": 0, "prompt_tokens_details": None}


def text(answer: object) -> bytes:
    """As servers write it."""
    return json.dumps(answer, separators=(",", ":")).encode()


@pytest.mark.parametrize(("name", "prompt"), [(f"{MISC}/embeddings", 2), (f"{MISC}/embeddings_array", 8)])
def test_a_captured_answer_reports_the_sum_over_its_inputs(name: str, prompt: int) -> None:
    """And passes unchanged but for the cost."""
    settled = embeddings.settle(body(name))
    assert (settled.usage, settled.raw, settled.is_error) == (Usage(prompt, 0), body(name), False)
    priced = with_cost(settled.raw, "0.5", settled.reported)
    assert priced.replace(b',"cost":0.5', b"") == body(name)
    assert orjson.loads(priced)["usage"] == {"prompt_tokens": prompt, "total_tokens": prompt, "cost": 0.5}


ANSWERS: tuple[dict[str, Any], ...] = (
    {"id": "embd-1", "object": "list", "model": "m", "data": NUMBERS, "usage": VLLM_TOLD},
    {"object": "list", "data": NUMBERS, "model": "a[b", "usage": TOLD},
    {"model": "a]b", "usage": TOLD, "data": NUMBERS},
    {"data": NUMBERS, "usage": TOLD, "more": [1]},
    {"usage": {"turns": [], **TOLD}, "data": NUMBERS},
    {"usage": {**TOLD, "turns": [8]}, "data": NUMBERS},
    {"model": "m", "usage": TOLD},
    {"id": "rerank-1", "model": "m", "usage": TOLD, "results": [{"index": 0, "document": {"text": "[a"}}]},
    {"model": "m", "object": "list", "usage": TOLD, "results": [{"index": 0, "relevance_score": 0.5}]},
    {"results": [{"index": 0, "document": {"text": "x", "usage": {"prompt_tokens": 1}}}], "usage": TOLD},
    {"model": "m", "results": [], "usage": {"total_tokens": 8}},
)
"""vLLM's place, llama.cpp's, and answers that fool the shortcut."""


@pytest.mark.parametrize("answer", ANSWERS)
def test_usage_is_found_wherever_it_stands(answer: dict[str, Any]) -> None:
    """With what the client is shown of it."""
    settled = embeddings.settle(text(answer))
    assert (settled.usage, settled.reported) == (Usage(8, 0), answer["usage"])


@pytest.mark.parametrize(
    "answer",
    [
        [{"index": 0, "score": 0.5}],
        {"data": NUMBERS},
        {"data": NUMBERS, "usage": None},
        {"data": NUMBERS, "usage": {"prompt_tokens": 0, "total_tokens": 0}},
        {"data": NUMBERS, "usage": {"prompt_tokens": "8"}},
        {"results": [{"document": {"usage": {"prompt_tokens": 1}}}]},
    ],
)
def test_what_is_no_report_is_counted(answer: object, qwen: Vocabulary) -> None:
    """A bare array (llama.cpp, asked with `texts`), zeros (LM Studio): the prompt alone has to be counted."""
    settled = embeddings.settle(text(answer))
    assert (settled.usage, settled.raw) == (None, text(answer))
    assert embeddings.delivered(text(answer)).output_tokens(qwen) == 0


@pytest.mark.parametrize("whole", [b"", b"\x00\x01[\x02]", b"[", b"]["])
def test_bytes_of_floats_pass(whole: bytes) -> None:
    """vLLM's `encoding_format: bytes`."""
    assert embeddings.settle(whole) == Settle(None, whole)


def test_an_error_inside_a_success_is_known() -> None:
    """Its shape is that of the endpoint's errors."""
    assert embeddings.settle(text({"error": {"code": 500, "message": "no"}})).is_error
    assert embeddings.settle(text({"data": NUMBERS, "error": {"code": 500}, "usage": TOLD})).is_error


def test_the_skeleton_is_what_stands_outside_of_all_arrays() -> None:
    """Where that is no JSON there is none."""
    assert skeleton(b'{"a":[1,[2],{"b":3}],"c":4}') == {"a": [], "c": 4}
    assert skeleton(b'{"a":"[","b":[1]}') is None
    assert skeleton(b'{"a":1}') is None
    assert skeleton(b"[1]") is None
