"""Lines of a report beside those of the period before.

Without a time among the groups, the period before a report's is the one of the same length that ends where it begins:
of whole months as many months, of whole days as many days, also where clocks change, else as many hours. With one, each
line is compared with its own time before: a day with the day before it, a month with the month before.

Lines are paired by all else that they are about; whoever was there only before has a line of nothing.
"""

from collections.abc import Sequence
from dataclasses import replace
from datetime import date, timedelta
from typing import NamedTuple
from zoneinfo import ZoneInfo

from billing.calendar import Per, day_start, period_of
from billing.clock import HOUR_US, Instant, to_datetime
from billing.errors import UsageError
from billing.ledger.database import Connection
from billing.ledger.totals import Selection
from billing.money import Pico, amount_text
from billing.reports import usage
from billing.reports.margin import percentage
from billing.reports.usage import Line

COLUMNS = ("revenue_before", "revenue_change", "revenue_change_pct", "margin_before")

_DAY = timedelta(days=1)


class Pair(NamedTuple):
    """A line and the one before; that of a period without usage is of nothing."""

    now: Line
    before: Line


def load(conn: Connection, selection: Selection, by: Sequence[str], zone: ZoneInfo) -> list[Pair]:
    """Return the lines of a selection with those before them. Raises UsageError where no period is selected."""
    finest = [name for name in usage.TIMES if name in by]
    if finest:
        return _with_their_predecessors(conn, selection, by, zone, finest[-1])
    earlier = {_identity(line): line for line in usage.load(conn, _before(selection, zone), by, zone)}
    lines = usage.load(conn, selection, by, zone)
    pairs = [Pair(line, earlier.pop(_identity(line), usage.none_of(line))) for line in lines]
    return pairs + [Pair(usage.none_of(line), line) for line in earlier.values()]


def fields(pair: Pair) -> dict[str, object]:
    """Return what a row says of the period before, and of the change since."""
    now, before = pair.now.total, pair.before.total
    change = Pico(now.amount - before.amount)
    return {
        "revenue_before": amount_text(before.amount),
        "cost_before": amount_text(before.cost),
        "margin_before": amount_text(Pico(before.amount - before.cost)),
        "margin_pct_before": percentage(Pico(before.amount - before.cost), before.amount),
        "revenue_change": amount_text(change),
        "revenue_change_pct": percentage(change, before.amount),
    }


def _identity(line: Line) -> tuple[object, ...]:
    total = line.total
    return line.month, line.day, line.hour, total.customer_id, total.model, total.key_id, line.plan, line.tag


def _before(selection: Selection, zone: ZoneInfo) -> Selection:
    """Return the period of the same length that ends where the selected one begins."""
    since, until = selection.since, selection.until
    if since is None or until is None:
        raise UsageError("--compare needs --since, or a time to group by, such as --by month")
    first, last = _first_of(since, zone), _first_of(until, zone)
    if first is None or last is None:
        return replace(selection, since=Instant(max(0, 2 * since - until)), until=since)
    if first.day == last.day == 1:
        start = _months_before(first, (last.year - first.year) * 12 + last.month - first.month)
    else:
        start = first - (last - first)
    return replace(selection, since=day_start(start, zone), until=since)


def _first_of(instant: Instant, zone: ZoneInfo) -> date | None:
    """Return the day that begins at an instant, None if none does."""
    period = period_of(Per.DAY, instant, zone)
    return to_datetime(instant).astimezone(zone).date() if period.start == instant else None


def _months_before(first: date, months: int) -> date:
    number = first.year * 12 + first.month - 1 - months
    return date(number // 12, number % 12 + 1, 1)


def _with_their_predecessors(
    conn: Connection, selection: Selection, by: Sequence[str], zone: ZoneInfo, finest: str
) -> list[Pair]:
    """Pair each line with that of the time just before; the first of the selected times, with one before them."""
    since = selection.since
    lines = usage.load(conn, selection, by, zone)
    wider = selection if since is None else replace(selection, since=_start_before(since, finest, zone))
    known = {_identity(line): line for line in (lines if wider is selection else usage.load(conn, wider, by, zone))}
    before = (known.get(_identity(_moved_back(line, finest, by, zone))) for line in lines)
    return [Pair(now, found or usage.none_of(now)) for now, found in zip(lines, before, strict=True)]


def _start_before(since: Instant, finest: str, zone: ZoneInfo) -> Instant:
    """Return the start of the time before that which holds an instant."""
    if finest == "hour":
        return Instant(max(0, since - HOUR_US))
    per = Per.DAY if finest == "day" else Per.MONTH
    return period_of(per, max(0, period_of(per, since, zone).start - 1), zone).start


def _moved_back(line: Line, finest: str, by: Sequence[str], zone: ZoneInfo) -> Line:
    """Return the line moved to the time before, in each of the times that it is grouped by."""
    hour, day, month = line.hour, line.day, line.month
    if finest == "hour":
        assert hour is not None, "it is grouped by hours"
        hour = Instant(hour - HOUR_US)
        day = usage.day_of(hour, zone)
    elif finest == "day":
        assert day is not None, "it is grouped by days"
        day -= _DAY
    else:
        assert month is not None, "it is grouped by months"
        return replace(line, month=_months_before(month, 1))
    return replace(
        line, hour=hour, day=day if "day" in by else None, month=day.replace(day=1) if "month" in by else None
    )
