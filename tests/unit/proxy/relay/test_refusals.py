"""Weir's own errors: the table that README publishes, in the two shapes that official SDKs read."""

import json

import anthropic
import httpx2
import openai
import pytest

from proxy.relay.refusals import _TABLE, Refusal, retry_after
from tests.unit.proxy.meter.streams import dispatched

# DESIGN §3, and the three codes that it does not name: a wrong method, and two reasons for a 503.
TABLE = {
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
OPENAI = {
    400: openai.BadRequestError,
    401: openai.AuthenticationError,
    403: openai.PermissionDeniedError,
    404: openai.NotFoundError,
    429: openai.RateLimitError,
}
ANTHROPIC = {
    400: anthropic.BadRequestError,
    401: anthropic.AuthenticationError,
    403: anthropic.PermissionDeniedError,
    404: anthropic.NotFoundError,
    413: anthropic.RequestTooLargeError,
    429: anthropic.RateLimitError,
}
CHAT, MESSAGES = "/v1/chat/completions", "/v1/messages"


def test_the_table_is_the_published_one() -> None:
    """No code more, none less; none that an SDK would retry by itself as a conflict or a time-out."""
    assert _TABLE == TABLE
    assert not {408, 409} & {status for status, _ in TABLE.values()}


def transport(refusal: Refusal, path: str) -> httpx2.Client:
    """A connection on which this refusal is the answer to everything."""
    headers = [(b"content-type", b"application/json"), *refusal.headers]
    return httpx2.Client(
        transport=httpx2.MockTransport(
            lambda _: httpx2.Response(refusal.status, headers=headers, content=refusal.body(path))
        )
    )


@pytest.mark.parametrize("code", TABLE)
def test_the_openai_sdk_raises_what_is_meant(code: str) -> None:
    """Status, code, type, message and parameter arrive."""
    refusal = Refusal(code, "no, because…", "model")
    with transport(refusal, CHAT) as http:
        client = openai.OpenAI(api_key="k", base_url="http://weir.invalid/v1", max_retries=0, http_client=http)
        with pytest.raises(openai.APIStatusError) as caught:
            client.chat.completions.create(model="m", messages=[])
    error = caught.value
    status, kind = TABLE[code]
    expected = openai.InternalServerError if status >= 500 else OPENAI.get(status, openai.APIStatusError)
    assert type(error) is expected
    assert (error.status_code, error.code, error.type, error.param) == (status, code, kind, "model")
    assert error.body == {"message": "no, because…", "type": kind, "param": "model", "code": code}


@pytest.mark.parametrize("code", TABLE)
def test_the_anthropic_sdk_raises_what_is_meant(code: str) -> None:
    """Its own shape, on its own path."""
    refusal = Refusal(code, "no, because…")
    with transport(refusal, MESSAGES) as http:
        client = anthropic.Anthropic(api_key="k", base_url="http://weir.invalid", max_retries=0, http_client=http)
        with pytest.raises(anthropic.APIStatusError) as caught:
            client.messages.create(model="m", max_tokens=1, messages=[])
    status, kind = TABLE[code]
    assert isinstance(
        caught.value,
        anthropic.InternalServerError if status >= 500 else ANTHROPIC.get(status, anthropic.APIStatusError),
    )
    assert caught.value.status_code == status
    inner = {"type": kind, "message": "no, because…", "code": code}
    assert caught.value.body == {"type": "error", "error": inner}


@pytest.mark.parametrize(("path", "start"), [(CHAT, b"data: "), (MESSAGES, b"event: error\ndata: ")])
def test_an_error_in_a_stream_is_one_event(path: str, start: bytes) -> None:
    """Well-formed whatever the message holds, so that nothing before it is torn and nothing after it is lost."""
    refusal = Refusal("upstream_error", "broke\r\n\r\noff\n\ndata: [DONE]\n\n\u2028")
    event = refusal.event(path)
    assert event.startswith(start)
    assert event.count(b"\n\n") == 1
    assert dispatched(event) == [refusal.body(path)]
    assert json.loads(dispatched(event)[0]) == json.loads(refusal.body(path))


@pytest.mark.parametrize(
    ("path", "is_anthropic"), [(CHAT, False), (MESSAGES, True), ("/v1/messages/count_tokens", True), ("/x", False)]
)
def test_the_path_decides_the_shape(path: str, is_anthropic: bool) -> None:
    """Anthropic's for its routes, OpenAI's for everything else."""
    assert (json.loads(Refusal("not_found", "x").body(path)).get("type") == "error") is is_anthropic


@pytest.mark.parametrize(("seconds", "text"), [(-1, b"1"), (0, b"1"), (1, b"1"), (60, b"60")])
def test_a_client_is_never_told_to_come_back_at_once(seconds: int, text: bytes) -> None:
    """Zero would be a loop."""
    assert retry_after(seconds) == (b"retry-after", text)
