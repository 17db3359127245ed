"""Streams that tell running counts: a cut is billed by the last of them, and those that Weir asked for are hidden."""

import re

import pytest

from billing.usage import Usage
from proxy.meter.steps import Outputs
from proxy.meter.stream import StreamMeter
from tests.unit.proxy.meter.streams import (
    LLAMA,
    VLLM,
    body,
    delta,
    event,
    events_of,
    every,
    expected,
    relay,
    report,
    usage,
)

TWO = Outputs(1, 2)


def test_a_stream_of_running_counts_is_billed_by_the_last_of_them_wherever_it_is_cut() -> None:
    """vLLM's `continuous_usage_stats`: exact at every event, reasoning included."""
    meter = StreamMeter(hides_usage=False)
    for output, one in enumerate(events_of(body(f"{VLLM}/chat_stream_continuous_usage_stats"))[:7]):
        meter.receive(one)
        assert meter.known_usage() == Usage(13, output, 0, output)


def test_a_stream_of_running_timings_is_billed_by_the_last_of_them_wherever_it_is_cut() -> None:
    """llama.cpp's `timings_per_token`: exact at every event."""
    meter = StreamMeter(hides_usage=False, adds_outputs=True)
    role, *deltas = events_of(body(f"{LLAMA}/chat_stream_timings_per_token"))[:7]
    meter.receive(role)
    assert meter.known_usage() is None
    for output, one in enumerate(deltas, 1):
        meter.receive(one)
        assert meter.known_usage() == Usage(13, output, 9)


def test_running_counts_of_several_outputs_are_not_taken_for_the_whole() -> None:
    """vLLM's running counts are of one output each: a cut answer of two is counted, a whole one has its total."""
    meter = StreamMeter(hides_usage=False, outputs=TWO)
    for index in (0, 1):
        meter.receive(event(delta("Hello", index, usage=usage(13, 1))))
    assert meter.known_usage() is None
    meter.receive(event(report(13, 2)))
    assert meter.known_usage() == Usage(13, 2)


@pytest.mark.parametrize("wants_usage", [True, False])
def test_running_counts_that_weir_asked_for_are_taken_out_of_each_event_again(*, wants_usage: bool) -> None:
    """The client sees what vLLM sends without them (captured so, too), but for the report at the end if it wants it."""
    captured = body(f"{VLLM}/chat_stream_continuous_usage_stats")
    plain = expected(captured, hides_usage=not wants_usage)
    shown = b"".join(
        one if b'"choices":[]' in one else re.sub(rb',"usage":\{[^{}]*\{[^{}]*\}\}', b"", one)
        for one in events_of(plain)
    )
    assert shown.count(b'"usage"') == wants_usage
    for reads in ([captured], events_of(captured), every(captured, 1), every(captured, 97)):
        passed, settled = relay(StreamMeter(hides_usage=not wants_usage, hides_running=True), reads)
        assert passed + settled.raw == shown
        assert settled.usage == Usage(13, 6, 0, 6)


def test_reasoning_that_is_not_shown_is_billed_when_a_text_behind_it_is_cut() -> None:
    """vLLM's form with `include_reasoning: false`, read in source: silence while it reasons, then all counts so far."""
    meter = StreamMeter(hides_usage=True, hides_running=True, outputs=TWO)
    for index in (0, 1):
        assert meter.receive(event(delta("", index, usage=usage(13, 0)))) == event(delta("", index))
    assert meter.known_usage() == Usage(13, 0)
    meter.receive(event(delta("Hello", 1, usage=usage(13, 31))))
    assert meter.known_usage() == Usage(13, 31)
    for tokens in (18, 19):
        meter.receive(event(delta("Hello", 0, usage=usage(13, tokens))))
    assert meter.known_usage() == Usage(13, 19 + 31)
    odds: tuple[object, ...] = (2, -1, "0", [], None)
    for odd in odds:
        meter.receive(event({**delta("odd", usage=usage(13, 99)), "choices": [{"index": odd, "delta": {}}]}))
        assert meter.known_usage() != Usage(13, 99)
    meter.receive(event(report(13, 52)))
    assert meter.known_usage() == Usage(13, 52)
