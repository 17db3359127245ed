"""Gathered Responses and Messages where no real server leads: errors, broken streams, foreign bytes, any cut."""

import json
from typing import Any

import pytest

from billing.usage import Usage
from proxy.meter import choose, gathered_typed
from proxy.meter.endpoints import MESSAGES, RESPONSES
from proxy.meter.framing import StreamError
from proxy.meter.gathered import BROKEN
from proxy.meter.gathered_typed import MessagesGatherer, ResponsesGatherer, TypedGatherer
from proxy.meter.steps import Settle

USAGE = {"input_tokens": 3, "output_tokens": 2, "total_tokens": 5, "input_tokens_details": {"cached_tokens": 1}}


def event(kind: str, **fields: object) -> bytes:
    """One event as llama.cpp writes it."""
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n".encode()


def response(**fields: object) -> bytes:
    """The terminal event of a response of one word."""
    item = {"type": "message", "status": "completed", "id": "i", "content": [{"text": "Hi"}], "role": "assistant"}
    whole = {"id": "r", "object": "response", "created_at": 7, "status": "completed", "model": "m", "output": [item]}
    return event("response.completed", response={**whole, "usage": USAGE, **fields})


def block(index: int, start: dict[str, Any], *deltas: dict[str, str]) -> bytes:
    """A block's events, whose end says nothing."""
    parts = (event("content_block_delta", index=index, delta=delta) for delta in deltas)
    return event("content_block_start", index=index, content_block=start) + b"".join(parts)


def message(*blocks: bytes) -> bytes:
    """A message's events."""
    usage = {"cache_read_input_tokens": 1, "input_tokens": 2, "output_tokens": 0}
    frame: dict[str, Any] = {"id": "c", "content": [], "stop_reason": None, "stop_sequence": None, "usage": usage}
    ending = event(
        "message_delta", delta={"stop_reason": "end_turn", "stop_sequence": None}, usage={"output_tokens": 2}
    )
    return event("message_start", message=frame) + b"".join(blocks) + ending + event("message_stop")


def gather(endpoint: str, *reads: bytes) -> Settle:
    """The end of a stream; nothing leaves before it."""
    meter = choose.stream_meter(choose.Plan(endpoint, gathers=True), b"text/event-stream")
    assert b"".join(meter.receive(data) for data in reads) == b""
    return meter.finish()


TEXT = block(0, {"type": "text", "text": ""}, {"text": "H"}, {"text": "i"})
DELTA = event("response.output_text.delta", delta="Hi", item_id="i")


@pytest.mark.parametrize(("endpoint", "stream"), [(RESPONSES, DELTA + response()), (MESSAGES, message(TEXT))])
def test_any_cut_gives_the_same_answer(endpoint: str, stream: bytes) -> None:
    known = gather(endpoint, stream)
    assert known.usage == Usage(3, 2, 1)
    assert not known.is_error
    assert known.reported == json.loads(known.raw)["usage"]
    for at in range(len(stream)):
        assert gather(endpoint, stream[:at], stream[at:]) == known
    assert gather(endpoint, *(stream[at : at + 1] for at in range(len(stream)))) == known


def test_fields_that_are_not_known_stay() -> None:
    answer = json.loads(gather(RESPONSES, response(error=None, extra=[1])).raw)
    assert (answer["extra"], answer["error"], answer["completed_at"]) == ([1], None, 7)
    assert list(answer["output"][0]) == ["content", "id", "role", "status", "type"]


@pytest.mark.parametrize(
    ("text", "given"),
    [('{"a":"\u00e9"}', {"a": "\u00e9"}), ('{"a":', {}), ("", {}), ("[NaN]", {}), ("1e999", {}), ("[" * 10**5, {})],
)
def test_arguments_that_are_no_json_are_none(text: str, given: dict[str, str]) -> None:
    call = block(0, {"type": "tool_use", "id": "t", "name": "f"}, *({"partial_json": part} for part in text))
    answer = json.loads(gather(MESSAGES, message(call)).raw)
    assert answer["content"] == [{"type": "tool_use", "id": "t", "name": "f", "input": given}]


def test_arguments_are_written_as_the_server_does() -> None:
    """nlohmann's JSON: exponents of two digits with their sign, the last of two equal names."""
    given = '{ "b": 1e22, "a": [1E-7, 18446744073709551615, -0.0], "b": "\\u00e9\\/" }'
    call = block(0, {"type": "tool_use", "id": "t", "name": "f"}, *({"partial_json": part} for part in given))
    written = '"input":{"b":"\u00e9/","a":[1e-07,18446744073709551615,-0.0]}'
    assert written.encode() in gather(MESSAGES, message(call)).raw
    numbers = block(0, {"type": "tool_use", "id": "t", "name": "f"}, {"partial_json": "[1e22]"})
    assert b'"input":[1e+22]' in gather(MESSAGES, message(numbers)).raw


def test_blocks_are_told_apart_by_what_they_are() -> None:
    """llama.cpp numbers a text after a call as it numbered the call, and may begin a block twice (read in source)."""
    call = block(0, {"type": "tool_use", "id": "t", "name": "f"}, {"partial_json": '{"a":'})
    again = block(1, {"type": "tool_use", "id": "u", "name": "g"}, {"partial_json": "{}"})
    rest = block(0, {"type": "tool_use", "id": "t", "name": "f"}, {"partial_json": "1}"})
    text = block(0, {"type": "text", "text": ""}, {"text": "Hi"}) + block(
        0, {"type": "text", "text": ""}, {"text": "!"}
    )
    thought = block(0, {"type": "thinking", "thinking": ""}, {"thinking": "so"}, {"signature": ""})
    answer = json.loads(gather(MESSAGES, message(call, text, again, rest, thought)).raw)
    assert answer["content"] == [
        {"type": "thinking", "thinking": "so", "signature": ""},
        {"type": "text", "text": "Hi!"},
        {"type": "tool_use", "id": "t", "name": "f", "input": {"a": 1}},
        {"type": "tool_use", "id": "u", "name": "g", "input": {}},
    ]


@pytest.mark.parametrize("endpoint", [RESPONSES, MESSAGES])
@pytest.mark.parametrize(
    "failure",
    [
        b'event: error\ndata: {"code":500,"message":"no","type":"server_error"}\n\n',
        b'data: {"error":{"code":500,"message":"no","type":"server_error"}}\n\n',
    ],
)
def test_an_error_within_is_the_answer(endpoint: str, failure: bytes) -> None:
    """As the server writes errors before a stream, in the same shape on all its paths."""
    begun = DELTA if endpoint == RESPONSES else message(TEXT).partition(b"event: message_delta")[0]
    settled = gather(endpoint, begun + failure)
    assert settled.is_error
    assert json.loads(settled.raw) == {"error": {"code": 500, "message": "no", "type": "server_error"}}


@pytest.mark.parametrize(
    ("endpoint", "stream"),
    [
        (RESPONSES, b""),
        (RESPONSES, DELTA),
        (RESPONSES, event("response.completed", response=[])),
        (RESPONSES, event("response.failed", response={"status": "failed"})),
        (RESPONSES, response(extra=0).replace(b'"extra": 0', b'"extra": ' + b"[" * 300 + b"]" * 300)),
        (MESSAGES, b""),
        (MESSAGES, TEXT + event("message_stop")),
        (MESSAGES, message(TEXT).partition(b"event: message_delta")[0]),
        (MESSAGES, message(TEXT).replace(b'"id": "c"', b'"id": ' + b"[" * 300 + b"]" * 300)),
    ],
)
def test_what_can_not_be_put_together_is_an_error(endpoint: str, stream: bytes) -> None:
    settled = gather(endpoint, stream)
    assert (settled.raw, settled.is_error) == (BROKEN, True)


def test_foreign_fields_break_nothing() -> None:
    """An index that is none, a block without a start; what was billed is in the answer all the same."""
    odd = [event("content_block_delta", index=9, delta={"text": "x"}), event("content_block_start", index="a")]
    answer = json.loads(gather(MESSAGES, message(*odd, TEXT)).raw)
    assert [part["text"] for part in answer["content"]] == ["xHi"]


@pytest.mark.parametrize("kind", [ResponsesGatherer, MessagesGatherer])
def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch, kind: type[TypedGatherer]) -> None:
    monkeypatch.setattr(gathered_typed, "RESPONSE_BODY_BYTES_MAX", 2**22)
    gatherer = kind()
    filler = b": " + b"x" * 2**20 + b"\n\n"
    with pytest.raises(StreamError):
        for _ in range(2**22 // len(filler) + 2):
            gatherer.receive(filler)


def test_what_was_generated_is_known_before_the_end() -> None:
    """For a key that drains, and for what the server did not report; the client has seen nothing of the prompt."""
    gatherer = MessagesGatherer()
    gatherer.receive(message(TEXT).partition(b"event: message_delta")[0])
    assert (gatherer.delivered().deltas, gatherer.known_usage(), gatherer.known_prompt()) == (2, None, None)
    assert not gatherer.is_complete
