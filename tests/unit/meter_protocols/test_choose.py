"""Each path and content type has its meter, and every meter is one."""

import pytest

from billing.tokens.vocabulary import Vocabulary
from billing.usage import Usage
from proxy.meter import choose, embeddings, endpoints, messages, ollama, responses, whole
from proxy.meter.choose import Meter, Plan, is_stream, stream_meter, unnamed_stream, whole_reader
from proxy.meter.gathered import Gatherer
from proxy.meter.messages import MessagesMeter
from proxy.meter.ollama import OllamaMeter
from proxy.meter.responses import ResponsesMeter
from proxy.meter.steps import Outputs
from proxy.meter.stream import StreamMeter
from tests.unit.meter_protocols.streams import LLAMA, VLLM, body, chat_line, event, last_line, line, relay

EVENTS = b"text/event-stream; charset=utf-8"
LINES = b"application/x-ndjson"
JSON = b"application/json"


@pytest.mark.parametrize(
    ("endpoint", "content_type", "kind"),
    [
        (endpoints.CHAT, EVENTS, StreamMeter),
        (endpoints.COMPLETIONS, b"Text/Event-Stream", StreamMeter),
        (endpoints.RESPONSES, EVENTS, ResponsesMeter),
        (endpoints.MESSAGES, EVENTS, MessagesMeter),
        (endpoints.OLLAMA_CHAT, LINES, OllamaMeter),
        (endpoints.OLLAMA_GENERATE, b"application/ndjson; charset=utf-8", OllamaMeter),
        (endpoints.OLLAMA_CHAT, EVENTS, StreamMeter),
    ],
)
def test_a_stream_is_read_by_its_protocols_meter(endpoint: str, content_type: bytes, kind: type[Meter]) -> None:
    """Events under Ollama's path are a chat of OpenAI's shape."""
    assert is_stream(endpoint, content_type)
    assert type(stream_meter(Plan(endpoint), content_type)) is kind


@pytest.mark.parametrize("endpoint", sorted(endpoints.ALL))
def test_json_is_no_stream_however_it_was_asked_for(endpoint: str) -> None:
    """Errors and short answers come whole."""
    assert not is_stream(endpoint, JSON)


@pytest.mark.parametrize(
    ("endpoint", "name"),
    [
        (endpoints.CHAT, "chat_stream_include_usage"),
        (endpoints.COMPLETIONS, "completions_stream"),
        (endpoints.RESPONSES, "responses_stream"),
        (endpoints.MESSAGES, "messages_stream"),
    ],
)
def test_a_stream_that_does_not_say_so_is_read_as_one(endpoint: str, name: str) -> None:
    stream = body(f"{LLAMA}/{name}")
    meter = unnamed_stream(Plan(endpoint), stream)
    assert meter is not None
    usage = meter.finish().usage
    assert usage is not None
    assert usage.output_tokens > 0
    cut_off = unnamed_stream(Plan(endpoint), stream[: len(stream) // 2])
    assert cut_off is not None
    assert not cut_off.delivered().is_empty


@pytest.mark.parametrize("endpoint", sorted(endpoints.ALL))
@pytest.mark.parametrize("text", [b"", b"<p>data: none</p>", b'{"text":"data: x"}', b"data: {}\n\n", b"data: {\n\n"])
def test_what_is_no_stream_is_not_read_as_one(endpoint: str, text: bytes) -> None:
    assert unnamed_stream(Plan(endpoint), text) is None


@pytest.mark.parametrize("endpoint", sorted(endpoints.PROMPT_ONLY))
def test_what_generates_nothing_is_never_streamed(endpoint: str) -> None:
    """Whatever it calls itself, it is read whole."""
    assert not is_stream(endpoint, EVENTS)
    assert not is_stream(endpoint, LINES)


def test_lines_are_a_stream_under_ollamas_paths_only() -> None:
    """No other protocol has them."""
    assert not is_stream(endpoints.CHAT, LINES)


@pytest.mark.parametrize(
    ("endpoint", "module"),
    [
        (endpoints.CHAT, whole),
        (endpoints.COMPLETIONS, whole),
        (endpoints.COUNT_TOKENS, whole),
        (endpoints.RESPONSES, responses),
        (endpoints.MESSAGES, messages),
        (endpoints.EMBEDDINGS, embeddings),
        (endpoints.RERANK, embeddings),
        (endpoints.OLLAMA_CHAT, ollama),
        (endpoints.OLLAMA_GENERATE, ollama),
    ],
)
def test_a_whole_answer_is_read_by_its_protocols_reader(endpoint: str, module: object) -> None:
    """Both functions of one module."""
    assert whole_reader(endpoint) == (module.settle, module.delivered)  # type: ignore[attr-defined]


def test_ollamas_embeddings_have_a_reader_of_their_own() -> None:
    """Nothing is generated there."""
    assert whole_reader(endpoints.OLLAMA_EMBED) == (ollama.settle_embeddings, embeddings.delivered)


def test_every_endpoint_has_a_reader_that_takes_anything() -> None:
    """And that has the same signature."""
    for endpoint in endpoints.ALL:
        reader = whole_reader(endpoint)
        for answer in (
            b"",
            b"[]",
            b"{}",
            b'{"usage":7,"output":7,"content":7,"message":7}',
            b'{"output":[7,{"content":[7]}]}',
        ):
            assert reader.settle(answer).raw == answer
            assert reader.delivered(answer, has_stop_texts=True).is_empty


def test_the_plan_reaches_the_meter() -> None:
    """Costs, hidden usage, added outputs, gathering and stop texts."""
    cost = Plan(endpoints.MESSAGES, cost_of=lambda _: "7")
    assert b'"cost":7' in relay(stream_meter(cost, EVENTS), [body(f"{LLAMA}/messages_stream")])[0]
    cost = cost._replace(endpoint=endpoints.RESPONSES)
    assert b'"cost":7' in relay(stream_meter(cost, EVENTS), [body(f"{LLAMA}/responses_stream")])[1].raw
    chat = Plan(endpoints.CHAT, hides_usage=True)
    assert b'"usage"' not in relay(stream_meter(chat, EVENTS), [body(f"{LLAMA}/chat_stream_include_usage")])[0]
    two = Plan(endpoints.CHAT, outputs=Outputs(1, 2), reports_each_output=True)
    assert relay(stream_meter(two, EVENTS), [body(f"{LLAMA}/chat_n2_stream")])[1].usage == Usage(13, 88, 11)
    gathered = stream_meter(two._replace(gathers=True), EVENTS)
    assert isinstance(gathered, Gatherer)
    assert relay(gathered, [body(f"{LLAMA}/chat_n2_stream")])[1].usage == Usage(13, 88, 11)


def test_stop_texts_reach_every_meter(qwen: Vocabulary) -> None:
    """A counted answer has one token less then: its end may have been the text."""
    text = {"type": "response.output_text.delta", "delta": "Hello!"}
    ended = {"type": "response.completed", "response": {"status": "completed"}}
    streams = {
        endpoints.RESPONSES: event(text) + event(ended),
        endpoints.MESSAGES: event({"delta": {"text": "Hello!"}}) + event({"delta": {"stop_reason": "end_turn"}}),
        endpoints.OLLAMA_CHAT: line(chat_line("Hello!")) + line(last_line()),
        endpoints.CHAT: event({"choices": [{"delta": {"content": "Hello!"}, "finish_reason": "stop"}]}),
    }
    for endpoint, data in streams.items():
        for has_stop_texts, tokens in ((False, 3), (True, 2)):
            content_type = LINES if endpoint == endpoints.OLLAMA_CHAT else EVENTS
            meter = stream_meter(Plan(endpoint, has_stop_texts=has_stop_texts), content_type)
            meter.receive(data)
            assert meter.delivered().output_tokens(qwen) == tokens


def test_only_ollama_and_its_likeness_get_ollamas_paths() -> None:
    """Every other path may be sent to any server: it says itself what it lacks."""
    kinds = ("llamacpp", "vllm", "sglang", "ollama", "lmstudio", "openai")
    for endpoint in endpoints.ALL - endpoints.OLLAMA:
        assert all(endpoints.is_served(endpoint, kind) for kind in kinds)
    for endpoint in endpoints.OLLAMA:
        assert [kind for kind in kinds if endpoints.is_served(endpoint, kind)] == ["sglang", "ollama"]


def test_the_same_prompt_books_the_same_tokens_through_every_protocol() -> None:
    """13 and 44, by both servers, streamed or not."""
    served = {
        endpoints.CHAT: ("chat_stream_include_usage", "chat_nonstream"),
        endpoints.RESPONSES: ("responses_stream", "responses"),
        endpoints.MESSAGES: ("messages_stream", "messages"),
    }
    booked = []
    for server in (LLAMA, VLLM):
        for endpoint, (streamed, unstreamed) in served.items():
            booked.append(relay(stream_meter(Plan(endpoint), EVENTS), [body(f"{server}/{streamed}")])[1].usage)
            booked.append(whole_reader(endpoint).settle(body(f"{server}/{unstreamed}")).usage)
    told = {"prompt_eval_count": 13, "eval_count": 44}
    lines = line(chat_line("Hello!")) + line(last_line(**told))
    booked.append(relay(stream_meter(Plan(endpoints.OLLAMA_CHAT), LINES), [lines])[1].usage)
    booked.append(whole_reader(endpoints.OLLAMA_CHAT).settle(line(last_line(**told))).usage)
    assert [(usage.input_tokens, usage.output_tokens) for usage in booked if usage is not None] == [(13, 44)] * 14


def test_the_paths_are_all_and_each_once() -> None:
    """The table of DESIGN §3, and what is free of it."""
    assert len(endpoints.ALL) == 10
    assert endpoints.FREE == {endpoints.COUNT_TOKENS} < endpoints.ALL
    assert choose.whole_reader(endpoints.COUNT_TOKENS).settle(body(f"{LLAMA}/messages_count_tokens")).usage is None
