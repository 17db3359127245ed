"""Meters at any cut: the bytes are those that came, but for the documented edits, and what was delivered is counted."""

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from billing.tokens.vocabulary import Vocabulary, load
from billing.usage import Usage
from proxy.meter import whole
from proxy.meter.framing import Framer, event_data
from proxy.meter.gathered import Gatherer
from proxy.meter.steps import Outputs
from proxy.meter.stream import StreamMeter
from tests.unit.proxy.meter.streams import (
    DONE,
    LLAMA,
    VLLM,
    body,
    cost_of,
    cut,
    delta,
    dispatched,
    event,
    expected,
    relay,
    report,
    usage,
)

BOM = b"\xef\xbb\xbf"
SOUP = [
    b"data: ",
    b"data:",
    b"data",
    b"event: x",
    b"id",
    b":",
    b": {",
    b"{",
    b'}"',
    b"x",
    b" ",
    "é€😀".encode(),
    b"\xff",
    b"\x85",
]
ENDS = [b"\n", b"\r", b"\r\n", b"\n\n", b"\r\n\r\n", b"\r\r", b"\n\r"]

soups = st.builds(
    lambda mark, parts: mark + b"".join(parts),
    st.sampled_from([b"", BOM]),
    st.lists(st.sampled_from(SOUP + 2 * ENDS) | st.binary(max_size=3).filter(lambda raw: BOM not in raw), max_size=40),
)
places = st.lists(st.integers(0, 4_000), max_size=40)


@pytest.fixture(scope="module")
def qwen() -> Vocabulary:
    """The built-in vocabulary."""
    return load("qwen3.5")


def framed(reads: Sequence[bytes]) -> tuple[list[bytes], bytes]:
    """The events of a stream, and its unfinished rest."""
    framer = Framer()
    events = [one for read in reads for one in framer.feed(read)]
    return events, framer.rest()


@given(soups, places)
@example(b"data: a\r\n\r\ndata: b\r\n\r\n", [9, 10, 11])
@example(b"data: a\r\r\ndata: b\n\r\n\r", [9, 10, 19])
@settings(max_examples=400, deadline=None)
def test_any_cut_of_any_bytes_gives_the_same_events(stream: bytes, cuts: list[int]) -> None:
    """Bytes out are bytes in; a torn CR LF, character, mark or comment changes nothing."""
    at_once, torn, bytewise = (
        framed([stream]),
        framed(cut(stream, cuts)),
        framed([stream[i : i + 1] for i in range(len(stream))]),
    )
    assert at_once == torn == bytewise
    assert b"".join(at_once[0]) + at_once[1] == stream


@given(soups, places)
@settings(max_examples=400, deadline=None)
def test_events_are_those_of_a_reader_by_the_letter_of_the_rules(stream: bytes, cuts: list[int]) -> None:
    """The judge reads character by character; a last line shows it the end of what came before."""
    stream += b":\n"
    events, _ = framed(cut(stream, cuts))
    assert [data for data in map(event_data, events) if data] == dispatched(stream)


CAPTURES = [
    (f"{LLAMA}/chat_stream_include_usage", Outputs(), Usage(13, 44, 9)),
    (f"{LLAMA}/chat_n2_stream", Outputs(1, 2), Usage(13, 88, 11)),
    (f"{LLAMA}/completions_array_stream", Outputs(2, 1), Usage(11, 12, 6)),
    (f"{LLAMA}/chat_tools_call_stream", Outputs(), Usage(267, 53, 263)),
    (f"{VLLM}/chat_stream_continuous_usage_stats", Outputs(), Usage(13, 6, 0, 6)),
    (f"{VLLM}/chat_n2_temp_stream", Outputs(1, 2), Usage(13, 10, 0, 10)),
]


@given(
    st.sampled_from(CAPTURES),
    st.booleans(),
    st.sampled_from([b"\n\n", b"\r\n\r\n", b"\r\r"]),
    st.lists(st.integers(0, 20_000), max_size=30),
)
@settings(deadline=None)
def test_any_cut_of_a_real_stream_is_metered_alike(
    known: tuple[str, Outputs, Usage], hides: bool, end: bytes, cuts: list[int]
) -> None:
    """Delivered and held are the captured bytes less the hidden chunk; the terminal event is never delivered."""
    name, outputs, counted = known
    data = body(name).replace(b"\n\n", end)
    passed, settled = relay(
        StreamMeter(hides_usage=hides, outputs=outputs, adds_outputs="llama" in name), cut(data, cuts)
    )
    assert passed + settled.raw == expected(body(name), hides_usage=hides).replace(b"\n\n", end)
    assert (settled.raw, settled.usage) == (DONE.replace(b"\n\n", end), counted)


@given(st.lists(st.integers(0, 30_000), max_size=30))
@settings(deadline=None)
def test_any_cut_of_a_gathered_stream_is_the_same_answer(cuts: list[int]) -> None:
    """Anchored by the captured answers in `tests/unit/proxy/meter/test_gathered.py`."""
    data = body(f"{LLAMA}/chat_n2_stream")
    outputs = Outputs(1, 2)
    assert relay(Gatherer(outputs, is_chat=True), cut(data, cuts)) == relay(Gatherer(outputs, is_chat=True), [data])


# made streams: what each event is, is known when it is made

texts = st.text(max_size=12) | st.sampled_from(
    ["[DONE]", '"usage":{"a":1}', '"error"', "data: [DONE]\n\n", "\\", "</think>", " hello"]
)
said = st.builds(lambda index, text: ("text", index, text, delta(text, index)), st.integers(0, 2), texts)
told = st.builds(
    lambda p, c, d: ("usage", 0, "", report(p, c, prompt_tokens_details={"cached_tokens": d})),
    st.integers(1, 99),
    st.integers(1, 99),
    st.integers(0, 9),
)
odd: st.SearchStrategy[tuple[str, int, str, Any]] = st.sampled_from(
    [
        ("text", 0, "", None),
        ("text", 0, "", []),
        ("text", 0, "", {"choices": [], "usage": None}),
        ("text", 0, "", {"choices": []}),
    ]
)
endings = st.sampled_from([b"\n\n", b"\r\n\r\n", b"\r\r"])
made = st.lists(
    st.tuples(said | said | said | told | odd, endings, st.sampled_from([b"", b": c\n", b"id: 1\r\n"])), max_size=25
)


@given(made, st.booleans(), places, st.integers(0, 4_000))
@settings(max_examples=200, deadline=None)
def test_wherever_a_stream_breaks_off_what_was_delivered_is_known(
    qwen: Vocabulary,
    stream: list[tuple[tuple[str, int, str, Any], bytes, bytes]],
    hides: bool,
    cuts: list[int],
    length: int,
) -> None:
    """The whole events among the bytes that came were passed, and their text is what is counted; nothing else."""
    written = [before + event(value, ending) for (_, _, _, value), ending, before in stream]
    data = b"".join(written)[:length]
    meter, passed = StreamMeter(hides_usage=hides, outputs=Outputs(1, 3)), b""
    for read in cut(data, cuts):
        passed += meter.receive(read)
    kept, by_index, last, position = b"", ["", "", ""], None, 0
    for raw, ((kind, index, text, value), _, _) in zip(written, stream, strict=True):
        position += len(raw)
        if position > len(data):
            break
        by_index[index] += text
        kept += b"" if kind == "usage" and hides else raw
        last = value["usage"] if kind == "usage" else last
    assert passed == kept
    assert meter.delivered().output_tokens(qwen) == sum(map(qwen.count, by_index))
    reported = meter.known_usage()
    assert (reported and reported[:2]) == (last and (last["prompt_tokens"], last["completion_tokens"]))


@given(made, st.sampled_from([DONE, b"data:[DONE]\r\n\r\n", b""]), st.binary(max_size=20), places)
@settings(max_examples=200, deadline=None)
def test_nothing_that_ends_a_stream_leaves_before_its_usage_is_known(
    stream: list[tuple[tuple[str, int, str, Any], bytes, bytes]], done: bytes, after: bytes, cuts: list[int]
) -> None:
    """I1: [DONE], and all that follows, is to be had from `finish` alone; the rest is complete before it."""
    start = b"".join(before + event(value, ending) for (_, _, _, value), ending, before in stream)
    meter = StreamMeter(hides_usage=False)
    passed, settled = relay(meter, cut(start + done + (after if done else b""), cuts))
    assert (passed, settled.raw) == (start, done + (after if done else b""))
    assert meter.is_complete is bool(done)


NAMES = """choices usage error timings delta message index text content tool_calls function name arguments logprobs
finish_reason prompt_tokens completion_tokens prompt_tokens_details cached_tokens completion_tokens_details
reasoning_tokens prompt_n predicted_n cache_n id created"""
names = st.sampled_from(NAMES.split())
garbage = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=4),
    max_leaves=20,
)


@given(st.lists(garbage, max_size=6), st.booleans(), places)
@settings(max_examples=300, deadline=None)
def test_no_upstream_can_break_a_meter(values: list[Any], is_chat: bool, cuts: list[int]) -> None:
    """Any JSON under the names that are read, NaN included: counted or not, never raised, and never lost."""
    data = b"".join(event(value) for value in values)
    outputs = Outputs(1, 2)
    for adds in (True, False):
        meter = StreamMeter(hides_usage=False, outputs=outputs, adds_outputs=adds)
        passed, settled = relay(meter, cut(data, cuts))
        assert (passed, settled.raw) == (data, b"")
        relay(StreamMeter(hides_usage=adds, cost_of=cost_of), cut(data, cuts))
    assert isinstance(json.loads(relay(Gatherer(outputs, is_chat=is_chat), cut(data, cuts))[1].raw), dict)
    assert whole.settle(data).raw == data
    for value in values:
        whole.settle(json.dumps(value).encode())


@given(
    st.lists(st.tuples(st.integers(1, 99), st.integers(1, 99), st.integers(0, 99)), min_size=1, max_size=4),
    st.integers(1, 4),
    st.randoms(),
)
@settings(deadline=None)
def test_all_outputs_are_billed_and_each_prompt_once(prompts: list[tuple[int, int, int]], n: int, order: Any) -> None:
    """llama.cpp reports every output with its prompt, in the order in which they end."""
    reports = [one for one in prompts for _ in range(n)]
    order.shuffle(reports)
    meter = StreamMeter(hides_usage=False, outputs=Outputs(len(prompts), n), adds_outputs=True)
    for prompt, output, cached in reports:
        details = {"prompt_tokens_details": {"cached_tokens": cached}}
        meter.receive(event(delta(finish="stop", usage=usage(prompt, output, **details))))
    totals = [sum(column) for column in zip(*prompts, strict=True)]
    assert relay(meter, [DONE])[1].usage == Usage(totals[0], totals[1] * n, totals[2])
