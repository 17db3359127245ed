"""One request from its bytes to its answer: faults, authentication, checks, idempotency, the lane, the
handler.

The order is the contract of this file. A refusal before the handler leaves no trace; once the handler has run
the request has happened, and every fault after it only concerns the answer.
"""

from __future__ import annotations

import base64
import binascii
import json
import time
import traceback
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import unquote

from . import errors, meter_events, stream
from .account import API_VERSION, Account, Json
from .errors import ApiError
from .faults import REFUSING, Fault, FaultKind, FaultPlan
from .idempotency import Answer, IdempotencyStore, fingerprint
from .limits import RateLimiter
from .listing import expand
from .routing import Call, Route, Router
from .spec import Operation

KEY_LENGTH_MAX = 255
METER_EVENT_PATHS = ("/v1/billing/meter_events", "/v2/billing/meter_events")


@dataclass(frozen=True, slots=True)
class Request:
    """What came over the socket. Header names are in lower case."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes = b""

    @property
    def path(self) -> str:
        """The path without the query, percent-decoded."""
        return unquote(self.target.partition("?")[0])

    @property
    def query(self) -> str:
        """The query string as it came."""
        return self.target.partition("?")[2]


@dataclass(slots=True)
class Reply:
    """What goes back; `is_dropped` closes the connection instead, `is_cut` in the middle of the body."""

    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)
    is_dropped: bool = False
    is_cut: bool = False


class Dispatcher:
    """Answers API requests for one account."""

    def __init__(self, account: Account, router: Router, api_key: str) -> None:
        self.account = account
        self.api_key = api_key
        self.faults = FaultPlan()
        self.limiter = RateLimiter(account.policy)
        self.request_count = 0
        self.executing_count = 0
        self._router = router
        self._idempotency = IdempotencyStore()
        self._lanes: set[tuple[str, str]] = set()

    def answer(self, request: Request) -> Reply:
        """The reply to one request, with the headers that all of Stripe's replies have."""
        account = self.account
        with account.lock:
            self.request_count += 1
            request_id = account.new_id("req")
            self.catch_up()
            fault = self.faults.take(request.method, request.path, request.body.decode("utf-8", "replace"))
        reply = self._reply(request, request_id, fault)
        reply.headers |= {
            "Request-Id": request_id,
            "Stripe-Version": request.headers.get("stripe-version", API_VERSION),
        }
        key = request.headers.get("idempotency-key")
        if key is not None:
            reply.headers["Idempotency-Key"] = key
        return reply

    def catch_up(self) -> None:
        """Runs what became due while time passed by itself; the caller holds the lock."""
        while (due := self.account.next_due()) is not None and due <= self.account.clock.moved():
            self.account.run_next()

    def _reply(self, request: Request, request_id: str, fault: Fault | None) -> Reply:
        if fault is not None and fault.kind in REFUSING:
            return self._refused_by(fault)
        try:
            answer, headers = self._run(request, request_id, fault)
        except ApiError as error:
            answer, headers = _error_answer(error), {}
        except Exception as error:  # The edge of a request: whatever broke must be seen.
            self.account.violations.append(f"the double failed: {''.join(traceback.format_exception(error))}")
            body = json.dumps({"error": {"type": "api_error", "message": f"the double failed: {error}"}}).encode()
            return Reply(500, body, {"Stripe-Should-Retry": "false"})
        reply = Reply(answer.status, answer.body, {**answer.headers, **headers})
        if fault is not None:
            _spoil(reply, fault)
        return reply

    def _refused_by(self, fault: Fault) -> Reply:
        """Nothing happened, and the client is told so, or is told nothing."""
        match fault.kind:
            case FaultKind.DROP_BEFORE_COMMIT:
                return Reply(0, b"", is_dropped=True)
            case FaultKind.CONFLICT:
                error = errors.concurrent_meter_event()
            case FaultKind.RATE_LIMITED:
                error = errors.rate_limited(fault.reason)
            case FaultKind.LOCK_TIMEOUT:
                error = errors.lock_timeout()
            case _:
                error = errors.server_error(fault.status, is_stored=False)
        answer = _error_answer(error)
        return Reply(answer.status, answer.body, dict(answer.headers))

    def _run(self, request: Request, request_id: str, fault: Fault | None) -> tuple[Answer, dict[str, str]]:
        """The answer and the headers of this delivery of it. Raises ApiError for what is refused before
        execution.
        """
        account = self.account
        with account.lock:
            self._authorize(request)
            self.limiter.check(request.path)
            route, call, operation = self._read(request, request_id)
            key = call.idempotency_key
            if key is not None:
                is_v2 = request.path.startswith("/v2/")
                print_ = fingerprint(call.method, call.path, call.parameters)
                kept = self._idempotency.begin(key, print_, is_v2=is_v2, now=account.now())
                if kept is not None:
                    return kept, {
                        "Idempotent-Replayed": "true",
                        "Original-Request": kept.request_id,
                    }
            try:
                lane = self._enter_lane(call)
            except ApiError:
                self._forget(key)
                raise
            self.executing_count += 1
        try:
            return self._execute(route, call, operation, fault), {}
        finally:
            with account.lock:
                self.executing_count -= 1
                self._lanes.discard(lane or ("", ""))

    def _forget(self, key: str | None) -> None:
        if key is not None:
            self._idempotency.finish(key, Answer(0, b"", {}), is_stored=False)

    def _enter_lane(self, call: Call) -> tuple[str, str] | None:
        """One usage event at a time per customer and meter."""
        if call.path not in METER_EVENT_PATHS:
            return None
        lane = meter_events.lane_of(self.account, call)
        if lane is not None:
            if lane in self._lanes:
                raise errors.concurrent_meter_event()
            self._lanes.add(lane)
        return lane

    def _execute(self, route: Route, call: Call, operation: Operation, fault: Fault | None) -> Answer:
        """Runs the handler under the lock and keeps its answer; pauses, if a fault says so, outside of it."""
        account = self.account
        if fault is not None and fault.kind is FaultKind.SLOW_BEFORE_COMMIT:
            time.sleep(fault.seconds)
        if call.path in METER_EVENT_PATHS and account.policy.meter_event_latency_s:
            time.sleep(account.policy.meter_event_latency_s)
        is_kept = False
        try:
            with account.lock:
                answer, is_stored = self._handled(route, call, operation)
                if fault is not None and fault.kind is FaultKind.SERVER_ERROR_AFTER_COMMIT:
                    answer = _error_answer(errors.server_error(fault.status, is_stored=True))
            if fault is not None and fault.kind is FaultKind.SLOW:
                time.sleep(fault.seconds)
            with account.lock:
                is_kept = True
                if call.idempotency_key is not None:
                    self._idempotency.finish(call.idempotency_key, answer, is_stored=is_stored)
            return answer
        finally:
            if not is_kept:
                with account.lock:
                    self._forget(call.idempotency_key)

    def _handled(self, route: Route, call: Call, operation: Operation) -> tuple[Answer, bool]:
        """(answer, whether a key keeps it). A refusal by the handler is an answer like any other."""
        account = self.account
        account.request = {"id": call.request_id, "idempotency_key": call.idempotency_key}
        try:
            document = route.handler(account, call)
            expanded = call.parameters.get("expand")
            if expanded:
                document = expand(account, document, expanded)
            self._check_answer(operation, document)
            return Answer(200, json.dumps(document).encode(), {}, call.request_id), True
        except ApiError as error:
            return replace(
                _error_answer(error), request_id=call.request_id
            ), error.is_stored and account.policy.is_refusal_kept
        finally:
            account.request = None

    def _check_answer(self, operation: Operation, document: Json) -> None:
        problems: list[str] = []
        operation.check_answer(document, operation.template, problems)
        if problems:
            self.account.violations.extend(f"own answer to {operation.method} {problem}" for problem in problems)
            raise AssertionError(f"the double's answer is refused by Stripe's document: {problems}")

    def _authorize(self, request: Request) -> None:
        """Bearer or Basic with the secret key; the stream takes session tokens instead."""
        token = credential(request.headers.get("authorization", ""))
        if request.path == stream.PATH:
            stream.authorize(self.account, token)
        elif token is None:
            raise errors.unauthorized("You did not provide an API key.")
        elif token != self.api_key:
            raise errors.unauthorized(f"Invalid API Key provided: {token[:8]}****")

    def _read(self, request: Request, request_id: str) -> tuple[Route, Call, Operation]:
        """The route and the checked parameters. Anything wrong is recorded as a violation and refused."""
        found = self._router.find(request.method, request.path)
        if found is None:
            self._violation(request, "is not modelled by the double, or not an endpoint of Stripe's")
            raise errors.invalid(
                f"Unrecognized request URL ({request.method}: {request.path}).", status=404, is_stored=False
            )
        route, ids = found
        operation = self.account.spec.operation(request.method, route.template)
        key = request.headers.get("idempotency-key")
        if key is not None and len(key) > KEY_LENGTH_MAX:
            self._violation(request, "Idempotency-Key is longer than 255 characters")
            raise errors.invalid("Idempotency-Key must be at most 255 characters.", is_stored=False)
        parameters = self._parameters(request, operation)
        problems: list[str] = []
        operation.check_request(parameters, "", problems)
        problems += [
            f"{name}: not modelled by the double"
            for name in sorted(set(parameters) - route.models)
            if name in operation.reads.get("properties", {})
        ]
        if problems:
            for problem in problems:
                self._violation(request, problem)
            raise parameter_error(problems[0])
        call = Call(
            request.method,
            request.path,
            ids,
            parameters,
            key if request.method != "GET" else None,
            request_id,
        )
        return route, call, operation

    def _parameters(self, request: Request, operation: Operation) -> Json:
        if request.method != "POST":
            return self.account.spec.decode_form(operation, request.query)
        if not operation.is_json:
            kind = request.headers.get("content-type", "application/x-www-form-urlencoded")
            if request.body and not kind.startswith("application/x-www-form-urlencoded"):
                self._violation(request, f"content type {kind} on a v1 endpoint")
                raise errors.invalid(f"Unsupported content type {kind}.", is_stored=False)
            return self.account.spec.decode_form(operation, request.body.decode("utf-8", "replace"))
        try:
            made: Any = json.loads(request.body or b"{}")
        except ValueError:
            made = None
        if not isinstance(made, dict):
            self._violation(request, "the body is not a JSON object")
            raise errors.v2_error(400, "invalid_json", "The request body is not a JSON object.")
        return made

    def _violation(self, request: Request, problem: str) -> None:
        self.account.violations.append(f"{request.method} {request.path} {problem}")


def credential(header: str) -> str | None:
    """The key in a Bearer or Basic header; Basic carries it as the user name."""
    scheme, _, value = header.partition(" ")
    if scheme.lower() == "bearer" and value:
        return value.strip()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value, validate=True).decode().partition(":")[0]
        except (binascii.Error, UnicodeDecodeError):
            return None
    return None


def parameter_error(problem: str) -> ApiError:
    """Stripe's sentence and code for the first problem that the checker found."""
    place, _, detail = problem.partition(": ")
    if detail == "required, and missing":
        return errors.invalid(
            f"Missing required param: {place}.", code="parameter_missing", param=place, is_stored=False
        )
    if detail == "unknown name":
        return errors.invalid(
            f"Received unknown parameter: {place}", code="parameter_unknown", param=place, is_stored=False
        )
    return errors.invalid(f"Invalid {problem}", param=place, is_stored=False)


def _error_answer(error: ApiError) -> Answer:
    return Answer(error.status, json.dumps(error.body).encode(), error.headers)


def _spoil(reply: Reply, fault: Fault) -> None:
    """What a fault after the fact does to the answer."""
    match fault.kind:
        case FaultKind.DROP_AFTER_COMMIT:
            reply.is_dropped = True
        case FaultKind.GARBAGE:
            reply.status, reply.body = 200, b"<html>upstream connect error</html>"
        case FaultKind.TRUNCATED:
            reply.is_cut = True
        case _:
            pass
