"""Stripe's request limits, off unless a test sets them: a global one, and a separate one for meter events.

Counted in real seconds, because clients wait in real seconds.
"""

from __future__ import annotations

import time
from collections import deque

from .account import Policy
from .errors import rate_limited

METER_EVENTS = "/v1/billing/meter_events"


class RateLimiter:
    """Sliding windows of one second. Callers hold the account's lock."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._recent: dict[str, deque[float]] = {"global-rate": deque(), "endpoint-rate": deque()}

    def check(self, path: str) -> None:
        """Raises the 429 for a request beyond the limit, and counts one within it."""
        is_meter_event = path == METER_EVENTS
        limit = self._policy.meter_events_per_s_max if is_meter_event else self._policy.requests_per_s_max
        if limit is None:
            return
        reason = "endpoint-rate" if is_meter_event else "global-rate"
        recent = self._recent[reason]
        now = time.monotonic()
        while recent and now - recent[0] >= 1:
            recent.popleft()
        if len(recent) >= limit:
            raise rate_limited(reason)
        recent.append(now)
