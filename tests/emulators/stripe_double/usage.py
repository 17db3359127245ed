"""The usage that the double has accepted, and its sums: exact decimals until JSON asks for a double.

An event counts until it is cancelled (an adjustment) or rejected (asynchronous validation). Formulas: sum,
count, last. With an `event_time_window` the event received last in an hour or day of UTC replaces earlier
ones.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal, localcontext
from typing import Any

from .clock import DAY_S

WINDOW_S = {"hour": 3_600, "day": DAY_S}
MEMORY_S = DAY_S
"""Stripe promises to know an identifier for *at least* 24 hours; the double forgets at exactly 24."""


@dataclass(slots=True)
class MeterEvent:
    """One accepted event. `status` is counted, canceled, rejected or lost; `via` is v1, v2 or stream."""

    identifier: str
    event_name: str
    meter: str
    customer: str
    value: Decimal
    timestamp: int
    received_at: int
    payload: dict[str, str]
    via: str
    idempotency_key: str | None = None
    status: str = "counted"


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why one event was refused afterwards."""

    meter: str | None
    code: str
    message: str
    identifier: str
    idempotency_key: str | None


class Rejections:
    """What waits for its window to close, and what tests ordered."""

    def __init__(self) -> None:
        self.open: dict[int, list[Rejection]] = {}
        self.ordered: list[tuple[str, str]] = []
        """(code, message) for the next accepted events: a test's way to say "200, and yet not billed"."""


class UsageLog:
    """Accepted events in the order of their arrival. Callers hold the account's lock."""

    def __init__(self) -> None:
        self.events: list[MeterEvent] = []
        self._by_lane: dict[tuple[str, str], list[MeterEvent]] = {}
        self._seen: dict[str, MeterEvent] = {}

    def append(self, event: MeterEvent) -> None:
        """Adds an accepted event and remembers its identifier."""
        self.events.append(event)
        self._by_lane.setdefault((event.meter, event.customer), []).append(event)
        self._seen[event.identifier] = event

    def is_duplicate(self, identifier: str, now: int) -> bool:
        """Whether the identifier was accepted less than 24 hours ago."""
        return self.received_within(identifier, now) is not None

    def received_within(self, identifier: str, now: int) -> MeterEvent | None:
        """The newest event of this identifier, when it was received less than 24 hours ago."""
        event = self._seen.get(identifier)
        return event if event is not None and now - event.received_at < MEMORY_S else None

    def counted(self, meter: str, customer: str, start: int, end: int, received_by: int) -> list[MeterEvent]:
        """Events that count in [start, end) and had arrived by an instant, in the order of arrival."""
        return [
            event
            for event in self._by_lane.get((meter, customer), ())
            if start <= event.timestamp < end and event.received_at <= received_by and event.status == "counted"
        ]

    def aggregate(self, meter: dict[str, Any], events: Iterable[MeterEvent]) -> Decimal:
        """The meter's formula over events that are in the order of arrival."""
        kept = list(events)
        window_s = WINDOW_S.get(meter["event_time_window"] or "")
        if window_s is not None:
            kept = list({event.timestamp // window_s: event for event in kept}.values())
        formula = meter["default_aggregation"]["formula"]
        if formula == "count":
            return Decimal(len(kept))
        if formula == "last":
            return max(kept, key=lambda event: event.timestamp).value if kept else Decimal(0)
        assert formula == "sum", formula
        return exact_sum(event.value for event in kept)

    def total(self, customer: str | None, event_name: str | None, start: int | None, end: int | None) -> Decimal:
        """The plain sum of the values that count, whatever the meter's formula."""
        return exact_sum(
            event.value
            for event in self.events
            if event.status == "counted"
            and customer in (None, event.customer)
            and event_name in (None, event.event_name)
            and (start is None or event.timestamp >= start)
            and (end is None or event.timestamp < end)
        )


def exact_sum(values: Iterable[Decimal]) -> Decimal:
    """A sum without rounding: 15 digits per value and 60 of precision leave room for any number of events."""
    with localcontext(prec=60):
        return sum(values, Decimal(0))
