"""The double's time: movable, so that 24 hours, 35 days or a billing month pass in an instant.

Two kinds: with a start it stands still until moved (tests); without one it follows the machine's clock plus
an offset (a process for `make demo`). While the billing cycle catches up, time is pinned to the instant of
the action that runs, so a draft invoice of last month carries last month's date.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

DAY_S = 86_400
Instant = int | datetime


def to_unix(instant: Instant) -> int:
    """Seconds since 1970 of an instant; a datetime must be aware."""
    if isinstance(instant, datetime):
        assert instant.tzinfo is not None, "instants are aware"
        return int(instant.timestamp())
    return instant


def rfc3339(unix: int) -> str:
    """v2's form of an instant, with milliseconds and Z."""
    return datetime.fromtimestamp(unix, UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")


class Clock:
    """Unix seconds now. Only the double moves it, so that what became due in between happens."""

    def __init__(self, start: Instant | None = None) -> None:
        self._frozen_at = None if start is None else to_unix(start)
        self._offset_s = 0
        self._pinned: int | None = None

    def now(self) -> int:
        """The pinned instant while an action is caught up with, else the moved time."""
        return self.moved() if self._pinned is None else self._pinned

    def moved(self) -> int:
        """The time without regard to a pin."""
        return int(time.time()) + self._offset_s if self._frozen_at is None else self._frozen_at

    def jump(self, unix: int) -> None:
        """Sets the time, or leaves it when it is later already: it never goes back."""
        if self._frozen_at is None:
            self._offset_s = max(self._offset_s, unix - int(time.time()))
        else:
            self._frozen_at = max(self._frozen_at, unix)

    @contextmanager
    def pinned(self, unix: int) -> Iterator[None]:
        """Runs the block at that instant."""
        self._pinned = unix
        try:
            yield
        finally:
            self._pinned = None


def add_interval(anchor: int, interval: str, count: int) -> int:
    """The instant `count` intervals after the anchor; a month that is too short ends it on its last day."""
    if interval in ("day", "week"):
        return anchor + count * DAY_S * (7 if interval == "week" else 1)
    start = datetime.fromtimestamp(anchor, UTC)
    months = count * (12 if interval == "year" else 1)
    year, month0 = divmod(start.year * 12 + start.month - 1 + months, 12)
    return int(start.replace(year=year, month=month0 + 1, day=min(start.day, month_days(year, month0 + 1))).timestamp())


def month_days(year: int, month: int) -> int:
    """Days of a month."""
    following = datetime(year + month // 12, month % 12 + 1, 1, tzinfo=UTC)
    return (following - timedelta(days=1)).day


def next_boundary(anchor: int, interval: str, interval_count: int, after: int) -> int:
    """The first instant after `after` that lies a whole number of intervals from the anchor.

    Counted from the anchor and not from the period before, so that a subscription of the 31st returns to the
    31st after February.
    """
    number = 0
    if anchor > after:
        while add_interval(anchor, interval, (number - 1) * interval_count) > after:
            number -= 1
    else:
        while add_interval(anchor, interval, number * interval_count) <= after:
            number += 1
    return add_interval(anchor, interval, number * interval_count)
