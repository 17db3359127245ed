"""The only reader of the time: instants are whole microseconds since 1970 UTC, as integers.

An integer compares, sorts and stores alike in Python, SQLite and PostgreSQL; it has no time zone to
forget and no fraction to round. People see RFC 3339 (`instant_text`), always UTC.
"""

import re
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import NewType

from billing.errors import UsageError

Instant = NewType("Instant", int)
"""Microseconds since 1970-01-01T00:00:00Z."""

Clock = Callable[[], Instant]

SECOND_US = 1_000_000
MINUTE_US = 60 * SECOND_US
HOUR_US = 3_600 * SECOND_US
DAY_US = 24 * HOUR_US

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_LAST = (datetime.max.replace(tzinfo=UTC) - _EPOCH) // _MICROSECOND
_RELATIVE = re.compile(r"([+-])([0-9]{1,6})([smhd])")
_UNIT_US = {"s": SECOND_US, "m": MINUTE_US, "h": HOUR_US, "d": DAY_US}


def now() -> Instant:
    """Return the present instant."""
    return Instant(time.time_ns() // 1_000)


def from_datetime(value: datetime) -> Instant:
    """Convert an aware datetime, exactly."""
    assert value.tzinfo is not None, "a naive datetime names no instant"
    return Instant((value - _EPOCH) // _MICROSECOND)


def to_datetime(instant: Instant) -> datetime:
    """Convert to an aware datetime in UTC, exactly."""
    return _EPOCH + timedelta(microseconds=instant)


def instant_text(instant: Instant) -> str:
    """Write RFC 3339 in UTC; the fraction only where there is one: "2026-03-01T12:00:00Z"."""
    return to_datetime(instant).isoformat().replace("+00:00", "Z")


def parse_instant(text: str, current: Instant) -> Instant:
    """Read an instant: RFC 3339 ("2026-03-01T12:00:00Z"), a date (00:00 UTC), "now", "-7d", "+2h".

    A time without offset is UTC. Raises UsageError.
    """
    text = text.strip()
    if text == "now":
        return current
    relative = _RELATIVE.fullmatch(text)
    if relative is not None:
        distance = int(relative[2]) * _UNIT_US[relative[3]]
        return _writable(Instant(current + (distance if relative[1] == "+" else -distance)), text)
    try:
        value = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(f"{text!r} is no instant; write 2026-03-01T12:00:00Z, 2026-03-01, now, -7d or +2h") from None
    return _writable(from_datetime(value if value.tzinfo is not None else value.replace(tzinfo=UTC)), text)


def _writable(instant: Instant, text: str) -> Instant:
    """Refuse what `instant_text` could not write, and what lies before all time that we could mean."""
    if not 0 <= instant <= _LAST:
        raise UsageError(f"{text!r} lies outside the years 1970 to 9999")
    return instant


def hour_start(instant: int) -> Instant:
    """Return the start of the UTC hour that holds the instant; the boundary belongs to the new hour."""
    return Instant(instant - instant % HOUR_US)


def window_start(instant: int, *boundaries: int | None) -> int:
    """Return the billing window of an instant: its UTC hour, or what the last boundary that has passed leaves of it.

    So no window, and hence no batch, straddles an hour, a billing period, or a budget's day, which begins within an
    hour where a zone differs from UTC by half hours. A boundary belongs to what it begins.
    """
    start = instant - instant % HOUR_US
    for boundary in boundaries:
        if boundary is not None and start < boundary <= instant:
            start = boundary
    return start
