"""What both halves of the SDK's client share: one call made and its answer read, errors as one line, pages as a list.

Invariant: whatever the SDK raises becomes a StripeError or a `retry.Answer`, and neither holds a part of the API key.
"""

import ssl
from collections.abc import Callable
from decimal import Decimal
from typing import Any, TypeVar

import stripe
from urllib3.exceptions import ConnectTimeoutError, MaxRetryError, NewConnectionError

from billing.errors import StripeError
from billing.stripe_sync.retry import Answer

PAGE_ROWS = 100
LIST_ROWS_MAX = 10_000

_Result = TypeVar("_Result")


def asked(call: Callable[[], _Result]) -> _Result:
    """Make a call. Raises StripeError."""
    try:
        return call()
    except stripe.StripeError as error:
        raise stripe_error(error) from None


def found_or_none(call: Callable[[], Any]) -> Any:
    """Make a call that may find nothing: None. Raises StripeError for all else that goes wrong."""
    try:
        return call()
    except stripe.InvalidRequestError as error:
        if error.http_status == 404 or error.code == "resource_missing":
            return None
        raise stripe_error(error) from None
    except stripe.StripeError as error:
        raise stripe_error(error) from None


def listed(call: Callable[[], Any], convert: Callable[[Any], _Result]) -> list[_Result]:
    """Read all pages of a list. Raises StripeError above LIST_ROWS_MAX, rather than overlook what comes after."""

    def read() -> list[_Result]:
        rows: list[_Result] = []
        for row in call().auto_paging_iter():
            rows.append(convert(row))
            if len(rows) > LIST_ROWS_MAX:
                raise StripeError(f"Stripe lists more than {LIST_ROWS_MAX} objects; archive some that are not used")
        return rows

    return asked(read)


def stripe_error(error: stripe.StripeError) -> StripeError:
    """Say in one line what Stripe refused, or that it could not be reached."""
    said = answer(error)
    if said.status is None:
        return StripeError(f"Stripe could not be reached ({said.message}); try again")
    if said.status in (401, 403):
        return StripeError(f"Stripe refused the API key ({said.text}); check STRIPE_API_KEY and its permissions")
    request = f" (request {error.request_id})" if error.request_id else ""
    return StripeError(f"Stripe answered {said.text}{request}")


def answer(error: stripe.StripeError) -> Answer:
    """Reduce the SDK's error to what Stripe said. A 2xx that can not be read is no answer: it may have been counted."""
    if isinstance(error, stripe.APIConnectionError):
        return Answer(None, message=_cause_name(error), has_left=not _was_never_connected(error))
    status = error.http_status
    if status is None or 200 <= status < 300:
        return Answer(None, message=f"unreadable answer ({type(error).__name__})")
    details = error.error
    kind = getattr(details, "type", None) or ""
    code = getattr(details, "code", None) or error.code or ""
    if status in (401, 403):  # The sentence may hold a part of the key.
        return Answer(status, kind=kind, code=code or type(error).__name__)
    return Answer(status, kind=kind, code=code, message=getattr(details, "message", None) or error.user_message or "")


def plain(value: Decimal) -> str:
    """Write a decimal without exponent and without trailing zeros: Decimal("1E-7") is "0.0000001"."""
    text = format(value, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def mark(metadata: Any, name: str) -> str:
    """Return one of our marks in an object's metadata, "" without it."""
    return str(metadata[name]) if metadata is not None and name in metadata else ""


def id_of(value: Any) -> str:
    """Return the id of a field that may be expanded."""
    return value if isinstance(value, str) else str(value.id)


def _was_never_connected(error: stripe.APIConnectionError) -> bool:
    """Tell whether no connection was made, so that no byte of the request left: refused, no route, no name, no TLS.

    urllib3 is what the SDK's `requests` stands on; its reason is the only place where this can be told.
    """
    cause = error.__cause__
    inner = cause.args[0] if cause is not None and cause.args else None
    if not isinstance(inner, MaxRetryError):
        return False
    reason = inner.reason
    if isinstance(reason, (NewConnectionError, ConnectTimeoutError)):
        return True
    return reason is not None and bool(reason.args) and isinstance(reason.args[0], ssl.SSLCertVerificationError)


def _cause_name(error: stripe.APIConnectionError) -> str:
    cause: BaseException = error if error.__cause__ is None else error.__cause__
    inner = cause.args[0] if cause.args else None
    if isinstance(inner, MaxRetryError) and inner.reason is not None:
        return type(inner.reason).__name__
    return type(cause).__name__
