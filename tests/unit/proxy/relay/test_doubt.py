"""Which reports deserve a count, and what is left of them after it."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.usage import Anomaly, Usage
from proxy.meter import endpoints
from proxy.relay import asks, doubt
from proxy.relay.doubt import Counted
from proxy.relay.refusals import Refusal
from proxy.relay.request import Ask

MODEL = "qwen3.5-9b"


def ask_of(endpoint: str = endpoints.CHAT, **fields: Any) -> Ask:
    """A request as admission reads it."""
    asked = asks.read(endpoint, json.dumps({"model": MODEL, **fields}).encode())
    assert not isinstance(asked, Refusal), asked
    return asked


# the bound


@pytest.mark.parametrize(
    ("reported", "body_bytes", "answer_bytes", "is_stream", "expected"),
    [
        (Usage(13, 44), 90, 600, False, False),
        (Usage(64, 64), 1, 1, False, False),  # nothing below the slack can be an anomaly
        (Usage(65, 0), 90, 600, False, True),
        (Usage(500, 0), 1_000, 600, False, False),
        (Usage(501, 0), 1_000, 600, False, True),
        (Usage(0, 200), 90, 656, False, False),
        (Usage(0, 201), 90, 656, False, True),
        (Usage(0, 200), 90, 200 * 64 + 512, True, False),
        (Usage(0, 201), 90, 200 * 64 + 512, True, True),
        (Usage(-5, -5), 90, 600, True, False),
        (Usage(10**30, 1), 32 * 2**20, 600, False, True),
    ],
)
def test_the_bound_by_hand(
    reported: Usage, body_bytes: int, answer_bytes: int, is_stream: bool, expected: bool
) -> None:
    """Half a token for a byte of the request, a token for two of an answer or 64 of a stream, behind a start."""
    by_input = doubt.doubts_input(reported, ask_of(messages=[]), body_bytes)
    by_output = doubt.doubts_output(reported, answer_bytes, is_stream=is_stream)
    assert (by_input or by_output) is expected


def test_tools_may_say_more_than_their_bytes() -> None:
    """Qwen3.5's template explains them at length: 290 tokens for 400 bytes are no reason to count."""
    tools = [{"type": "function", "function": {"name": "f"}}]
    assert not doubt.doubts_input(Usage(290, 0), ask_of(messages=[], tools=tools), 400)
    assert doubt.doubts_input(Usage(290, 0), ask_of(messages=[]), 400)
    assert doubt.doubts_input(Usage(460, 0), ask_of(messages=[], tools=tools), 400)


# the judgement


@pytest.mark.parametrize(
    ("reported", "counted", "billed", "anomalies"),
    [
        (Usage(13, 44), Counted(13, 44), Usage(13, 44), ()),
        (Usage(116, 152), Counted(13, 44), Usage(116, 152), ()),  # exactly 4 × 13 + 64 and 2 × 44 + 64
        (Usage(117, 44), Counted(13, 44), Usage(13, 44), (Anomaly.INPUT_IMPLAUSIBLE,)),
        (Usage(13, 153), Counted(13, 44), Usage(13, 153), (Anomaly.OUTPUT_MISMATCH,)),
        (Usage(1_000, 44, 900), Counted(13, 44), Usage(13, 44, 13), (Anomaly.INPUT_IMPLAUSIBLE,)),
        (Usage(1_000, 44, 5), Counted(13, 44), Usage(13, 44, 5), (Anomaly.INPUT_IMPLAUSIBLE,)),
        (Usage(1_000, 44, 2_000), Counted(13, 44), Usage(13, 44, 2_000), (Anomaly.INPUT_IMPLAUSIBLE,)),
        (Usage(1, 1), Counted(10_000, 10_000), Usage(1, 1), ()),  # never billed up
        (Usage(10**9, 10**9), Counted(None, None), Usage(10**9, 10**9), ()),  # what can not be known is not judged
        (Usage(1_076, 1), Counted(13, 1, input_slack=1_024), Usage(1_076, 1), ()),
        (Usage(13, 152 + 40), Counted(13, 44, hidden_tokens=20), Usage(13, 192), ()),
        (Usage(13, 193), Counted(13, 44, hidden_tokens=20), Usage(13, 193), (Anomaly.OUTPUT_MISMATCH,)),
        (Usage(13, 9_000), Counted(13, 44, output_tokens_max=100), Usage(13, 9_000), ()),  # is cut to 100 afterwards
        (Usage(13, 9_000), Counted(13, 44, output_tokens_max=200), Usage(13, 9_000), (Anomaly.OUTPUT_MISMATCH,)),
    ],
)
def test_judgements_by_hand(reported: Usage, counted: Counted, billed: Usage, anomalies: tuple[Anomaly, ...]) -> None:
    """Input is clamped to our count; output is marked; a cached part above the prompt stays to be named as that."""
    assert doubt.judge(reported, counted, clamps_output=False) == (billed, anomalies)


def test_a_mismatch_is_clamped_only_where_that_is_wanted() -> None:
    """To what was counted, the reasoning with it."""
    found = doubt.judge(Usage(13, 5_000, 0, 4_000), Counted(13, 44), clamps_output=True)
    assert found == (Usage(13, 44, 0, 44), (Anomaly.OUTPUT_MISMATCH,))


counts = st.integers(0, 10**6)


@given(counts, counts, counts, counts, st.booleans())
def test_nothing_is_billed_up_and_nothing_below_our_count(
    prompt: int, output: int, our_prompt: int, our_output: int, clamps: bool
) -> None:
    """Whatever is reported: at most that is billed, and a clamp goes no lower than what we can prove."""
    reported = Usage(prompt, output)
    billed, anomalies = doubt.judge(reported, Counted(our_prompt, our_output), clamps_output=clamps)
    assert min(prompt, our_prompt) <= billed.input_tokens <= prompt
    assert min(output, our_output) <= billed.output_tokens <= output
    assert (billed != reported) <= bool(anomalies)


# what can not be counted


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt_embeds": "AAAA"},
        {"context": [1, 2, 3]},
        {"audio": {"voice": "x"}},
        {"tools": [{"type": "web_search"}]},
        {"tools": [{"type": ["odd"]}]},
    ],
)
def test_prompts_that_hold_more_than_text_are_not_judged(fields: dict[str, Any]) -> None:
    """Embeddings, earlier tokens, sound, and tools that the server runs itself."""
    assert doubt.has_opaque_prompt(ask_of(messages=[], **fields))


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [{"type": "function", "function": {}}, {"name": "f"}, "odd"]},
        {"tools": "odd"},
        {"prompt_embeds": None},
    ],
)
def test_plain_prompts_are_judged(fields: dict[str, Any]) -> None:
    """The client's own tools are text; null is nothing."""
    assert not doubt.has_opaque_prompt(ask_of(messages=[], **fields))


@pytest.mark.parametrize(
    "fields",
    [
        {"include_reasoning": False},
        {"reasoning": {"exclude": True}},
        {"echo": True},
        {"best_of": 4},
        {"modalities": ["text", "audio"]},
        {"prediction": {"type": "content", "content": "x"}},
        {"use_beam_search": True},
    ],
)
def test_answers_that_show_less_than_was_generated_are_not_judged(fields: dict[str, Any]) -> None:
    """Or more: a completion with `echo` shows its prompt."""
    assert doubt.has_opaque_output(ask_of(messages=[], **fields))


@pytest.mark.parametrize(
    "fields", [{}, {"n": 4, "best_of": 4}, {"modalities": ["text"]}, {"reasoning": {"effort": "x"}}]
)
def test_plain_answers_are_judged(fields: dict[str, Any]) -> None:
    """Several outputs are all delivered."""
    assert not doubt.has_opaque_output(ask_of(messages=[], **fields))


def test_hidden_output_by_hand() -> None:
    """Reasoning that is told and not shown, markup of tool calls, and a stop text for each output."""
    plain, stopped = ask_of(messages=[]), ask_of(messages=[], stop=["x"], n=3)
    assert doubt.hidden_output(plain, Usage(1, 90, 0, 80), reasoning_seen=0, tool_tokens=0) == 80
    assert doubt.hidden_output(plain, Usage(1, 90, 0, 80), reasoning_seen=90, tool_tokens=0) == 0
    assert doubt.hidden_output(plain, Usage(1, 90), reasoning_seen=0, tool_tokens=8) == 16
    assert doubt.hidden_output(stopped, Usage(1, 90), reasoning_seen=0, tool_tokens=0) == 48


def test_unknown_templates_have_more_slack() -> None:
    """A server with a system prompt of its own, a template that is not known, a reranker's instruction."""
    chat = ask_of(messages=[])
    assert doubt.template_slack(chat, "llamacpp", is_known=True) == 64
    assert doubt.template_slack(chat, "ollama", is_known=True) == 1_024
    assert doubt.template_slack(chat, "vllm", is_known=False) == 1_024
    rerank = ask_of(endpoints.RERANK, query="q", documents=["a", "b"])
    assert doubt.template_slack(rerank, "vllm", is_known=True) == 64 + 2 * 128
