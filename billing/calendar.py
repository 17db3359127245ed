"""Calendar days and months of a time zone, as spans of instants: what budgets and reports count by.

Pure. Invariant: the periods of a zone follow one another without gap or overlap, [start, end), whatever its clocks do.
A day begins at its first instant: where midnight comes twice (clocks go back over it) at the earlier one, where it does
not come at all (clocks jump over it) at the jump. So a day has 23, 24 or 25 hours, or others where a zone does others.
"""

from datetime import UTC, date, datetime, timedelta
from enum import StrEnum
from typing import NamedTuple
from zoneinfo import ZoneInfo

from billing.clock import Instant, from_datetime, to_datetime

_DAY = timedelta(days=1)


class Per(StrEnum):
    """How long a period is."""

    DAY = "day"
    MONTH = "month"


class Period(NamedTuple):
    """The instants from `start` until just before `end`."""

    start: Instant
    end: Instant

    def holds(self, instant: int) -> bool:
        """Tell whether the instant is one of them."""
        return self.start <= instant < self.end


def period_of(per: Per, instant: int, zone: ZoneInfo) -> Period:
    """Return the day or month that holds the instant.

    The local date names it, but for the hour after clocks went back over midnight, which shows yesterday's date again.
    """
    first = _first_date(per, to_datetime(Instant(instant)).astimezone(zone).date())
    following = _next(per, first)
    while instant >= day_start(following, zone):
        first, following = following, _next(per, following)
    return Period(day_start(first, zone), day_start(following, zone))


def day_start(day: date, zone: ZoneInfo) -> Instant:
    """Return the first instant of a day."""
    earlier = _utc(day, zone, fold=0)
    if earlier.astimezone(zone).replace(tzinfo=None) == datetime(day.year, day.month, day.day):  # noqa: DTZ001 (a wall clock)
        return from_datetime(earlier)
    return _jump(from_datetime(_utc(day, zone, fold=1)), from_datetime(earlier), day, zone)


def _jump(before: int, after: int, day: date, zone: ZoneInfo) -> Instant:
    """Find the instant at which clocks jumped over a day's midnight: by halves, at most 40 of them."""
    while after - before > 1:
        middle = (before + after) // 2
        if to_datetime(Instant(middle)).astimezone(zone).date() >= day:
            after = middle
        else:
            before = middle
    return Instant(after)


def _utc(day: date, zone: ZoneInfo, *, fold: int) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=zone, fold=fold).astimezone(UTC)


def _first_date(per: Per, day: date) -> date:
    return day if per is Per.DAY else day.replace(day=1)


def _next(per: Per, first: date) -> date:
    return first + _DAY if per is Per.DAY else (first.replace(day=28) + 4 * _DAY).replace(day=1)
