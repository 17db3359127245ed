"""What every exchange of this worker shares: opened once, in `proxy/gateway.py`, and handed down."""

import asyncio
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from billing.usage import UsageEvent
from proxy.admit.directory import Directory
from proxy.admit.throttle import Throttle
from proxy.relay.catalog import Catalog
from proxy.relay.refusals import Refusal, retry_after
from proxy.settle import Days, Recorder

if TYPE_CHECKING:
    from proxy.relay.audit import Auditor
    from proxy.relay.counting import Counting
    from proxy.relay.exchange import Exchange
    from proxy.relay.holding import Terms

_SHUTTING_DOWN = Refusal("shutting_down", "this gateway is restarting; try again", headers=(retry_after(1),))
_UNRECORDED = Refusal("recording_unavailable", "usage can not be recorded now; try again", headers=(retry_after(1),))
_STALE = Refusal(
    "recording_unavailable", "keys and prices have not been renewed for too long", headers=(retry_after(1),)
)
_BEHIND = Refusal("recording_unavailable", "usage can not be recorded fast enough now", headers=(retry_after(1),))


@dataclass(slots=True, eq=False)
class Services:
    """The shared parts, the exchanges under way, and what was counted for `/metrics`."""

    loop: asyncio.AbstractEventLoop
    directory: Directory
    catalog: Catalog
    recorder: Recorder
    counting: "Counting"
    terms: "Terms"
    days: Days
    throttle: Throttle
    body_bytes_max: int
    exchanges: "set[Exchange]" = field(default_factory=set)
    checkpointed: set[str] = field(default_factory=set)
    is_shutting_down: bool = False
    is_stale: bool = False
    refusals: Counter[str] = field(default_factory=Counter)
    upstream_errors: Counter[int] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    tokens: Counter[str] = field(default_factory=Counter)
    anomalies: Counter[str] = field(default_factory=Counter)
    gauges: Mapping[str, int] = field(default_factory=dict)
    """What the background jobs last found, by the metric's name."""
    audit: "Auditor | None" = None

    def refusal(self) -> Refusal | None:
        """Say why no request can be taken at all now, None if it can."""
        if self.is_shutting_down:
            return _SHUTTING_DOWN
        if self.recorder.is_failing:
            return _UNRECORDED
        if self.is_stale:
            return _STALE
        return _BEHIND if self.recorder.is_full else None

    def count_event(self, event: UsageEvent) -> None:
        """Count a recorded event."""
        self.outcomes[event.outcome] += 1
        self.tokens["input"] += event.input_tokens
        self.tokens["output"] += event.output_tokens
        if event.anomaly is not None:
            self.anomalies.update(event.anomaly.split(","))
