"""Streams of `/v1/responses` and `/v1/messages` gathered into one answer: llama.cpp, not streamed (`relay/gathering`).

They are metered as streams are (`responses`, `messages`); here is only how llama.cpp orders and names the parts of an
answer that it sends whole (measured on b11549, read in its source):

    /v1/responses   the terminal event has it all, in another order: top and messages by name; `completed_at` is
                    missing, which is `created_at` (both are the end), and so is the `status` of reasoning
    /v1/messages    thinking, then text, then calls, whatever index their blocks came with; a call's arguments are
                    JSON, parsed and written again, and `{}` where they are none (cut by a limit)
"""

import json
from abc import abstractmethod
from collections.abc import Iterable
from typing import Any, Final

import orjson

from billing.limits import RESPONSE_BODY_BYTES_MAX
from billing.tokens.counting import Piece
from billing.usage import Usage
from proxy.meter.framing import StreamError
from proxy.meter.gathered import BROKEN, written
from proxy.meter.messages import MessagesMeter
from proxy.meter.responses import ResponsesMeter
from proxy.meter.steps import Settle
from proxy.meter.told import mapping, objects, string
from proxy.meter.typed import TypedFlow

_RESPONSE: Final = ("completed_at", "created_at", "id", "model", "object", "output", "status", "usage")
_MESSAGE: Final = ("content", "id", "role", "status", "type")


class TypedGatherer(TypedFlow):
    """Bytes of an event stream in, nothing out until `finish`: then the whole answer."""

    def __init__(self, *, has_stop_texts: bool = False) -> None:
        super().__init__(has_stop_texts=has_stop_texts)
        self._bytes = 0
        self._error: object = None

    def receive(self, data: bytes) -> bytes:
        """Take a read; nothing may be sent yet. Raises StreamError."""
        self._bytes += len(data)
        if self._bytes > RESPONSE_BODY_BYTES_MAX:
            raise StreamError("the answer is too long to be gathered")
        super().receive(data)
        return b""

    def known_prompt(self) -> Usage | None:
        """Return nothing: who leaves such an answer has seen none of it."""
        return None

    def finish(self) -> Settle:
        """End: the usage, and the whole answer, or the upstream's error in its place."""
        settled = super().finish()
        if self._error is not None:
            return Settle(settled.usage, written({"error": self._error}), is_error=True)
        answer = {} if settled.is_error else self._answer()
        raw = written(answer) if answer else BROKEN
        return Settle(settled.usage, raw, is_error=raw is BROKEN, reported=answer.get("usage"), times=settled.times)

    def _note(self, parsed: dict[str, Any], event: bytes) -> dict[str, Any] | None:
        reported = super()._note(parsed, event)  # type: ignore[safe-super]  # of the protocol that it is mixed with
        if self._is_error and self._error is None:
            response = parsed.get("response")
            self._error = parsed.get("error") or (parsed if response is None else mapping(response).get("error"))
        return reported

    @abstractmethod
    def _answer(self) -> dict[str, Any]:
        """Return the whole answer, empty if what came can not be one."""


class ResponsesGatherer(TypedGatherer, ResponsesMeter):
    """Gathers `/v1/responses`: its terminal event holds the answer."""

    def __init__(self, *, has_stop_texts: bool = False) -> None:
        super().__init__(has_stop_texts=has_stop_texts)
        self._response: dict[str, Any] = {}

    def _note(self, parsed: dict[str, Any], event: bytes) -> dict[str, Any] | None:
        reported = super()._note(parsed, event)
        if self.is_complete:
            self._response = mapping(parsed.get("response"))
        return reported

    def _answer(self) -> dict[str, Any]:
        response = self._response
        if not isinstance(response.get("output"), list):
            return {}
        if "created_at" in response:
            response = {"completed_at": response["created_at"], **response}
        return _ordered({**response, "output": [_item(item) for item in objects(response["output"])]}, _RESPONSE)


class MessagesGatherer(TypedGatherer, MessagesMeter):
    """Gathers `/v1/messages` from its blocks."""

    def __init__(self, *, has_stop_texts: bool = False) -> None:
        super().__init__(has_stop_texts=has_stop_texts)
        self._start: dict[str, Any] = {}
        self._end: dict[str, Any] = {}
        self._thinking: list[str] = []
        self._texts: list[str] = []
        self._calls: list[_Call] = []

    def _note(self, parsed: dict[str, Any], event: bytes) -> dict[str, Any] | None:
        reported = super()._note(parsed, event)
        if reported is not None:
            self._end = parsed
        self._start = self._start or mapping(parsed.get("message"))
        return reported

    def _pieces(self, parsed: dict[str, Any], event: bytes) -> Iterable[Piece]:
        """Return what an event brings, and keep it: each event comes here once, in order."""
        block, delta, index = mapping(parsed.get("content_block")), mapping(parsed.get("delta")), parsed.get("index")
        for part in (block, delta):
            self._thinking.append(string(part.get("thinking")))
            self._texts.append(string(part.get("text")))
        if block.get("type") == "tool_use" and not any(call.block.get("id") == block.get("id") for call in self._calls):
            self._calls.append(_Call(block, index))
        arguments = string(delta.get("partial_json"))
        owner = next((call for call in reversed(self._calls) if call.index == index), None) if arguments else None
        if owner is not None:
            owner.arguments.append(arguments)
        return super()._pieces(parsed, event)

    def _answer(self) -> dict[str, Any]:
        self._fold()
        if not self._start or not self._end:
            return {}
        blocks: list[dict[str, Any]] = []
        if thinking := "".join(self._thinking):
            blocks.append({"type": "thinking", "thinking": thinking, "signature": ""})
        if text := "".join(self._texts):
            blocks.append({"type": "text", "text": text})
        blocks += [{**call.block, "input": _parsed("".join(call.arguments))} for call in self._calls]
        usage = {**mapping(self._start.get("usage")), **mapping(self._end.get("usage"))}
        return {**self._start, "content": blocks, **mapping(self._end.get("delta")), "usage": usage}


class _Call:
    """One tool call as it grows."""

    __slots__ = ("arguments", "block", "index")

    def __init__(self, block: dict[str, Any], index: object) -> None:
        self.block = block
        self.index = index
        self.arguments: list[str] = []


def _item(item: dict[str, Any]) -> dict[str, Any]:
    """Return an output as an answer that is not streamed shows it."""
    if item.get("type") == "reasoning":
        return {**item, "status": item.get("status", "completed")}
    return _ordered(item, _MESSAGE) if item.get("type") == "message" else item


def _ordered(fields: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """Return the fields with the named ones first, in their order."""
    return {name: fields[name] for name in names if name in fields} | fields


def _parsed(arguments: str) -> orjson.Fragment:
    """Return a call's arguments as llama.cpp writes them again, `{}` for what is no JSON.

    Not by orjson, which writes an exponent in another way (`1e22` for `1e+22`).
    """
    try:
        value = json.loads(arguments, parse_constant=_refuse)
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return orjson.Fragment(text.encode())
    except (ValueError, RecursionError):
        return orjson.Fragment(b"{}")


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")
