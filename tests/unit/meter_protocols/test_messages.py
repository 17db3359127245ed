"""`/v1/messages`: two reports become one prompt, bytes untouched, cut streams counted."""

import json
from typing import Any

import pytest

from billing.tokens.vocabulary import Vocabulary
from billing.usage import Anomaly, Usage, provable
from proxy.meter import messages
from proxy.meter.messages import MessagesMeter
from tests.unit.meter_protocols.streams import (
    LLAMA,
    MESSAGES_STREAMS,
    TOOLS,
    VLLM,
    body,
    cost_of,
    event,
    relay,
    with_cost_in,
)

STOP = event({"type": "message_stop"}, "message_stop")


def start(**usage: Any) -> bytes:
    """The first event."""
    message = {"id": "msg_1", "type": "message", "role": "assistant", "content": [], "usage": usage}
    return event({"type": "message_start", "message": message}, "message_start")


def delta(text: str, kind: str = "text", **more: Any) -> bytes:
    """A delta of one block."""
    name = {"text": "text", "thinking": "thinking", "input_json": "partial_json", "signature": "signature"}[kind]
    value = {"type": "content_block_delta", "index": 0, "delta": {"type": f"{kind}_delta", name: text}, **more}
    return event(value, "content_block_delta")


def end(stop_reason: str = "end_turn", stop_sequence: str | None = None, **usage: Any) -> bytes:
    """The event that reports."""
    value = {
        "type": "message_delta",
        "delta": {"stop_reason": stop_reason, "stop_sequence": stop_sequence},
        "usage": usage,
    }
    return event(value, "message_delta")


@pytest.mark.parametrize(("name", "expected"), MESSAGES_STREAMS.items())
def test_a_captured_stream_reports_what_its_server_counted(name: str, expected: Usage) -> None:
    """310 tokens of which 256 were cached on vLLM, whose first report says 310 and whose second 54 + 256."""
    data = body(name)
    passed, settled = relay(MessagesMeter(cost_of=cost_of), [data])
    assert settled.usage == expected
    assert not settled.is_error
    assert passed + settled.raw == with_cost_in(data, expected, only_after=b"event: message_delta")


@pytest.mark.parametrize("name", MESSAGES_STREAMS)
def test_the_terminal_event_is_held_and_nothing_else(name: str) -> None:
    """I1: the usage leaves before the record, the end does not."""
    passed, settled = relay(MessagesMeter(), [body(name)])
    assert settled.raw.rstrip() == STOP.rstrip()
    assert passed + settled.raw == body(name)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (f"{LLAMA}/messages", Usage(13, 44, 11)),
        (f"{LLAMA}/messages_length", Usage(13, 5, 11)),
        (f"{TOOLS}/messages_tool_call", Usage(267, 53, 263)),
        (f"{VLLM}/messages", Usage(13, 44)),
        (f"{VLLM}/messages_length", Usage(13, 5)),
    ],
)
def test_a_captured_answer_that_is_not_streamed_reports_the_same(name: str, expected: Usage) -> None:
    """`reported` is the object that the cost is added to."""
    settled = messages.settle(body(name))
    assert (settled.usage, settled.raw, settled.is_error) == (expected, body(name), False)
    assert settled.reported == json.loads(body(name))["usage"]


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ({"input_tokens": 310}, {"input_tokens": 54, "cache_read_input_tokens": 256}, Usage(310, 5, 256)),
        ({"input_tokens": 2, "cache_read_input_tokens": 11}, {}, Usage(13, 5, 11)),
        ({"input_tokens": 13}, {"input_tokens": 13}, Usage(13, 5)),
        ({"input_tokens": 1, "cache_creation_input_tokens": 4, "cache_read_input_tokens": 8}, {}, Usage(13, 5, 8)),
        ({"input_tokens": 13}, {"input_tokens": 0, "cache_read_input_tokens": 0}, Usage(13, 5)),
        ({"input_tokens": 0}, {"input_tokens": 13}, Usage(13, 5)),
        ({}, {"input_tokens": 13}, Usage(13, 5)),
        ({"input_tokens": 13}, {"input_tokens": None, "cache_read_input_tokens": None}, Usage(13, 5)),
        ({"input_tokens": 13, "output_tokens": 9}, {}, Usage(13, 5)),
        ({"input_tokens": 0, "cache_read_input_tokens": 13}, {}, Usage(13, 5, 13)),
    ],
)
def test_the_later_report_corrects_the_former_field_by_field(
    first: dict[str, Any], second: dict[str, Any], expected: Usage
) -> None:
    """As the official SDK merges them; a prompt of nothing is no correction."""
    settled = relay(MessagesMeter(), [start(**{"output_tokens": 0, **first}), end(**second, output_tokens=5), STOP])[1]
    assert settled.usage == expected


def test_running_reports_are_replaced_and_each_is_priced() -> None:
    """The protocol allows several; they are cumulative."""
    meter = MessagesMeter(cost_of=cost_of)
    meter.receive(start(input_tokens=13))
    assert b'"cost":0.000013000002' in meter.receive(end(output_tokens=2))
    assert b'"cost":0.000013000044' in meter.receive(end(output_tokens=44))
    assert meter.known_usage() == Usage(13, 44)


def test_the_first_report_gets_no_cost() -> None:
    """It knows no output."""
    data = start(input_tokens=13, output_tokens=1)
    assert MessagesMeter(cost_of=cost_of).receive(data) == data


def test_reasoning_is_read_where_it_is_told() -> None:
    """Anthropic's own field."""
    details = {"thinking_tokens": 14}
    reads = [start(input_tokens=13), end(output_tokens=44, output_tokens_details=details), STOP]
    assert relay(MessagesMeter(), reads)[1].usage == Usage(13, 44, 0, 14)


def test_a_stream_that_tells_no_prompt_is_billed_the_output_that_it_tells(qwen: Vocabulary) -> None:
    """Ollama's first report is 0 before the prompt was read; the prompt has to be counted, tool markup must not."""
    meter = MessagesMeter(cost_of=cost_of)
    data = (
        start(input_tokens=0, output_tokens=0) + delta("Hello", "thinking") + delta("!") + end(output_tokens=53) + STOP
    )
    passed, settled = relay(meter, [data])
    assert (passed + settled.raw, settled.usage, settled.is_error) == (data, None, False)
    tally = meter.delivered()
    assert (tally.output_tokens(qwen), tally.reasoning_tokens(qwen), tally.is_empty) == (53, 1, False)


@pytest.mark.parametrize("usage", [{}, {"output_tokens": None}, {"output_tokens": "44"}, {"output_tokens": 0}])
def test_an_output_that_is_not_told_is_counted(usage: dict[str, Any], qwen: Vocabulary) -> None:
    """Of zeros beside text nothing is believed."""
    meter = MessagesMeter()
    meter.receive(start(input_tokens=13) + delta("Hello!") + end(**usage) + STOP)
    assert meter.finish().usage is None
    assert meter.delivered().output_tokens(qwen) == 3


def test_a_negative_part_is_marked_and_makes_nothing_cheaper() -> None:
    """310 stays 310, all of it not cached."""
    for part in ("cache_read_input_tokens", "cache_creation_input_tokens"):
        reads = [start(input_tokens=310, **{part: -256}), end(output_tokens=5), STOP]
        told = relay(MessagesMeter(), reads)[1].usage
        assert told is not None
        assert provable(told, None) == (Usage(310, 5), (Anomaly.NEGATIVE,))
    reads = [start(input_tokens=-3, cache_read_input_tokens=10), end(output_tokens=5), STOP]
    told = relay(MessagesMeter(), reads)[1].usage
    assert told is not None
    assert provable(told, None) == (Usage(10, 5), (Anomaly.NEGATIVE,))


def test_the_prompt_is_known_from_the_start_and_the_usage_is_not() -> None:
    """A cut stream's prompt need not be counted."""
    meter = MessagesMeter()
    assert meter.known_prompt() is None
    meter.receive(start(input_tokens=2, cache_read_input_tokens=11, output_tokens=0) + delta("Hello"))
    assert (meter.known_prompt(), meter.known_usage()) == (Usage(13, 0, 11), None)
    meter.receive(end(output_tokens=44))
    assert meter.known_usage() == Usage(13, 44, 11)


@pytest.mark.parametrize("name", [f"{LLAMA}/messages_stream", f"{VLLM}/messages_stream"])
def test_a_stream_without_its_usage_counts_what_its_server_counted(name: str, qwen: Vocabulary) -> None:
    """44 tokens of which 14 are reasoning; three are invisible."""
    data = body(name).replace(b'"usage":{', b'"abusage":{')
    meter = MessagesMeter()
    passed, settled = relay(meter, [data])
    assert (passed + settled.raw, settled.usage, settled.is_error) == (data, None, False)
    tally = meter.delivered()
    assert (tally.output_tokens(qwen), tally.reasoning_tokens(qwen)) == (44, 14)


@pytest.mark.parametrize("name", MESSAGES_STREAMS)
def test_a_cut_stream_is_counted_to_its_last_delta(name: str, qwen: Vocabulary) -> None:
    """llama.cpp sends one token with each: the count grows by one, and by the end of the reasoning."""
    meter = MessagesMeter()
    counted, deltas = [0], 0
    for part in body(name).partition(b"event: message_delta")[0].split(b"\n\n")[:-1]:
        meter.receive(part + b"\n\n")
        deltas += b'"text_delta"' in part or b'"thinking_delta"' in part
        counted.append(meter.delivered().output_tokens(qwen))
    assert counted == sorted(counted)
    if name == f"{LLAMA}/messages_stream":
        assert counted[-1] == deltas + 2 == 43


def test_tool_calls_count_their_names_and_arguments(qwen: Vocabulary) -> None:
    """As a stream and as a whole; 53 by the server, the markup of the arguments is not seen."""
    meter = MessagesMeter()
    meter.receive(body(f"{TOOLS}/messages_tool_call_stream").partition(b"event: message_delta")[0])
    assert meter.delivered().output_tokens(qwen) == 14 + 2 + 19
    whole = body(f"{TOOLS}/messages_tool_call").replace(b'"usage"', b'"abusage"')
    assert messages.delivered(whole).output_tokens(qwen) == 14 + 2 + 19 + 1


def test_text_in_a_blocks_start_counts_and_signatures_do_not(qwen: Vocabulary) -> None:
    """What the official SDK shows of a message, and no more."""
    meter = MessagesMeter()
    block = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": "Hello"}}
    meter.receive(event(block) + delta("!") + delta("c2lnbmF0dXJl", "signature"))
    assert meter.delivered().output_tokens(qwen) == 2


@pytest.mark.parametrize(
    ("ending", "tokens"),
    [
        (end("end_turn"), 3),
        (end("tool_use"), 3),
        (end("max_tokens"), 2),
        (end("stop_sequence", "!"), 2),
        (end("end_turn", "!"), 2),
        (end("refusal"), 2),
    ],
)
def test_an_end_token_is_counted_where_the_model_ended_by_itself(ending: bytes, tokens: int, qwen: Vocabulary) -> None:
    """llama.cpp says `end_turn` of a stop text, too, but names the text."""
    meter = MessagesMeter()
    meter.receive(delta("Hello!") + ending)
    assert meter.delivered().output_tokens(qwen) == tokens


@pytest.mark.parametrize(
    "error",
    [
        event({"type": "error", "error": {"type": "overloaded_error", "message": "later"}}, "error"),
        event({"type": "error", "error": {"type": "overloaded_error", "message": "later"}}),
        event({"code": 500, "message": "out of memory", "type": "server_error"}, "error"),
        b"event:error\rdata:{}\r\r",
    ],
)
def test_an_error_inside_a_stream_passes_at_once_and_is_known(error: bytes) -> None:
    """llama.cpp's has no `error` in its data, only the line says so (read in its source)."""
    meter = MessagesMeter()
    assert (meter.receive(delta("Hello!") + error) + meter.receive(b": ping\n\n")).startswith(delta("Hello!") + error)
    assert not meter.is_complete
    settled = relay(meter, [start(input_tokens=13), end(output_tokens=44), STOP])[1]
    assert (settled.usage, settled.is_error) == (Usage(13, 44), True)


def test_pings_unknown_events_and_texts_about_errors_pass_unchanged() -> None:
    """None of them is an end, an error or a report."""
    data = event({"type": "ping"}, "ping") + b": keep-alive\n\n" + event({"type": "new_thing", "usage": {"x": 1}})
    data += delta("error: message_stop [DONE]") + delta('{"error": "usage"}', "input_json") + delta("error")
    meter = MessagesMeter()
    assert meter.receive(data) == data
    assert (meter.is_complete, meter.known_usage(), meter.known_prompt()) == (False, None, None)
    assert relay(meter, [start(input_tokens=1), end(output_tokens=1), STOP])[1].is_error is False


def test_a_stream_that_ends_without_its_terminal_event_broke_off_unless_it_reported() -> None:
    """A server that leaves out `message_stop` has told all there is."""
    assert relay(MessagesMeter(), [start(input_tokens=13), delta("Hello")])[1].is_error
    settled = relay(MessagesMeter(), [start(input_tokens=13), delta("Hello"), end(output_tokens=2)])[1]
    assert (settled.usage, settled.is_error) == (Usage(13, 2), False)


def test_reads_that_bring_text_are_not_looked_into() -> None:
    """What needs no look is not parsed."""
    for name in MESSAGES_STREAMS:
        deltas = [part for part in body(name).split(b"\n\n") if part.startswith(b"event: content_block")]
        assert len(deltas) > 5
        assert not any(MessagesMeter()._matters(part) for part in deltas)


def test_done_and_what_follows_the_end_is_held() -> None:
    """Not of this protocol, but some servers write it behind any stream."""
    meter = MessagesMeter()
    meter.receive(start(input_tokens=13) + end(output_tokens=2))
    assert meter.receive(STOP + b"data: [DONE]\n\n") == b""
    assert meter.receive(b"x") == b""
    assert meter.finish().raw == STOP + b"data: [DONE]\n\nx"


@pytest.mark.parametrize("whole", [b"", b"null", b"[]", b"not json", b'{"usage":[]}', b'{"usage":{}}'])
def test_a_whole_answer_of_another_kind_has_no_usage(whole: bytes) -> None:
    """It passes as it is, and nothing is raised."""
    settled = messages.settle(whole)
    assert (settled.usage, settled.raw, settled.is_error) == (None, whole, False)
    assert messages.delivered(whole).is_empty


def test_a_whole_answer_without_a_prompt_is_billed_the_output_that_it_tells(qwen: Vocabulary) -> None:
    """As a stream is."""
    whole = b'{"content":[{"type":"text","text":"Hello!"}],"usage":{"input_tokens":0,"output_tokens":53}}'
    assert messages.settle(whole).usage is None
    assert messages.delivered(whole).output_tokens(qwen) == 53


def test_a_whole_answer_may_be_an_error() -> None:
    """In a 200, too."""
    assert messages.settle(b'{"type":"error","message":"no"}').is_error
    assert messages.settle(b'{"type":"error","error":{"type":"api_error","message":"no"}}').is_error


def test_text_behind_the_end_is_not_free(qwen: Vocabulary) -> None:
    """Found by fuzzing: clients read on after `message_stop`, so what stands there in the same read is delivered."""
    stop = event({"type": "message_stop"}, "message_stop")
    delta = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hello there"}}
    meter = MessagesMeter()
    meter.receive(stop + event(delta, "content_block_delta"))
    settled = meter.finish()
    assert settled.usage is None
    assert b"Hello there" in settled.raw
    assert meter.delivered().output_tokens(qwen) == 2


def test_the_input_of_a_tool_may_be_nested_deeper_than_it_can_be_written_again(qwen: Vocabulary) -> None:
    """Found by fuzzing: orjson reads it and does not write it, and the answer was neither delivered nor billed."""
    for depth in (200, 300, 900):
        given: Any = {}
        for _ in range(depth):
            given = {"a": [given]} if depth < 900 else [given]
        block = {"type": "tool_use", "id": "t", "name": "f", "input": {"a": given}}
        message = {"type": "message", "content": [block], "stop_reason": "tool_use"}
        whole = json.dumps(message | {"usage": {"input_tokens": 13, "output_tokens": 53}}).encode()
        assert messages.settle(whole).usage == Usage(13, 53)
        assert messages.delivered(json.dumps(message).encode()).tool_tokens(qwen) > 20
