"""What the double answers when it refuses: Stripe's error bodies, as one exception type.

Two families, because Stripe has two: v1 bodies carry `type`, `message` and sometimes `code` and `param`; v2
bodies carry `code` and `message` and often no `type`. The sentences are those which Stripe documents or which
were reported from the field; a client that matches another sentence is wrong about Stripe, not about the
double.
"""

from __future__ import annotations

from typing import Any


class ApiError(Exception):
    """A refusal: the HTTP status, the JSON body and extra headers.

    `is_stored` says whether an Idempotency-Key remembers this answer. Stripe keeps the first answer of a
    request that began to execute, whatever it was, and keeps nothing when parameters were malformed or when
    another request was in the way.
    """

    def __init__(
        self,
        status: int,
        error: dict[str, Any],
        *,
        headers: dict[str, str] | None = None,
        is_stored: bool = True,
    ) -> None:
        super().__init__(f"{status} {error.get('code') or error.get('type')}: {error.get('message')}")
        self.status = status
        self.error = error
        self.headers = headers or {}
        self.is_stored = is_stored

    @property
    def body(self) -> dict[str, Any]:
        """The JSON document that goes over the wire."""
        return {"error": self.error}


def invalid(
    message: str,
    *,
    code: str | None = None,
    param: str | None = None,
    status: int = 400,
    headers: dict[str, str] | None = None,
    is_stored: bool = True,
) -> ApiError:
    """The common v1 refusal, `invalid_request_error`."""
    error: dict[str, Any] = {"type": "invalid_request_error", "message": message}
    if code is not None:
        error["code"] = code
        error["doc_url"] = f"https://stripe.com/docs/error-codes/{code.replace('_', '-')}"
    if param is not None:
        error["param"] = param
    return ApiError(status, error, headers=headers, is_stored=is_stored)


def missing_object(noun: str, object_id: str, *, param: str, status: int = 404) -> ApiError:
    """`resource_missing`: 404 for the object that the path names, 400 for one that a parameter names."""
    return invalid(f"No such {noun}: '{object_id}'", code="resource_missing", param=param, status=status)


def v2_error(status: int, code: str, message: str, *, kind: str | None = None, is_stored: bool = False) -> ApiError:
    """A v2 refusal; `kind` is the `type` field, which most v2 errors lack."""
    error: dict[str, Any] = {"code": code, "message": message}
    if kind is not None:
        error["type"] = kind
    return ApiError(status, error, is_stored=is_stored)


def unauthorized(message: str) -> ApiError:
    """401, before anything else about the request is looked at."""
    return ApiError(401, {"type": "invalid_request_error", "message": message}, is_stored=False)


def idempotency_mismatch(key: str) -> ApiError:
    """The same key with other parameters or on another endpoint."""
    message = (
        "Keys for idempotent requests can only be used with the same parameters they were first used with. "
        f"Try using a key other than '{key}' if you meant to execute a different request."
    )
    return ApiError(400, {"type": "idempotency_error", "message": message}, is_stored=False)


def idempotency_in_use(key: str) -> ApiError:
    """The same key while its first request still runs."""
    message = f"There is currently another in-progress request using this idempotency key: {key}."
    error = {"type": "idempotency_error", "code": "idempotency_key_in_use", "message": message}
    return ApiError(409, error, is_stored=False)


def concurrent_meter_event() -> ApiError:
    """A second usage event for the same customer and meter while the first is in flight."""
    message = "Cannot create multiple usage events for the same customer, meter concurrently."
    return ApiError(409, {"code": "too_many_concurrent_requests", "message": message}, is_stored=False)


def rate_limited(reason: str) -> ApiError:
    """429 with the documented reason header; the SDK does not retry it."""
    error = {"type": "invalid_request_error", "code": "rate_limit", "message": "Request rate limit exceeded."}
    return ApiError(429, error, headers={"Stripe-Rate-Limited-Reason": reason}, is_stored=False)


def lock_timeout() -> ApiError:
    """429 without a reason header: another request holds the object. Stripe asks for a retry of this one."""
    message = (
        "This object can't be accessed right now because another API request or Stripe process is currently "
        "accessing it."
    )
    error = {"type": "invalid_request_error", "code": "lock_timeout", "message": message}
    return ApiError(429, error, headers={"Stripe-Should-Retry": "true"}, is_stored=False)


def server_error(status: int, *, is_stored: bool) -> ApiError:
    """Stripe's own failure, of type `api_error`."""
    error = {"type": "api_error", "message": "An unknown error occurred."}
    return ApiError(status, error, is_stored=is_stored)
