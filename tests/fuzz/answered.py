"""Upstreams' answers, bent: real captures and made ones, changed as values, events and bytes, in any framing."""

import gzip
import json
import zlib
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import Any, Final

from proxy.meter import endpoints
from tests import captures
from tests.fuzz.values import bent, cuts, damaged, written
from tests.unit.meter_protocols.streams import chat_line, last_line

_PREFIXES: Final = {
    "chat_": endpoints.CHAT,
    "keepalive_": endpoints.CHAT,
    "firstbyte_": endpoints.CHAT,
    "completions": endpoints.COMPLETIONS,
    "responses_input": endpoints.COUNT_TOKENS,
    "responses": endpoints.RESPONSES,
    "messages_count": endpoints.COUNT_TOKENS,
    "messages": endpoints.MESSAGES,
    "embeddings": endpoints.EMBEDDINGS,
}
_RERANKED: Final = {"results": [{"index": 0, "relevance_score": 0.5}], "usage": {"prompt_tokens": 7, "total_tokens": 7}}
_COUNTS: Final = {"prompt_eval_count": 7, "eval_count": 3}
_GENERATED: Final = {"model": "m", "created_at": "2026-11-23T12:00:00Z", "response": "Hello", "done": False}

JSON, EVENTS, LINES = "application/json", "text/event-stream", "application/x-ndjson"


@dataclass(frozen=True)
class Good:
    """An answer of a well-behaved server, without its framing."""

    path: str
    kind: str
    body: bytes


@cache
def good() -> tuple[Good, ...]:
    """What real servers said, one of each, and what Ollama says by its sources."""
    found = []
    for name in captures.names():
        capture = captures.load(name)
        stem = name.rpartition("/")[2]
        path = next((path for prefix, path in _PREFIXES.items() if stem.startswith(prefix)), None)
        if path is not None and capture.status == 200 and len(capture.body) < 40_000:
            kind = EVENTS if (capture.header("content-type") or "").startswith(EVENTS) else JSON
            found.append(Good(path, kind, capture.body))
    chat = [chat_line(thinking="Hm."), chat_line("Hello"), chat_line(" you"), last_line(**_COUNTS)]
    generated = [_GENERATED, {**_GENERATED, "response": "", "done": True, "context": [1], **_COUNTS}]
    for path, lines in ((endpoints.OLLAMA_CHAT, chat), (endpoints.OLLAMA_GENERATE, generated)):
        found.append(Good(path, LINES, b"".join(json.dumps(line).encode() + b"\n" for line in lines)))
        whole = {**lines[0], **lines[-1], **({"message": chat[1]["message"]} if "message" in lines[0] else {})}
        found.append(
            Good(path, JSON, json.dumps({**whole, **({"response": "Hello"} if "response" in whole else {})}).encode())
        )
    found.append(Good(endpoints.RERANK, JSON, json.dumps(_RERANKED).encode()))
    embedded = {"embeddings": [[0.5, 1.5]], "prompt_eval_count": 7}
    found.append(Good(endpoints.OLLAMA_EMBED, JSON, json.dumps(embedded).encode()))
    return tuple(found)


def body_of(dice: Random, one: Good) -> bytes:
    """The body, with something changed or nothing."""
    if dice.random() < 0.15:
        return one.body
    body = one.body
    if one.kind == JSON:
        body = _json(dice, body)
    elif one.kind == LINES:
        body = b"".join(
            _json(dice, line) + dice.choice([b"\n", b"\n", b"\r\n", b""]) for line in body.splitlines() if line
        )
    else:
        body = _events(dice, body)
    return damaged(dice, body) if dice.random() < 0.3 else body


def _json(dice: Random, raw: bytes) -> bytes:
    if dice.random() < 0.4:
        return raw
    return written(dice, bent(dice, json.loads(raw), dice.choice([1, 1, 3])))


_ODD_EVENTS: Final = (b": ping", b"data:", b"data: null", b"id: 1", b"retry: 5", b"event: error", b"")


def _events(dice: Random, raw: bytes) -> bytes:
    """The stream with events changed, left out, doubled, reordered, and other ends of lines."""
    blocks = [block for block in raw.split(b"\n\n") if block]
    for _ in range(dice.choice([0, 1, 1, 2, 5])):
        if not blocks:
            break
        at = dice.randrange(len(blocks))
        match dice.randrange(7):
            case 0:
                del blocks[at]
            case 1:
                blocks.insert(at, blocks[at])
            case 2:
                blocks.insert(dice.randrange(len(blocks)), blocks.pop(at))
            case 3:
                blocks.insert(
                    at, dice.choice([b": ping", b"data:", b"data: null", b"id: 1", b"retry: 5", b"event: error", b""])
                )
            case _:
                blocks[at] = _event(dice, blocks[at])
    if dice.random() < 0.2:
        blocks = blocks[: dice.randrange(len(blocks) + 1)]
    whole = b"".join(block + b"\n\n" for block in blocks)
    if dice.random() < 0.2:
        whole = whole.replace(b"\n", dice.choice([b"\r\n", b"\r"]))
    return b"\xef\xbb\xbf" + whole if dice.random() < 0.05 else whole


def _event(dice: Random, block: bytes) -> bytes:
    lines = []
    for line in block.split(b"\n"):
        value = _parsed(line[6:]) if line.startswith(b"data: {") else None
        if value is None:  # no data, or bent already
            lines.append(line)
            continue
        value = bent(dice, value, dice.choice([1, 1, 2]))
        lines.append(b"data: " + written(dice, value).replace(b"\n", b"\ndata: "))
    return b"\n".join(lines)


@dataclass(frozen=True)
class Sent:
    """What goes over the wire; `is_honest`: the HTTP around the body is well-formed, and the body plain."""

    parts: list[bytes]
    status: int
    kind: str
    body: bytes
    is_honest: bool


def framed(dice: Random, one: Good, body: bytes) -> Sent:
    """The body with a head and a framing, honest or not; the server hangs up after it."""
    status, kind = 200, one.kind
    if dice.random() < 0.15:
        status = dice.choice([201, 204, 206, 302, 400, 401, 404, 429, 500, 502, 503, 504])
    if dice.random() < 0.1:
        kind = dice.choice([JSON, EVENTS, LINES, "text/html", "TEXT/EVENT-STREAM; charset=utf-8", ""])
    lines = [f"Content-Type: {kind}"] if kind else []
    sent, is_honest = body, True
    if dice.random() < 0.15:
        coding = dice.choice(["gzip", "deflate", "br", "gzip, gzip", "identity"])
        lines.append(f"Content-Encoding: {coding}")
        sent = gzip.compress(body) if coding == "gzip" else zlib.compress(body) if coding == "deflate" else body
        is_honest = coding in ("gzip", "deflate", "identity")
    lines += dice.sample(_FIELDS, dice.choice([0, 0, 1, 2]))
    framing = dice.randrange(8)
    if framing < 4:
        lines.append("Transfer-Encoding: chunked")
        sent = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in cuts(dice, sent) if part) + b"0\r\n\r\n"
    elif framing < 7:
        lines.append(f"Content-Length: {len(sent)}")
    raw = (
        f"HTTP/1.1 {status} OK\r\n".encode()
        + "".join(f"{line}\r\n" for line in lines).encode("latin-1")
        + b"\r\n"
        + sent
    )
    if dice.random() < 0.1:
        raw, is_honest = damaged(dice, raw), False
    if dice.random() < 0.05:
        raw = b"HTTP/1.1 100 Continue\r\n\r\n" + raw
    return Sent(cuts(dice, raw) if raw else [], status, kind, body, is_honest)


_FIELDS: Final = (
    *("Server: llama.cpp", "Server: x", "Connection: close", "Connection: keep-alive", "Keep-Alive: timeout=5"),
    *(
        "X-Request-Id: theirs",
        "X-Weir-Amount: 1 usd",
        "Set-Cookie: a=1",
        "Trailer: X",
        "Upgrade: h2c",
        "X: " + "y" * 300,
    ),
    *("Date: now", "Retry-After: 5", "Content-Language: de", "Vary: *"),
)


def answer(dice: Random, path: str) -> Sent:
    """An answer to a request on this path; now and then another path's."""
    fitting = [one for one in good() if one.path == path]
    one = dice.choice(fitting) if dice.random() < 0.95 else dice.choice(good())
    return framed(dice, one, body_of(dice, one))


# what a client reads


def texts(path: str, kind: str, body: bytes, *, streams: bool = False) -> str:
    """The generated text that a client of this protocol finds in a body; only what can be read counts.

    The official SDKs read a stream where they asked for one, whatever the content type says.
    """
    kind = kind.lower()
    if kind.startswith(EVENTS) or (streams and path not in endpoints.OLLAMA and not _text(path, _parsed(body))):
        parts = [_text(path, event) for event in _events_of(body)]
    elif path in endpoints.OLLAMA and (kind.startswith(LINES) or not isinstance(_parsed(body), dict)):
        parts = [_text(path, event) for event in map(_parsed, body.split(b"\n")[:-1])]
    else:
        parts = [_text(path, _parsed(body))]
    return "".join(parts)


def _events_of(body: bytes) -> list[Any]:
    """The events by the plain rules; a carriage return alone ends a line, too."""
    lines = body.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
    found: list[Any] = []
    data: list[bytes] = []
    for line in lines[:-1]:
        if not line and data:
            found.append(_parsed(b"\n".join(data)))
        if not line:
            data = []
        elif line.startswith(b"data:"):
            data.append(line[5:].removeprefix(b" "))
        if data == [b"[DONE]"]:
            break  # no client reads on
    return found


def _parsed(raw: bytes) -> Any:
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        return None


def _text(path: str, event: Any) -> str:
    """Text in the places where the protocol has it, and nowhere else."""
    if not isinstance(event, dict):
        return ""
    if path in (endpoints.CHAT, endpoints.COMPLETIONS):
        choices = event.get("choices")
        found = [part for choice in (choices if isinstance(choices, list) else []) for part in _choice(choice)]
    elif path == endpoints.RESPONSES:
        kind = event.get("type")
        is_text = isinstance(kind, str) and kind in ("response.output_text.delta", "response.reasoning_text.delta")
        found = [event.get("delta")] if is_text else []
    elif path == endpoints.MESSAGES:
        delta = event.get("delta")
        is_delta = event.get("type") == "content_block_delta" and isinstance(delta, dict)
        found = [delta.get("text"), delta.get("thinking")] if is_delta and isinstance(delta, dict) else []
    elif path in (endpoints.OLLAMA_CHAT, endpoints.OLLAMA_GENERATE):
        message = event.get("message")
        content = message.get("content") if path == endpoints.OLLAMA_CHAT and isinstance(message, dict) else None
        found = [content, event.get("response") if path == endpoints.OLLAMA_GENERATE else None]
    else:
        found = []
    return "".join(part for part in found if isinstance(part, str))


def _choice(choice: Any) -> list[Any]:
    if not isinstance(choice, dict):
        return []
    parts = [part for part in (choice.get("delta"), choice.get("message")) if isinstance(part, dict)]
    return [choice.get("text"), *(part.get(name) for part in parts for name in ("content", "reasoning_content"))]
