"""Requests, bent: valid bodies of every endpoint with something changed, and bytes that are hardly HTTP."""

from random import Random
from typing import Any, Final

from proxy.meter import endpoints
from tests.fuzz.values import bent, damaged, nested, written

MESSAGE: Final[dict[str, Any]] = {"role": "user", "content": "hi"}
PARTS: Final[dict[str, Any]] = {
    "role": "user",
    "content": [
        {"type": "text", "text": "hi"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}},
    ],
}
CALLED: Final[list[dict[str, Any]]] = [
    MESSAGE,
    {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "{}"}}]},
    {"role": "tool", "tool_call_id": "1", "content": "7"},
]
TOOL: Final[dict[str, Any]] = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}

BODIES: Final[dict[str, list[dict[str, Any]]]] = {
    endpoints.CHAT: [
        {"messages": [MESSAGE], "max_tokens": 9, "n": 2, "stop": ["x"]},
        {"messages": [PARTS], "stream": True, "stream_options": {"include_usage": True}, "max_completion_tokens": 9},
        {"messages": CALLED, "tools": [TOOL], "stream": True, "n_cmpl": 2, "logprobs": True},
    ],
    endpoints.COMPLETIONS: [
        {"prompt": "hi", "max_tokens": 5, "n": 1, "best_of": 1, "echo": True},
        {"prompt": ["hi", "you"], "stream": True, "n_predict": 5, "suffix": "x"},
        {"prompt": [1, 2, 3], "stream": False, "stream_options": None},
    ],
    endpoints.RESPONSES: [
        {"input": "hi", "max_output_tokens": 9, "store": True, "instructions": "x"},
        {"input": [{"type": "message", **MESSAGE}], "stream": True, "tools": [TOOL], "background": False},
    ],
    endpoints.MESSAGES: [
        {"messages": [MESSAGE], "max_tokens": 9, "system": "x", "stop_sequences": ["x"]},
        {"messages": [MESSAGE], "max_tokens": 9, "system": [{"type": "text", "text": "x"}], "stream": True},
    ],
    endpoints.COUNT_TOKENS: [{"messages": [MESSAGE], "system": "x", "tools": []}],
    endpoints.EMBEDDINGS: [{"input": ["hi", "you"], "encoding_format": "base64"}, {"input": [1, 2], "dimensions": 8}],
    endpoints.RERANK: [{"query": "hi", "documents": ["a", {"text": "b"}], "top_n": 1}],
    endpoints.OLLAMA_CHAT: [{"messages": [MESSAGE], "options": {"num_predict": 9, "stop": ["x"]}, "keep_alive": "1m"}],
    endpoints.OLLAMA_GENERATE: [{"prompt": "hi", "stream": False, "system": "x", "raw": True, "images": ["AA"]}],
    endpoints.OLLAMA_EMBED: [{"input": ["hi"], "truncate": True}],
}
"""Bodies that Weir takes, without their model."""


def valid(dice: Random, model: str, path: str | None = None) -> tuple[str, dict[str, Any]]:
    """A path and a body that Weir takes."""
    chosen = path or dice.choice(sorted(BODIES))
    return chosen, {"model": model, **dice.choice(BODIES[chosen])}


def mutated(dice: Random, model: str, path: str | None = None) -> tuple[str, bytes]:
    """A path, and a body with something changed: a value, the way it is written, its bytes."""
    path, body = valid(dice, model, path)
    match dice.randrange(12):
        case 0:
            return path, dice.randbytes(dice.randrange(60))
        case 1:
            return path, written(dice, nested(dice, body))
        case 2:
            return path, damaged(dice, written(dice, body))
        case 3:  # the same key twice
            raw = written(dice, body)
            return path, raw[:-1] + b',"model":' + written(dice, dice.choice([model, "other", None])) + b"}"
        case _:
            return path, written(dice, bent(dice, body, dice.choice([1, 1, 2, 4])))


HEADERS: Final = (
    *("Content-Type: text/plain", "Content-Encoding: gzip", "Transfer-Encoding: chunked", "Transfer-Encoding: gzip"),
    *("Connection: close", "Connection: upgrade, x-api-key", "Upgrade: h2c", "Expect: 100-continue", "Expect: x"),
    *("X-Request-Id: theirs", "X-Weir-Amount: 0", "X-Conversation-Id: 1", "Idempotency-Key: 1", "Host: other"),
    *("Content-Length: 0", "Content-Length: -1", "Content-Length: 99999999999999999999", "Content-Length: 5, 5"),
    *("Authorization: Bearer wk_no", "Authorization: ", "x-api-key: wk_x", "Cookie: a=b", "X: \x00", ": empty", "bare"),
    *(
        "A: " + "b" * 70_000,
        "X-Obs: a\r\n b",
        "Accept-Encoding: gzip, br",
        "TE: trailers",
        "Trailer: X",
        "Range: bytes=0-1",
    ),
)
LINES: Final = (
    *("GET {path} HTTP/1.1", "PUT {path} HTTP/1.1", "POST {path} HTTP/1.0", "POST {path} HTTP/2.0", "POST {path}"),
    *("POST {path}?a=b HTTP/1.1", "POST {path}/ HTTP/1.1", "POST //{path} HTTP/1.1", "POST http://x{path} HTTP/1.1"),
    *(
        "POST {path}/../x HTTP/1.1",
        "CONNECT x:1 HTTP/1.1",
        "OPTIONS * HTTP/1.1",
        "PRI * HTTP/2.0",
        "post {path} HTTP/1.1",
    ),
    *("POST {path}%00 HTTP/1.1", "POST /é HTTP/1.1", "HEAD {path} HTTP/1.1", "\x16\x03\x01\x02\x00\x01", ""),
)


def http(dice: Random, key: str, path: str, body: bytes) -> bytes:
    """A request whose head is bent, or whose bytes are."""
    line = dice.choice(LINES) if dice.random() < 0.4 else "POST {path} HTTP/1.1"
    own = [f"Authorization: Bearer {key}", "Host: weir", f"Content-Length: {len(body)}"]
    if dice.random() < 0.2:
        own.pop(dice.randrange(len(own)))
    lines = [line.replace("{path}", path), *own, *dice.sample(HEADERS, dice.randrange(4))]
    end = dice.choice(["\r\n", "\r\n", "\r\n", "\n", "\r"])
    raw = (end.join(lines) + end * 2).encode("latin-1") + body
    return damaged(dice, raw) if dice.random() < 0.3 else raw
