"""A stream gathered into the one answer that its client asked for: llama.cpp, not streamed (`relay/gathering.py`).

A stream stops when its client leaves, a whole answer does not. And llama.cpp answers `n: 2` or an array of prompts with
all outputs but the usage of the first one only (measured: 44 tokens reported, 88 generated), while its streams report
each output. So Weir asks for a stream and puts the answer together: the same fields in the same order as llama.cpp's
own, with the usage of all outputs.
"""

from typing import Any

import orjson

from billing.limits import RESPONSE_BODY_BYTES_MAX
from billing.tokens.counting import CHOICES_MAX, OutputTally
from billing.usage import Usage
from proxy.meter.framing import StreamError
from proxy.meter.reading import timings_of
from proxy.meter.steps import Outputs, Settle
from proxy.meter.stream import StreamMeter

_CHAT_OBJECT = "chat.completion"
BROKEN = (
    b'{"error":{"message":"the model server sent what can not be put together",'
    b'"type":"api_error","param":null,"code":"upstream_error"}}'
)


class Gatherer:
    """Bytes of an event stream in, nothing out until `finish`: then the whole answer."""

    __slots__ = (
        "_bytes",
        "_choices",
        "_common",
        "_deltas",
        "_error",
        "_has_stop_texts",
        "_is_chat",
        "_is_single",
        "_meter",
        "_timings",
    )

    def __init__(self, outputs: Outputs, *, is_chat: bool, has_stop_texts: bool = False) -> None:
        self._meter = StreamMeter(hides_usage=False, outputs=outputs, adds_outputs=True)
        self._meter.watch = self._gather
        self._is_chat = is_chat
        self._is_single = outputs.total == 1
        self._has_stop_texts = has_stop_texts
        self._deltas = 0
        self._bytes = 0
        self._choices: dict[int, _Choice] = {}
        self._common: dict[str, Any] = {}
        self._timings: object = None
        self._error: object = None

    @property
    def is_complete(self) -> bool:
        """Whether the terminal event has come."""
        return self._meter.is_complete

    def receive(self, data: bytes) -> bytes:
        """Take a read; nothing may be sent yet. Raises StreamError."""
        self._bytes += len(data)
        if self._bytes > RESPONSE_BODY_BYTES_MAX:
            raise StreamError("the answer is too long to be gathered")
        self._meter.receive(data)
        return b""

    def known_usage(self) -> Usage | None:
        """Return the usage so far if the upstream told it; a report of no output beside text is none."""
        usage = self._meter.known_usage()
        if usage is None and self._is_single:
            usage = timings_of({"timings": self._timings})
        return None if usage is not None and not usage.output_tokens and self._choices_have_text() else usage

    def known_prompt(self) -> Usage | None:
        """Return nothing: who leaves such an answer has seen none of it."""
        return None

    def delivered(self) -> OutputTally:
        """Return the text that was generated so far."""
        tally = OutputTally(has_stop_texts=self._has_stop_texts)
        for index, choice in self._choices.items():
            choice.tell(index, tally)
        tally.deltas = self._deltas
        return tally

    def _choices_have_text(self) -> bool:
        return not self.delivered().is_empty

    def finish(self) -> Settle:
        """End: the usage of all outputs, and the whole answer, or the upstream's error in its place."""
        times = self._meter.finish().times
        usage = self.known_usage()
        if self._error is not None:
            return Settle(usage, written({"error": self._error}), is_error=True)
        if usage is None and not self.is_complete and not self.delivered().finishes:  # it broke off
            return Settle(None, BROKEN, is_error=True)
        answer = self._answer(usage)
        raw = written(answer)
        return Settle(usage, raw, is_error=raw is BROKEN, reported=answer.get("usage"), times=times)

    def _answer(self, usage: Usage | None) -> dict[str, Any]:
        common = self._common
        answer = {
            "choices": [choice.whole(index, is_chat=self._is_chat) for index, choice in sorted(self._choices.items())],
            "created": common.get("created"),
            "model": common.get("model"),
            "system_fingerprint": common.get("system_fingerprint"),
            "object": _CHAT_OBJECT if self._is_chat else "text_completion",
        }
        if usage is not None:
            answer["usage"] = {
                "completion_tokens": usage.output_tokens,
                "prompt_tokens": usage.input_tokens,
                "total_tokens": usage.input_tokens + usage.output_tokens,
                "prompt_tokens_details": _prompt_details(usage),
            }
        answer["id"] = common.get("id")
        if self._timings is not None:
            answer["timings"] = self._timings
        return answer

    def _gather(self, chunk: dict[str, Any]) -> None:
        """Add one parsed event."""
        self._error = chunk.get("error") or self._error
        self._common = self._common or chunk
        timings = chunk.get("timings")
        if timings is not None and (self._is_single or self._timings is None):  # of several, the first one's
            self._timings = timings
        for part in _objects(chunk.get("choices")):
            self._deltas += 1
            self._choices.setdefault(_index(part), _Choice()).add(part)


class _Choice:
    """One output as it grows."""

    __slots__ = ("_calls", "_content", "_finish", "_logprobs", "_reasoning", "_text")

    def __init__(self) -> None:
        self._content: list[str] = []
        self._reasoning: list[str] = []
        self._text: list[str] = []
        self._calls: dict[int, _Call] = {}
        self._logprobs: dict[str, list[Any]] | None = None
        self._finish: object = None

    def add(self, part: dict[str, Any]) -> None:
        """Append what one event says of this output."""
        delta = part.get("delta")
        delta = delta if isinstance(delta, dict) else {}
        _append(self._text, part.get("text"))
        _append(self._content, delta.get("content"))
        _append(self._reasoning, delta.get("reasoning_content"))
        for fragment in _objects(delta.get("tool_calls")):
            self._calls.setdefault(_index(fragment), _Call()).add(fragment)
        self._finish = part.get("finish_reason") or self._finish
        logprobs = part.get("logprobs")
        if isinstance(logprobs, dict):
            self._logprobs = self._logprobs or {}
            for name, values in logprobs.items():
                self._logprobs.setdefault(name, []).extend(values if isinstance(values, list) else ())

    def tell(self, index: int, tally: OutputTally) -> None:
        """Add what was generated to a tally."""
        calls = [call.whole()["function"] for call in self._calls.values()]
        tool = "".join(call["name"] + call["arguments"] for call in calls)
        content = "".join((*self._content, *self._text))
        tally.add(index, "".join(self._reasoning), content, tool, calls=len(calls))
        if isinstance(self._finish, str):
            tally.finish(index, self._finish)

    def whole(self, index: int, *, is_chat: bool) -> dict[str, Any]:
        """Return the output as an answer that is not streamed shows it."""
        if not is_chat:
            text = "".join(self._text)
            return {"text": text, "index": index, "logprobs": self._logprobs, "finish_reason": self._finish}
        message: dict[str, Any] = {"role": "assistant", "content": "".join(self._content)}
        if self._reasoning:
            message["reasoning_content"] = "".join(self._reasoning)
        if self._calls:
            message["tool_calls"] = [call.whole() for _, call in sorted(self._calls.items())]
        whole: dict[str, Any] = {"finish_reason": self._finish, "index": index, "message": message}
        if self._logprobs is not None:
            whole["logprobs"] = self._logprobs
        return whole


class _Call:
    """One tool call as it grows."""

    __slots__ = ("_arguments", "_id", "_name")

    def __init__(self) -> None:
        self._name: list[str] = []
        self._arguments: list[str] = []
        self._id: object = None

    def add(self, fragment: dict[str, Any]) -> None:
        """Append a fragment."""
        function = fragment.get("function")
        function = function if isinstance(function, dict) else {}
        _append(self._name, function.get("name"))
        _append(self._arguments, function.get("arguments"))
        self._id = self._id or fragment.get("id")

    def whole(self) -> dict[str, Any]:
        """Return the call with its fields in llama.cpp's order."""
        function = {"name": "".join(self._name), "arguments": "".join(self._arguments)}
        return {"type": "function", "function": function, "id": self._id}


def _prompt_details(usage: Usage) -> dict[str, int]:
    """Return the parts of a prompt; llama.cpp names no others than the cached one so far."""
    media = {"image_tokens": usage.image_input_tokens, "audio_tokens": usage.audio_input_tokens}
    return {"cached_tokens": usage.cached_input_tokens} | {name: tokens for name, tokens in media.items() if tokens}


def written(answer: dict[str, Any]) -> bytes:
    """Serialise; what an upstream nested deeper than orjson writes (254 levels; it reads 1,024) is an error."""
    try:
        return orjson.dumps(answer)
    except TypeError:
        return BROKEN


def _append(texts: list[str], text: object) -> None:
    if isinstance(text, str):
        texts.append(text)


def _objects(values: object) -> list[dict[str, Any]]:
    return [value for value in values if isinstance(value, dict)] if isinstance(values, list) else []


def _index(part: dict[str, Any]) -> int:
    """Return where a part belongs; what is no index counts as 0, as in `billing/tokens/counting.py`."""
    index = part.get("index")
    return index if isinstance(index, int) and 0 <= index < CHOICES_MAX else 0
