"""Weir's own errors look like the protocol's that the client speaks, and its official SDK raises them."""

import json
from collections.abc import Iterator

import pytest
from anthropic import Anthropic
from anthropic import APIStatusError as AnthropicError
from openai import APIError, APIStatusError, OpenAI

from proxy.meter import endpoints
from proxy.relay.refusals import Refusal
from proxy.relay.shapes import error_body, error_event
from tests.emulators.upstream import FakeUpstream, chunk, json_answer, last_chunk, sse_head
from tests.unit.meter_protocols.streams import LLAMA, body

CUT = Refusal("upstream_error", "the model server broke off its answer")


@pytest.fixture(scope="module")
def fake() -> Iterator[FakeUpstream]:
    """Sends what a gateway would."""
    with FakeUpstream() as upstream:
        yield upstream


def test_ollamas_errors_are_one_text() -> None:
    """As a body, and as a line of a stream."""
    for path in endpoints.OLLAMA:
        assert json.loads(error_body(CUT, path)) == {"error": CUT.message}
        assert error_event(CUT, path) == error_body(CUT, path) + b"\n"


def test_the_other_shapes_are_those_of_refusals() -> None:
    """Anthropic's on both its paths, OpenAI's elsewhere."""
    for path in endpoints.ALL - endpoints.OLLAMA:
        assert error_body(CUT, path) == CUT.body(path)
        assert (json.loads(error_body(CUT, path)).get("type") == "error") is path.startswith(endpoints.MESSAGES)
    for path in endpoints.ALL - endpoints.OLLAMA - {endpoints.RESPONSES}:
        assert error_event(CUT, path) == CUT.event(path)


def test_a_responses_stream_ends_with_the_protocols_error_event() -> None:
    """Its fields, and OpenAI's error object beside them."""
    event = error_event(CUT, endpoints.RESPONSES)
    assert event.startswith(b"event: error\ndata: {")
    assert event.endswith(b"}\n\n")
    told = json.loads(event.partition(b"data: ")[2])
    assert told == {
        "type": "error",
        "code": "upstream_error",
        "message": CUT.message,
        "param": None,
        "error": {"message": CUT.message, "type": "api_error", "param": None, "code": "upstream_error"},
    }


def test_the_openai_sdk_raises_the_error_that_ends_a_responses_stream(fake: FakeUpstream) -> None:
    """After the deltas that came."""
    begun = body(f"{LLAMA}/responses_stream").partition(b"event: response.output_item.done")[0]
    fake.script(sse_head(), chunk(begun), chunk(error_event(CUT, endpoints.RESPONSES)), last_chunk())
    seen: list[object] = []
    with (
        OpenAI(base_url=f"{fake.url}/v1", api_key="x", max_retries=0) as client,
        pytest.raises(APIError, match="broke off"),
    ):
        seen.extend(client.responses.create(model="m", input="x", stream=True))
    assert len(seen) > 10


def test_the_anthropic_sdk_raises_the_error_that_ends_a_messages_stream(fake: FakeUpstream) -> None:
    """After the deltas that came."""
    begun = body(f"{LLAMA}/messages_stream").partition(b"event: message_delta")[0]
    fake.script(sse_head(), chunk(begun), chunk(error_event(CUT, endpoints.MESSAGES)), last_chunk())
    seen: list[object] = []
    with (
        Anthropic(base_url=fake.url, api_key="x", max_retries=0) as client,
        pytest.raises(AnthropicError, match="broke off"),
    ):
        seen.extend(client.messages.create(model="m", max_tokens=9, messages=[], stream=True))
    assert len(seen) > 10


def test_both_sdks_raise_the_errors_that_come_as_bodies(fake: FakeUpstream) -> None:
    """With status and message."""
    refusal = Refusal("budget_exceeded", "the budget of this key is used up")
    fake.script(json_answer(json.loads(error_body(refusal, endpoints.RESPONSES)), status=402))
    with (
        OpenAI(base_url=f"{fake.url}/v1", api_key="x", max_retries=0) as openai,
        pytest.raises(APIStatusError, match="used up") as raised,
    ):
        openai.responses.create(model="m", input="x")
    assert (raised.value.status_code, raised.value.code) == (402, "budget_exceeded")
    fake.script(json_answer(json.loads(error_body(refusal, endpoints.MESSAGES)), status=402))
    with (
        Anthropic(base_url=fake.url, api_key="x", max_retries=0) as anthropic,
        pytest.raises(AnthropicError, match="used up") as refused,
    ):
        anthropic.messages.create(model="m", max_tokens=9, messages=[])
    assert refused.value.status_code == 402
