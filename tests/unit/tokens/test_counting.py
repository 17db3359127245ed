"""Answers: counted from their text as servers count them, at any cut, and linearly."""

import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from billing.tokens import qwen35
from billing.tokens.counting import CHOICES_MAX, OutputTally, Piece, pieces
from billing.tokens.patterns import QWEN35
from billing.tokens.vocabulary import Dialect, Vocabulary
from tests.unit.tokens.texts import json_values, texts

REASONING = "The user wants a short reply, so I will keep it simple."
ANSWER = (
    "Hello! This is the tiny Qwen3-5 test model speaking: real tokens from an actual server; each one can be counted"
)


def tally(*events: dict[str, object], has_stop_texts: bool = False) -> OutputTally:
    """What a stream of these choices contains."""
    found = OutputTally(has_stop_texts=has_stop_texts)
    for event in events:
        for piece in pieces({"choices": [event]}):
            found.take(piece)
    return found


def delta(finish_reason: str | None = None, index: int = 0, **fields: object) -> dict[str, object]:
    """One streamed choice."""
    return {"index": index, "delta": fields, "finish_reason": finish_reason}


def test_a_thinking_answer_has_the_tokens_that_llamacpp_reports(qwen: Vocabulary) -> None:
    """44, of which 14 are reasoning; three of them are invisible."""
    found = tally(
        delta(role="assistant", content=None),
        delta(reasoning_content=REASONING),
        delta(content=ANSWER),
        delta("stop"),
    )
    assert found.output_tokens(qwen) == 44
    assert found.reasoning_tokens(qwen) == 14


def test_a_thinking_answer_has_the_tokens_that_vllm_reports(qwen: Vocabulary) -> None:
    """44 again, though vLLM shows the blank line and calls the field `reasoning`."""
    found = tally(delta(reasoning=REASONING), delta(content="\n\n" + ANSWER), delta("stop", content=""))
    assert (found.output_tokens(qwen), found.reasoning_tokens(qwen)) == (44, 14)


def test_an_answer_without_thinking_has_one_invisible_token(qwen: Vocabulary) -> None:
    """28 by llama.cpp and vLLM; 27 of them are text."""
    assert tally(delta(content=ANSWER), delta("stop")).output_tokens(qwen) == 28


def test_reasoning_left_in_the_content_is_not_counted_with_the_prompt_before_it(qwen: Vocabulary) -> None:
    """llama.cpp with `reasoning_format: none` shows the prompt's `<think>` first and reports 44."""
    content = f"<think>\n{REASONING}</think>\n\n{ANSWER}"
    found = tally(delta(content=content[:3]), delta(content=content[3:]), delta("stop"))
    assert found.output_tokens(qwen) == 44


def test_an_answer_cut_by_its_limit_has_no_end_token(qwen: Vocabulary) -> None:
    """max_tokens 5 and 1: five tokens and one."""
    assert tally(delta(reasoning_content="The user wants a short"), delta("length")).output_tokens(qwen) == 5
    assert tally(delta(reasoning_content="The"), delta("length")).output_tokens(qwen) == 1


def test_a_cut_stream_is_counted_to_its_last_delta(qwen: Vocabulary) -> None:
    """Without a finish there is no end token, and without content nothing that closes the reasoning."""
    assert tally(delta(reasoning_content=REASONING)).output_tokens(qwen) == 14
    assert tally(delta(reasoning_content=REASONING), delta(content="Hello!")).output_tokens(qwen) == 14 + 2 + 2
    assert tally().output_tokens(qwen) == 0


def test_an_answer_that_may_have_met_a_stop_text_has_no_end_token(qwen: Vocabulary) -> None:
    """llama.cpp and vLLM report 6 for this one, which `stop: ["tiny"]` ended."""
    events = (delta(content="Hello! This is the "), delta("stop"))
    assert tally(*events, has_stop_texts=True).output_tokens(qwen) == 6


def test_each_choice_has_its_own_invisible_tokens(qwen: Vocabulary) -> None:
    """n=2: 88, which llama.cpp itself reports as 44."""
    events = [delta(index=index, reasoning_content=REASONING) for index in (0, 1)]
    events += [delta("stop", index=index, content=ANSWER) for index in (1, 0)]
    assert tally(*events).output_tokens(qwen) == 88


def test_tool_calls_are_counted_with_the_markup_of_the_call_and_never_above_the_server(
    qwen: Vocabulary,
) -> None:
    """`get_forecast` with `{"days":7}` is 26 tokens as the template writes it; 19 are counted."""
    start = {"index": 0, "id": "x", "type": "function", "function": {"name": "get_forecast", "arguments": ""}}
    more = [{"index": 0, "function": {"arguments": fragment}} for fragment in ('{"', 'days":', "7}")]
    found = tally(
        delta(reasoning_content=REASONING),
        delta(tool_calls=[start]),
        *(delta(tool_calls=[fragment]) for fragment in more),
        delta("tool_calls"),
    )
    written = "<tool_call>\n<function=get_forecast>\n<parameter=days>\n7\n</parameter>\n</function>\n</tool_call>"
    assert found.output_tokens(qwen) == 14 + 2 + 19 + 1
    assert qwen.count(written) == 26


def test_completions_and_whole_answers_are_read_too(qwen: Vocabulary) -> None:
    """`text` of /v1/completions; `message` of an answer that was not streamed."""
    assert tally({"index": 0, "text": ANSWER, "finish_reason": "stop"}).output_tokens(qwen) == 28
    message = {"role": "assistant", "content": ANSWER, "reasoning_content": REASONING, "tool_calls": None}
    assert tally({"index": 0, "message": message, "finish_reason": "stop"}).output_tokens(qwen) == 44


def test_pieces_by_hand() -> None:
    """Every field, and every kind of nothing."""
    assert pieces({"choices": [delta(content=[{"type": "text", "text": "a"}], refusal="no")]}) == [
        Piece(0, content="ano")
    ]
    legacy = delta("function_call", function_call={"name": "f", "arguments": {"a": "é"}})
    assert pieces({"choices": [legacy]}) == [Piece(0, tool='f{"a": "é"}', calls=1, finish="function_call")]
    assert pieces({"choices": [{"index": CHOICES_MAX, "text": "x"}, {"index": -1}, {"index": "1"}]}) == [
        Piece(0, content="x"),
        Piece(0),
        Piece(0),
    ]
    assert pieces({"choices": [{"index": 3, "delta": None, "finish_reason": None}, None, 5]}) == [Piece(3)]
    nothings: tuple[object, ...] = (None, 5, [], {}, {"choices": None}, {"choices": {}}, {"choices": []})
    assert [pieces(nothing) for nothing in nothings] == [[]] * len(nothings)


_fields = dict.fromkeys(
    ("content", "reasoning_content", "reasoning", "refusal", "function_call", "tool_calls"), json_values
)
_choices = st.fixed_dictionaries(
    {},
    optional={
        "index": json_values,
        "delta": st.one_of(json_values, st.fixed_dictionaries({}, optional=_fields)),
        "message": json_values,
        "text": json_values,
        "finish_reason": json_values,
    },
)


@settings(max_examples=100, deadline=None)
@given(st.one_of(json_values, st.fixed_dictionaries({"choices": st.one_of(json_values, st.lists(_choices))})))
def test_no_chunk_raises(qwen: Vocabulary, chunk: object) -> None:
    """Whatever an upstream sends, there are pieces and a count."""
    found = OutputTally()
    for piece in pieces(chunk):
        assert 0 <= piece.choice < CHOICES_MAX
        found.take(piece)
    assert found.output_tokens(qwen) >= 0


_events = st.lists(
    st.tuples(st.integers(0, 2), st.sampled_from(["reasoning", "content", "tool"]), texts, st.booleans()),
    max_size=12,
)


@settings(max_examples=80, deadline=None)
@given(_events)
def test_counting_in_between_changes_nothing(qwen: Vocabulary, events: list[tuple[int, str, str, bool]]) -> None:
    """A tally that is counted at any moments ends with the count of one that is counted once."""
    watched, once = OutputTally(), OutputTally()
    for index, field, text, is_counted in events:
        for found in (watched, once):
            match field:
                case "reasoning":
                    found.add(index, reasoning=text * 20)
                case "content":
                    found.add(index, content=text * 20)
                case _:
                    found.add(index, tool=text * 20)
        if is_counted:
            watched.output_tokens(qwen)
    assert watched.output_tokens(qwen) == once.output_tokens(qwen)
    assert watched.reasoning_tokens(qwen) == once.reasoning_tokens(qwen)


@settings(max_examples=80, deadline=None)
@given(text=texts.map(lambda text: text * 20), step=st.integers(40, 700))
def test_a_folded_text_counts_as_the_whole(qwen: Vocabulary, text: str, step: int) -> None:
    """Cut anywhere into deltas and counted after each, the count is at every moment that of the text so
    far."""
    found = OutputTally()
    for begin in range(0, len(text), step):
        found.add(0, content=text[begin : begin + step])
        so_far = text[: begin + step]
        shown = 2 if so_far.startswith("<think>\n") else 0
        assert found.output_tokens(qwen) == max(0, qwen.count(so_far) - shown)


class _Interrupted(tiktoken.Encoding):
    """An encoding in the middle of whose work the stream goes on, as it does when another thread counts."""

    def __init__(self, found: OutputTally, waiting: list[tuple[int, str]]) -> None:
        ranks = qwen35.load_ranks().by_token
        super().__init__("interrupted", pat_str=QWEN35, mergeable_ranks=ranks, special_tokens={})
        self.found, self.waiting = found, waiting

    def encode(self, text: str, **_: object) -> list[int]:
        """Two pieces arrive; then the text is encoded."""
        for _nth in range(min(2, len(self.waiting))):
            index, piece = self.waiting.pop()
            self.found.add(index, content=piece)
        return self.encode_ordinary(text)


def test_what_arrives_while_it_is_counted_is_not_lost(qwen: Vocabulary) -> None:
    """One thread adds, another counts: every piece is in the last count, those of choices that begin meanwhile too."""
    found = OutputTally()
    sent = [(nth // 100, f" Satz {nth}.\n" * 20) for nth in range(400)]
    waiting = sent[::-1]
    vocabulary = Vocabulary("interrupted", _Interrupted(found, waiting), True, {}, 0, Dialect.OTHER, True)
    found.add(0, content="Anfang")
    for _ in sent:
        found.output_tokens(vocabulary)
    assert waiting == []
    expected = qwen.count("Anfang") + sum(qwen.count(piece) for _, piece in sent)
    assert found.output_tokens(vocabulary) == expected


class _Watched(tiktoken.Encoding):
    """An encoding that knows how many characters it was given."""

    characters = 0

    def encode(self, text: str, **_: object) -> list[int]:
        """Counts, then encodes."""
        self.characters += len(text)
        return self.encode_ordinary(text)


def test_counting_a_growing_text_is_linear() -> None:
    """2,000 counts of a text that grows to 100,000 characters read a small multiple of it, not its square."""
    watched = _Watched("watched", pat_str=QWEN35, mergeable_ranks=qwen35.load_ranks().by_token, special_tokens={})
    vocabulary = Vocabulary("watched", watched, True, {}, 0, Dialect.OTHER, True)
    found = OutputTally()
    for nth in range(2_000):
        found.add(0, content=f" Dies ist Satz {nth}, und er ist wahr. これはペンです。\n")
        tokens = found.output_tokens(vocabulary)
        assert found.output_tokens(vocabulary) == tokens
    assert watched.characters < 20 * 100_000
