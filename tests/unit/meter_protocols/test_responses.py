"""`/v1/responses`: usage from the terminal event, bytes untouched, cut streams counted."""

import json
from typing import Any

import pytest

from billing.tokens.vocabulary import Vocabulary
from billing.usage import Usage
from proxy.meter import responses
from proxy.meter.responses import ResponsesMeter
from tests.unit.meter_protocols.streams import (
    LLAMA,
    RESPONSES_STREAMS,
    TOOLS,
    VLLM,
    body,
    cost_of,
    event,
    relay,
    with_cost_in,
)

CREATED = {"type": "response.created", "response": {"id": "resp_1", "status": "in_progress", "usage": None}}


def text(delta: str, kind: str = "response.output_text.delta", **more: Any) -> dict[str, Any]:
    """A delta."""
    return {"type": kind, "item_id": "msg_1", "output_index": 0, "delta": delta, **more}


def ended(kind: str = "completed", usage: object = None, **more: Any) -> dict[str, Any]:
    """A terminal event."""
    return {"type": f"response.{kind}", "response": {"id": "resp_1", "status": kind, "usage": usage, **more}}


def usage(prompt: Any = 13, output: Any = 44, **more: Any) -> dict[str, Any]:
    """A usage object."""
    return {"input_tokens": prompt, "output_tokens": output, "total_tokens": 57, **more}


@pytest.mark.parametrize(("name", "expected"), RESPONSES_STREAMS.items())
def test_a_captured_stream_reports_what_its_server_counted(name: str, expected: Usage) -> None:
    """And passes unchanged but for the cost in its last event."""
    data = body(name)
    passed, settled = relay(ResponsesMeter(cost_of=cost_of), [data])
    assert settled.usage == expected
    assert not settled.is_error
    assert passed + settled.raw == with_cost_in(data, expected, only_after=b"event: response.completed")


@pytest.mark.parametrize("name", RESPONSES_STREAMS)
def test_the_terminal_event_is_held_and_nothing_else(name: str) -> None:
    """I1: what a client waits for leaves after the record."""
    passed, settled = relay(ResponsesMeter(), [body(name)])
    assert settled.raw.startswith(b"event: response.completed\n")
    assert b"response.completed" not in passed
    assert passed + settled.raw == body(name)


def test_a_meter_is_complete_with_the_terminal_event_and_not_before() -> None:
    """So that the relay need not wait for the connection."""
    meter = ResponsesMeter()
    *before, last = body(f"{LLAMA}/responses_stream").split(b"event: ")
    assert meter.receive(b"event: ".join(before) + b"event: ")
    assert not meter.is_complete
    assert meter.receive(last) == b""
    assert meter.is_complete


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (f"{LLAMA}/responses", Usage(13, 44, 11)),
        (f"{LLAMA}/responses_length", Usage(13, 5, 11)),
        (f"{TOOLS}/responses_tool_call", Usage(267, 53, 263)),
        (f"{VLLM}/responses", Usage(13, 44, 0, 14)),
        (f"{VLLM}/responses_length", Usage(13, 5, 0, 5)),
    ],
)
def test_a_captured_answer_that_is_not_streamed_reports_the_same(name: str, expected: Usage) -> None:
    """`reported` is the object that the cost is added to."""
    settled = responses.settle(body(name))
    assert (settled.usage, settled.raw, settled.is_error) == (expected, body(name), False)
    assert settled.reported == json.loads(body(name))["usage"]


def test_sglang_reports_an_answer_that_is_not_streamed_in_the_words_of_chat() -> None:
    """Its stream has the protocol's own."""
    answer = {"object": "response", "output": [], "usage": {"prompt_tokens": 13, "completion_tokens": 44}}
    assert responses.settle(json.dumps(answer).encode()).usage == Usage(13, 44)


def test_a_stream_needs_no_event_lines() -> None:
    """transformers writes none."""
    reads = [event(CREATED), event(text("Hello!")), event(ended(usage=usage()))]
    passed, settled = relay(ResponsesMeter(), reads)
    assert (passed, settled.raw, settled.usage) == (b"".join(reads[:2]), reads[2], Usage(13, 44))


def test_an_event_may_be_named_by_its_line_alone() -> None:
    """As the WHATWG rules have it: what counts is the last `event:` line."""
    data = b'event: x\nevent: response.completed\ndata: {"response":{"usage":{"input_tokens":1,"output_tokens":2}}}\n\n'
    meter = ResponsesMeter()
    assert meter.receive(data) == b""
    assert meter.finish().usage == Usage(1, 2)


@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf", b": ping\r", b"id: 1\n"])
def test_a_delta_may_be_named_by_its_line_alone(start: bytes, qwen: Vocabulary) -> None:
    """Wherever the line stands, and however the lines end."""
    meter = ResponsesMeter()
    meter.receive(start + b'event:response.output_text.delta\rdata:  {"delta":"Hello!"}\r\r' + b": ping\n\n")
    assert meter.delivered().output_tokens(qwen) == 2


def test_reads_that_bring_text_are_not_looked_into() -> None:
    """What needs no look is not parsed."""
    for name in RESPONSES_STREAMS:
        deltas = [part for part in body(name).split(b"\n\n") if b"_text.delta" in part or b"_arguments.delta" in part]
        assert deltas
        assert not any(ResponsesMeter()._matters(part) for part in deltas)


@pytest.mark.parametrize("kind", ["incomplete", "failed", "cancelled"])
def test_every_terminal_event_ends_and_reports(kind: str) -> None:
    """A failure is an error, whatever it reports."""
    meter = ResponsesMeter()
    assert meter.receive(event(ended(kind, usage(13, 5)))) == b""
    settled = meter.finish()
    assert (settled.usage, settled.is_error) == (Usage(13, 5), kind == "failed")


def test_usage_before_the_end_is_not_that_of_the_answer() -> None:
    """A zero or running usage must not make a cut stream free."""
    meter = ResponsesMeter()
    running = {**CREATED, "response": {"status": "in_progress", "usage": usage(0, 0)}}
    meter.receive(event(running) + event({**running, "response": {"usage": usage(13, 1)}}) + event(text("Hello!")))
    assert meter.known_usage() is None
    assert not meter.delivered().is_empty


def test_the_cost_is_added_to_the_answers_usage_and_not_to_a_tool_of_that_name() -> None:
    """A client's tool may have a parameter called usage, of any content."""
    told = usage()
    tools = [{"type": "function", "name": "usage", "parameters": {"properties": {"usage": told}}}]
    data = event(ended(usage=told, tools=tools, metadata={"usage": "usage"}))
    settled = relay(ResponsesMeter(cost_of=lambda _: "7"), [data])[1]
    parsed = json.loads(settled.raw.removeprefix(b"data: "))["response"]
    assert parsed["usage"] == {**told, "cost": 7}
    assert parsed["tools"] == tools
    assert settled.raw.replace(b',"cost":7', b"") == data


def test_no_cost_without_a_price_or_without_a_usage() -> None:
    """Then the event is what it was."""
    for meter, told in ((ResponsesMeter(), usage()), (ResponsesMeter(cost_of=cost_of), None)):
        data = event(ended(usage=told))
        assert relay(meter, [data])[1].raw == data


@pytest.mark.parametrize(
    ("told", "output"),
    [
        (None, 3),
        ({}, 3),
        (usage(13, 4.5), 3),
        (usage(13, None), 3),
        (usage(0, 0), 3),
        (usage(None, 44), 44),
        (usage("13", 44), 44),
        (usage(True, 44), 44),
        (usage(0, 44), 44),
    ],
)
def test_what_is_no_report_is_counted(told: object, output: int, qwen: Vocabulary) -> None:
    """Nothing is free by accident: half a usage, or one of zeros, is none. An output that was told is kept."""
    meter = ResponsesMeter()
    meter.receive(event(text("Hello!")) + event(ended(usage=told)))
    settled = meter.finish()
    assert (settled.usage, settled.is_error) == (None, False)
    assert meter.delivered().output_tokens(qwen) == output


def test_a_report_of_no_output_beside_text_is_none() -> None:
    """The prompt alone is not what was delivered."""
    meter = ResponsesMeter()
    meter.receive(event(text("Hello!")) + event(ended(usage=usage(13, 0))))
    assert meter.finish().usage is None
    for output, expected in ((0, Usage(13, 0)), (None, None)):
        assert relay(ResponsesMeter(), [event(ended(usage=usage(13, output)))])[1].usage == expected


def test_what_can_not_be_true_is_left_for_the_judge() -> None:
    """Negative and oversized parts are clamped and marked by `billing.usage.provable`."""
    told = usage(-3, 44, input_tokens_details={"cached_tokens": 99}, output_tokens_details={"reasoning_tokens": -1})
    assert relay(ResponsesMeter(), [event(ended(usage=told))])[1].usage == Usage(-3, 44, 99, -1)


def test_images_and_audio_are_parts_of_the_prompt() -> None:
    """Their counts stand beside the cached one."""
    details = {"cached_tokens": 2, "image_tokens": 6, "audio_tokens": 3}
    told = usage(13, 44, input_tokens_details=details)
    assert relay(ResponsesMeter(), [event(ended(usage=told))])[1].usage == Usage(13, 44, 2, 0, 6, 3)


@pytest.mark.parametrize("details", [None, [], {"cached_tokens": None}, {"cached_tokens": "11"}])
def test_details_of_a_wrong_type_are_none(details: object) -> None:
    """A part that was not told is no part."""
    told = usage(input_tokens_details=details, output_tokens_details=details)
    assert relay(ResponsesMeter(), [event(ended(usage=told))])[1].usage == Usage(13, 44)


def test_timings_stand_in_for_a_missing_usage() -> None:
    """llama.cpp writes them beside the response."""
    told = {**ended(), "timings": {"cache_n": 11, "prompt_n": 2, "predicted_n": 44}}
    assert relay(ResponsesMeter(), [event(told)])[1].usage == Usage(13, 44, 11)


def test_timings_of_the_last_delta_meter_a_cut_stream_exactly() -> None:
    """If the client asks llama.cpp for them (measured); older ones, or those of the prompt alone, do not count."""
    timings = {"cache_n": 9, "prompt_n": 4, "predicted_n": 2}
    progress = {**CREATED, "timings": {**timings, "predicted_n": 0}}
    meter = ResponsesMeter()
    meter.receive(event(progress) + event(text("Hello", timings={**timings, "predicted_n": 1})))
    assert meter.known_usage() == Usage(13, 1, 9)
    meter.receive(event(text("!", timings=timings)))
    assert meter.known_usage() == Usage(13, 2, 9)
    meter.receive(event(text(" This")))
    assert meter.known_usage() is None
    settled = relay(meter, [event(text(" is", timings=timings))])[1]
    assert (settled.usage, settled.is_error) == (Usage(13, 2, 9), True)


@pytest.mark.parametrize("name", [f"{LLAMA}/responses_stream", f"{VLLM}/responses_stream"])
def test_a_stream_without_its_usage_counts_what_its_server_counted(name: str, qwen: Vocabulary) -> None:
    """44 tokens of which 14 are reasoning; three are invisible."""
    data = body(name).replace(b'"usage":{', b'"abusage":{').replace(b'"timings":{', b'"other":{')
    meter = ResponsesMeter()
    passed, settled = relay(meter, [data])
    assert (passed + settled.raw, settled.usage, settled.is_error) == (data, None, False)
    tally = meter.delivered()
    assert (tally.output_tokens(qwen), tally.reasoning_tokens(qwen)) == (44, 14)


@pytest.mark.parametrize("name", RESPONSES_STREAMS)
def test_a_cut_stream_is_counted_to_its_last_delta(name: str, qwen: Vocabulary) -> None:
    """llama.cpp sends one token with each: the count grows by one, and by the end of the reasoning."""
    meter = ResponsesMeter()
    counted, deltas = [0], 0
    for part in body(name).split(b"\n\n")[:-2]:
        meter.receive(part + b"\n\n")
        deltas += part.startswith((b"event: response.output_text.delta", b"event: response.reasoning_text.delta"))
        counted.append(meter.delivered().output_tokens(qwen))
    assert counted == sorted(counted)
    if name == f"{LLAMA}/responses_stream":
        assert counted[-1] == deltas + 2 == 43
    assert meter.known_usage() is None


def test_tool_calls_count_their_names_and_arguments(qwen: Vocabulary) -> None:
    """53 by the server; what no delta shows of the arguments' markup is not counted."""
    meter = ResponsesMeter()
    meter.receive(body(f"{TOOLS}/responses_tool_call_stream").rpartition(b"event: response.completed")[0])
    assert meter.delivered().output_tokens(qwen) == 14 + 2 + 19


def test_every_kind_of_generated_delta_counts_and_no_other(qwen: Vocabulary) -> None:
    """Sound, annotations and what a tool answered were not generated as text."""
    meter = ResponsesMeter()
    generated = (
        "response.output_text.delta",
        "response.refusal.delta",
        "response.reasoning_text.delta",
        "response.reasoning_summary_text.delta",
        "response.function_call_arguments.delta",
        "response.custom_tool_call_input.delta",
        "response.mcp_call_arguments.delta",
        "response.code_interpreter_call_code.delta",
        "response.shell_call_command.delta",
    )
    for kind in generated:
        before = meter.delivered().output_tokens(qwen)
        meter.receive(event(text(" tiny", kind)))
        assert meter.delivered().output_tokens(qwen) > before, kind
    counted = meter.delivered().output_tokens(qwen)
    for kind in ("response.audio.delta", "response.shell_call_output_content.delta", "response.new_thing.delta"):
        meter.receive(event(text(" tiny", kind)))
    meter.receive(event({"type": "response.output_text.delta", "delta": {"not": "text"}}))
    assert meter.delivered().output_tokens(qwen) == counted


def test_an_answer_that_comes_with_its_terminal_event_only_is_counted_from_there(qwen: Vocabulary) -> None:
    """A server that streams no deltas."""
    output = [
        {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "The user"}]},
        {"type": "message", "content": [{"type": "output_text", "text": "Hello!"}]},
        {"type": "function_call", "name": "get_forecast", "arguments": '{"days":7}'},
    ]
    streamed, whole = ResponsesMeter(), json.dumps({"status": "completed", "output": output}).encode()
    streamed.receive(event(ended(output=output)))
    assert responses.settle(whole).usage is None
    for tally in (streamed.delivered(), responses.delivered(whole)):
        assert (tally.output_tokens(qwen), tally.reasoning_tokens(qwen)) == (2 + 2 + 2 + 19 + 1, 2)


def test_the_summary_of_reasoning_counts_where_it_is_all_that_is_shown(qwen: Vocabulary) -> None:
    """Ollama shows the reasoning itself under that name."""
    summary = [{"type": "summary_text", "text": "The user"}]
    for content in ([], [{"type": "reasoning_text", "text": "The user"}]):
        item = {"type": "reasoning", "summary": summary, "content": content}
        whole = json.dumps({"status": "incomplete", "output": [item]}).encode()
        assert responses.delivered(whole).reasoning_tokens(qwen) == 2


def test_an_end_token_is_counted_where_the_model_ended_by_itself(qwen: Vocabulary) -> None:
    """Not where a limit did; and only calls have a name that the model wrote."""
    for status, tokens in (("completed", 3), ("incomplete", 2)):
        meter = ResponsesMeter()
        item = {"type": "response.output_item.added", "item": {"type": "message", "name": "Hello there"}}
        meter.receive(event(item) + event(text("Hello!")) + event(ended(status)))
        assert meter.delivered().output_tokens(qwen) == tokens


def test_a_stop_text_may_have_ended_an_answer_so_no_end_token_is_counted(qwen: Vocabulary) -> None:
    """llama.cpp takes `stop` on this path, too."""
    meter = ResponsesMeter(has_stop_texts=True)
    meter.receive(event(text("Hello!")) + event(ended()))
    assert meter.delivered().output_tokens(qwen) == 2


@pytest.mark.parametrize(
    "error",
    [
        event({"type": "error", "code": "server_error", "message": "out of memory", "param": None}),
        event({"error": {"code": 500, "message": "out of memory"}}),
        event({"code": 500, "message": "out of memory", "type": "server_error"}, "error"),
    ],
)
def test_an_error_inside_a_stream_passes_at_once_and_is_known(error: bytes) -> None:
    """In any of the three ways in which servers say it."""
    meter = ResponsesMeter()
    assert meter.receive(event(text("Hello!")) + error) == event(text("Hello!")) + error
    assert not meter.is_complete
    meter.receive(event(text("!")) + event(ended(usage=usage())))
    assert meter.finish()[:3:2] == (Usage(13, 44), True)


def test_a_stream_that_ends_without_its_terminal_event_broke_off(qwen: Vocabulary) -> None:
    """What was delivered is billed, as an upstream's error."""
    meter = ResponsesMeter()
    meter.receive(event(CREATED) + event(text("Hello!")))
    settled = meter.finish()
    assert (settled.usage, settled.raw, settled.is_error) == (None, b"", True)
    assert meter.delivered().output_tokens(qwen) == 2


def test_a_terminal_event_counts_though_the_end_cut_off_its_empty_line() -> None:
    """There are clients that read it."""
    data = event(text("Hello!")) + event(ended(usage=usage()))
    meter = ResponsesMeter()
    passed, settled = relay(meter, [data[:-2]])
    assert (passed + settled.raw, settled.usage, settled.is_error) == (data[:-2], Usage(13, 44), False)


def test_half_an_event_at_the_end_passes_and_is_no_report() -> None:
    """Its text can not be read, so it was not delivered to anyone who reads events."""
    data = event(text("Hello!")) + event(ended(usage=usage()))[:-20]
    passed, settled = relay(ResponsesMeter(), [data])
    assert (passed + settled.raw, settled.usage, settled.is_error) == (data, None, True)


def test_half_an_event_behind_the_end_is_held() -> None:
    """In the same read."""
    end = event(ended(usage=usage()))
    assert relay(ResponsesMeter(), [end + b": la"])[1].raw == end + b": la"


def test_done_ends_a_stream_too_and_what_follows_the_end_is_held() -> None:
    """Some servers write it behind the terminal event, some instead."""
    end, done = event(ended(usage=usage())), b"data: [DONE]\n\n"
    meter = ResponsesMeter()
    assert meter.receive(end + done) == b""
    assert meter.receive(b": late\n\n") == b""
    assert meter.finish().raw == end + done + b": late\n\n"
    meter.receive(b": later\n\n")
    assert meter.finish().raw == b": later\n\n"
    assert relay(ResponsesMeter(), [event(text("a")) + done])[1].raw == done


def test_unknown_events_comments_and_garbage_pass_unchanged() -> None:
    """A meter is no judge of what an upstream may say."""
    data = b": ping\n\n" + event({"type": "response.new_thing", "response": {"a": 1}}) + b"event: error_free\ndata\n\n"
    data += b'data: {"response": [1, "error"}\n\n' + b'data: ["response", "error"]\n\n' + b"retry: 3\nid: 4\n\n"
    meter = ResponsesMeter()
    assert meter.receive(data) == data
    assert not meter.is_complete


@pytest.mark.parametrize("whole", [b"", b"null", b"[]", b"not json", b'{"usage":[]}', b'{"usage":null}'])
def test_a_whole_answer_of_another_kind_has_no_usage(whole: bytes) -> None:
    """It passes as it is, and nothing is raised."""
    settled = responses.settle(whole)
    assert (settled.usage, settled.raw, settled.reported) == (None, whole, None)
    assert responses.delivered(whole).is_empty


def test_a_whole_answer_may_be_a_failure() -> None:
    """Both ways of saying it."""
    assert responses.settle(b'{"status":"failed","output":[]}').is_error
    assert responses.settle(b'{"error":{"message":"no"}}').is_error
    assert not responses.settle(b'{"status":"completed","error":null}').is_error
