"""Server-sent events that say what they are, in a `type` and in an `event:` line: `/v1/responses`, `/v1/messages`.

Servers differ in which of the two they write, and clients in which they read: transformers has no `event:` lines;
llama.cpp's error events of `/v1/messages` are errors by that line alone, their `type` is that of the error.
"""

import re
from typing import Any

from proxy.meter.flow import CostOf, Flow
from proxy.meter.framing import event_data

ERROR = "error"
_NAME = re.compile(rb"(?:\A(?:\xef\xbb\xbf)?|[\r\n])event: ?([^\r\n]*)")
_DONE = b"[DONE]"


def kind_of(parsed: dict[str, Any], event: bytes) -> str:
    """Return what an event is: its `type`, or else the last name that its `event:` lines give it."""
    kind = parsed.get("type")
    return kind if isinstance(kind, str) else _name_of(event)


def names_of(parsed: dict[str, Any], event: bytes) -> frozenset[str]:
    """Return all that an event is called, in its `type` and in its `event:` lines."""
    return frozenset((kind_of(parsed, event), _name_of(event)))


def _name_of(event: bytes) -> str:
    names = _NAME.findall(event)
    return names[-1].decode("utf-8", "replace") if names else ""


def may_end_badly(data: bytes) -> bool:
    """Tell whether a read may hold an error, or the `[DONE]` with which some servers end any stream.

    An error may be called one by its `type`, its `error` key or its `event:` line, so that one word is searched for; a
    false alarm, in a text that speaks of errors, costs a parse and nothing else.
    """
    return b"error" in data or _DONE in data


class TypedFlow(Flow):
    """A flow of typed events."""

    __slots__ = ()

    def __init__(self, *, cost_of: CostOf | None = None, has_stop_texts: bool = False) -> None:
        super().__init__(cost_of=cost_of, has_stop_texts=has_stop_texts, is_lines=False)

    def _look(self, event: bytes) -> bytes:
        if event_data(event).strip() == _DONE:
            self.is_complete = True
            return event
        return super()._look(event)
