"""Usage by customer, model, plan, key, tag and time, from the hourly rollups.

Hours are the grain: an instant inside an hour stands for its whole hour, so that `--since -10m` shows what
was just used, rather than nothing. Days and months are those of a time zone, as are the names of hours, which
begin as those of UTC do; the hour that holds a midnight (in zones that differ from UTC by half hours) belongs
to the day in which it begins.

Plans and tags are not in the rollups, and need not be, so that their reports are as flat as the others: who is
on which plan is dated, and an hour counts for the plan that its customer was on when it ended; tags are those
that the key has now. A key with two tags counts for both of them, and so rows by tag may add up to more than all.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta
from typing import NamedTuple
from zoneinfo import ZoneInfo

from billing.calendar import Per, day_start, period_of
from billing.clock import HOUR_US, Instant, hour_start, to_datetime
from billing.errors import UsageError
from billing.ledger import key_tags, plans, totals, versions
from billing.ledger.database import Connection
from billing.ledger.totals import Selection, Total
from billing.money import Pico, amount_text
from billing.pricing.plans import Assignment
from billing.pricing.rates import in_order, version_at

GROUPS = ("model", "customer", "key", "day", "hour", "month", "plan", "tag")
DEFAULT_GROUPS = ("customer", "model")
TIMES = ("month", "day", "hour")
"""The groups that are times, the longest first."""

COUNTS = (
    *("requests", "input_tokens", "cached_input_tokens", "image_input_tokens", "audio_input_tokens"),
    *("output_tokens", "reasoning_tokens"),
)
SPARSE_COUNTS = ("image_input_tokens", "audio_input_tokens")
"""Those that most ledgers have none of: a table leaves them out where they are 0."""

_NO_COUNTS = (0, 0, 0, 0, 0, 0, 0)
_SUMMED = (*COUNTS, "cost", "amount", "credit")


@dataclass(frozen=True, slots=True)
class Line:
    """A total, and what it is of beside that, each None if it was not asked for.

    `hour` is an instant, `day` and `month` are dates, that of a month its first day. `plan` and `tag` are "" for usage
    without one.
    """

    day: date | None
    total: Total
    hour: Instant | None = None
    month: date | None = None
    plan: str | None = None
    tag: str | None = None


class _Key(NamedTuple):
    """What lines are told apart by; they come in this order."""

    month: date | None
    day: date | None
    hour: Instant | None
    customer: str
    customer_id: str
    model: str
    plan: str
    key_name: str
    key_id: str
    tag: str


def parse_groups(text: str, among: Sequence[str] = GROUPS) -> tuple[str, ...]:
    """Read "day,model". Raises UsageError."""
    groups = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    for group in groups:
        if group not in among:
            raise UsageError(f"{group!r} is nothing to group by; choose among {', '.join(among)}")
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
    """Return the totals of a selection by any of GROUPS; times, if asked for, come first and in order."""
    extent = totals.span(conn, selection)
    if extent is None:
        return []
    assigned = _by_customer(versions.load_assignments(conn)) if "plan" in by else {}
    plan_names = plans.names(conn) if "plan" in by else {}
    tags = key_tags.of_all(conn) if "tag" in by else {}
    grouped = {"customer"} if "customer" in by or "plan" in by else set()
    grouped |= {"key"} if "key" in by or "tag" in by else set()
    grouped |= {name for name in ("model", "hour") if name in by}
    summed: dict[_Key, Total] = {}
    for total in totals.sums(conn, selection, grouped, _cuts(*extent, by, assigned, zone)):
        plan = _plan(total, assigned, plan_names) if "plan" in by else ""
        for tag in tags.get(total.key_id or "", ("",)) if "tag" in by else ("",):
            key = _key(total, by, zone, plan, tag)
            summed[key] = total if key not in summed else _plus(summed[key], total)
    return [_line(key, summed[key], by) for key in sorted(summed, key=_order)]


def _cuts(
    first: Instant, last: Instant, by: Sequence[str], assigned: Mapping[str, Sequence[Assignment]], zone: ZoneInfo
) -> list[Instant]:
    """Return the instants at which a day, a month or a plan begins; the first is no later than the first usage."""
    if "hour" in by or not {"day", "month", "plan"} & set(by):
        return []
    cuts = {first}
    if "day" in by or "month" in by:
        cuts |= {start for day, start, _ in _days(first, last, zone) if "day" in by or day.day == 1}
    for each in assigned.values():
        cuts |= {hour_start(version.effective_from) for version in each}
    return sorted(cut for cut in cuts if cut <= last)


def _by_customer(assignments: Iterable[Assignment]) -> dict[str, list[Assignment]]:
    found: dict[str, list[Assignment]] = {}
    for each in in_order(assignments):
        found.setdefault(each.customer_id, []).append(each)
    return found


def _plan(total: Total, assigned: Mapping[str, Sequence[Assignment]], names: Mapping[str, str]) -> str:
    """Return the plan that a customer was on at the end of the hour in which the total's time begins; "" for none."""
    if total.start is None:
        return ""
    version = version_at(assigned.get(total.customer_id or "", ()), Instant(hour_start(total.start) + HOUR_US - 1))
    return "" if version is None or version.plan_id is None else names.get(version.plan_id, version.plan_id)


def _key(total: Total, by: Sequence[str], zone: ZoneInfo, plan: str, tag: str) -> _Key:
    day = day_of(total.start, zone) if total.start is not None and ("day" in by or "month" in by) else None
    return _Key(
        month=day.replace(day=1) if day is not None and "month" in by else None,
        day=day if "day" in by else None,
        hour=hour_start(total.start) if total.start is not None and "hour" in by else None,
        customer=total.customer or "" if "customer" in by else "",
        customer_id=total.customer_id or "" if "customer" in by else "",
        model=total.model or "",
        plan=plan,
        key_name=total.key_name or "" if "key" in by else "",
        key_id=total.key_id or "" if "key" in by else "",
        tag=tag,
    )


def _order(key: _Key) -> tuple[str, str, int, tuple[str, ...]]:
    month, day = ("" if each is None else each.isoformat() for each in key[:2])
    return month, day, key.hour or 0, key[3:]


def _plus(one: Total, other: Total) -> Total:
    return replace(one, **{name: getattr(one, name) + getattr(other, name) for name in _SUMMED})


def _line(key: _Key, total: Total, by: Sequence[str]) -> Line:
    """Return the line, whose total names nothing that was not asked for."""
    if "customer" not in by:
        total = replace(total, customer=None, customer_id=None)
    if "key" not in by:
        total = replace(total, key_id=None, key_name=None)
    plan, tag = key.plan if "plan" in by else None, key.tag if "tag" in by else None
    return Line(key.day, total, key.hour, key.month, plan, tag)


def keys(line: Line, by: Sequence[str], customer: str | None = None, zone: ZoneInfo | None = None) -> dict[str, object]:
    """Return what a line is about. `customer` and `model` are always named, and null where not grouped by.

    `customer` is the name of the one customer that was asked for, if one was; hours are named as clocks of `zone` do.
    """
    total = line.total
    named: dict[str, object] = {}
    if line.month is not None:
        named["month"] = line.month.isoformat()[:7]
    if line.day is not None:
        named["day"] = line.day.isoformat()
    if line.hour is not None:
        named["hour"] = local_text(line.hour, zone or ZoneInfo("UTC"))
    named["customer"] = customer if customer is not None else total.customer or total.customer_id
    if total.customer_id is not None:
        named["customer_id"] = total.customer_id
    named["model"] = total.model
    if "key" in by:
        named |= {"key": total.key_id, "key_name": total.key_name}
    if line.plan is not None:
        named["plan"] = line.plan or None
    if line.tag is not None:
        named["tag"] = line.tag or None
    return named


def local_text(instant: Instant, zone: ZoneInfo) -> str:
    """Write an instant as the clocks of a zone show it, with its offset: "2026-03-01T13:00:00+01:00"."""
    return to_datetime(instant).astimezone(zone).isoformat().replace("+00:00", "Z")


def counts(line: Line) -> dict[str, object]:
    """Return a line's requests and tokens."""
    return {name: getattr(line.total, name) for name in COUNTS}


def row(
    line: Line, by: Sequence[str], currency: str, customer: str | None = None, zone: ZoneInfo | None = None
) -> dict[str, object]:
    """Return one row of `weir usage`."""
    money = {"cost": amount_text(line.total.cost), "amount": amount_text(line.total.amount)}
    return {**keys(line, by, customer, zone), **counts(line), **money, "currency": currency}


def columns(by: Sequence[str], money: Sequence[str]) -> list[str]:
    """Return the columns of a table: what was grouped by, the counts, the money."""
    named = ["key_name" if group == "key" else group for group in by]
    if "key" in by:
        named.insert(named.index("key_name"), "key")
    return [*named, *COUNTS, *money, "currency"]


def none_of(line: Line) -> Line:
    """Return the line with a total of nothing."""
    total = line.total
    named = (total.customer_id, total.customer, total.model, total.key_id, total.key_name)
    return replace(line, total=Total(*named, *_NO_COUNTS, Pico(0), Pico(0), Pico(0), total.start))


def sum_of(lines: Iterable[Line]) -> Total:
    """Return the sum of all lines; it names nothing."""
    found = Total(None, None, None, None, None, *_NO_COUNTS, Pico(0), Pico(0), Pico(0))
    for line in lines:
        found = _plus(found, line.total)
    return found


def day_of(instant: Instant, zone: ZoneInfo) -> date:
    """Return the calendar day of an instant, also in the hour that clocks show twice around a midnight."""
    return to_datetime(period_of(Per.DAY, instant, zone).start).astimezone(zone).date()


def _days(first: Instant, last: Instant, zone: ZoneInfo) -> Iterator[tuple[date, Instant, Instant]]:
    """Yield each calendar day that holds one of the instants or lies between them, as [start, end)."""
    day = day_of(first, zone)
    final = day_of(last, zone)
    while day <= final:
        following = day + timedelta(days=1)
        yield day, day_start(day, zone), day_start(following, zone)
        day = following
