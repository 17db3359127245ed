"""Ollama's native endpoints: usage from the last line, not a byte changed, what it leaves out is counted.

There is no Ollama to be had here: the shapes are those of its sources and documentation (`api/types.go`, pull requests
16428 and 17943, issue 2068), the texts and counts those of the scripted model.
"""

import itertools
import json
from typing import Any

import pytest

from billing.tokens.vocabulary import Vocabulary
from billing.usage import Usage
from proxy.meter import ollama
from proxy.meter.ollama import OllamaMeter
from tests.unit.meter_protocols.streams import chat_line, last_line, line, relay
from tests.unit.tokens.test_counting import ANSWER, REASONING

TEXTS = line(chat_line(thinking=REASONING)) + line(chat_line(ANSWER))
COUNTS = {"prompt_eval_count": 13, "eval_count": 44}


def generated(response: str = "", **more: Any) -> dict[str, Any]:
    """One line of `/api/generate`."""
    return {"model": "qwen3.5", "created_at": "2026-11-23T12:00:00Z", "response": response, "done": False, **more}


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        (COUNTS, Usage(13, 44)),
        ({**COUNTS, "prompt_eval_cached_count": 11}, Usage(13, 44, 11)),
        ({**COUNTS, "prompt_eval_cached_count": None}, Usage(13, 44)),
        ({**COUNTS, "prompt_eval_cached_count": 99}, Usage(13, 44, 99)),
    ],
)
def test_the_last_line_reports_and_is_held(counts: dict[str, int], expected: Usage) -> None:
    """The cached part is a part of the prompt; what can not be true is left for the judge."""
    last = line(last_line(**counts))
    meter = OllamaMeter()
    assert meter.receive(TEXTS + last) == TEXTS
    assert meter.is_complete
    settled = meter.finish()
    assert (settled.usage, settled.raw, settled.is_error, settled.reported) == (expected, last, False, None)


@pytest.mark.parametrize("reason", [{}, [], None, 1, "stop"])
def test_a_reason_that_is_none_breaks_nothing(reason: object) -> None:
    """Found by fuzzing: a reason that can not be hashed ended the request without an answer."""
    meter = OllamaMeter()
    meter.receive(TEXTS + line(last_line(**COUNTS) | {"done_reason": reason}))
    assert meter.finish().usage == Usage(13, 44)


@pytest.mark.parametrize("reported", [{}, {"eval_count": 0}, {"eval_count": "3"}])
def test_text_in_the_last_line_is_not_free(reported: dict[str, Any], qwen: Vocabulary) -> None:
    """Found by fuzzing: a stream whose only text stands in the line that ends it, and that reports none."""
    meter = OllamaMeter()
    settled = relay(meter, [line(generated("Hello there", done=True, prompt_eval_count=7) | reported)])[1]
    assert settled.usage is None
    assert meter.delivered().output_tokens(qwen) == 2


def test_generate_reports_alike() -> None:
    """Its text is elsewhere, its counts are not."""
    reads = [line(generated("Hello")), line(generated("!")), line(generated("", done=True, context=[1, 2], **COUNTS))]
    passed, settled = relay(OllamaMeter(), reads)
    assert (passed, settled.raw, settled.usage) == (b"".join(reads[:2]), reads[2], Usage(13, 44))


def test_a_prompt_that_was_cached_is_counted_and_the_output_billed_as_told(qwen: Vocabulary) -> None:
    """Older versions leave the prompt's count out then."""
    meter = OllamaMeter()
    settled = relay(meter, [TEXTS, line(last_line(eval_count=53))])[1]
    assert (settled.usage, settled.is_error) == (None, False)
    tally = meter.delivered()
    assert (tally.output_tokens(qwen), tally.reasoning_tokens(qwen)) == (53, 14)


def test_a_last_line_without_counts_is_counted(qwen: Vocabulary) -> None:
    """44, as the server would have told."""
    meter = OllamaMeter()
    settled = relay(meter, [TEXTS, line(last_line())])[1]
    assert settled.usage is None
    assert meter.delivered().output_tokens(qwen) == 44


def test_no_output_is_left_out_by_go_and_is_none_unless_text_was_sent() -> None:
    """`omitempty`."""
    assert relay(OllamaMeter(), [line(last_line(prompt_eval_count=13))])[1].usage == Usage(13, 0)
    assert relay(OllamaMeter(), [TEXTS, line(last_line(prompt_eval_count=13))])[1].usage is None


@pytest.mark.parametrize("reason", ["load", "unload"])
def test_loading_a_model_reads_and_generates_nothing(reason: str) -> None:
    """An empty prompt: one object, without a line's end."""
    answer = line(chat_line(done=True, done_reason=reason))[:-1]
    streamed = relay(OllamaMeter(), [answer])[1]
    for settled in (streamed, ollama.settle(answer)):
        assert (settled.usage, settled.raw, settled.is_error) == (Usage(0, 0), answer, False)


@pytest.mark.parametrize("ending", [b"", b"\r\n", b" \n", b"\n\n"])
def test_the_last_line_may_end_in_any_way(ending: bytes) -> None:
    """Or not at all."""
    last = line(last_line(**COUNTS))[:-1] + ending
    passed, settled = relay(OllamaMeter(), [TEXTS + last])
    assert (passed, settled.raw, settled.usage, settled.is_error) == (TEXTS, last, Usage(13, 44), False)


def test_lines_may_be_written_with_spaces() -> None:
    """As Python writes them (SGLang)."""
    lines = [json.dumps(chat_line("Hello")).encode() + b"\n", json.dumps(last_line(**COUNTS)).encode() + b"\n"]
    passed, settled = relay(OllamaMeter(), lines)
    assert (passed, settled.raw, settled.usage) == (lines[0], lines[1], Usage(13, 44))


def test_reads_that_bring_text_are_not_looked_into() -> None:
    """What needs no look is not parsed, whoever writes it."""
    for lines in (TEXTS, json.dumps(chat_line("Hello")).encode(), line(generated("Hello")) * 3):
        assert not OllamaMeter()._matters(lines)


def test_texts_that_speak_of_the_end_do_not_end_the_stream() -> None:
    """Nor do other values of `done`."""
    data = line(chat_line('"done":true, "error"')) + line(chat_line("done")) + line(chat_line("error"))
    data += line({"done": "true"}) + line({"done": 1}) + line({"message": {"done": True}}) + line({"error": ""})
    data += b'{"done":true\n' + b'[{"done":true}]\n' + b"\n"
    meter = OllamaMeter()
    assert meter.receive(data) == data
    assert (meter.is_complete, meter.known_usage()) == (False, None)


def test_an_error_line_passes_at_once_and_is_known() -> None:
    """A runner that died."""
    error = line({"error": "llama runner process no longer running: 2"})
    meter = OllamaMeter()
    assert meter.receive(TEXTS + error) == TEXTS + error
    assert not meter.is_complete
    settled = relay(meter, [line(last_line(**COUNTS))])[1]
    assert (settled.usage, settled.is_error) == (Usage(13, 44), True)


def test_a_stream_that_ends_without_its_last_line_broke_off(qwen: Vocabulary) -> None:
    """What was delivered is billed."""
    meter = OllamaMeter()
    settled = relay(meter, [TEXTS[:-1]])[1]
    assert (settled.usage, settled.is_error) == (None, True)
    assert meter.delivered().output_tokens(qwen) == 43


def test_a_cut_stream_is_counted_to_its_last_line(qwen: Vocabulary) -> None:
    """The piece of a line that has not come whole is not delivered either."""
    meter = OllamaMeter()
    meter.receive(line(chat_line(thinking="The user")) + line(generated("Hello")) + b'{"message":{"content":" tiny')
    tally = meter.delivered()
    assert (tally.output_tokens(qwen), tally.reasoning_tokens(qwen)) == (2 + 2 + 1, 2)


def test_text_behind_a_last_line_is_not_free(qwen: Vocabulary) -> None:
    """However the reads cut it, and asked in between."""
    data = line(last_line()) + line(chat_line("Hello")) + line(generated("Hello"))[:-1]
    for cuts in ([0, len(data)], [0, 90, len(data)], list(range(len(data) + 1))):
        meter = OllamaMeter()
        for start, end in itertools.pairwise(cuts):
            assert meter.receive(data[start:end]) == b""
            if start % 16 == 0:
                meter.delivered()
        assert meter.finish().raw == data
        assert meter.delivered().output_tokens(qwen) == 2 + 1, cuts[:3]


def test_tool_calls_count_and_generates_thinking_too(qwen: Vocabulary) -> None:
    """Arguments are an object here."""
    call = {"function": {"name": "get_forecast", "arguments": {"days": 7}}}
    message = {"role": "assistant", "content": "", "tool_calls": [call]}
    meter = OllamaMeter()
    meter.receive(line({**chat_line(), "message": message}))
    assert 11 < meter.delivered().output_tokens(qwen) <= 26
    thinking = OllamaMeter()
    thinking.receive(line(generated(thinking="The user")))
    assert thinking.delivered().reasoning_tokens(qwen) == 2


def test_a_stop_text_may_have_ended_an_answer_so_no_end_token_is_counted(qwen: Vocabulary) -> None:
    """`done_reason` is "stop" then, too."""
    for has_stop_texts, tokens in ((False, 3), (True, 2)):
        meter = OllamaMeter(has_stop_texts=has_stop_texts)
        meter.receive(line(chat_line("Hello!")) + line(last_line()))
        assert meter.delivered().output_tokens(qwen) == tokens
        whole = line(chat_line("Hello!", done=True, done_reason="stop"))
        assert ollama.delivered(whole, has_stop_texts=has_stop_texts).output_tokens(qwen) == tokens


def test_an_answer_that_is_not_streamed_reports_the_same(qwen: Vocabulary) -> None:
    """One object; indented, too."""
    message = {"role": "assistant", "content": ANSWER, "thinking": REASONING}
    for answer in ({**last_line(**COUNTS), "message": message}, generated("Hello!", done=True, **COUNTS)):
        for whole in (line(answer), json.dumps(answer, indent=1).encode()):
            settled = ollama.settle(whole)
            assert (settled.usage, settled.raw, settled.reported) == (Usage(13, 44), whole, None)
    untold = line({**last_line(), "message": message})
    assert ollama.settle(untold).usage is None
    assert ollama.delivered(untold).output_tokens(qwen) == 44
    half = line({**last_line(eval_count=53), "message": message})
    assert ollama.settle(half).usage is None
    assert ollama.delivered(half).output_tokens(qwen) == 53


def test_lines_that_come_as_a_whole_answer_are_read_as_a_stream(qwen: Vocabulary) -> None:
    """A server that streams under another content type."""
    whole = TEXTS + line(last_line(**COUNTS))
    settled = ollama.settle(whole)
    assert (settled.usage, settled.raw, settled.is_error) == (Usage(13, 44), whole, False)
    assert ollama.delivered(TEXTS[:-1]).output_tokens(qwen) == 43


@pytest.mark.parametrize("whole", [b"", b"null", b"not json"])
def test_what_is_no_answer_passes(whole: bytes) -> None:
    """It has no usage and no text, and nothing is raised."""
    settled = ollama.settle(whole)
    assert (settled.usage, settled.raw) == (None, whole)
    assert ollama.delivered(whole).is_empty


def test_embeddings_report_their_prompt_alone() -> None:
    """The numbers are not parsed; a body that fools the shortcut is."""
    numbers = [[0.5, -0.25], [1.5, 2.0]]
    plain = {"model": "emb", "embeddings": numbers, "total_duration": 14143917, "prompt_eval_count": 8}
    for answer in (
        plain,
        {**plain, "model": "a[b"},
        {**plain, "more": [1]},
        {"prompt_eval_count": 8, "model": "a]b", "embeddings": numbers},
    ):
        whole = line(answer)
        assert ollama.settle_embeddings(whole).usage == Usage(8, 0)
        assert ollama.settle_embeddings(whole).raw == whole
    untold: tuple[dict[str, Any], ...] = ({"embeddings": numbers}, {**plain, "prompt_eval_count": 0}, {"error": "no"})
    for answer in untold:
        assert ollama.settle_embeddings(line(answer)).usage is None
    assert ollama.settle_embeddings(line({"error": "no"})).is_error
    assert ollama.settle_embeddings(b"x").usage is None
