"""Request bodies of all shapes → one conversation: who says what, which tools, and where the model starts.

Pure, and total: whatever a client sends, a field of the wrong type is treated as absent and nothing is
raised. The upstream will refuse such a request; to estimate its size is all that is asked here.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

MEDIA_MARK: Final = "<|vision_start|><|image_pad|><|vision_end|>"
"""Stands for one picture, recording or file: what Qwen's template writes. The server makes many more tokens
of it."""

_MEDIA: Final = frozenset(
    {"image", "image_url", "input_image", "audio", "audio_url", "input_audio", "video", "video_url"}
    | {"input_video", "file", "input_file", "document"}
)


@dataclass(frozen=True, slots=True)
class Call:
    """A tool call of an earlier answer; `arguments` as parsed JSON where it is JSON."""

    name: str
    arguments: object


@dataclass(frozen=True, slots=True)
class Turn:
    """One message. `role` is "system", "user", "assistant" or "tool"."""

    role: str
    content: str
    reasoning: str = ""
    calls: tuple[Call, ...] = ()


@dataclass(frozen=True, slots=True)
class Conversation:
    """What the chat template is given. `tools` are JSON texts, `media` counts what is not text."""

    turns: tuple[Turn, ...]
    tools: tuple[str, ...] = ()
    is_thinking: bool = True
    opens_answer: bool = True
    media: int = 0


_SYSTEM_KEY: Final = MappingProxyType(
    {
        "/v1/messages": "system",
        "/v1/messages/count_tokens": "system",
        "/v1/responses": "instructions",
        "/api/generate": "system",
    }
)
_MESSAGES_KEY: Final = MappingProxyType({"/v1/responses": "input", "/api/generate": "prompt"})


def read_conversation(endpoint: str, body: Mapping[str, object]) -> Conversation:
    """The conversation in the body of a chat-like endpoint (OpenAI chat and responses, Anthropic, Ollama)."""
    system = _text(body.get(_SYSTEM_KEY.get(endpoint, "")))
    turns = [Turn("system", system)] if system else []
    found = body.get(_MESSAGES_KEY.get(endpoint, "messages"))
    messages = [found] if isinstance(found, str) else _list(found)
    for message in messages:
        turns.extend(_read_message(message))
    pictures = _list(body.get("images")) if endpoint == "/api/generate" else []
    return Conversation(
        turns=tuple(_merged(turns) if endpoint == "/v1/responses" else turns),
        tools=tuple(_tool_json(tool) for tool in _list(body.get("tools"))),
        is_thinking=_is_thinking(body),
        opens_answer=body.get("add_generation_prompt") is not False,
        media=sum(_media(message) for message in messages) + len(pictures),
    )


def to_json(value: object) -> str:
    """JSON as chat templates write it (`tojson`: ", " and ": ", not escaped); empty for what is nested too
    deeply."""
    try:
        return json.dumps(value, ensure_ascii=False)
    except (RecursionError, TypeError, ValueError):
        return ""


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def _string(value: object) -> str:
    return value if isinstance(value, str) else ""


def _text(content: object) -> str:
    """The text of a message's content: a string, or parts whose texts follow each other with nothing
    between."""
    if isinstance(content, str):
        return content
    return "".join(_part_text(part) for part in _list(content))


def _part_text(part: object) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, dict):
        return ""
    if _is_media(part):
        return MEDIA_MARK
    text = part.get("text")
    return _string(text if text is not None else part.get("refusal"))


def _is_media(part: object) -> bool:
    kind = part.get("type") if isinstance(part, dict) else None
    return isinstance(kind, str) and kind in _MEDIA


def _media(message: object) -> int:
    """What is not text in a message, and in the tool results inside it."""
    if not isinstance(message, dict):
        return 0
    parts = [*_list(message.get("content")), *_list(message.get("output"))]
    nested = [part for block in _blocks(message, "tool_result") for part in _list(block.get("content"))]
    return sum(map(_is_media, (*parts, *nested))) + len(_list(message.get("images")))


def _merged(turns: list[Turn]) -> list[Turn]:
    """The Responses API sends reasoning, text and calls of one answer as separate items: they are one
    turn."""
    merged: list[Turn] = []
    for turn in turns:
        last = merged[-1] if merged else None
        if last is not None and last.role == turn.role == "assistant" and not (last.content and turn.content):
            merged[-1] = Turn(
                "assistant",
                last.content + turn.content,
                last.reasoning + turn.reasoning,
                last.calls + turn.calls,
            )
        else:
            merged.append(turn)
    return merged


def _read_message(message: object) -> Iterable[Turn]:
    """The turns of one entry: usually one; an Anthropic user message may bring tool results before its
    text."""
    if isinstance(message, str):
        return [Turn("user", message)]
    if not isinstance(message, dict):
        return []
    match message.get("type"):
        case "function_call":
            call = Call(_string(message.get("name")), _arguments(message.get("arguments")))
            return [Turn("assistant", "", calls=(call,))]
        case "function_call_output":
            return [Turn("tool", _text(message.get("output")))]
        case "reasoning":
            return [Turn("assistant", "", reasoning=_text(message.get("content")))]
    results = [Turn("tool", _text(block.get("content"))) for block in _blocks(message, "tool_result")]
    turn = Turn(
        role=_role(message.get("role")),
        content=_text(message.get("content")) + MEDIA_MARK * len(_list(message.get("images"))),
        reasoning=_reasoning(message),
        calls=(*_calls(message), *_tool_uses(message)),
    )
    return [*results, turn] if turn.content or not results else results


def _role(role: object) -> str:
    match role:
        case "system" | "developer":
            return "system"
        case "assistant" | "tool":
            return str(role)
        case "function":
            return "tool"
        case _:
            return "user"


def _reasoning(message: Mapping[str, object]) -> str:
    for key in ("reasoning_content", "reasoning", "thinking"):
        if isinstance(text := message.get(key), str):
            return text
    return "".join(_string(block.get("thinking")) for block in _blocks(message, "thinking"))


def _blocks(message: Mapping[str, object], kind: str) -> Iterable[Mapping[str, object]]:
    for block in _list(message.get("content")):
        if isinstance(block, dict) and block.get("type") == kind:
            yield block


def _calls(message: Mapping[str, object]) -> Iterable[Call]:
    for call in _list(message.get("tool_calls")):
        function = call.get("function") if isinstance(call, dict) else None
        if isinstance(function, dict):
            yield Call(_string(function.get("name")), _arguments(function.get("arguments")))


def _tool_uses(message: Mapping[str, object]) -> Iterable[Call]:
    for block in _blocks(message, "tool_use"):
        yield Call(_string(block.get("name")), block.get("input"))


def _arguments(arguments: object) -> object:
    """Arguments come as JSON text (OpenAI) or as an object (Anthropic, Ollama)."""
    if not isinstance(arguments, str):
        return arguments
    try:
        parsed: object = json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments
    return parsed


def _tool_json(tool: object) -> str:
    """A tool as servers hand it to the template: rebuilt in one order from what they understand of it."""
    if not isinstance(tool, dict):
        return to_json(tool)
    inner = tool.get("function")
    function = inner if isinstance(inner, dict) else tool
    if "name" not in function:
        return to_json(tool)
    rebuilt = {
        "name": function["name"],
        "description": function.get("description") or "",
        "parameters": function.get("parameters", function.get("input_schema")) or {},
    }
    return to_json({"type": "function", "function": rebuilt})


def _is_thinking(body: Mapping[str, object]) -> bool:
    """Whether the answer starts with reasoning; the ways of switching that off which servers were seen to
    honour."""
    kwargs, reasoning = body.get("chat_template_kwargs"), body.get("reasoning")
    is_off = (
        (isinstance(kwargs, dict) and kwargs.get("enable_thinking") is False)
        or (isinstance(reasoning, dict) and reasoning.get("effort") == "none")
        or body.get("reasoning_effort") == "none"
        or body.get("think") is False
    )
    return not is_off
