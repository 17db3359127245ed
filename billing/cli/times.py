"""Instants and time zones as people give them on the command line: a date is a day of the report's zone."""

from datetime import date, datetime
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from billing.calendar import day_start
from billing.clock import Instant, from_datetime, parse_instant
from billing.errors import UsageError


def parse_zone(name: str | None, default: ZoneInfo) -> ZoneInfo:
    """Read the name of a time zone, such as "Europe/Berlin". Raises UsageError."""
    if name is None:
        return default
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise UsageError(f"{name[:60]!r} is no time zone; write one such as Europe/Berlin or UTC") from None


def parse_local(text: str, current: Instant, zone: ZoneInfo) -> Instant:
    """Read an instant as `parse_instant` does, but a date or a time without offset as one of the zone.

    A date is the first instant of its day, whatever clocks do at its midnight. Raises UsageError.
    """
    found = parse_instant(text, current)
    try:
        value = datetime.fromisoformat(text.strip())
    except ValueError:
        return found
    if value.tzinfo is not None:
        return found
    try:
        is_date = date.fromisoformat(text.strip()) == value.date()
    except ValueError:
        is_date = False
    try:
        start = day_start(value.date(), zone) if is_date else from_datetime(value.replace(tzinfo=zone))
    except OverflowError:
        raise UsageError(f"{text!r} lies outside the years 1970 to 9999") from None
    return Instant(max(0, start))
