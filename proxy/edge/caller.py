"""Who calls the control plane with an API key: judged like on the data plane, and answered in its shapes.

But a suspended customer may read about itself: it has to see why, and what it is to pay.
"""

from fastapi import Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response

from billing import clock, ids
from billing.errors import DatabaseAwayError
from billing.ledger.accounts import Principal
from proxy.admit.decide import refuse_key
from proxy.relay.headers import credential
from proxy.relay.refusals import Refusal, retry_after
from proxy.relay.services import Services
from proxy.relay.shapes import error_body

AWAY = Refusal("recording_unavailable", "this can not be checked now; try again", headers=(retry_after(1),))


async def caller(services: Services, request: Request, *, is_about_itself: bool = False) -> Principal | Refusal:
    """Return whom the request's key stands for, or why it is refused."""
    secret = ids.key_hash(credential(request.headers.raw) or b"")
    principals = services.directory.snapshot.principals
    try:
        known = secret in principals
        found = principals[secret] if known else await run_in_threadpool(services.directory.lookup, secret)
    except DatabaseAwayError:
        return AWAY
    refusal = refuse_key(found, clock.now())
    if refusal is not None and not (is_about_itself and refusal.code == "customer_suspended"):
        return refusal
    assert found is not None, "refused otherwise"
    return found


def refused(path: str, refusal: Refusal) -> Response:
    """Answer with an error of Weir's own."""
    headers = {name.decode(): value.decode() for name, value in refusal.headers}
    headers["x-request-id"] = ids.uuid7()
    return Response(error_body(refusal, path), refusal.status, headers, "application/json")
