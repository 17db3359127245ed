"""The official SDKs read what a meter let through as they read the server's own bytes, and find the cost in it."""

from collections.abc import Iterator

import pytest
from anthropic import Anthropic
from openai import OpenAI

from proxy.meter import endpoints
from proxy.meter.choose import Plan, stream_meter, whole_reader
from proxy.meter.reading import with_cost
from tests.emulators.upstream import FakeUpstream, Send, chunk, last_chunk, sse_head
from tests.emulators.upstream.wire import head
from tests.unit.meter_protocols.streams import LLAMA, TOOLS, VLLM, body, cut, relay

COST = "0.000123456"
SERVERS = (LLAMA, VLLM)


@pytest.fixture(scope="module")
def fake() -> Iterator[FakeUpstream]:
    """Sends what a gateway would."""
    with FakeUpstream() as upstream:
        yield upstream


@pytest.fixture(scope="module")
def openai(fake: FakeUpstream) -> Iterator[OpenAI]:
    """The official client, without retries."""
    with OpenAI(base_url=f"{fake.url}/v1", api_key="x", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def anthropic(fake: FakeUpstream) -> Iterator[Anthropic]:
    """The official client, without retries."""
    with Anthropic(base_url=fake.url, api_key="x", max_retries=0) as client:
        yield client


def send_stream(fake: FakeUpstream, endpoint: str, name: str) -> None:
    """Script a captured stream as its meter passes it on, in reads that respect nothing."""
    meter = stream_meter(Plan(endpoint, cost_of=lambda _: COST), b"text/event-stream")
    data = body(name)
    passed, settled = relay(meter, cut(data, range(0, len(data), 777)))
    fake.script(sse_head(), chunk(passed), chunk(settled.raw), last_chunk())


def send_whole(fake: FakeUpstream, endpoint: str, name: str) -> None:
    """Script a captured answer as it is delivered."""
    settled = whole_reader(endpoint).settle(body(name))
    priced = with_cost(settled.raw, COST, settled.reported)
    fields = (("Content-Type", "application/json"), ("Content-Length", str(len(priced))))
    fake.script(Send(head(200, fields) + priced))


@pytest.mark.parametrize("server", SERVERS)
def test_responses(fake: FakeUpstream, openai: OpenAI, server: str) -> None:
    """Plain, streamed, and through the streaming helper."""
    send_whole(fake, endpoints.RESPONSES, f"{server}/responses")
    whole = openai.responses.create(model="m", input="x")
    send_stream(fake, endpoints.RESPONSES, f"{server}/responses_stream")
    *_, last = openai.responses.create(model="m", input="x", stream=True)
    assert last.type == "response.completed"
    for response in (whole, last.response):
        assert response.usage is not None
        assert (response.usage.input_tokens, response.usage.output_tokens) == (13, 44)
        assert response.usage.to_dict()["cost"] == float(COST)
        assert response.output_text.strip().startswith("Hello! This is the tiny")


@pytest.mark.parametrize("server", SERVERS)
def test_messages(fake: FakeUpstream, anthropic: Anthropic, server: str) -> None:
    """Plain, and through the streaming helper, which merges both reports."""
    send_whole(fake, endpoints.MESSAGES, f"{server}/messages")
    whole = anthropic.messages.create(model="m", max_tokens=80, messages=[])
    assert whole.usage.to_dict()["cost"] == float(COST)
    send_stream(fake, endpoints.MESSAGES, f"{server}/messages_stream")
    with anthropic.messages.stream(model="m", max_tokens=80, messages=[]) as stream:
        events = list(stream)
        final = stream.get_final_message()
    for message in (whole, final):
        assert message.usage.input_tokens + (message.usage.cache_read_input_tokens or 0) == 13
        assert message.usage.output_tokens == 44
    (report,) = (event for event in events if event.type == "message_delta")
    assert report.usage.to_dict()["cost"] == float(COST)


def test_the_sdk_merges_vllms_two_reports_as_the_meter_does(fake: FakeUpstream, anthropic: Anthropic) -> None:
    """54 + 256, of which the first report said 310."""
    send_stream(fake, endpoints.MESSAGES, f"{VLLM}/messages_stream_long_cached")
    with anthropic.messages.stream(model="m", max_tokens=80, messages=[]) as stream:
        usage = stream.get_final_message().usage
    assert (usage.input_tokens, usage.cache_read_input_tokens, usage.output_tokens) == (54, 256, 5)


def test_tool_calls(fake: FakeUpstream, openai: OpenAI, anthropic: Anthropic) -> None:
    """Their arguments arrive whole."""
    send_stream(fake, endpoints.MESSAGES, f"{TOOLS}/messages_tool_call_stream")
    with anthropic.messages.stream(model="m", max_tokens=80, messages=[]) as stream:
        (called,) = (block for block in stream.get_final_message().content if block.type == "tool_use")
    assert (called.name, called.input) == ("get_forecast", {"days": 7})
    send_stream(fake, endpoints.RESPONSES, f"{TOOLS}/responses_tool_call_stream")
    *_, last = openai.responses.create(model="m", input="x", stream=True)
    assert last.type == "response.completed"
    (call,) = (item for item in last.response.output if item.type == "function_call")
    assert (call.name, call.arguments) == ("get_forecast", '{"days":7}')


def test_embeddings(fake: FakeUpstream, openai: OpenAI) -> None:
    """Numbers as they were."""
    send_whole(fake, endpoints.EMBEDDINGS, "llama-server_misc/embeddings_array")
    answer = openai.embeddings.create(model="m", input=["a", "b"])
    assert answer.usage.to_dict() == {"prompt_tokens": 8, "total_tokens": 8, "cost": float(COST)}
    assert [len(one.embedding) for one in answer.data] == [64, 64]


def test_count_tokens(fake: FakeUpstream, anthropic: Anthropic) -> None:
    """Costs nothing and is what the server said."""
    send_whole(fake, endpoints.COUNT_TOKENS, f"{VLLM}/messages_count_tokens")
    assert anthropic.messages.count_tokens(model="m", messages=[]).input_tokens == 13
