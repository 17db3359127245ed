"""Bytes of answers: HTTP heads, chunk framing, server-sent events, and llama.cpp's JSON of a chat.

Everything is a `Send`, so that a script reads as a list of what goes over the wire and any line can be bent
by hand.
"""

import gzip
import json
from collections.abc import Mapping
from http import HTTPStatus

from tests.captures import load
from tests.emulators.upstream.steps import Send, Step

Headers = tuple[tuple[str, str], ...]


def head(status: int, headers: Headers) -> bytes:
    """A status line and headers, to the byte."""
    lines = (
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}",
        *(f"{name}: {value}" for name, value in headers),
    )
    return "".join(f"{line}\r\n" for line in (*lines, "")).encode("latin-1")


def json_answer(
    payload: object,
    *,
    status: int = 200,
    headers: Headers = (),
    compressed: bool = False,
    length: int | None = None,
) -> Send:
    """A whole answer with its length. `length` lies about it; `compressed` gzips it, as some proxies do."""
    body = _json(payload)
    if compressed:
        body = gzip.compress(body, mtime=0)
    coding: Headers = (("Content-Encoding", "gzip"),) if compressed else ()
    size = len(body) if length is None else length
    own: Headers = (("Content-Type", "application/json; charset=utf-8"), ("Content-Length", str(size)))
    return Send(head(status, (*own, *coding, *headers)) + body)


def sse_head(*, status: int = 200, headers: Headers = (), chunked: bool = True) -> Send:
    """The head of an event stream; without `chunked` its end is the end of the connection (add `Close()`)."""
    own: Headers = (("Content-Type", "text/event-stream"),)
    framing: Headers = (("Transfer-Encoding", "chunked"),) if chunked else (("Connection", "close"),)
    return Send(head(status, (*own, *framing, *headers)))


def ndjson_head(*, status: int = 200, headers: Headers = ()) -> Send:
    """The head of Ollama's native streams: one JSON object a line."""
    own: Headers = (("Content-Type", "application/x-ndjson"), ("Transfer-Encoding", "chunked"))
    return Send(head(status, (*own, *headers)))


def ndjson_line(payload: object) -> Send:
    """One line of such a stream, in one HTTP chunk."""
    return chunk(_json(payload) + b"\n")


def chunk(data: bytes) -> Send:
    """One HTTP chunk."""
    return Send(b"%x\r\n%b\r\n" % (len(data), data))


def last_chunk() -> Send:
    """The end mark of a chunked body."""
    return Send(b"0\r\n\r\n")


def event(payload: object, *, name: str | None = None, line_end: str = "\n", chunked: bool = True) -> Send:
    """One server-sent event in one chunk; `name` adds an `event:` line.

    Text is sent as it is, anything else as JSON.
    """
    data = payload if isinstance(payload, str) else _json(payload).decode()
    lines = (*((f"event: {name}",) if name else ()), f"data: {data}", "")
    raw = "".join(line + line_end for line in lines).encode()
    return chunk(raw) if chunked else Send(raw)


def done(*, line_end: str = "\n", chunked: bool = True) -> Send:
    """The event that ends a chat stream; transformers serve leaves it out."""
    return event("[DONE]", line_end=line_end, chunked=chunked)


def stream(*payloads: object) -> tuple[Send, ...]:
    """A whole well-formed event stream: head, an event for each payload, [DONE], end mark."""
    return (sse_head(), *(event(payload) for payload in payloads), done(), last_chunk())


def chat_chunk(
    delta: Mapping[str, object] | str,
    *,
    index: int = 0,
    finish: str | None = None,
    usage: Mapping[str, object] | None = None,
    model: str = "qwen3.5-0.8b",
) -> dict[str, object]:
    """A chunk of a chat stream with one choice; a text stands for a delta of content.

    `usage`, if given, rides along as with vLLM's continuous counts.
    """
    content = {"content": delta} if isinstance(delta, str) else dict(delta)
    choice = {"finish_reason": finish, "index": index, "delta": content}
    return {"choices": [choice], **_envelope(model), **({} if usage is None else {"usage": usage})}


def usage_chunk(prompt: int, completion: int, *, cached: int = 0, model: str = "qwen3.5-0.8b") -> dict[str, object]:
    """The chunk without choices that llama.cpp and vLLM send at the end when asked for usage."""
    counts = {
        "completion_tokens": completion,
        "prompt_tokens": prompt,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }
    return {"choices": [], **_envelope(model), "usage": counts}


def replay_steps(name: str, *, pieces: int | None = None) -> tuple[Step, ...]:
    """A capture piece by piece (head, chunks, end mark), or only its first `pieces`."""
    return tuple(Send(piece) for piece in load(name).pieces[:pieces])


def _envelope(model: str) -> dict[str, object]:
    return {
        "created": 1_795_434_948,
        "id": "chatcmpl-fake",
        "model": model,
        "object": "chat.completion.chunk",
    }


def _json(payload: object) -> bytes:
    return json.dumps(payload, ensure_ascii=False, separators=(",", ":")).encode()
