"""Every way in which Weir itself says no: one table of code → HTTP status and type, and the two error shapes.

A refusal costs nothing and leaves no event. Errors of an upstream are not here: they pass through unchanged.
Never 409, never 408: the official SDKs retry them.
"""

from dataclasses import dataclass

import orjson

_TABLE: dict[str, tuple[int, str]] = {
    "invalid_json": (400, "invalid_request_error"),
    "invalid_request": (400, "invalid_request_error"),
    "invalid_api_key": (401, "authentication_error"),
    "insufficient_credits": (402, "billing_error"),
    "budget_exceeded": (402, "billing_error"),
    "customer_suspended": (403, "permission_error"),
    "model_not_priced": (403, "permission_error"),
    "model_not_found": (404, "not_found_error"),
    "not_found": (404, "not_found_error"),
    "method_not_allowed": (405, "invalid_request_error"),
    "request_too_large": (413, "invalid_request_error"),
    "rate_limit_exceeded": (429, "rate_limit_error"),
    "upstream_error": (502, "api_error"),
    "no_upstream": (503, "api_error"),
    "shutting_down": (503, "api_error"),
    "recording_unavailable": (503, "api_error"),
    "upstream_timeout": (504, "api_error"),
}


@dataclass(frozen=True, slots=True)
class Refusal:
    """What the client is told instead of an answer; `headers` come on top of the usual ones."""

    code: str
    message: str
    param: str | None = None
    headers: tuple[tuple[bytes, bytes], ...] = ()

    @property
    def status(self) -> int:
        """The HTTP status."""
        return _TABLE[self.code][0]

    def body(self, path: str) -> bytes:
        """Return the error's JSON: OpenAI's shape, Anthropic's on `/v1/messages`."""
        kind = _TABLE[self.code][1]
        if path.startswith("/v1/messages"):
            inner = {"type": kind, "message": self.message, "code": self.code}
            return orjson.dumps({"type": "error", "error": inner})
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return orjson.dumps({"error": error})

    def event(self, path: str) -> bytes:
        """Return the error as one event of a stream that has begun."""
        name = b"event: error\n" if path.startswith("/v1/messages") else b""
        return name + b"data: " + self.body(path) + b"\n\n"


def retry_after(seconds: int) -> tuple[bytes, bytes]:
    """Return the header that tells a client when to come back."""
    return b"retry-after", b"%d" % max(1, seconds)
