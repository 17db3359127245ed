"""Weir's own errors in the shape of each protocol, as a body and as one event of a stream that has begun.

`refusals` has OpenAI's and Anthropic's shape; here are the others. Errors of an upstream are not touched.
"""

import orjson

from proxy.meter import endpoints
from proxy.relay.refusals import Refusal


def error_body(refusal: Refusal, path: str) -> bytes:
    """Return the error's JSON: Ollama's shape under `/api`, else Anthropic's or OpenAI's."""
    return orjson.dumps({"error": refusal.message}) if path in endpoints.OLLAMA else refusal.body(path)


def error_event(refusal: Refusal, path: str) -> bytes:
    """Return the error as one event of a stream: a line of NDJSON under `/api`, else a server-sent event.

    On `/v1/responses` it is the protocol's `error` event, and has OpenAI's `error` object as well, because the official
    SDK raises for that one only.
    """
    if path in endpoints.OLLAMA:
        return error_body(refusal, path) + b"\n"
    if path == endpoints.RESPONSES:
        told = {"code": refusal.code, "message": refusal.message, "param": refusal.param}
        error = orjson.loads(refusal.body(path))["error"]
        return b"event: error\ndata: %b\n\n" % orjson.dumps({"type": "error", **told, "error": error})
    return refusal.event(path)
