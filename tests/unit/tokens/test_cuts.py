"""Cuts: both halves have the tokens of the whole, for every regex; and no text is too long."""

import pytest
import regex  # type: ignore[import-untyped]  # has no types; tiktoken depends on it
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from billing.tokens.cuts import CUT_BEFORE, SEGMENT_CHARS_MAX, last_cut, segments
from billing.tokens.patterns import CUTTABLE
from billing.tokens.vocabulary import Vocabulary
from tests.unit.tokens.texts import hard_texts, plain_texts, texts

SINGLE_BYTES = {bytes((byte,)): byte for byte in range(256)}


def cuts_of(text: str) -> list[int]:
    """Every place where the rule allows a cut."""
    return [at for at in range(1, len(text)) if last_cut(text, at - 1, at + 1) == at]


@settings(max_examples=200, deadline=None)
@given(text=plain_texts, pattern=st.sampled_from(sorted(CUTTABLE)))
def test_halves_have_the_pieces_of_the_whole(text: str, pattern: str) -> None:
    """Split by another engine: the pieces of both halves are those of the whole, at every cut."""
    split = regex.compile(pattern, flags=regex.V1)
    whole = split.findall(text)
    for at in cuts_of(text):
        assert split.findall(text[:at]) + split.findall(text[at:]) == whole


@settings(max_examples=150, deadline=None)
@given(texts)
def test_halves_have_the_count_of_the_whole(qwen: Vocabulary, text: str) -> None:
    """Special tokens included, which no cut goes through."""
    for at in cuts_of(text):
        assert qwen.count(text[:at]) + qwen.count(text[at:]) == qwen.count(text)


def test_hard_texts_are_cut_often_enough(qwen: Vocabulary) -> None:
    """The properties above would hold of a rule that never cuts."""
    found = hard_texts(200, seed=4)
    assert sum(len(cuts_of(text)) for text in found) > 150
    for text in found:
        for at in cuts_of(text):
            assert qwen.count(text[:at]) + qwen.count(text[at:]) == qwen.count(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One two, three.\nVier。", [3, 7, 8, 14, 20]),
        ("a  b", [1]),
        ("a\n\nb", [1]),
        (" \n ", []),
        ("日本語。日本", [3]),
        ("x<|im_end|>y", []),
        ("(a) (b)", [3]),
        ("\u00a0 x", []),
    ],
)
def test_cuts_by_hand(text: str, expected: list[int]) -> None:
    """Before a space behind anything but white space, and before a mark behind a letter or digit."""
    assert cuts_of(text) == expected


def test_what_python_takes_for_letters_digits_and_no_space_the_engine_does_too() -> None:
    """The rule is written in Python's classes and proven in the engine's, for every code point."""
    letters = "".join(chr(code) for code in range(0x110000) if chr(code).isalnum())
    engine = tiktoken.Encoding("l", pat_str=r"[\p{L}\p{N}]", mergeable_ranks=SINGLE_BYTES, special_tokens={})
    assert engine.decode(engine.encode_ordinary(letters)) == letters
    code_points = (code for code in range(0x110000) if not 0xD800 <= code < 0xE000)
    dark = "".join(chr(code) for code in code_points if not chr(code).isspace())
    spaces = tiktoken.Encoding("s", pat_str=r"\s", mergeable_ranks=SINGLE_BYTES, special_tokens={})
    assert spaces.encode_ordinary(dark) == []
    assert spaces.encode_ordinary(" ") == [32]


def test_special_tokens_hold_nothing_that_is_cut_before(qwen: Vocabulary) -> None:
    """So that a cut never goes through one."""
    assert qwen.can_cut
    assert not [text for text in qwen.specials if CUT_BEFORE & set(text)]


@pytest.mark.parametrize("unit", [" ", "\t", "\n", "a"])
def test_a_text_of_any_length_is_counted(qwen: Vocabulary, unit: str) -> None:
    """1.1 million characters: tiktoken alone panics on as many spaces or tabs."""
    text = unit * (1_100_000 // len(unit))
    assert 0 < qwen.count(text) <= len(text)


def test_segments_are_the_text_and_none_is_too_long() -> None:
    """Cut by the rule where that is possible, blindly where it is not."""
    for text in ("word " * 200_000, "x" * 600_000, ""):
        parts = list(segments(text, can_cut=True))
        assert "".join(parts) == text
        assert max(map(len, parts)) <= SEGMENT_CHARS_MAX
    blind = list(segments("word " * 200_000, can_cut=False))
    assert len(blind[0]) == SEGMENT_CHARS_MAX
    ruled = list(segments("word " * 200_000, can_cut=True))
    assert all(part.startswith(" word") for part in ruled[1:])


def test_a_long_text_counts_as_it_would_in_one_piece(qwen: Vocabulary) -> None:
    """Prose over several segments: the sum is exactly what tiktoken finds in the whole."""
    text = "Der Müller, der in Köln wohnt, sagt: nein. 日本語、です。\n" * 15_000
    assert len(text) > 2 * SEGMENT_CHARS_MAX
    assert qwen.count(text) == len(qwen.encoding.encode_ordinary(text))
