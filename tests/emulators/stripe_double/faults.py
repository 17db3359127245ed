"""Faults on demand: what a network and a busy Stripe do to a client, chosen by path and count.

The critical one is `drop_after_commit`: the request took effect and its answer never arrives. Faults are
looked up in the order in which they were set; each affects `times` matching requests after letting `skip`
pass.
"""

from __future__ import annotations

import enum
import fnmatch
from dataclasses import asdict, dataclass
from typing import Any


class FaultKind(enum.StrEnum):
    """What happens to the request."""

    DROP_BEFORE_COMMIT = "drop_before_commit"
    """The connection closes and nothing happened."""
    DROP_AFTER_COMMIT = "drop_after_commit"
    """The connection closes and everything happened; an Idempotency-Key replays the answer later."""
    CONFLICT = "conflict"
    """409 `too_many_concurrent_requests`."""
    RATE_LIMITED = "rate_limited"
    """429 with Stripe-Rate-Limited-Reason; not retried by the SDK."""
    LOCK_TIMEOUT = "lock_timeout"
    """429 `lock_timeout` with Stripe-Should-Retry: true; retried by the SDK."""
    SERVER_ERROR = "server_error"
    """`status` (500, 502, 503) before anything happened; nothing is kept under the key."""
    SERVER_ERROR_AFTER_COMMIT = "server_error_after_commit"
    """`status` after everything happened; v1 keeps it under the key and repeats it."""
    SLOW = "slow"
    """Everything happened, the answer arrives `seconds` later; the request stays in flight so long."""
    SLOW_BEFORE_COMMIT = "slow_before_commit"
    """The request starts `seconds` later and holds its key and its lane meanwhile."""
    GARBAGE = "garbage"
    """Everything happened, and the answer is 200 with a body that is not JSON."""
    TRUNCATED = "truncated"
    """Everything happened, and the connection closes in the middle of the body."""


REFUSING = frozenset(
    {
        FaultKind.DROP_BEFORE_COMMIT,
        FaultKind.CONFLICT,
        FaultKind.RATE_LIMITED,
        FaultKind.LOCK_TIMEOUT,
        FaultKind.SERVER_ERROR,
    }
)


@dataclass(slots=True)
class Fault:
    """One rule. `path` is a shell pattern (`/v1/billing/meter_*`); `times` None means until cleared."""

    kind: FaultKind
    path: str = "*"
    method: str = "*"
    times: int | None = 1
    skip: int = 0
    status: int = 500
    seconds: float = 1.0
    reason: str = "global-rate"
    body_contains: str = ""
    hits: int = 0

    def applies(self, method: str, path: str, body: str) -> bool:
        """Whether the request matches, regardless of counts."""
        is_method = self.method in ("*", method)
        return is_method and fnmatch.fnmatchcase(path, self.path) and self.body_contains in body


class FaultPlan:
    """The faults that are set. Callers hold the account's lock."""

    def __init__(self) -> None:
        self.faults: list[Fault] = []

    def add(self, fault: Fault) -> Fault:
        """Sets a fault; keep the object to read `hits`."""
        self.faults.append(fault)
        return fault

    def clear(self) -> None:
        """No more faults."""
        self.faults.clear()

    def take(self, method: str, path: str, body: str) -> Fault | None:
        """The fault for this request, counted, or None."""
        for fault in self.faults:
            if not fault.applies(method, path, body):
                continue
            if fault.skip > 0:
                fault.skip -= 1
                continue
            if fault.times is not None and fault.hits >= fault.times:
                continue
            fault.hits += 1
            return fault
        return None

    def described(self) -> list[dict[str, Any]]:
        """For the control API."""
        return [asdict(fault) for fault in self.faults]
