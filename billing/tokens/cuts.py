r"""Where a text may be cut so that the tokens of both halves are the tokens of the whole.

Two uses: a stream's counted part is folded away, so that counting a growing text again and again stays
linear; and a huge text is counted in segments, because tiktoken's regex engine keeps a stack of at most
1,000,000 entries and *panics* past it (a `PanicException`, which is not even an `Exception`): one megabyte of
spaces in a prompt was enough.

The rule, for every regex in `patterns.CUTTABLE`: a cut is before
  (a) a space that follows anything but white space, or
  (b) one of a few marks, or a newline, that follows a letter or a digit.
Why it holds. No alternative of these regexes lets a space follow another character inside a piece, unless
that is white space; and a letter or digit is inside a piece only followed by letters, marks, digits or an
apostrophe. So there is a boundary between pieces at the cut. The only look-ahead, `\s+(?!\S)`, looks past
white space alone, and the half before the cut does not end in any; nothing looks behind. Hence both halves
are split on their own as they are in the whole. Python knows no letter, digit or space that the regex engine
does not know as such (Unicode 14 in Python 3.11 against 16), and what only the engine knows is merely not
used for a cut. Special tokens hold none of the characters that are cut before (`vocabulary.py` checks), so
none is cut through.
"""

import re
from collections.abc import Iterator
from typing import Final

MARKS: Final = "\n,.;:\uff0c\u3002\u3001\uff1b\uff1a\uff01\uff1f"
"""Newline, four ASCII marks, and their Chinese and Japanese kin: such text has no spaces."""
CUT_BEFORE: Final = frozenset(" " + MARKS)

_CUT: Final = re.compile(rf"(?<=\S) |(?<=[^\W_])[{MARKS}]")

SEARCH_CHARS: Final = 4_096
"""How far back a cut is looked for. Prose has one within a word, so more is not worth its time."""

SEGMENT_CHARS_MAX: Final = 262_144
"""A quarter of the number of characters at which tiktoken 0.14's regex engine gives up."""


def last_cut(text: str, begin: int, end: int) -> int:
    """The last place between `begin` and `end` where `text` may be cut, looking back SEARCH_CHARS; `begin` if
    none."""
    found = begin
    for match in _CUT.finditer(text, max(begin + 1, end - SEARCH_CHARS), end):
        found = match.start()
    return found


def segments(text: str, *, can_cut: bool) -> Iterator[str]:
    """`text` in parts of at most SEGMENT_CHARS_MAX characters, cut by the rule where that is possible.

    Where it is not (an unknown regex, or thousands of characters without a word), the cut is blind and the
    sum of the parts may be off by a token or two in each quarter of a million characters.
    """
    begin = 0
    while len(text) - begin > SEGMENT_CHARS_MAX:
        end = begin + SEGMENT_CHARS_MAX
        cut = last_cut(text, begin, end) if can_cut else begin
        cut = cut if cut > begin else end
        yield text[begin:cut]
        begin = cut
    yield text[begin:]
