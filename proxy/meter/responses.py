"""The meter of `/v1/responses`, streamed and not.

    usage in `response.completed` (incomplete, failed)   the terminal event, held; there is no `[DONE]`
    usage of other events                                ignored: running or zero counts are not the answer's
    `input_tokens` includes the cached part              `input_tokens_details.cached_tokens`
    `input_tokens` includes images and audio             `input_tokens_details.image_tokens`, `audio_tokens`
    `output_tokens` includes the reasoning               `output_tokens_details.reasoning_tokens` (vLLM)
    `prompt_tokens`, `completion_tokens` instead         SGLang, not streamed
    `timings` beside the response, or on each event      llama.cpp: used where no usage came
    no `event:` lines                                    transformers
    reasoning as a summary                               Ollama

Several outputs do not exist in this protocol; llama.cpp makes them all the same (`n: 2` gives an array of two answers,
or two terminal events in one stream, measured), so `relay/asks.py` refuses to ask for them.
"""

import re
from collections.abc import Iterable
from types import MappingProxyType
from typing import Any, Final

from billing.tokens.counting import OutputTally, Piece
from billing.usage import Usage
from proxy.meter.flow import CostOf
from proxy.meter.reading import media_of, times_of, timings_of, usage_of, with_cost
from proxy.meter.steps import Settle
from proxy.meter.told import Told, count, mapping, objects, parsed_object, proven, string
from proxy.meter.typed import ERROR, TypedFlow, kind_of, may_end_badly, names_of

_FAILED: Final = "response.failed"
_TERMINAL: Final = frozenset({"response.completed", "response.incomplete", "response.cancelled", _FAILED})
_CONTENT, _REASONING, _TOOL = "content", "reasoning", "tool"
_DELTAS: Final = MappingProxyType(
    {
        "response.output_text.delta": _CONTENT,
        "response.refusal.delta": _CONTENT,
        "response.reasoning_text.delta": _REASONING,
        "response.reasoning_summary_text.delta": _REASONING,
        "response.function_call_arguments.delta": _TOOL,
        "response.custom_tool_call_input.delta": _TOOL,
        "response.mcp_call_arguments.delta": _TOOL,
        "response.code_interpreter_call_code.delta": _TOOL,
        "response.shell_call_command.delta": _TOOL,
    }
)
"""Events whose `delta` the model generated. What a tool answered, sound and its transcript are not that."""

_RESPONSE: Final = re.compile(rb'"response"[ \t\r\n]*:[ \t\r\n]*(?=\{)')


def told_of(response: dict[str, Any]) -> Told | None:
    """Return what a response object reports."""
    usage = mapping(response.get("usage"))
    details = mapping(usage.get("input_tokens_details"))
    image, audio = media_of(details)
    told = Told(
        input_tokens=count(usage.get("input_tokens")),
        output_tokens=count(usage.get("output_tokens")),
        cached_input_tokens=count(details.get("cached_tokens")) or 0,
        reasoning_tokens=count(mapping(usage.get("output_tokens_details")).get("reasoning_tokens")) or 0,
        image_input_tokens=image,
        audio_input_tokens=audio,
    )
    if told.input_tokens is not None or told.output_tokens is not None:
        return told
    return _as_told(usage_of(response))


def _as_told(usage: Usage | None) -> Told | None:
    return Told(*usage) if usage is not None else None


class ResponsesMeter(TypedFlow):
    """Bytes of an event stream in, bytes for the client out, the usage at the end."""

    __slots__ = ("_running",)

    def __init__(self, *, cost_of: CostOf | None = None, has_stop_texts: bool = False) -> None:
        """`cost_of` gives the JSON number for `usage.cost`."""
        super().__init__(cost_of=cost_of, has_stop_texts=has_stop_texts)
        self._running: Told | None = None

    def _matters(self, data: bytes) -> bool:
        return b'"response"' in data or may_end_badly(data)

    def _note(self, parsed: dict[str, Any], event: bytes) -> dict[str, Any] | None:
        names = names_of(parsed, event)
        self._is_error = self._is_error or not names.isdisjoint((ERROR, _FAILED))
        if names.isdisjoint(_TERMINAL):
            return None
        self.is_complete = True
        response = mapping(parsed.get("response"))
        self._told = told_of(response) or _as_told(timings_of(parsed))
        self._times = times_of(parsed) or times_of(response)
        usage = response.get("usage")
        return usage if isinstance(usage, dict) else None

    def _priced(self, event: bytes, cost: str, reported: dict[str, Any] | None) -> bytes:
        """Add the cost inside the response: a client's tool may have a parameter that is called `usage`, too."""
        start = found.end() if (found := _RESPONSE.search(event)) is not None else 0
        return event[:start] + with_cost(event[start:], cost, reported)

    def _pieces(self, parsed: dict[str, Any], event: bytes) -> Iterable[Piece]:
        kind = kind_of(parsed, event)
        if kind in _TERMINAL:
            response = mapping(parsed.get("response"))
            yield from _whole_pieces(response) if self._tally.is_empty else [_finish(response)]
            return
        if kind == "response.output_item.added":
            yield _call(mapping(parsed.get("item")))
        elif (part := _DELTAS.get(kind)) is not None and isinstance(parsed.get("delta"), str):
            self._running = _as_told(timings_of(parsed))
            yield Piece(0, **{part: parsed["delta"]})

    def known_usage(self) -> Usage | None:
        """Return the usage if the upstream told all of it: at the end, or with the last delta (llama.cpp)."""
        if self._told is None and not self.is_complete:
            self._fold()
            return self._running.usage if self._running is not None else None
        return super().known_usage()


def settle(body: bytes) -> Settle:
    """Read the usage of a whole answer; a body that is no JSON object has none."""
    response = parsed_object(body)
    if response is None:
        return Settle(None, body)
    usage = proven(told_of(response), _text(response))
    reported = response.get("usage")
    is_error = bool(response.get("error")) or response.get("status") == "failed"
    return Settle(usage, body, is_error, reported if isinstance(reported, dict) else None, times_of(response))


def delivered(body: bytes, *, has_stop_texts: bool = False) -> OutputTally:
    """Return what an answer that came without usage contains, to be counted."""
    response = parsed_object(body) or {}
    text, told = _text(response, has_stop_texts=has_stop_texts), told_of(response)
    return told.over(text) if told is not None else text


def _text(response: dict[str, Any], *, has_stop_texts: bool = False) -> OutputTally:
    tally = OutputTally(has_stop_texts=has_stop_texts)
    for piece in _whole_pieces(response):
        tally.take(piece)
    return tally


def _whole_pieces(response: dict[str, Any]) -> Iterable[Piece]:
    for item in objects(response.get("output")):
        texts = "".join(string(part.get("text")) + string(part.get("refusal")) for part in objects(item.get("content")))
        if item.get("type") == "reasoning":
            summary = "".join(string(part.get("text")) for part in objects(item.get("summary")))
            yield Piece(0, reasoning=texts or summary)
        elif item.get("type") == "message":
            yield Piece(0, content=texts)
        else:
            call = _call(item)
            generated = (string(item.get(name)) for name in ("arguments", "input", "code"))
            yield Piece(0, tool=call.tool + "".join(generated), calls=call.calls)
    yield _finish(response)


def _call(item: dict[str, Any]) -> Piece:
    """Return the tool call that an item begins, if it is one: its arguments follow."""
    name = string(item.get("name")) if string(item.get("type")).endswith("_call") else ""
    return Piece(0, tool=name, calls=bool(name))


def _finish(response: dict[str, Any]) -> Piece:
    """Return how an answer ended. Of a limit llama.cpp says "completed", too, but then it says the usage as well."""
    return Piece(0, finish="stop" if response.get("status") == "completed" else "length")
