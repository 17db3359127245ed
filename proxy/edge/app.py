"""The control plane: FastAPI behind the same port. Everything that is not listed here or metered is 404.

`/healthz` says that the process runs; `/readyz` that it can do its work (200 and "degraded" while the database is away
and usage is spooled); `/metrics` counts, in Prometheus' text format,
without customers' names or texts.
"""

from collections.abc import Callable
from typing import Annotated

from fastapi import FastAPI, Header, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from billing import clock, ids
from billing.config import Config
from billing.errors import DatabaseAwayError
from billing.ledger.accounts import Principal
from billing.ledger.database import Database
from billing.stripe_sync import webhook
from proxy.admit.directory import NO_EPOCH
from proxy.edge import self_service
from proxy.edge.caller import caller, refused
from proxy.edge.metrics import exposition
from proxy.edge.self_service import unit_prices
from proxy.relay.refusals import Refusal
from proxy.relay.services import Services

_BEARABLE = ("database", "spool")
"""What may be wrong while postpaid customers are served all the same."""

WEBHOOK_BYTES_MAX = 1024 * 1024


def build(config: Config, database: Database, services: Services, wake_jobs: Callable[[], None]) -> FastAPI:
    """Make the control plane's application on opened services."""
    app = FastAPI(title="Weir", docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    _add_health(app, database, services)
    _add_models(app, services)
    self_service.add(app, config, database, services)
    _add_webhook(app, config, database, wake_jobs)

    @app.exception_handler(HTTPException)
    async def _refuse(request: Request, error: HTTPException) -> Response:
        code = "method_not_allowed" if error.status_code == 405 else "not_found"
        text = "this method is not allowed here" if error.status_code == 405 else "there is no such path"
        allowed = (error.headers or {}).get("Allow") if error.status_code == 405 else None
        headers = ((b"allow", allowed.encode()),) if allowed else ()
        return refused(request.url.path, Refusal(code, text, headers=headers))

    return app


def _add_health(app: FastAPI, database: Database, services: Services) -> None:
    @app.get("/healthz")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz")
    async def ready() -> JSONResponse:
        checks = {"upstreams": "ok" if services.catalog.models else "no upstream has told its models"}
        try:
            await run_in_threadpool(database.ping)
            checks["database"] = "away: usage is spooled" if services.recorder.is_away else "ok"
        except DatabaseAwayError as error:
            checks["database"] = str(error)
        checks["recorder"] = "failing" if services.recorder.is_failing else "ok"
        checks["gateway"] = "shutting down" if services.is_shutting_down else "ok"
        checks["directory"] = _state_of_directory(services)
        checks["spool"] = services.recorder.spool_state
        is_ready = all(check == "ok" for name, check in checks.items() if name not in _BEARABLE)
        is_well = all(check == "ok" for check in checks.values())
        status = "ready" if is_well else "degraded" if is_ready else "not ready"
        return JSONResponse({"status": status, "checks": checks}, 200 if is_ready else 503)

    @app.get("/metrics")
    async def metrics() -> PlainTextResponse:
        return PlainTextResponse(exposition(services), media_type="text/plain; version=0.0.4")


def _state_of_directory(services: Services) -> str:
    if services.directory.snapshot.epoch == NO_EPOCH:
        return "no key and no price is known: the database has been away since the start"
    return "keys and prices are too old" if services.is_stale else "ok"


def _add_models(app: FastAPI, services: Services) -> None:
    @app.get("/v1/models")
    async def models(request: Request) -> Response:
        who = await caller(services, request)
        if isinstance(who, Refusal):
            return refused(request.url.path, who)
        data = [_model(services, who, name) for name in _visible(services, who)]
        return JSONResponse({"object": "list", "data": data}, headers={"x-request-id": ids.uuid7()})

    @app.get("/v1/models/{name:path}")
    async def model(request: Request, name: str) -> Response:
        who = await caller(services, request)
        if isinstance(who, Refusal):
            return refused(request.url.path, who)
        if name not in _visible(services, who):
            text = f"the model {name!r} does not exist for this key"
            return refused(request.url.path, Refusal("model_not_found", text, "model"))
        return JSONResponse(_model(services, who, name), headers={"x-request-id": ids.uuid7()})


def _visible(services: Services, principal: Principal) -> list[str]:
    return [name for name in services.catalog.models if principal.models is None or name in principal.models]


def _model(services: Services, principal: Principal, name: str) -> dict[str, object]:
    """One model as OpenAI lists it, with this customer's prices per 1M tokens as decimal texts."""
    entry: dict[str, object] = {"id": name, "object": "model", "created": 0, "owned_by": "weir"}
    quote = services.directory.snapshot.book.quote(name, principal.customer_id, clock.now())
    if quote is not None:
        entry["pricing"] = {"currency": quote.currency, **unit_prices(quote.price)}
    return entry


def _add_webhook(app: FastAPI, config: Config, database: Database, wake_jobs: Callable[[], None]) -> None:
    @app.post("/stripe/webhook")
    async def stripe_webhook(request: Request, stripe_signature: Annotated[str, Header()] = "") -> Response:
        try:
            raw = await _whole_body(request, WEBHOOK_BYTES_MAX)
        except ClientDisconnect:
            return Response(status_code=400)
        if raw is None:
            return refused(request.url.path, Refusal("request_too_large", "the event is too large"))
        answer = await run_in_threadpool(webhook.receive, database, config, raw, stripe_signature, clock.now())
        if isinstance(answer, webhook.Rejected):
            return JSONResponse({"error": {"message": answer.message}}, answer.status)
        wake_jobs()
        return JSONResponse({"received": True})


async def _whole_body(request: Request, limit: int) -> bytes | None:
    """Read a body; None if it is larger than the limit, of which no more is kept. Raises ClientDisconnect."""
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > limit:
            return None
    return bytes(body)
