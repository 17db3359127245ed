"""The meters of responses, messages and Ollama, at any cut of any stream: the same bytes, the same usage.

Known answers anchor them: the captures of real servers, whose counts are written down by hand.
"""

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from billing.tokens.counting import OutputTally
from billing.usage import Usage
from proxy.meter import endpoints
from proxy.meter.choose import Meter, Plan, stream_meter, whole_reader
from proxy.meter.framing import StreamError
from proxy.meter.messages import MessagesMeter
from proxy.meter.ndjson import LineFramer
from proxy.meter.ollama import OllamaMeter
from proxy.meter.responses import ResponsesMeter
from tests.unit.meter_protocols.streams import (
    MESSAGES_STREAMS,
    RESPONSES_STREAMS,
    body,
    chat_line,
    cost_of,
    cut,
    event,
    last_line,
    line,
    relay,
    with_cost_in,
)

COUNTS = {"prompt_eval_count": 13, "prompt_eval_cached_count": 11, "eval_count": 44}
LINES = b"".join(line(chat_line(text)) for text in ("Hello", "!", " \u2028é", "")) + line(last_line(**COUNTS))
LINE_ENDS = {"lf": b"\n", "crlf": b"\r\n", "cr": b"\r"}
CASES = (
    *((ResponsesMeter, name, usage) for name, usage in RESPONSES_STREAMS.items()),
    *((MessagesMeter, name, usage) for name, usage in MESSAGES_STREAMS.items()),
)
places = st.lists(st.integers(0, 20_000), max_size=40)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 10**12) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


class Told(OutputTally):
    """What a tally was given, as it can be compared."""

    @staticmethod
    def of(meter: Meter) -> list[tuple[str, ...]]:
        """The texts of each choice."""
        choices = meter.delivered()._choices.values()
        return [tuple("".join(part._pieces) for part in choice.parts) for choice in choices]


@pytest.mark.parametrize("line_end", LINE_ENDS)
@pytest.mark.parametrize(("make", "name", "usage"), CASES, ids=[name for _, name, _ in CASES])
@settings(max_examples=40)
@given(places=places, has_bom=st.booleans(), has_comments=st.booleans())
def test_a_captured_stream_is_relayed_the_same_at_any_cut(
    make: Callable[..., Meter],
    name: str,
    usage: Usage,
    line_end: str,
    places: list[int],
    has_bom: bool,
    has_comments: bool,
) -> None:
    """With any line end, byte order mark and comments: every byte once and in order, the end held, the usage read."""
    data = body(name)
    expected = with_cost_in(data, usage)
    if has_comments:
        data, expected = (text.replace(b"\n\n", b"\n\n: ping\n\n") for text in (data, expected))
    data, expected = (text.replace(b"\n", LINE_ENDS[line_end]) for text in (data, expected))
    mark = b"\xef\xbb\xbf" if has_bom else b""
    meter = make(cost_of=cost_of)
    passed, settled = relay(meter, cut(mark + data, places))
    assert passed + settled.raw == mark + expected
    assert (settled.usage, settled.is_error, meter.is_complete) == (usage, False, True)
    terminal = b"message_stop" if make is MessagesMeter else b"response.completed"
    assert terminal not in passed


@pytest.mark.parametrize(("make", "name", "usage"), CASES, ids=[name for _, name, _ in CASES])
@settings(max_examples=60)
@given(places=places, end=st.integers(0, 20_000))
def test_a_stream_that_is_cut_anywhere_delivers_what_was_passed_on(
    make: Callable[..., Meter], name: str, usage: Usage, places: list[int], end: int
) -> None:
    """The text for counting is that of the whole events that left, whatever the reads were."""
    data = body(name)[:end]
    meter, at_once = make(), make()
    passed = b"".join([meter.receive(read) for read in cut(data, places)]) if data else b""
    whole_events = data[: data.rfind(b"\n\n") + 2] if b"\n\n" in data else b""
    at_once.receive(whole_events)
    assert passed == whole_events[: len(passed)]
    assert Told.of(meter) == Told.of(at_once)
    assert meter.known_usage() in (None, usage)
    assert passed + meter.finish().raw == data


@settings(max_examples=60)
@given(places=st.lists(st.integers(0, len(LINES)), max_size=30), ending=st.sampled_from((b"\n", b"\r\n", b"")))
def test_lines_are_relayed_the_same_at_any_cut(places: list[int], ending: bytes) -> None:
    """Nothing is added, and the last line is held even where it does not end."""
    data = LINES[:-1].replace(b"\n", b"\r\n" if ending == b"\r\n" else b"\n") + ending
    meter = OllamaMeter()
    passed, settled = relay(meter, cut(data, places))
    assert passed + settled.raw == data
    assert (settled.usage, settled.is_error) == (Usage(13, 44, 11), False)
    assert settled.raw.startswith(b'{"model":"qwen3.5","created_at"')
    assert settled.raw.rstrip() == line(last_line(**COUNTS)).rstrip()


@settings(max_examples=60)
@given(st.binary(max_size=60), st.lists(st.integers(0, 60), max_size=8))
def test_lines_joined_are_the_bytes(data: bytes, places: list[int]) -> None:
    """And each line has one end, at its end."""
    framer = LineFramer()
    lines = [part for read in cut(data, places) if data for part in framer.feed(read)]
    assert all(part.endswith(b"\n") and part.count(b"\n") == 1 for part in lines)
    assert b"".join(lines) + framer.rest() == data


@settings(max_examples=60)
@given(
    first=st.lists(st.integers(-2, 300) | st.none(), min_size=3, max_size=3),
    second=st.lists(st.integers(-2, 300) | st.none(), min_size=3, max_size=3),
    output=st.integers(1, 300),
)
def test_two_reports_are_merged_as_the_sdk_merges_them(
    first: list[int | None], second: list[int | None], output: int
) -> None:
    """Field by field, the later one wins; but a prompt of nothing is none."""
    names = ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
    started = {"type": "message_start", "message": {"usage": dict(zip(names, first, strict=True))}}
    report = {"type": "message_delta", "usage": {**dict(zip(names, second, strict=True)), "output_tokens": output}}
    stop = {"type": "message_stop"}
    settled = relay(MessagesMeter(), [event(started), event(report), event(stop)])[1]
    told = first if any(first) else [None] * 3
    if any(second):
        told = [later if later is not None else earlier for earlier, later in zip(told, second, strict=True)]
    prompt = sum(max(0, part) for part in told if part is not None)
    if not prompt:
        assert settled.usage is None
    else:
        assert settled.usage is not None
        assert settled.usage[:2] == (prompt, output)
        has_negative = any(part is not None and part < 0 for part in told)
        assert (settled.usage.cached_input_tokens < 0) is has_negative
        assert has_negative or settled.usage.cached_input_tokens == (told[1] or 0)


STREAMS = (
    (endpoints.RESPONSES, b"text/event-stream"),
    (endpoints.MESSAGES, b"text/event-stream"),
    (endpoints.OLLAMA_CHAT, b"application/x-ndjson"),
)
words = st.sampled_from(
    (
        *(b'"response"', b"response.completed", b'"usage":', b"message_stop", b"message_delta", b"error", b"[DONE]"),
        *(b'"done":true', b"event: ", b"data: ", b'{"type":"', b'"}', b"\n", b"\n\n", b"\r\n", b"\r", b"{", b"}"),
    )
)
noise = st.lists(words | st.binary(max_size=6), max_size=30).map(b"".join)


@pytest.mark.parametrize(("endpoint", "content_type"), STREAMS)
@settings(max_examples=80)
@given(data=noise, places=places)
def test_garbage_passes_unchanged_and_raises_nothing(
    endpoint: str, content_type: bytes, data: bytes, places: list[int]
) -> None:
    """A meter survives any upstream, and drops no byte of it."""
    meter = stream_meter(Plan(endpoint, cost_of=cost_of), content_type)
    passed, settled = relay(meter, cut(data, places) if data else [])
    assert passed + settled.raw == data
    assert meter.delivered().is_empty in (True, False)


@settings(max_examples=80)
@given(
    endpoint=st.sampled_from(STREAMS),
    kind=st.sampled_from(("response.completed", "response.output_text.delta", "message_start", "message_delta", "x")),
    values=st.dictionaries(
        st.sampled_from(
            ("response", "message", "usage", "delta", "item", "content_block", "done", "timings", "error", "eval_count")
        ),
        json_values,
        max_size=5,
    ),
)
def test_events_of_any_content_pass_but_for_a_cost(
    endpoint: tuple[str, bytes], kind: str, values: dict[str, Any]
) -> None:
    """Whatever is in the fields that are read: nothing is raised, nothing is lost."""
    path, content_type = endpoint
    value = {"type": kind, **values}
    data = line(value) if content_type.endswith(b"ndjson") else event(value)
    passed, settled = relay(stream_meter(Plan(path, cost_of=lambda _: "7"), content_type), [data])
    assert (passed + settled.raw).replace(b',"cost":7', b"").replace(b'"cost":7', b"") == data
    assert settled.usage is None or settled.usage.input_tokens


@settings(max_examples=80)
@given(endpoint=st.sampled_from(sorted(endpoints.ALL)), value=json_values, name=st.sampled_from(("usage", "output")))
def test_whole_answers_of_any_content_are_read(endpoint: str, value: object, name: str) -> None:
    """And come back as they were."""
    reader = whole_reader(endpoint)
    for raw in (json.dumps(value).encode(), json.dumps({name: value, "content": value, "message": value}).encode()):
        assert reader.settle(raw).raw == raw
        reader.delivered(raw)


@pytest.mark.parametrize(("endpoint", "content_type"), STREAMS)
def test_an_event_without_end_is_refused(endpoint: str, content_type: bytes) -> None:
    """Memory is bounded by the longest event."""
    meter = stream_meter(Plan(endpoint), content_type)
    meter.receive(b"data: " if content_type.startswith(b"text") else b"{")
    with pytest.raises(StreamError):
        for _ in range(17):
            meter.receive(b"x" * 2**20)


@pytest.mark.parametrize(("endpoint", "content_type"), STREAMS)
def test_a_long_stream_is_kept_as_text_only(endpoint: str, content_type: bytes) -> None:
    """A megabyte of events leaves some ten thousand characters and less than one fold of raw bytes."""
    meter = stream_meter(Plan(endpoint), content_type)
    if content_type.startswith(b"text"):
        delta = {"type": "response.output_text.delta", "delta": "ab", "padding": "x" * 100}
        read = event(delta if endpoint == endpoints.RESPONSES else {**delta, "delta": {"text": "ab"}})
    else:
        read = line({**chat_line("ab"), "padding": "x" * 100})
    for _ in range(6_000):
        assert meter.receive(read) == read
    assert meter._kept_bytes <= 64 * 1024  # type: ignore[attr-defined]
    assert sum(len(text) for texts in Told.of(meter) for text in texts) == 12_000
