"""The meter of `/v1/messages` (Anthropic's shape), streamed and not.

`input_tokens` leaves out the cached part: the prompt is input + cache_read + cache_creation. A stream reports in
`message_start` and in `message_delta`, and servers differ in what they put where:

    start: input 310; delta: input 54, cache_read 256      vLLM: the later count corrects the former, field by field
    start: input 2, cache_read 11; delta: output only      llama.cpp
    start: input 0; delta: output only                     Ollama (2026-01): no prompt is told, it is counted
    start: input n; delta: input n again                   Ollama (2026-08)
    a later prompt of 0                                    not believed after one that was not
    `message_stop`                                         the terminal event, held
    an error that only its `event:` line calls one         llama.cpp

The official SDK merges the two in the same way. `count_tokens` costs nothing and needs no meter.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final

import orjson

from billing.tokens.counting import OutputTally, Piece, arguments_text
from billing.usage import Usage
from proxy.meter.flow import CostOf
from proxy.meter.steps import Settle
from proxy.meter.told import Told, count, mapping, objects, parsed_object, proven, string
from proxy.meter.typed import ERROR, TypedFlow, may_end_badly, names_of

_CACHED: Final = "cache_read_input_tokens"
_PROMPT: Final = ("input_tokens", _CACHED, "cache_creation_input_tokens")
_OUTPUT: Final = "output_tokens"
_REASONING: Final = "thinking_tokens"
_ENDS_WITH_EOS: Final = frozenset({"end_turn", "tool_use"})


def counts_of(usage: dict[str, Any]) -> dict[str, int]:
    """Return the counts that a usage object names; those of its prompt only if they make one."""
    found = {name: count(usage.get(name)) for name in (*_PROMPT, _OUTPUT)}
    found[_REASONING] = count(mapping(usage.get("output_tokens_details")).get(_REASONING))
    counts = {name: value for name, value in found.items() if value is not None}
    has_prompt = any(counts.get(name) for name in _PROMPT)
    return {name: value for name, value in counts.items() if has_prompt or name not in _PROMPT}


def told_of(counts: Mapping[str, int]) -> Told:
    """Return what counts tell.

    A negative part makes the cached part negative, whatever it was: so the report is marked (`billing.usage.provable`),
    and the rest of the prompt is billed as not cached.
    """
    prompt = [counts[name] for name in _PROMPT if name in counts]
    return Told(
        input_tokens=sum(max(0, part) for part in prompt) if prompt else None,
        output_tokens=counts.get(_OUTPUT),
        cached_input_tokens=min((0, *prompt)) or counts.get(_CACHED, 0),
        reasoning_tokens=counts.get(_REASONING, 0),
    )


class MessagesMeter(TypedFlow):
    """Bytes of an event stream in, bytes for the client out, the usage at the end."""

    __slots__ = ("_counts",)

    def __init__(self, *, cost_of: CostOf | None = None, has_stop_texts: bool = False) -> None:
        """`cost_of` gives the JSON number for the `usage.cost` of `message_delta`."""
        super().__init__(cost_of=cost_of, has_stop_texts=has_stop_texts)
        self._counts: dict[str, int] = {}

    def _matters(self, data: bytes) -> bool:
        return b"message_" in data or may_end_badly(data)

    def _note(self, parsed: dict[str, Any], event: bytes) -> dict[str, Any] | None:
        names = names_of(parsed, event)
        self._is_error = self._is_error or ERROR in names
        self.is_complete = "message_stop" in names
        is_final = "message_delta" in names
        usage = (parsed if is_final else mapping(parsed.get("message"))).get("usage")
        if not isinstance(usage, dict):
            return None
        self._counts = {**self._counts, **counts_of(usage)}
        if not is_final:
            return None
        self._told = told_of(self._counts)
        return usage

    def known_prompt(self) -> Usage | None:
        """Return the prompt that `message_start` told, with no output."""
        told = told_of(self._counts)
        return Usage(told.input_tokens, 0, told.cached_input_tokens) if told.input_tokens else None

    def _pieces(self, parsed: dict[str, Any], event: bytes) -> Iterable[Piece]:  # noqa: ARG002 -- told by its fields
        """Return what a block's start and its deltas bring; a call's arguments come as deltas only."""
        block, delta = mapping(parsed.get("content_block")), mapping(parsed.get("delta"))
        name = string(block.get("name"))
        yield Piece(
            0,
            reasoning=string(block.get("thinking")) + string(delta.get("thinking")),
            content=string(block.get("text")) + string(delta.get("text")),
            tool=name + string(delta.get("partial_json")),
            calls=bool(name),
            finish=_finish(delta),
        )


def settle(body: bytes) -> Settle:
    """Read the usage of a whole answer; a body that is no JSON object has none."""
    message = parsed_object(body)
    if message is None:
        return Settle(None, body)
    reported = message.get("usage")
    usage = proven(told_of(counts_of(mapping(reported))), _text(message))
    is_error = bool(message.get("error")) or message.get("type") == ERROR
    return Settle(usage, body, is_error, reported if isinstance(reported, dict) else None)


def delivered(body: bytes, *, has_stop_texts: bool = False) -> OutputTally:
    """Return what an answer that came without usage contains, to be counted."""
    message = parsed_object(body) or {}
    told = told_of(counts_of(mapping(message.get("usage"))))
    return told.over(_text(message, has_stop_texts=has_stop_texts))


def _text(message: dict[str, Any], *, has_stop_texts: bool = False) -> OutputTally:
    tally = OutputTally(has_stop_texts=has_stop_texts)
    for block in objects(message.get("content")):
        name, given = string(block.get("name")), block.get("input")
        arguments = _compact(given) if isinstance(given, dict) else ""
        tally.add(0, string(block.get("thinking")), string(block.get("text")), name + arguments, calls=bool(name))
    tally.take(Piece(0, finish=_finish(message)))
    return tally


def _compact(given: dict[str, Any]) -> str:
    """Write the input of a tool as the model did; orjson reads 1,024 levels and writes 254."""
    try:
        return orjson.dumps(given).decode()
    except orjson.JSONEncodeError:
        return arguments_text(given)


def _finish(part: dict[str, Any]) -> str:
    """Return how an answer ended, in OpenAI's words; llama.cpp says `end_turn` of a stop text, too, and names it."""
    reason = string(part.get("stop_reason"))
    return "stop" if reason in _ENDS_WITH_EOS and not part.get("stop_sequence") else reason and "length"
