"""Usage by customer, model, key and day, from the hourly rollups.

Hours are the grain: an instant inside an hour stands for its whole hour, so that `--since -10m` shows what
was just used, rather than nothing. A day is a calendar day of `billing.timezone`; the hour that holds a
midnight (in zones that differ from UTC by half hours) belongs to the day in which it begins.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from zoneinfo import ZoneInfo

from billing.calendar import day_start
from billing.clock import HOUR_US, Instant, hour_start, to_datetime
from billing.errors import UsageError
from billing.ledger import totals
from billing.ledger.database import Connection
from billing.ledger.totals import Selection, Total
from billing.money import amount_text

GROUPS = ("model", "customer", "key", "day")
DEFAULT_GROUPS = ("customer", "model")
COUNTS = (
    *("requests", "input_tokens", "cached_input_tokens", "image_input_tokens", "audio_input_tokens"),
    *("output_tokens", "reasoning_tokens"),
)


@dataclass(frozen=True, slots=True)
class Line:
    """A total, and the day that it is of if days were asked for."""

    day: date | None
    total: Total


def parse_groups(text: str) -> tuple[str, ...]:
    """Read "day,model". Raises UsageError."""
    groups = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    for group in groups:
        if group not in GROUPS:
            raise UsageError(f"{group!r} is nothing to group by; choose among {', '.join(GROUPS)}")
    return groups


def whole_hours(since: Instant | None, until: Instant | None, customer_id: str | None) -> Selection:
    """Widen [since, until) to whole hours. Raises UsageError if it is empty."""
    if since is not None and until is not None and since >= until:
        raise UsageError("--since is not before --until")
    return Selection(
        since=None if since is None else hour_start(since),
        until=None if until is None else hour_start(until + HOUR_US - 1),
        customer_id=customer_id,
    )


def load(conn: Connection, selection: Selection, by: Sequence[str], zone: ZoneInfo) -> list[Line]:
    """Return the totals of a selection by any of GROUPS; days, if asked for, come first and in order."""
    if "day" not in by:
        return [Line(None, total) for total in totals.sums(conn, selection, by)]
    extent = totals.span(conn, selection)
    if extent is None:
        return []
    lines: list[Line] = []
    for day, start, end in _days(*extent, zone):
        since = start if selection.since is None else max(start, selection.since)
        until = end if selection.until is None else min(end, selection.until)
        of_day = Selection(since, until, selection.customer_id)
        lines += [Line(day, total) for total in totals.sums(conn, of_day, by)]
    return lines


def keys(line: Line, by: Sequence[str], customer: str | None = None) -> dict[str, object]:
    """Return what a line is about. `customer` and `model` are always named, and null where not grouped by.

    `customer` is the name of the one customer that was asked for, if one was.
    """
    total = line.total
    named: dict[str, object] = {}
    if line.day is not None:
        named["day"] = line.day.isoformat()
    named["customer"] = customer if customer is not None else total.customer or total.customer_id
    if total.customer_id is not None:
        named["customer_id"] = total.customer_id
    named["model"] = total.model
    if "key" in by:
        named |= {"key": total.key_id, "key_name": total.key_name}
    return named


def counts(line: Line) -> dict[str, object]:
    """Return a line's requests and tokens."""
    return {name: getattr(line.total, name) for name in COUNTS}


def row(line: Line, by: Sequence[str], currency: str, customer: str | None = None) -> dict[str, object]:
    """Return one row of `weir usage`."""
    money = {"cost": amount_text(line.total.cost), "amount": amount_text(line.total.amount)}
    return {**keys(line, by, customer), **counts(line), **money, "currency": currency}


def columns(by: Sequence[str], money: Sequence[str]) -> list[str]:
    """Return the columns of a table: what was grouped by, the counts, the money."""
    named = ["key_name" if group == "key" else group for group in by]
    if "key" in by:
        named.insert(named.index("key_name"), "key")
    return [*named, *COUNTS, *money, "currency"]


def _days(first: Instant, last: Instant, zone: ZoneInfo) -> Iterator[tuple[date, Instant, Instant]]:
    """Yield each calendar day that holds one of the instants or lies between them, as [start, end)."""
    day = to_datetime(first).astimezone(zone).date()
    final = to_datetime(last).astimezone(zone).date()
    while day <= final:
        following = day + timedelta(days=1)
        yield day, day_start(day, zone), day_start(following, zone)
        day = following
