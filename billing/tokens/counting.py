"""What a (possibly cut) answer contains: the tokens that were generated for it, counted from its text.

This is used where the upstream told nothing: the client left, the upstream died, an old server. It is made
for streams: `add` only appends, and `output_tokens` may be called every second, since what was counted before
is folded away (at a place where that changes nothing, see `cuts.py`) and not kept.

Text does not show everything. Measured with Qwen3.5 on llama.cpp and vLLM: `</think>`, the blank line after
it and the end-of-sequence token are generated, counted by the server and invisible. They are added here, so
that text answers count as servers count them (44 tokens for 41 visible ones). Of tool calls only the names
and arguments are visible: the markup around a call is added, that around each argument (about 7 tokens) is
not, so such an answer is under-counted, never over-counted. Where the request names
`stop` texts, an end may have been one of those, which costs no such token: then none is added. A completion
with `echo` shows its prompt, too, which is not subtracted.
"""

import json
from collections.abc import Iterable, Mapping
from threading import Lock
from typing import Final, NamedTuple

from billing.tokens.cuts import SEGMENT_CHARS_MAX, last_cut
from billing.tokens.vocabulary import Vocabulary

CHOICES_MAX: Final = 1_024
"""Answers of one response that are told apart; a higher index is an upstream's mistake: it counts as 0."""

TOOL_CALL_TOKENS: Final = 11
"""`<tool_call>`, `<function=…>`, `</function>`, `</tool_call>` and their newlines, without the name."""

THINK_PREFIX: Final = "<think>\n"
THINK_PREFIX_TOKENS: Final = 2
"""Shown first by llama.cpp with `reasoning_format: none`, though it was part of the prompt."""

_ENDS_WITH_EOS: Final = frozenset({"stop", "tool_calls", "function_call"})
_HEAD_CHARS: Final = 8
_FOLD_CHARS_MIN: Final = 512


class Piece(NamedTuple):
    """What one event of a stream adds to one choice. `calls`: tool calls that begin in it; `finish`: its
    finish_reason."""

    choice: int
    reasoning: str = ""
    content: str = ""
    tool: str = ""
    calls: int = 0
    finish: str = ""


class OutputTally:
    """The answers of one response, by choice. Always count one tally with the same vocabulary.

    One thread may add while others count (a checkpoint and the end of a cut stream, off the event loop).

    `has_stop_texts`: the request has `stop`, so that an answer may end without an end-of-sequence token.
    """

    __slots__ = ("_choices", "_counting", "_has_stop_texts", "deltas", "finishes")

    def __init__(self, *, has_stop_texts: bool = False) -> None:
        self.deltas = 0
        self.finishes = 0
        self._choices: dict[int, _Choice] = {}
        self._counting = Lock()
        self._has_stop_texts = has_stop_texts

    def add(self, index: int, reasoning: str = "", content: str = "", tool: str = "", *, calls: int = 0) -> None:
        """Appends to choice `index`; counts the `deltas` that brought something."""
        self.deltas += bool(reasoning or content or tool)
        choice = self._choice(index)
        if reasoning:
            choice.reasoning.add(reasoning)
        if content:
            choice.content.add(content)
        if tool:
            choice.tool.add(tool)
        choice.calls += calls

    def finish(self, index: int, reason: str) -> None:
        """Choice `index` ended by itself, for this `finish_reason`; counts the `finishes`."""
        self.finishes += 1
        self._choice(index).has_eos = reason in _ENDS_WITH_EOS and not self._has_stop_texts

    def take(self, piece: Piece) -> None:
        """Appends a piece, and ends its choice if it says so."""
        index, reasoning, content, tool, calls, finish = piece
        self.add(index, reasoning, content, tool, calls=calls)
        if finish:
            self.finish(index, finish)

    @property
    def is_empty(self) -> bool:
        """Whether nothing was delivered yet: no text, no tool call."""
        return not any(part.head for choice in self._choices.values() for part in choice.parts)

    def output_tokens(self, vocabulary: Vocabulary) -> int:
        """All tokens generated so far, reasoning included."""
        with self._counting:
            return sum(choice.output_tokens(vocabulary) for choice in list(self._choices.values()))

    def reasoning_tokens(self, vocabulary: Vocabulary) -> int:
        """The part that is reasoning, without the token that closes it (as vLLM reports it)."""
        with self._counting:
            return sum(choice.reasoning.count(vocabulary) for choice in list(self._choices.values()))

    def tool_tokens(self, vocabulary: Vocabulary) -> int:
        """The part that is names and arguments of tool calls, without the markup around them."""
        return sum(choice.tool.count(vocabulary) for choice in list(self._choices.values()))

    def _choice(self, index: int) -> "_Choice":
        choice = self._choices.get(index)
        if choice is None:
            choice = self._choices[index] = _Choice()
        return choice


class _Growing:
    """A text that grows and is counted again and again: what lies before the last safe cut is counted once.

    `_pieces` begins with the text that was counted last; whatever follows came since. A count replaces only the pieces
    that it has read, in one step, so that another thread may append meanwhile.
    """

    __slots__ = ("_folded", "_pieces", "_tail_tokens", "head")

    def __init__(self) -> None:
        self.head = ""
        self._pieces = [""]
        self._folded = 0
        self._tail_tokens = 0

    def add(self, text: str) -> None:
        if len(self.head) < _HEAD_CHARS:
            self.head += text[: _HEAD_CHARS - len(self.head)]
        self._pieces.append(text)

    def count(self, vocabulary: Vocabulary) -> int:
        size = len(self._pieces)
        if size > 1:
            tail = "".join(self._pieces[:size])
            cut = last_cut(tail, 0, len(tail)) if vocabulary.can_cut and len(tail) >= _FOLD_CHARS_MIN else 0
            # Where it can not be cut a text is counted in segments anyway (`cuts.segments`): those are folded.
            cut = cut or len(tail) - len(tail) % SEGMENT_CHARS_MAX
            if cut:
                self._folded += vocabulary.count(tail[:cut])
                tail = tail[cut:]
            self._tail_tokens = vocabulary.count(tail)
            self._pieces[:size] = [tail]
        return self._folded + self._tail_tokens


class _Choice:
    __slots__ = ("calls", "content", "has_eos", "reasoning", "tool")

    def __init__(self) -> None:
        self.reasoning, self.content, self.tool = _Growing(), _Growing(), _Growing()
        self.calls = 0
        self.has_eos = False

    @property
    def parts(self) -> "tuple[_Growing, _Growing, _Growing]":
        return self.reasoning, self.content, self.tool

    def output_tokens(self, vocabulary: Vocabulary) -> int:
        shown = sum(part.count(vocabulary) for part in self.parts)
        return max(0, shown + self._invisible())

    def _invisible(self) -> int:
        tokens = TOOL_CALL_TOKENS * self.calls + self.has_eos
        if self.reasoning.head and (self.content.head or self.tool.head):
            # vLLM shows the blank line at the start of the content, llama.cpp does not.
            tokens += 1 if self.content.head.startswith("\n") else 2
        if self.content.head.startswith(THINK_PREFIX):
            tokens -= THINK_PREFIX_TOKENS
        return tokens


def pieces(chunk: object) -> list[Piece]:
    """What one parsed event of an OpenAI chat or completions stream adds; also reads a whole answer's
    `message`.

    Tolerant: null, absent and wrongly typed fields are empty, never an error.
    """
    choices = chunk.get("choices") if isinstance(chunk, dict) else None
    if not isinstance(choices, list):
        return []
    return [_piece(choice) for choice in choices if isinstance(choice, dict)]


def _piece(choice: Mapping[str, object]) -> Piece:
    index = choice.get("index")
    delta = choice.get("delta")
    if not isinstance(delta, dict):
        message = choice.get("message")
        delta = message if isinstance(message, dict) else {}
    index = index if isinstance(index, int) and 0 <= index < CHOICES_MAX else 0
    content, finish = delta.get("content"), _string(choice.get("finish_reason"))
    if isinstance(content, str) and len(delta) == 1 and "text" not in choice:
        return Piece(index, "", content, "", 0, finish)  # nearly every event of a stream
    functions = list(_functions(delta))
    return Piece(
        choice=index,
        reasoning=_string(delta.get("reasoning_content")) or _string(delta.get("reasoning")),
        content=_content(content) + _string(delta.get("refusal")) + _string(choice.get("text")),
        tool="".join(
            _string(function.get("name")) + arguments_text(function.get("arguments")) for function in functions
        ),
        calls=sum(bool(_string(function.get("name"))) for function in functions),
        finish=finish,
    )


def _functions(delta: Mapping[str, object]) -> Iterable[Mapping[str, object]]:
    calls = delta.get("tool_calls")
    for call in calls if isinstance(calls, list) else ():
        function = call.get("function") if isinstance(call, dict) else None
        if isinstance(function, dict):
            yield function
    function = delta.get("function_call")
    if isinstance(function, dict):
        yield function


def _string(value: object) -> str:
    return value if isinstance(value, str) else ""


def _content(content: object) -> str:
    """Text, or a list of parts with texts (Mistral)."""
    if not isinstance(content, list):
        return _string(content)
    return "".join(_string(part.get("text")) for part in content if isinstance(part, dict))


def arguments_text(arguments: object) -> str:
    """Return the arguments of a tool call: usually JSON text, in fragments; some servers send the object."""
    if not isinstance(arguments, dict):
        return _string(arguments)
    try:
        return json.dumps(arguments, ensure_ascii=False)
    except (RecursionError, TypeError, ValueError):
        return ""
