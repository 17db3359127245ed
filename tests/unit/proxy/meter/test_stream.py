"""Streams of real servers and of quirky ones: what the client sees, what is held, what is billed."""

import json
from collections.abc import Iterable
from typing import Any, NamedTuple

import pytest

from billing.tokens.vocabulary import Vocabulary
from billing.usage import Usage
from proxy.meter.framing import StreamError
from proxy.meter.steps import Outputs, Settle
from proxy.meter.stream import KEPT_BYTES_MAX, StreamMeter
from tests.unit.proxy.meter.streams import (
    DONE,
    LLAMA,
    VLLM,
    body,
    chunks_of,
    cost_of,
    delta,
    event,
    events_of,
    every,
    expected,
    relay,
    report,
    usage,
)

ONE, TWO, PAIR = Outputs(), Outputs(1, 2), Outputs(2, 1)


class Known(NamedTuple):
    """A capture: how it was asked, what its server reported, and what our own count of its text is."""

    name: str
    outputs: Outputs
    usage: Usage | None
    counted: int
    has_stop_texts: bool = False

    @property
    def adds_outputs(self) -> bool:
        return "llama" in self.name

    def meter(self, *, hides_usage: bool = False, has_cost: bool = False) -> StreamMeter:
        return StreamMeter(
            hides_usage=hides_usage,
            cost_of=cost_of if has_cost else None,
            outputs=self.outputs,
            adds_outputs=self.adds_outputs,
            has_stop_texts=self.has_stop_texts,
        )


CAPTURES = [
    Known(f"{LLAMA}/chat_stream_include_usage", ONE, Usage(13, 44, 9), 44),
    Known(f"{LLAMA}/chat_stream_no_usage", ONE, Usage(13, 44, 9), 44),  # timings
    Known(f"{LLAMA}/chat_stream_length", ONE, Usage(13, 5, 9), 5),
    Known(f"{LLAMA}/chat_stop_stream", ONE, Usage(15, 6, 11), 6, has_stop_texts=True),
    Known(f"{LLAMA}/chat_nothink_stream", ONE, Usage(15, 28, 11), 28),
    Known(f"{LLAMA}/chat_reasoning_format_none_stream", ONE, Usage(13, 44, 11), 44),
    Known(f"{LLAMA}/chat_logprobs_stream", ONE, Usage(13, 4, 11), 4),
    Known(f"{LLAMA}/chat_n2_stream", TWO, Usage(13, 88, 11), 88),
    Known(f"{LLAMA}/chat_tools_call_stream", ONE, Usage(267, 53, 263), 36),  # markup around arguments is invisible
    Known(f"{LLAMA}/chat_stream_timings_per_token", ONE, Usage(13, 6, 9), 6),
    Known(f"{LLAMA}/chat_stream_progress_timings", ONE, Usage(13, 6), 6),  # timings
    Known(f"{LLAMA}/chat_stream_return_progress", ONE, Usage(1510, 4), 4),
    Known(f"{LLAMA}/keepalive_stream", ONE, Usage(13, 3, 11), 3),
    Known(f"{LLAMA}/completions_stream", ONE, Usage(1, 6), 6),
    Known(f"{LLAMA}/completions_stream_usage", ONE, Usage(1, 6), 6),
    Known(f"{LLAMA}/completions_array_stream", PAIR, Usage(11, 12, 6), 12),
    Known("llama-server_gemma3-270m/firstbyte_ping1", ONE, Usage(2501, 4), 4),
    Known("llama-server_gemma3-270m/firstbyte_progress_ping1", ONE, Usage(2501, 4), 4),
    Known(f"{VLLM}/chat_stream_include_usage", ONE, Usage(13, 44, 0, 14), 44),
    Known(f"{VLLM}/chat_stream_no_usage", ONE, None, 44),
    Known(f"{VLLM}/chat_stream_length", ONE, Usage(13, 5, 0, 5), 5),
    Known(f"{VLLM}/chat_stop_stream", ONE, Usage(15, 6), 6, has_stop_texts=True),
    Known(f"{VLLM}/chat_nothink_stream", ONE, Usage(15, 28), 28),
    Known(f"{VLLM}/chat_return_token_ids_stream", ONE, Usage(13, 4, 0, 4), 4),
    Known(f"{VLLM}/chat_stream_continuous_only", ONE, None, 3),
    Known(f"{VLLM}/chat_stream_continuous_usage_stats", ONE, Usage(13, 6, 0, 6), 6),
    Known(f"{VLLM}/chat_n2_temp_stream", TWO, Usage(13, 10, 0, 10), 10),
    Known(f"{VLLM}/chat_tools_required_stream", ONE, Usage(269, 41, 256), 16),
    Known(f"{VLLM}/completions_stream", ONE, None, 6),
    Known(f"{VLLM}/completions_stream_usage", ONE, Usage(1, 6), 6),
    Known(f"{VLLM}/completions_array_stream", PAIR, Usage(11, 12), 12),
]
known = pytest.mark.parametrize("known", CAPTURES, ids=[known.name for known in CAPTURES])


def whole_and_torn(data: bytes) -> Iterable[list[bytes]]:
    """One read, one read per event, and reads that end inside of everything."""
    yield [data]
    yield [one for one in (*events_of(data), data.rpartition(b"\n\n")[2]) if one]
    for size in (1, 7, 1000):
        yield every(data, size)


@known
def test_a_client_that_asked_for_usage_sees_the_captured_bytes(known: Known) -> None:
    """All that the server sent, however it is read; [DONE] waits for the record."""
    data = body(known.name)
    for reads in whole_and_torn(data):
        passed, settled = relay(known.meter(), reads)
        assert (passed, settled.raw) == (data.removesuffix(DONE), DONE)
        assert (settled.usage, settled.is_error) == (known.usage, False)


@known
def test_a_client_that_did_not_ask_does_not_see_what_weir_asked_for(known: Known) -> None:
    """Only the chunk without choices goes; the count stays the same."""
    data = body(known.name)
    for reads in whole_and_torn(data):
        passed, settled = relay(known.meter(hides_usage=True), reads)
        assert passed + settled.raw == expected(data, hides_usage=True)
        assert settled.usage == known.usage
        assert not any(chunk and "usage" in chunk and not chunk["choices"] for chunk in chunks_of(passed))


@known
def test_cost_joins_the_usage_that_is_about_everything(known: Known) -> None:
    """Of llama.cpp's reports the last one; of vLLM's running counts those that a client may take for the last."""
    data = body(known.name)
    chunks = [chunk for chunk in chunks_of(data) if chunk and chunk.get("usage")]
    reports = len(chunks)
    first = (
        reports
        if known.adds_outputs
        else 1 + sum(bool(c["choices"] and not c["choices"][0]["finish_reason"]) for c in chunks)
    )
    for reads in whole_and_torn(data):
        passed, settled = relay(known.meter(has_cost=True), reads)
        cost = cost_of(settled.usage) if reports and settled.usage is not None else None
        assert passed + settled.raw == expected(data, hides_usage=False, cost=cost, cost_from=first)


@known
def test_our_own_count_of_the_text_is_the_servers(known: Known, qwen: Vocabulary) -> None:
    """Measured: invisible tokens included, tool calls apart. So a stream without usage is billed as with it."""
    meter = known.meter()
    meter.receive(body(known.name))
    assert meter.delivered().output_tokens(qwen) == known.counted
    if known.usage is not None and "tools" not in known.name:
        assert known.counted == known.usage.output_tokens


@known
def test_whatever_the_cut_what_was_delivered_is_counted(known: Known, qwen: Vocabulary) -> None:
    """The count never falls while a stream goes on, and asking for it in the middle changes nothing."""
    meter, counts = known.meter(), []
    for one in events_of(body(known.name)):
        meter.receive(one)
        counts.append(meter.delivered().output_tokens(qwen))
    assert counts == sorted(counts)
    assert counts[-1] == known.counted


@pytest.mark.parametrize(
    ("name", "counted"),
    [(f"{LLAMA}/disconnect_stream_client_closed", 14), (f"{VLLM}/disconnect_stream_client_closed", 18)],
)
def test_a_recorded_disconnect_is_counted_to_the_token(name: str, counted: int, qwen: Vocabulary) -> None:
    """The servers themselves counted 14 and 18 when these clients left (facts, sections 4 and 5)."""
    meter = StreamMeter(hides_usage=False)
    data = body(name)
    assert meter.receive(data + b'data: {"choices":[{"index":0,"delta":{"content":" never') == data
    assert meter.known_usage() is None
    assert meter.delivered().output_tokens(qwen) == counted


def test_a_cut_between_two_outputs_is_counted() -> None:
    """llama.cpp has told of one; the other was generated, too."""
    meter = StreamMeter(hides_usage=False, outputs=TWO, adds_outputs=True)
    data = body(f"{LLAMA}/chat_n2_stream")
    meter.receive(data[: data.rindex(b'data: {"choices":[]')])
    assert meter.known_usage() is None


def test_counters_of_one_output_are_not_taken_for_the_whole() -> None:
    """llama.cpp without usage has its counters on each finish chunk (measured): of two outputs, neither is enough."""
    counters = {"cache_n": 9, "prompt_n": 4, "predicted_n": 2}
    ends = [event(delta("Hi", index, finish="length", timings=counters)) for index in (0, 1)]
    assert relay(StreamMeter(hides_usage=False, outputs=TWO, adds_outputs=True), [*ends, DONE])[1].usage is None


def test_two_reports_of_one_output_are_not_added_up() -> None:
    """Adding is for several outputs: llama.cpp reports each once."""
    ends = [event(delta(finish="stop", usage=usage(13, 43))), event(report(13, 44)), DONE]
    assert relay(StreamMeter(hides_usage=False, adds_outputs=True), ends)[1].usage == Usage(13, 44)


def test_prompts_times_outputs_are_billed_with_each_prompt_once() -> None:
    """Measured on llama.cpp b11549 with prompts of 3 and 1 tokens and n = 2: four reports, in this order."""
    meter = StreamMeter(hides_usage=False, outputs=Outputs(2, 2), adds_outputs=True)
    for index, (prompt, output) in enumerate([(3, 2), (1, 2), (1, 2), (3, 2)]):
        assert meter.known_usage() is None
        meter.receive(event(delta(index=index, finish="length", usage=usage(prompt, output))))
    assert relay(meter, [DONE])[1].usage == Usage(4, 8)


# quirks


@pytest.mark.parametrize("hides_usage", [True, False])
def test_a_usage_of_zeros_on_every_chunk_does_not_make_a_cut_stream_free(hides_usage: bool, qwen: Vocabulary) -> None:
    """Ollama's /v1/completions: the last report counts, and before it there is none."""
    meter = StreamMeter(hides_usage=hides_usage)
    zeros = event(delta("Hello", usage=usage(0, 0, total_tokens=0)))
    assert meter.receive(zeros) == zeros
    assert meter.known_usage() is None
    assert meter.delivered().output_tokens(qwen) == 1
    last = event(report(13, 1))
    assert meter.receive(last) == (b"" if hides_usage else last)
    assert meter.known_usage() == Usage(13, 1)


def test_a_report_of_no_output_beside_text_is_none() -> None:
    """Nothing is free by accident: such an answer is counted."""
    passed, settled = relay(StreamMeter(hides_usage=True), [event(delta("Hello")), event(report(13, 0)), DONE])
    assert (passed, settled.usage) == (event(delta("Hello")), None)
    assert relay(StreamMeter(hides_usage=True), [event(delta()), event(report(13, 0)), DONE])[1].usage == Usage(13, 0)


@pytest.mark.parametrize("reported", [usage(None, None), {}, usage("13", "44"), usage(0, 0)])
def test_a_chunk_that_is_there_for_weir_is_hidden_even_if_its_report_is_worthless(reported: dict[str, Any]) -> None:
    """The client did not ask for it."""
    chunk = event({"choices": [], "usage": reported})
    passed, settled = relay(StreamMeter(hides_usage=True), [event(delta("Hello")), chunk, DONE])
    assert (passed, settled.usage) == (event(delta("Hello")), None)
    assert relay(StreamMeter(hides_usage=False, cost_of=cost_of), [chunk, DONE])[0] == chunk


def test_usage_null_on_other_chunks_is_no_usage() -> None:
    """OpenAI's own convention, with and without a blank."""
    for null in (b'"usage":null', b'"usage": null'):
        chunk = event(delta("Hello", usage=None)).replace(b'"usage":null', null)
        passed, settled = relay(StreamMeter(hides_usage=True), [chunk * 2 + event(report(13, 2)) + chunk, DONE])
        assert (passed, settled.usage) == (chunk * 3, Usage(13, 2))


def test_of_two_reports_the_later_counts_and_the_earlier_fills_its_gaps() -> None:
    """One on the finish chunk with the details, one more at the end without them."""
    first = event(
        delta(finish="stop", usage=usage(13, 43, prompt_tokens_details={"cached_tokens": 9}, reasoning_tokens=14))
    )
    assert relay(StreamMeter(hides_usage=False), [first, event(report(13, 44)), DONE])[1].usage == Usage(13, 44, 9, 14)
    assert relay(StreamMeter(hides_usage=False), [first, event(report(0, 44)), DONE])[1].usage == Usage(13, 44, 9, 14)
    assert relay(StreamMeter(hides_usage=False), [first, event(report(None, 44)), DONE])[1].usage == Usage(
        13, 43, 9, 14
    )


def test_usage_on_the_finish_chunk_gets_its_cost_where_it_is() -> None:
    """transformers serve: choices are not empty, and no [DONE] ends the stream."""
    finish = event(delta(finish="stop", usage=usage(13, 1)))
    passed, settled = relay(StreamMeter(hides_usage=False, cost_of=cost_of), [event(delta("Hi")), finish])
    assert passed == event(delta("Hi")) + finish.replace(b"}}\n", b',"cost":0.001300010000}}\n')
    assert (settled.usage, settled.raw) == (Usage(13, 1), b"")


def test_a_stream_without_done_ends_with_its_body() -> None:
    """Nothing is held then but what is no whole event."""
    passed, settled = relay(StreamMeter(hides_usage=True), [event(delta("Hi")) + event(report(13, 1))])
    assert (passed, settled.raw, settled.usage) == (event(delta("Hi")), b"", Usage(13, 1))


@pytest.mark.parametrize("ending", [b"", b"\n", b"\r"])
def test_an_end_without_its_empty_line_is_read_all_the_same(ending: bytes, qwen: Vocabulary) -> None:
    """Usage is found and hidden, text is counted, [DONE] is held, an error is seen."""
    passed, settled = relay(StreamMeter(hides_usage=True), [event(delta("Hi")), event(report(13, 1), ending)])
    assert (passed, settled.raw, settled.usage) == (event(delta("Hi")), b"", Usage(13, 1))
    meter = StreamMeter(hides_usage=True)
    last = event(delta(" world"), ending)
    assert relay(meter, [event(delta("Hello")) + last])[1].raw == last
    assert meter.delivered().output_tokens(qwen) == 2
    meter = StreamMeter(hides_usage=True)
    assert relay(meter, [b"data: [DONE]" + ending])[1].raw == b"data: [DONE]" + ending
    assert meter.is_complete
    assert relay(StreamMeter(hides_usage=True), [event({"error": {"code": 500}}, ending)])[1].is_error
    meter = StreamMeter(hides_usage=False, cost_of=cost_of)
    assert b'"cost":0.001300010000}}' + ending in relay(meter, [event(report(13, 1), ending)])[1].raw


@pytest.mark.parametrize(
    "done", [b"data: [DONE]\n\n", b"data:[DONE]\r\n\r\n", b"data:  [DONE] \r\r", b": bye\nevent: x\ndata: [DONE]\n\n"]
)
def test_done_and_all_that_follows_it_is_held(done: bytes) -> None:
    """However it is written, however it is torn, and whatever comes after it."""
    start, after = event(delta("Hi")) + event(report(13, 1)), b": bye\n\ndata: {}\n\ndata: {"
    for reads in whole_and_torn(start + done + after):
        meter = StreamMeter(hides_usage=False)
        passed, settled = relay(meter, reads)
        assert meter.is_complete
        assert (passed, settled.raw, settled.usage) == (start, done + after, Usage(13, 1))


@pytest.mark.parametrize(
    "text",
    ["[DONE]", "data: [DONE]\n\n", '"usage":{"prompt_tokens":1}', '"error"', '","usage":{"completion_tokens":7},"x":"'],
)
def test_a_text_that_speaks_of_the_protocol_is_text(text: str, qwen: Vocabulary) -> None:
    """The model may write what it likes: it passes, is counted, and ends nothing."""
    said = event(delta(text)) + event({"choices": [{"index": 0, "text": text}]})
    for reads in whole_and_torn(said + event(report(13, 9)) + DONE):
        meter = StreamMeter(hides_usage=True)
        passed, settled = relay(meter, reads)
        assert (passed, settled) == (said, Settle(Usage(13, 9), DONE))
        assert meter.delivered().output_tokens(qwen) == qwen.count(text * 2)


def test_an_error_inside_a_success_is_marked_and_passed() -> None:
    """What was delivered before it is billed; `error: null` is none."""
    said, error = event(delta("Hi")), event({"error": {"code": 500, "message": "slot lost"}})
    for reads in whole_and_torn(said + error):
        assert relay(StreamMeter(hides_usage=True), reads) == (said + error, Settle(None, b"", is_error=True))
    after = event(report(13, 1)) + event(delta("more", error=None)) + DONE
    assert relay(StreamMeter(hides_usage=False), [said + error, after])[1].is_error
    for none in ("null", '""', "{}", "false"):
        chunk = event(delta("Hi", error=None)).replace(b'"error":null', f'"error":{none}'.encode())
        assert relay(StreamMeter(hides_usage=True), [chunk, DONE]) == (chunk, Settle(None, DONE))


def test_a_comment_is_passed_when_it_comes() -> None:
    """Pings keep a connection open through a long prefill; they are no tokens."""
    meter = StreamMeter(hides_usage=True)
    assert meter.receive(b":\n\n") == b":\n\n"
    assert meter.delivered().is_empty
    assert meter.known_usage() is None


def test_a_prompt_in_progress_is_no_answer() -> None:
    """llama.cpp's counters while it reads the prompt: nothing was generated."""
    meter = StreamMeter(hides_usage=True)
    meter.receive(events_of(body(f"{LLAMA}/chat_stream_progress_timings"))[1])
    assert meter.delivered().is_empty
    assert meter.known_usage() == Usage(9, 0)


@pytest.mark.parametrize("ending", [b"\r\n\r\n", b"\r\r"])
def test_other_line_ends_change_nothing(ending: bytes) -> None:
    """Hidden, priced, held: as with LF."""
    data = body(f"{LLAMA}/chat_stream_include_usage").replace(b"\n\n", ending)
    for reads in ([data], every(data, 1), every(data, 777)):
        passed, settled = relay(StreamMeter(hides_usage=True), reads)
        assert passed + settled.raw == expected(data.replace(ending, b"\n\n"), hides_usage=True).replace(
            b"\n\n", ending
        )
        assert settled.usage == Usage(13, 44, 9)


def test_a_byte_order_mark_and_lines_of_data_are_read_through() -> None:
    """Both are allowed, neither was ever seen: a report in two lines counts, and passes without a cost."""
    text = json.dumps(report(13, 1), indent=1).encode()
    torn = b"\xef\xbb\xbfdata: " + text.replace(b"\n", b"\ndata: ") + b"\n\n"
    assert relay(StreamMeter(hides_usage=True), [torn, DONE]) == (b"", Settle(Usage(13, 1), DONE))
    assert relay(StreamMeter(hides_usage=False, cost_of=cost_of), [torn, DONE])[0] == torn


def test_a_report_beside_what_json_forbids_is_still_read() -> None:
    """Python's writer puts NaN into JSON; orjson alone would find no report, and no text either."""
    chunk = event(report(13, 1)).replace(b'"choices"', b'"p":NaN,"choices"')
    assert relay(StreamMeter(hides_usage=True), [chunk, DONE]) == (b"", Settle(Usage(13, 1), DONE))


def test_what_is_no_json_passes() -> None:
    """It is not ours to judge."""
    for one in (b'data: "usage" [DONE] "error"\n\n', b"data: null\n\n", b'data: ["usage"]\n\n', b"hello\n\n", b"\n\n"):
        assert relay(StreamMeter(hides_usage=True), [one, DONE]) == (one, Settle(None, DONE))


def test_an_endless_event_breaks_the_stream_and_what_came_before_is_counted(qwen: Vocabulary) -> None:
    """The upstream is cut off; the client pays for what it has."""
    meter = StreamMeter(hides_usage=True)
    meter.receive(event(delta("Hello world")))
    with pytest.raises(StreamError):
        for _ in range(20):
            meter.receive(b"data: " + b"x" * 2**20)
    assert meter.delivered().output_tokens(qwen) == 2


def test_kept_reads_are_folded_to_their_text(qwen: Vocabulary) -> None:
    """Memory for a long stream is its text, not its bytes; the count is the same."""
    meter, events = StreamMeter(hides_usage=True), 2_000
    for _ in range(events):
        meter.receive(event(delta(" hello")))
        assert meter._kept_bytes <= KEPT_BYTES_MAX
        assert sum(len(kept) for kept in meter._kept) == meter._kept_bytes
    assert meter.delivered().output_tokens(qwen) == events


def test_a_folded_stream_remembers_its_last_timings() -> None:
    """Folding comes at any event, also at the last."""
    last = event(delta(finish="stop", timings={"cache_n": 1, "prompt_n": 2, "predicted_n": 3}))
    for pad in range(KEPT_BYTES_MAX - 2 * len(last), KEPT_BYTES_MAX + 2, 7):
        meter = StreamMeter(hides_usage=False)
        assert relay(meter, [event(delta("x" * pad)), last, DONE])[1].usage == Usage(3, 3, 1)


def test_stop_texts_are_known_to_the_count(qwen: Vocabulary) -> None:
    """An answer that ended with a `stop` text has no token for its end."""
    for has_stop_texts, tokens in ((False, 2), (True, 1)):
        meter = StreamMeter(hides_usage=True, has_stop_texts=has_stop_texts)
        meter.receive(event(delta("Hello")) + event(delta(finish="stop")))
        assert meter.delivered().output_tokens(qwen) == tokens


def test_a_read_of_plain_events_is_not_looked_into() -> None:
    """What needs no look is not parsed: such a read leaves as the very object that came."""
    meter = StreamMeter(hides_usage=True)
    read = event(delta("Hello")) * 3
    assert meter.receive(read) is read


def test_who_watches_sees_each_event_once() -> None:
    """Also those that the fast path would have passed."""
    meter = StreamMeter(hides_usage=False)
    seen: list[dict[str, Any]] = []
    meter.watch = seen.append
    relay(meter, every(body(f"{LLAMA}/completions_array_stream"), 100))
    assert seen == [chunk for chunk in chunks_of(body(f"{LLAMA}/completions_array_stream")) if chunk is not None]


def test_a_prompt_of_nothing_is_counted_and_the_output_billed_as_told(qwen: Vocabulary) -> None:
    """No prompt is empty: a server that says so did not count it (LM Studio, older Ollama)."""
    stream = StreamMeter(hides_usage=False)
    relay(stream, [event(delta("Hello")), event(report(0, 40)), DONE])
    assert stream.known_usage() is None
    assert stream.delivered().output_tokens(qwen) == 40


def test_a_stream_that_just_ends_broke_off() -> None:
    """A report, `[DONE]` or a `finish_reason` is the end; each alone is enough (transformers sends no `[DONE]`)."""
    ends: dict[str, tuple[list[bytes], bool]] = {
        "nothing": ([], True),
        "a report": ([event(report(7, 1))], False),
        "done": ([DONE], False),
        "a reason": ([event({"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]})], False),
    }
    for name, (end, is_error) in ends.items():
        _, settled = relay(StreamMeter(hides_usage=False), [event(delta("Hello")), *end])
        assert settled.is_error is is_error, name


def test_a_prompt_in_progress_is_known_to_the_count() -> None:
    """llama.cpp's `return_progress`, where the client asked for it: a cut stream's cached part is billed as such."""
    stream = StreamMeter(hides_usage=False)
    assert stream.known_prompt() is None
    progress = {"total": 13, "cache": 9, "processed": 13, "time_ms": 2}
    stream.receive(event({"choices": [], "prompt_progress": progress}) + event(delta("Hello")))
    assert (stream.known_usage(), stream.known_prompt()) == (None, Usage(13, 0, 9))
