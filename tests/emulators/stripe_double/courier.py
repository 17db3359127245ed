"""The webhook sender: signs, delivers, retries, repeats, and reorders on demand.

Documented: `Stripe-Signature: t=…,v1=…`, one v1 per live secret and a v0 in test mode; each attempt has a
fresh time and signature; anything but 2xx, redirects included, is a failure and is tried again with growing
pauses; order and uniqueness are not promised. Pauses run on the double's clock. The signature's time is the
machine's, because receivers compare it with theirs; `signing_time` replaces it.

Never holds its own lock while it takes the account's: the account's comes first, everywhere.
"""

from __future__ import annotations

import hashlib
import hmac
import http.client
import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

from .account import Account, Json
from .targets import Target

LOOPBACK = ("127.0.0.1", "localhost", "::1")
TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Delivery:
    """One attempt: `status` is None when no answer came, and `error` then says why."""

    event_id: str
    event_type: str
    target: str
    attempt: int
    status: int | None
    error: str | None
    signature: str

    @property
    def is_success(self) -> bool:
        """Whether the receiver said 2xx."""
        return self.status is not None and 200 <= self.status < 300


@dataclass(slots=True)
class Job:
    """An event on its way to one target, due on the double's clock."""

    event_id: str
    target: str
    due_at: int
    attempt: int = 1


def signature_header(body: bytes, secrets: Sequence[str], signed_at: int) -> str:
    """One v1 per secret, and the v0 that Stripe adds in test mode and receivers must ignore."""
    signed = f"{signed_at}.".encode() + body
    schemes = [f"v1={hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest()}" for secret in secrets]
    fake = hmac.new(b"v0 is a scheme for tests", signed, hashlib.sha256).hexdigest()
    return ",".join([f"t={signed_at}", *schemes, f"v0={fake}"])


def body_of(event: Json) -> bytes:
    """The bytes that are sent and signed: indented JSON as Stripe's, and UTF-8 as it is."""
    shown = {name: value for name, value in event.items() if name != "data"} if is_thin(event) else event
    return json.dumps(shown, indent=2, ensure_ascii=False).encode()


def is_thin(event: Json) -> bool:
    """Whether the event is of v2, whose webhook body carries no data."""
    return bool(event["object"] == "v2.core.event")


def post(url: str, body: bytes, signature: str) -> tuple[int | None, str | None]:
    """(status, None) or (None, what went wrong). Only loopback receivers are ever called."""
    parts = urlsplit(url)
    if parts.hostname not in LOOPBACK or parts.scheme != "http":
        return None, f"{url} is not a loopback http address"
    connection = http.client.HTTPConnection(parts.hostname, parts.port or 80, timeout=TIMEOUT_S)
    headers = {
        "Content-Type": "application/json; charset=utf-8",
        "User-Agent": "Stripe/1.0 (double)",
        "Stripe-Signature": signature,
    }
    try:
        path = parts.path or "/"
        connection.request("POST", f"{path}?{parts.query}" if parts.query else path, body, headers)
        response = connection.getresponse()
        response.read()
        return response.status, None
    except (OSError, http.client.HTTPException) as error:
        return None, f"{type(error).__name__}: {error}"
    finally:
        connection.close()


class Courier:
    """Sends in a thread of its own, one event after another."""

    def __init__(self, account: Account) -> None:
        self._account = account
        self._condition = threading.Condition()
        self._jobs: list[Job] = []
        self._waiting: dict[str, set[str]] = {}
        self._is_busy = False
        self._is_held = False
        self._is_closed = False
        self.deliveries: list[Delivery] = []
        self.signing_time: Callable[[], int] = lambda: int(time.time())
        self.delay_s = 0
        """How long after an event its first delivery is due, on the double's clock."""
        self._thread = threading.Thread(target=self._run, name="stripe-double-courier", daemon=True)
        account.event_sinks.append(self.accept)
        account.is_acknowledged = self.is_acknowledged

    def start(self) -> None:
        """Begins to deliver."""
        self._thread.start()

    def close(self) -> None:
        """Stops after the delivery that is under way."""
        with self._condition:
            self._is_closed = True
            self._condition.notify_all()
        self._thread.join(TIMEOUT_S + 5)

    def accept(self, event: Json) -> None:
        """Queues a new event for each target that wants it; the caller holds the account's lock."""
        wanted = [target.id for target in self._account.targets.values() if target.wants(event)]
        if not is_thin(event):
            event["pending_webhooks"] = len(wanted)
        with self._condition:
            due_at = self._account.clock.now() + self.delay_s
            self._jobs.extend(Job(event["id"], target, due_at) for target in wanted)
            if wanted:
                self._waiting[event["id"]] = set(wanted)
            self._condition.notify_all()

    def is_acknowledged(self, event_id: str) -> bool:
        """Whether all targets of an event have said 2xx."""
        with self._condition:
            return not self._waiting.get(event_id)

    def hold(self) -> None:
        """Delivers nothing until `release`."""
        with self._condition:
            self._is_held = True

    def release(self, order: Callable[[list[str]], Sequence[str]]) -> None:
        """Delivers what was held, in the sequence that `order` makes of the event ids (repeats are sent
        twice).
        """
        with self._condition:
            self._is_held = False
            by_event: dict[str, list[Job]] = {}
            for job in self._jobs:
                by_event.setdefault(job.event_id, []).append(job)
            self._jobs = [replace(job) for each in order(list(by_event)) for job in by_event[each]]
            self._condition.notify_all()

    def wake(self) -> None:
        """The clock moved."""
        with self._condition:
            self._condition.notify_all()

    def next_due(self) -> int | None:
        """When the next delivery is due; None while nothing waits or events are held."""
        with self._condition:
            return None if self._is_held else min((job.due_at for job in self._jobs), default=None)

    def settle(self, timeout_s: float = 30.0) -> bool:
        """Waits until nothing that is due now waits; says whether that was reached."""
        with self._condition:
            return self._condition.wait_for(
                lambda: self._is_closed or (not self._is_busy and self._due_job() is None), timeout_s
            )

    def _due_job(self) -> Job | None:
        if self._is_held:
            return None
        now = self._account.clock.moved()
        due = [job for job in self._jobs if job.due_at <= now]
        return min(due, key=lambda job: job.due_at) if due else None

    def _run(self) -> None:
        while True:
            with self._condition:
                self._is_busy = False
                self._condition.notify_all()
                while not self._is_closed and (job := self._due_job()) is None:
                    self._condition.wait(0.5)
                if self._is_closed:
                    return
                assert job is not None
                self._jobs.remove(job)
                self._is_busy = True
            self._attempt(job)

    def _attempt(self, job: Job) -> None:
        with self._account.lock:
            target = self._account.targets.get(job.target)
            event = self._account.find(job.event_id)
        if target is None or event is None or not target.is_enabled:
            self._finish(job, is_success=True)
            return
        delivery = self.send(event, target, job.attempt)
        self._finish(job, is_success=delivery.is_success)
        if delivery.is_success and not is_thin(event):
            with self._account.lock:
                event["pending_webhooks"] = max(0, event["pending_webhooks"] - 1)

    def _finish(self, job: Job, *, is_success: bool) -> None:
        """Ticks the target off or plans the next attempt; after the last the event stays unacknowledged."""
        delays = self._account.policy.retry_delays_s
        with self._condition:
            if is_success:
                self._waiting.get(job.event_id, set()).discard(job.target)
            elif job.attempt <= len(delays):
                due_at = self._account.clock.moved() + delays[job.attempt - 1]
                self._jobs.append(Job(job.event_id, job.target, due_at, job.attempt + 1))

    def send(
        self,
        event: Json,
        target: Target,
        attempt: int = 1,
        *,
        signed_at: int | None = None,
        secret: str | None = None,
        tamper: Callable[[bytes], bytes] | None = None,
    ) -> Delivery:
        """Delivers once, now, in the calling thread. `tamper` changes the body after it was signed."""
        with self._account.lock:
            body = body_of(event)
            live = target.live_secrets(self._account.now())
        signature = signature_header(
            body,
            live if secret is None else [secret],
            self.signing_time() if signed_at is None else signed_at,
        )
        status, error = post(target.url, body if tamper is None else tamper(body), signature)
        delivery = Delivery(event["id"], event["type"], target.id, attempt, status, error, signature)
        self.deliveries.append(delivery)
        return delivery

    def described(self) -> list[dict[str, Any]]:
        """The attempts so far, for the control API."""
        return [
            {
                "event": each.event_id,
                "type": each.event_type,
                "target": each.target,
                "attempt": each.attempt,
                "status": each.status,
                "error": each.error,
            }
            for each in self.deliveries
        ]
