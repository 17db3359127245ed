"""Composition: Unicode's own, and linear in the text."""

import sys
import unicodedata

from hypothesis import given

from billing.tokens.normal_form import MARKS_IN_A_ROW_MAX, nfc
from tests.unit.tokens.texts import hard_texts, texts


@given(texts)
def test_ordinary_text_is_composed_as_unicode_says(text: str) -> None:
    """The same as the standard library's."""
    assert nfc(text) == unicodedata.normalize("NFC", text)


def test_hard_texts_are_composed_as_unicode_says() -> None:
    """The same as the standard library's, on all scripts; and some of them change."""
    found = hard_texts(400, seed=5)
    assert [nfc(text) for text in found] == [unicodedata.normalize("NFC", text) for text in found]
    assert [text for text in found if nfc(text) != text]


def test_a_flood_of_marks_is_left_as_it_is() -> None:
    """40,000 marks in the wrong order take seconds to sort by insertion, and a request may hold millions;
    what surrounds them is composed."""
    flood = "\u0301\u0316" * 20_000
    assert nfc(f"e\u0301 x{flood} e\u0301") == f"\u00e9 x{flood} \u00e9"


def test_every_character_that_can_be_reordered_is_counted_as_a_mark() -> None:
    """A run of each character with a combining class is recognised, so that none gets around the limit."""
    marks = [chr(code) for code in range(sys.maxunicode + 1) if unicodedata.combining(chr(code))]
    runs = [mark * MARKS_IN_A_ROW_MAX + "\u0316\u0301" for mark in marks]
    assert len(marks) > 900
    assert [run for run in runs if nfc(run) != run] == []
