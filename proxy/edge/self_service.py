"""What customers may ask about themselves, with their key: usage, credit and budgets, and the receipt of a request.

All of it is read from the ledger, off the event loop. Invariant: nothing of another customer's, and nothing of the
operator's (costs, margins, model servers), is in any answer; a request of somebody else's is as unknown as none.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, Response

from billing import clock, ids
from billing.clock import Instant, instant_text, parse_instant
from billing.config import Config
from billing.errors import DatabaseAwayError, NotFoundError, UsageError
from billing.ledger import budgets, credit, leases, tracing
from billing.ledger.accounts import Principal
from billing.ledger.database import Connection, Database, DatabaseError, is_away
from billing.ledger.tracing import Trace
from billing.money import Pico, amount_number, amount_text, rate_text
from billing.pricing.quote import UnitPrices
from billing.reports import plan, standing, usage
from proxy.edge.caller import AWAY, caller, refused
from proxy.relay.refusals import Refusal
from proxy.relay.services import Services

GROUPS = ("model", "day", "key")
QUESTION_CHARS_MAX = 200

Found = TypeVar("Found")
Row = dict[str, object]


def add(app: FastAPI, config: Config, database: Database, services: Services) -> None:
    """Add the three endpoints."""

    async def answered(request: Request, ask: Callable[[Connection, Principal], Row]) -> Response:
        who = await caller(services, request, is_about_itself=True)
        if isinstance(who, Refusal):
            return refused(request.url.path, who)
        try:
            found = await run_in_threadpool(_read, database, lambda conn: ask(conn, who))
        except UsageError as error:
            return refused(request.url.path, Refusal("invalid_request", str(error)))
        except NotFoundError as error:
            return refused(request.url.path, Refusal("not_found", str(error)))
        except DatabaseAwayError:
            return refused(request.url.path, AWAY)
        return JSONResponse(found, headers={"x-request-id": ids.uuid7(), "cache-control": "no-store"})

    @app.get("/v1/usage")
    async def own_usage(request: Request) -> Response:
        query = request.query_params
        return await answered(request, lambda conn, who: usage_of(conn, who, config, query, clock.now()))

    @app.get("/v1/credits")
    async def own_credits(request: Request) -> Response:
        return await answered(request, lambda conn, who: credits_of(conn, who, config, clock.now()))

    @app.get("/v1/requests/{request_id}")
    async def own_request(request: Request, request_id: str) -> Response:
        return await answered(request, lambda conn, who: receipt(conn, who, request_id))


def _read(database: Database, ask: Callable[[Connection], Found]) -> Found:
    """Read in one transaction. Raises DatabaseAwayError where the database can not answer now."""
    try:
        with database.reading() as conn:
            return ask(conn)
    except DatabaseError as error:
        if not is_away(error):
            raise
        raise DatabaseAwayError("the database went away") from None


def usage_of(conn: Connection, who: Principal, config: Config, query: Mapping[str, str], now: Instant) -> Row:
    """Return the customer's usage by model, day or key, from the rollups. Raises UsageError."""
    unknown = sorted(set(query) - {"since", "until", "by"})
    if unknown:
        raise UsageError(f"{unknown[0][:QUESTION_CHARS_MAX]!r} is no parameter; there are since, until and by")
    by = usage.parse_groups(_short(query.get("by", "model")), GROUPS)
    since, until = (_instant(query.get(name), now) for name in ("since", "until"))
    selection = usage.whole_hours(since, until, who.customer_id)
    lines = usage.load(conn, selection, by, config.billing.zone)
    rows = []
    for line in lines:
        named = usage.keys(line, by)
        kept: Row = {name: named[name] for name in ("day", "model", "key", "key_name") if name in named}
        rows.append({**kept, **usage.counts(line), "amount": amount_text(line.total.amount)})
    return {
        "object": "list",
        "data": rows,
        "amount": amount_text(Pico(sum(line.total.amount for line in lines))),
        "currency": config.billing.currency,
        "plan": plan.present(conn, who.customer_id, config.billing.currency, now),
        "since": None if selection.since is None else instant_text(selection.since),
        "until": None if selection.until is None else instant_text(selection.until),
    }


def _instant(text: str | None, now: Instant) -> Instant | None:
    return None if text is None else parse_instant(_short(text).replace(" ", "+"), now)


def _short(text: str) -> str:
    if len(text) > QUESTION_CHARS_MAX:
        raise UsageError(f"a parameter may have at most {QUESTION_CHARS_MAX} characters")
    return text


def credits_of(conn: Connection, who: Principal, config: Config, now: Instant) -> Row:
    """Return the customer's credit and what holds of it, and what is left of the budgets that this key falls under."""
    held = leases.standing(conn, who.customer_id, now)
    account = credit.read(conn, who.customer_id)
    applying = budgets.applying(conn, who.customer_id, who.key_id)
    states = budgets.states(conn, applying, config.billing.zone, now, alive_from=now - leases.GRACE_US)
    hard = [max(0, each.left - each.held) for each in states if not each.budget.is_soft]
    return {
        "object": "credits",
        "prepaid": who.is_prepaid,
        "suspended": who.suspension,
        "balance": amount_text(held.balance),
        "held": amount_text(held.held),
        "available": amount_text(held.available),
        "currency": held.currency or config.billing.currency,
        "credits": [
            {
                "id": grant.id,
                "kind": grant.kind.value,
                "left": amount_text(grant.left),
                "expires_at": None if grant.expires_at is None else instant_text(grant.expires_at),
            }
            for grant in account.grants
            if not grant.is_expired(now)
        ],
        "budget_left": amount_text(Pico(min(hard))) if hard else None,
        "budgets": [standing.row(each, config.billing.currency) for each in states],
    }


def receipt(conn: Connection, who: Principal, request_id: str) -> Row:
    """Return what a request used and cost, and what was corrected since. Raises NotFoundError for others' requests."""
    unknown = NotFoundError(f"there is no request {request_id[:QUESTION_CHARS_MAX]!r} of yours with usage")
    if not (len(request_id) <= QUESTION_CHARS_MAX and request_id.isascii() and request_id.isprintable()):
        raise unknown
    try:
        found = tracing.load(conn, request_id)
    except NotFoundError:
        raise unknown from None
    if found.event.customer_id != who.customer_id:
        raise unknown
    return _receipt(found)


def _receipt(found: Trace) -> Row:
    event = found.event
    tokens: dict[str, Any] = {
        name: getattr(event, name)
        for name in (
            *("input_tokens", "cached_input_tokens", "image_input_tokens", "audio_input_tokens"),
            *("output_tokens", "reasoning_tokens"),
        )
    }
    corrected = sum(note.amount for note in found.adjustments)
    return {
        "id": event.id,
        "object": "request",
        "model": event.model,
        "endpoint": event.endpoint,
        "key_id": event.api_key_id,
        "started_at": instant_text(Instant(event.started_at)),
        "finished_at": instant_text(Instant(event.finished_at)),
        "outcome": event.outcome,
        "http_status": event.http_status,
        "count_source": event.count_source,
        **tokens,
        "unit_prices": unit_prices(found.quote.price),
        "amount": amount_text(Pico(event.amount_pico)),
        "currency": found.quote.currency,
        "adjustments": [
            {"id": note.event_id, "at": instant_text(note.at), "amount": amount_text(note.amount)}
            for note in found.adjustments
        ],
        "amount_due": amount_text(Pico(event.amount_pico + corrected)),
    }


def unit_prices(price: UnitPrices) -> dict[str, str]:
    """Return unit prices as decimal texts: per 1M tokens, and the fee of a request."""
    return {
        "unit": "1M tokens",
        "input": rate_text(price.input),
        "cached_input": rate_text(price.cached_input),
        "image_input": rate_text(price.image_input),
        "audio_input": rate_text(price.audio_input),
        "output": rate_text(price.output),
        "reasoning": rate_text(price.reasoning),
        "request": amount_number(price.request),
    }
