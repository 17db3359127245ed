"""What own machines cost, by day, machine and model, with the idle time apart; and what that is against the books.

From the hourly sums alone: a day costs the same whatever the number of its requests. Days are those of the billing time
zone, and hold the hours that begin in them; the hour that is not over counts until now.
"""

from collections.abc import Collection
from dataclasses import dataclass, field
from itertools import groupby
from zoneinfo import ZoneInfo

from billing.clock import DAY_US, HOUR_US, Instant, hour_start, to_datetime
from billing.errors import UsageError
from billing.ledger import machines
from billing.ledger.database import Connection
from billing.limits import HARDWARE_DAYS_MAX
from billing.money import Pico, PicoPerToken, amount_text, rate_text
from billing.pricing import worth
from billing.pricing.hardware import Fleet, Work, hour_cost
from billing.pricing.worth import Idle, Rates, Reference, Seen, Suggestion, Variance, Worked
from billing.reports.margin import percentage

GROUPS = ("day", "model", "machine")
ACTUAL_COLUMNS = (
    *("kind", "requests", "input_tokens", "cached_input_tokens", "output_tokens", "time_s", "used_pct"),
    *("input", "cached_input", "output", "cost", "booked", "currency"),
)
VARIANCE_COLUMNS = ("kind", "standard", "actual", "difference", "volume", "efficiency", "price", "idle", "currency")
TOTAL, WORK, IDLE = "total", "work", "idle"

Key = tuple[str, str, str]
"""A day (as text), a machine and a model; what is not told apart is empty."""


@dataclass(slots=True)
class Books:
    """What machines did and cost in a time, by day, machine and model; idle time has no model.

    `outside` is what was booked for requests to upstreams that ran on no machine.
    """

    since: Instant
    until: Instant
    worked: dict[Key, Worked] = field(default_factory=dict)
    idle: dict[Key, Idle] = field(default_factory=dict)
    outside: int = 0


def load(conn: Connection, zone: ZoneInfo, since: Instant | None, until: Instant | None, now: Instant) -> Books:
    """Work out all machines' hours in [since, until), or from the first machine on until now.

    Raises UsageError if that is empty or too long.
    """
    end = Instant(min(now, hour_start(until + HOUR_US - 1))) if until is not None else now
    fleet = machines.load(conn, zone, Instant(0) if since is None else since, end)
    first = min((versions[0].effective_from for versions in fleet.machines.values()), default=end)
    start = hour_start(first if since is None else since)
    if since is not None and start >= end:
        raise UsageError("--since is not before --until, or is still to come")
    if end - start > HARDWARE_DAYS_MAX * DAY_US:
        raise UsageError(f"that is more than {HARDWARE_DAYS_MAX} days; give --since and --until")
    books = Books(start, end)
    works = {hour: list(found) for hour, found in groupby(machines.works(conn, start, end), key=lambda each: each.hour)}
    for hour in range(start, end, HOUR_US):
        _add_hour(books, fleet, Instant(hour), Instant(min(hour + HOUR_US, end)), works.get(Instant(hour), []))
    return books


def _add_hour(books: Books, fleet: Fleet, hour: Instant, end: Instant, works: list[Work]) -> None:
    day = to_datetime(hour).astimezone(fleet.zone).date().isoformat()
    unclaimed = {(work.upstream, work.model): work for work in works}
    for name, versions in fleet.machines.items():
        if versions[0].effective_from >= end:
            continue
        cost = hour_cost(fleet, name, hour, end, works)
        if cost.idle_us or cost.busy_us:
            idle = books.idle.setdefault((day, name, ""), Idle())
            idle.add(Idle(cost.idle, cost.idle_us, cost.busy_us))
        for own, spent in cost.shares.items():
            worked = books.worked.setdefault((day, name, own[1]), Worked())
            worked.add(Worked(prompt=spent.prompt, generation=spent.generation))
            work = unclaimed.pop(own, None)  # the first machine's, if it moved within the hour
            if work is not None:
                worked.add(_counted(work))
    books.outside += sum(work.booked for work in unclaimed.values())


def _counted(work: Work) -> Worked:
    return Worked(
        requests=work.requests,
        input_tokens=work.input_tokens,
        cached_input_tokens=work.cached_input_tokens,
        output_tokens=work.output_tokens,
        prompt_us=max(0, work.prompt_us),
        generation_us=max(0, work.generation_us),
        booked=work.booked,
    )


def parse_groups(text: str) -> tuple[str, ...]:
    """Read "day,model". Raises UsageError."""
    groups = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    for group in groups:
        if group not in GROUPS:
            raise UsageError(f"{group!r} is nothing to group by; choose among {', '.join(GROUPS)}")
    return groups


def _grouped(key: Key, by: Collection[str]) -> Key:
    day, machine, model = key
    return day if "day" in by else "", machine if "machine" in by else "", model if "model" in by else ""


def _order(key: Key, kind: str) -> tuple[object, ...]:
    """Sort by day; idle time comes after work."""
    day, machine, model = key
    return day, kind == IDLE, machine, model


def _named(key: Key, kind: str) -> dict[str, object]:
    day, machine, model = key
    return {"day": day or None, "machine": machine or None, "model": model or None, "kind": kind}


def actual_rows(books: Books, by: Collection[str], currency: str) -> list[dict[str, object]]:
    """Return what it came to: a row for each group's work and idle time, and one for all."""
    worked: dict[Key, Worked] = {}
    idle: dict[Key, Idle] = {}
    every, unused = Worked(), Idle()
    for key, each in books.worked.items():
        worked.setdefault(_grouped(key, by), Worked()).add(each)
        every.add(each)
    for key, apart in books.idle.items():
        idle.setdefault(_grouped(key, by), Idle()).add(apart)
        unused.add(apart)
    rows = [(key, {**_named(key, WORK), **_work_cells(each)}) for key, each in worked.items()]
    rows += [(key, {**_named(key, IDLE), **_idle_cells(each)}) for key, each in idle.items()]
    found = [row for _, row in sorted(rows, key=lambda each: _order(each[0], str(each[1]["kind"])))]
    total = {**_named(("", "", ""), TOTAL), **_work_cells(every), "used_pct": percent(unused.used_ppm)}
    total["cost"] = amount_text(Pico(every.cost + unused.cost))
    return [{**row, "currency": currency} for row in (*found, total)]


def _work_cells(each: Worked) -> dict[str, object]:
    return {
        "requests": each.requests,
        "input_tokens": each.input_tokens,
        "cached_input_tokens": each.cached_input_tokens,
        "output_tokens": each.output_tokens,
        "prompt_us": each.prompt_us,
        "generation_us": each.generation_us,
        "time_s": _seconds(each.time_us),
        "used_pct": None,
        **rate_cells(worth.rates(each, each.prompt, each.generation)),
        "prompt_cost": amount_text(Pico(each.prompt)),
        "generation_cost": amount_text(Pico(each.generation)),
        "cost": amount_text(each.cost),
        "booked": amount_text(Pico(each.booked)),
    }


def _idle_cells(each: Idle) -> dict[str, object]:
    blank = dict.fromkeys(_work_cells(Worked()))
    cells = {"time_s": _seconds(each.idle_us), "used_pct": percent(each.used_ppm)}
    return {**blank, **cells, "cost": amount_text(Pico(each.cost))}


def rate_cells(rates: Rates) -> dict[str, object]:
    """Return rates as texts per 1M tokens, null where there were no such tokens."""

    def cell(rate: PicoPerToken | None) -> str | None:
        return None if rate is None else rate_text(rate)

    return {"input": cell(rates.input), "cached_input": cell(rates.cached_input), "output": cell(rates.output)}


def _seconds(time_us: int) -> str:
    return f"{time_us // 10**6}.{time_us % 10**6 // 1_000:03d}"


def percent(ppm: int | None) -> str | None:
    """Write millionths as per cent with two decimals; None stays."""
    return None if ppm is None else f"{ppm // 10_000}.{ppm % 10_000 // 100:02d}"


def suggestion(books: Books, model: str, used_ppm: int | None) -> tuple[Suggestion, Worked, Idle]:
    """Return the rates that recover a model's part of its machines, what it did, and those machines' idle time."""
    by_model, by_machine, idle = _by_machine(books)
    seen, worked, unused = [], Worked(), Idle()
    for (machine, name), each in by_model.items():
        if name == model and each.time_us:
            seen.append(Seen(each, by_machine[machine], idle.get(machine, Idle())))
            worked.add(each)
            unused.add(idle.get(machine, Idle()))
    return worth.suggest(seen, used_ppm), worked, unused


def _by_machine(books: Books) -> tuple[dict[tuple[str, str], Worked], dict[str, Worked], dict[str, Idle]]:
    by_model: dict[tuple[str, str], Worked] = {}
    by_machine: dict[str, Worked] = {}
    idle: dict[str, Idle] = {}
    for (_, machine, model), each in books.worked.items():
        by_model.setdefault((machine, model), Worked()).add(each)
        by_machine.setdefault(machine, Worked()).add(each)
    for (_, machine, _), apart in books.idle.items():
        idle.setdefault(machine, Idle()).add(apart)
    return by_model, by_machine, idle


def variance_rows(now: Books, then: Books, by: Collection[str], currency: str) -> list[dict[str, object]]:
    """Return why actual cost differs from what was booked, against a reference: work, idle time, and all."""
    by_model, by_machine, idle = _by_machine(then)
    found: dict[tuple[Key, str], Variance] = {}
    total = Variance()
    for key, each in now.worked.items():
        _, machine, model = key
        usual = by_model.get((machine, model), Worked())
        reference = Reference(usual, by_machine.get(machine, Worked()), idle.get(machine, Idle()))
        explained = worth.of_work(each, reference)
        found.setdefault((_grouped(key, by), WORK), Variance()).add(explained)
        total.add(explained)
    for key, apart in now.idle.items():
        explained = worth.of_idle(apart, idle.get(key[1], Idle()))
        found.setdefault((_grouped(key, by), IDLE), Variance()).add(explained)
        total.add(explained)
    rows = [_variance_row(key, kind, found[key, kind]) for key, kind in sorted(found, key=lambda each: _order(*each))]
    return [{**row, "currency": currency} for row in (*rows, _variance_row(("", "", ""), TOTAL, total))]


def _variance_row(key: Key, kind: str, each: Variance) -> dict[str, object]:
    parts = ("volume", "efficiency", "price", "idle")
    assert each.difference == sum(getattr(each, name) for name in parts), "the parts are the whole"
    return {
        **_named(key, kind),
        "standard": amount_text(Pico(each.standard)),
        "actual": amount_text(Pico(each.actual)),
        "difference": amount_text(each.difference),
        "difference_pct": percentage(each.difference, Pico(each.standard)),
        **{name: amount_text(Pico(getattr(each, name))) for name in parts},
    }
