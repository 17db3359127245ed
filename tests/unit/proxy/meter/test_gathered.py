"""A gathered stream is the answer that llama.cpp would have sent, but for a usage that tells of every output."""

import json
from typing import Any

import pytest

from billing.limits import RESPONSE_BODY_BYTES_MAX
from billing.tokens.vocabulary import Vocabulary
from billing.usage import Usage
from proxy.meter import gathered
from proxy.meter.framing import StreamError
from proxy.meter.gathered import Gatherer
from proxy.meter.steps import Outputs
from tests.unit.proxy.meter.streams import (
    DONE,
    LLAMA,
    body,
    chunks_of,
    delta,
    event,
    events_of,
    every,
    relay,
    report,
    usage,
)

ONE = Outputs()
CHANGES_EACH_TIME = ("created", "id", "timings")

# stream, answer, outputs, usage, and what the server's own answer says of it
PAIRS = [
    ("chat_n2_stream", "chat_n2", Outputs(1, 2), Usage(13, 88, 11), (13, 44, 11)),
    ("chat_stream_include_usage", "chat_nonstream", ONE, Usage(13, 44, 9), (13, 44, 0)),
    ("chat_stream_include_usage", "chat_nonstream_repeat_cached", ONE, Usage(13, 44, 9), (13, 44, 9)),
    ("chat_stream_length", "chat_nonstream_length", ONE, Usage(13, 5, 9), (13, 5, 9)),
    ("chat_stop_stream", "chat_stop", ONE, Usage(15, 6, 11), (15, 6, 11)),
    ("chat_nothink_stream", "chat_nothink", ONE, Usage(15, 28, 11), (15, 28, 9)),
    ("chat_tools_call_stream", "chat_tools_call", ONE, Usage(267, 53, 263), (267, 53, 263)),
    ("completions_stream_usage", "completions", ONE, Usage(1, 6), (1, 6, 0)),
]


def gather(reads: list[bytes], outputs: Outputs = ONE, *, is_chat: bool = True) -> tuple[dict[str, Any], Usage | None]:
    """The answer that a client gets, and its usage; nothing leaves before it."""
    passed, settled = relay(Gatherer(outputs, is_chat=is_chat), reads)
    assert passed == b""
    assert not settled.is_error
    answer = json.loads(settled.raw)
    assert answer.get("usage") == settled.reported
    return answer, settled.usage


def without_times(answer: dict[str, Any]) -> list[tuple[str, Any]]:
    """The fields in their order; what changes with each request is there, whatever it says."""
    text = json.dumps(answer)
    for call in (c for choice in answer["choices"] for c in choice.get("message", {}).get("tool_calls", ())):
        assert len(call["id"]) == 32
        text = text.replace(call["id"], "*")
    return [(name, "*" if name in CHANGES_EACH_TIME else value) for name, value in json.loads(text).items()]


@pytest.mark.parametrize(("stream", "whole", "outputs", "expected", "reported"), PAIRS, ids=[pair[1] for pair in PAIRS])
def test_a_gathered_stream_is_the_servers_own_answer(
    stream: str, whole: str, outputs: Outputs, expected: Usage, reported: tuple[int, int, int]
) -> None:
    """Same fields, same order, same texts and calls, however it was read; usage of all outputs, not of the first."""
    data, answer = body(f"{LLAMA}/{stream}"), json.loads(body(f"{LLAMA}/{whole}"))
    prompt, output, cached = reported
    details = {"prompt_tokens_details": {"cached_tokens": cached}}
    assert answer["usage"] == {**usage(prompt, output), "total_tokens": prompt + output, **details}
    for reads in ([data], events_of(data), every(data, 1), every(data, 333)):
        got, counted = gather(reads, outputs, is_chat="chat" in stream)
        assert counted == expected
        assert list(got["usage"]) == list(answer["usage"])
        assert (got["usage"]["prompt_tokens"], got["usage"]["completion_tokens"]) == expected[:2]
        assert got["usage"]["total_tokens"] == sum(expected[:2])
        assert got["usage"]["prompt_tokens_details"] == {"cached_tokens": expected.cached_input_tokens}
        got["usage"] = answer["usage"]
        assert without_times(got) == without_times(answer)


def test_an_array_of_prompts_is_one_answer() -> None:
    """The captured stream has the first two of the captured answer's three prompts; `data: null` opens it."""
    got, counted = gather([body(f"{LLAMA}/completions_array_stream")], Outputs(2, 1), is_chat=False)
    answer = json.loads(body(f"{LLAMA}/completions_array"))
    assert counted == Usage(11, 12, 6)
    assert list(got) == list(answer)
    assert [list(choice.items()) for choice in got["choices"]] == [list(c.items()) for c in answer["choices"][:2]]
    assert got["object"] == "text_completion"


def test_log_probabilities_are_joined() -> None:
    """Measured on llama.cpp b11549: `logprobs` comes last in a chat choice, third in a completion's, null without."""
    data = body(f"{LLAMA}/chat_logprobs_stream")
    got, _ = gather([data])
    choice = got["choices"][0]
    assert list(choice) == ["finish_reason", "index", "message", "logprobs"]
    assert [entry["token"] for entry in choice["logprobs"]["content"]] == ["The", " user", " wants", " a"]
    assert all(len(entry["top_logprobs"]) == 2 for entry in choice["logprobs"]["content"])
    text = {"index": 0, "text": "a", "logprobs": {"content": [1], "tokens": ["x"]}}
    stream = event({"choices": [text]}) + event({"choices": [text]}) + event({"choices": [{"index": 1, "text": "b"}]})
    got, _ = gather([stream, DONE], is_chat=False)
    assert [choice["logprobs"] for choice in got["choices"]] == [{"content": [1, 1], "tokens": ["x", "x"]}, None]


def test_outputs_come_in_their_order_and_calls_in_theirs() -> None:
    """Slots answer when they like: index 2 may come before index 0, the second call before the first."""
    function = [{"index": 1, "id": "b", "function": {"name": "g", "arguments": "{"}}]
    more = [
        {"index": 0, "id": "a", "function": {"name": "f", "arguments": "{}"}},
        {"index": 1, "function": {"arguments": "}"}},
    ]
    calls = {"index": 2, "delta": {"content": None, "tool_calls": function}}
    rest = {"index": 2, "delta": {"tool_calls": more}, "finish_reason": "tool_calls"}
    stream = b"".join(
        map(event, ({"choices": [calls]}, delta("x", 1), delta("y", 0), {"choices": [rest]}, delta("z", 1)))
    )
    got, _ = gather([stream, DONE], Outputs(1, 3))
    assert [(c["index"], c["message"]["content"]) for c in got["choices"]] == [(0, "y"), (1, "xz"), (2, "")]
    assert got["choices"][2]["message"]["tool_calls"] == [
        {"type": "function", "function": {"name": "f", "arguments": "{}"}, "id": "a"},
        {"type": "function", "function": {"name": "g", "arguments": "{}"}, "id": "b"},
    ]


def test_an_end_stays_an_end_and_the_first_counters_stay() -> None:
    """Whatever comes after them: llama.cpp's own answer has the counters of its first output."""
    data = body(f"{LLAMA}/chat_n2_stream")
    first, last = (chunk["timings"] for chunk in chunks_of(data) if "timings" in chunk)
    assert first != last
    got, _ = gather([data.removesuffix(DONE) + event(delta("!", 0)) + DONE], Outputs(1, 2))
    assert got["timings"] == first
    assert [choice["finish_reason"] for choice in got["choices"]] == ["stop", "stop"]
    assert got["choices"][0]["message"]["content"].endswith("counted!")


def test_an_error_takes_the_place_of_the_answer() -> None:
    """The client of an answer that is not streamed gets no half of it."""
    error = {"error": {"code": 500, "message": "slot lost", "type": "server_error"}}
    for after in (b"", DONE, event(delta("more"))):
        passed, settled = relay(Gatherer(Outputs(1, 2), is_chat=True), [event(delta("Hi")), event(error), after])
        assert (passed, json.loads(settled.raw), settled.is_error) == (b"", error, True)


def test_a_client_that_leaves_pays_for_all_outputs_so_far(qwen: Vocabulary) -> None:
    """Nothing was sent to it, but it was generated for it."""
    data = body(f"{LLAMA}/chat_n2_stream")
    gatherer = Gatherer(Outputs(1, 2), is_chat=True)
    gatherer.receive(data[: data.index(b'data: {"choices":[]')])
    assert gatherer.known_usage() is None
    assert gatherer.delivered().output_tokens(qwen) > 44
    assert not gatherer.is_complete
    gatherer.receive(data[data.index(b'data: {"choices":[]') :])
    assert gatherer.is_complete
    assert gatherer.known_usage() == Usage(13, 88, 11)


def test_an_answer_whose_outputs_were_not_all_reported_has_no_usage_of_the_servers() -> None:
    """It is counted instead; the client is not shown a part for the whole."""
    got, counted = gather([event(delta("Hi")), event(report(13, 1)), DONE], Outputs(1, 2))
    assert counted is None
    assert "usage" not in got


def test_stop_texts_are_known_to_the_count(qwen: Vocabulary) -> None:
    """Without a usage, an end that was a `stop` text has no token."""
    gatherer = Gatherer(Outputs(1, 2), is_chat=True, has_stop_texts=True)
    gatherer.receive(event(delta("Hello")) + event(delta(finish="stop")))
    assert gatherer.delivered().output_tokens(qwen) == 1


def test_an_empty_stream_is_an_empty_answer() -> None:
    """No output, no usage: the exchange counts the prompt."""
    got, counted = gather([DONE])
    assert (got["choices"], counted) == ([], None)


def test_an_answer_too_long_to_hold_breaks_the_protocol(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gathered answer is held whole, and bounded as one that is not streamed."""
    monkeypatch.setattr(gathered, "RESPONSE_BODY_BYTES_MAX", 1_000)
    gatherer = Gatherer(ONE, is_chat=True)
    gatherer.receive(b":" * 999)
    gatherer.receive(b":")
    with pytest.raises(StreamError):
        gatherer.receive(b":")
    assert RESPONSE_BODY_BYTES_MAX > 1_000, "the real limit is larger"


@pytest.mark.parametrize(
    "garbage",
    [
        {"choices": {"index": 0}},
        {"choices": "text"},
        {"choices": 7},
        {"choices": [None, 7, "x", [], True]},
        {"choices": [{"index": "0", "delta": {"content": "ok"}}]},
        {"choices": [{"index": [], "delta": {"content": "ok"}}]},
        {"choices": [{"index": -1, "delta": {"content": "ok"}}]},
        {"choices": [{"index": 10**9, "delta": {"content": "ok"}}]},
        {"choices": [{"index": 0, "delta": [7]}]},
        {"choices": [{"index": 0, "delta": {"content": ["x"], "reasoning_content": 7, "tool_calls": 7}}]},
        {"choices": [{"index": 0, "delta": {"tool_calls": [7, None, {"index": "x", "function": "f"}]}}]},
        {"choices": [{"index": 0, "delta": {"tool_calls": [{"index": {}, "function": {"name": 7, "arguments": {}}}]}}]},
        {"choices": [{"index": 0, "logprobs": {"content": 7}}]},
        {"choices": [{"index": 0, "logprobs": [7]}]},
        {"choices": [{"index": 0, "finish_reason": {"a": 1}}]},
        {"id": [7], "created": "x", "timings": 7},
        {"usage": {"prompt_tokens": [], "completion_tokens": {}}},
    ],
)
def test_no_garbage_breaks_the_answer(garbage: dict[str, Any]) -> None:
    """The upstream's mistake is not ours to die of; what is sound around it is kept."""
    sound = {"choices": [{"index": 5, "text": "kept", "delta": {"content": "kept"}}]}
    for is_chat in (True, False):
        settled = relay(Gatherer(ONE, is_chat=is_chat), [event(garbage), event(sound), DONE])[1]
        choice = json.loads(settled.raw)["choices"][-1]
        assert (choice["index"], choice["message"]["content"] if is_chat else choice["text"]) == (5, "kept")


@pytest.mark.parametrize("garbage", [b'"id":' + b"[" * 300 + b"]" * 300, b'"id":' + b"9" * 30 + b',"p":NaN'])
def test_what_can_not_be_written_again_is_an_error(garbage: bytes) -> None:
    """orjson reads 1,024 levels and writes 254; the lenient reader knows integers of any size."""
    stream = b"data: {" + garbage + b',"choices":[]}\n\n'
    settled = relay(Gatherer(ONE, is_chat=True), [stream, DONE])[1]
    assert settled.is_error
    assert json.loads(settled.raw)["error"]["code"] == "upstream_error"
