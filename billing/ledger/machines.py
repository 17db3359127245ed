"""Machines, tariffs and measured power in the ledger, and what upstreams did, as `billing.pricing.hardware` wants them.

Versions are appended and never changed. A change takes the row lock of `epoch.advance` first, so that two admins can
not put one upstream on two machines. Samples are facts: the same one twice is one, and a different one for the same
instant is refused. All that is read for a time is bounded by its hours, whatever the number of events.
"""

import json
from collections.abc import Mapping, Sequence
from itertools import groupby
from zoneinfo import ZoneInfo

import sqlalchemy as sa

from billing.clock import HOUR_US, Instant, instant_text
from billing.errors import NotFoundError, RefusedError
from billing.ledger import audit, epoch, schema
from billing.money import Pico, amount_number, join
from billing.pricing import machine_options, publish
from billing.pricing.hardware import Drawn, Fleet, Machine, Owned, Rented, Tariff, Work
from billing.pricing.rates import in_order, version_at

_MACHINES, _TARIFFS = schema.machines, schema.power_tariffs
_SAMPLES, _WORK = schema.power_samples, schema.upstream_hourly
_SUMS = (
    *("requests", "input_tokens", "cached_input_tokens", "output_tokens"),
    *("prompt_us", "generation_us", "cost_micro", "cost_pico"),
)
_CHUNK_ROWS = 500


def all_machines(conn: sa.Connection) -> dict[str, tuple[Machine, ...]]:
    """Return every machine's versions in order, by name."""
    rows = conn.execute(sa.select(_MACHINES).order_by(_MACHINES.c.name, _MACHINES.c.id))
    found = sorted(map(_machine, rows), key=lambda each: each.name)
    return {name: in_order(versions) for name, versions in groupby(found, key=lambda each: each.name)}


def all_tariffs(conn: sa.Connection) -> dict[str | None, tuple[Tariff, ...]]:
    """Return the versions of every tariff in order, by the machine that they are for; None: all others."""
    found: dict[str | None, list[Tariff]] = {}
    for row in conn.execute(sa.select(_TARIFFS).order_by(_TARIFFS.c.id)):
        prices = tuple(Pico(price) for price in json.loads(row.prices))
        tariff = Tariff(row.id, row.machine, prices, row.effective_from, row.recorded_at)
        found.setdefault(row.machine, []).append(tariff)
    return {machine: in_order(versions) for machine, versions in found.items()}


def load(conn: sa.Connection, zone: ZoneInfo, since: Instant, until: Instant) -> Fleet:
    """Return all machines and tariffs, and what was measured in the hours of [since, until)."""
    hour = (_SAMPLES.c.at - _SAMPLES.c.at % HOUR_US).label("hour")
    drawn = sa.select(_SAMPLES.c.machine, hour, sa.func.sum(_SAMPLES.c.milliwatt), sa.func.count())
    within = (_SAMPLES.c.at >= since - since % HOUR_US, _SAMPLES.c.at < until + HOUR_US)
    rows = conn.execute(drawn.where(*within).group_by(_SAMPLES.c.machine, hour))
    return Fleet(
        all_machines(conn),
        all_tariffs(conn),
        {(row[0], row[1]): Drawn(int(row[2]), row[3]) for row in rows},
        zone,
    )


def works(conn: sa.Connection, since: Instant, until: Instant) -> list[Work]:
    """Return what upstreams did in the hours that begin in [since, until), in order."""
    key = (_WORK.c.hour, _WORK.c.upstream, _WORK.c.model)
    query = sa.select(*key, *(sa.func.sum(_WORK.c[name]) for name in _SUMS))
    rows = conn.execute(query.where(_WORK.c.hour >= since, _WORK.c.hour < until).group_by(*key))
    found = [(*row[:3], *(int(value) for value in row[3:])) for row in rows]
    return [Work._make((*row[:9], join(row[9], row[10]))) for row in sorted(found)]


def find(conn: sa.Connection, name: str, at: Instant) -> Machine:
    """Return a machine as it is at an instant. Raises NotFoundError."""
    machine = version_at(all_machines(conn).get(name, ()), at)
    if machine is None or machine.is_removed:
        raise NotFoundError(f"there is no machine {name!r} at {instant_text(at)}; see `weir cost hardware list`")
    return machine


def append(
    conn: sa.Connection,
    machine: Machine,
    *,
    known: Sequence[str],
    backdate: bool,
    force: bool,
    actor: str,
    reason: str | None,
) -> None:
    """Add a version of a machine. Raises UsageError, RefusedError; `known` are the configured upstreams."""
    publish.check_start(machine.effective_from, machine.recorded_at, backdate=backdate)
    epoch.advance(conn)
    if not machine.is_removed:
        others = [versions for name, versions in all_machines(conn).items() if name != machine.name]
        machine_options.check_upstreams(machine, others, known, force=force)
    conn.execute(sa.insert(_MACHINES).values(_row(machine)))
    action = "machine.remove" if machine.is_removed else "machine.set"
    details = {**described(machine), "reason": reason}
    audit.record(conn, at=machine.recorded_at, actor=actor, action=action, subject=machine.id, details=details)


def append_tariff(conn: sa.Connection, tariff: Tariff, *, backdate: bool, actor: str, reason: str | None) -> None:
    """Add a version of a tariff. Raises RefusedError, NotFoundError for its machine."""
    publish.check_start(tariff.effective_from, tariff.recorded_at, backdate=backdate)
    epoch.advance(conn)
    if tariff.machine is not None:
        find(conn, tariff.machine, tariff.effective_from)
    row = {
        "id": tariff.id,
        "machine": tariff.machine,
        "prices": json.dumps(tariff.prices),
        "effective_from": tariff.effective_from,
        "recorded_at": tariff.recorded_at,
    }
    conn.execute(sa.insert(_TARIFFS).values(row))
    details = {
        "machine": tariff.machine,
        "prices": machine_options.tariff_text(tariff.prices),
        "effective_from": instant_text(tariff.effective_from),
        "reason": reason,
    }
    audit.record(conn, at=tariff.recorded_at, actor=actor, action="tariff.set", subject=tariff.id, details=details)


def add_samples(
    conn: sa.Connection, machine: str, samples: Mapping[Instant, int], at: Instant, *, actor: str, reason: str | None
) -> int:
    """Keep measured power in milliwatts by instant; return how many are new. Raises NotFoundError, RefusedError."""
    epoch.advance(conn)
    if machine not in all_machines(conn):
        raise NotFoundError(f"there is no machine {machine!r}; see `weir cost hardware list`")
    if not samples:
        return 0
    first, last = min(samples), max(samples)
    known = sa.select(_SAMPLES.c.at, _SAMPLES.c.milliwatt).where(_SAMPLES.c.machine == machine)
    there = {row[0]: row[1] for row in conn.execute(known.where(_SAMPLES.c.at.between(first, last)))}
    for instant, milliwatt in samples.items():
        if there.get(instant, milliwatt) != milliwatt:
            drew = f"{machine} is known to have drawn {_watts(there[instant])} W at {instant_text(instant)}"
            raise RefusedError(f"{drew}; nothing was imported")
    new = [
        {"machine": machine, "at": instant, "milliwatt": milliwatt}
        for instant, milliwatt in sorted(samples.items())
        if instant not in there
    ]
    for start in range(0, len(new), _CHUNK_ROWS):
        conn.execute(sa.insert(_SAMPLES), new[start : start + _CHUNK_ROWS])
    details = {
        "samples": len(new),
        "first": instant_text(first),
        "last": instant_text(last),
        "reason": reason,
    }
    audit.record(conn, at=at, actor=actor, action="power.import", subject=machine, details=details)
    return len(new)


def described(machine: Machine) -> dict[str, object]:
    """Return a version as texts and numbers: its price or rent, watts, upstreams, start."""
    capital: tuple[object, ...]
    match machine.capital:
        case Owned(price, life_hours, bought_at):
            capital = (amount_number(price), life_hours, instant_text(bought_at), None)
        case Rented(hourly):
            capital = (None, None, None, amount_number(hourly))
    return {
        "name": machine.name,
        **dict(zip(("price", "life_hours", "bought_at", "rent"), capital, strict=True)),
        "idle_watts": _watts(machine.idle_milliwatt),
        "busy_watts": _watts(machine.busy_milliwatt),
        "upstreams": list(machine.upstreams),
        "effective_from": instant_text(machine.effective_from),
    }


def _watts(milliwatt: int) -> str:
    whole, rest = divmod(milliwatt, 1_000)
    return f"{whole}.{rest:03d}".rstrip("0").rstrip(".")


def _machine(row: sa.Row[tuple[object, ...]]) -> Machine:
    amount = Pico(row.amount_pico)
    is_owned = row.capital == "owned"
    return Machine(
        id=row.id,
        name=row.name,
        capital=Owned(amount, row.life_hours, row.bought_at) if is_owned else Rented(amount),
        idle_milliwatt=row.idle_milliwatt,
        busy_milliwatt=row.busy_milliwatt,
        upstreams=tuple(json.loads(row.upstreams)),
        is_removed=bool(row.is_removed),
        effective_from=row.effective_from,
        recorded_at=row.recorded_at,
    )


def _row(machine: Machine) -> dict[str, object]:
    capital: tuple[object, ...]
    match machine.capital:
        case Owned(price, life_hours, bought_at):
            capital = ("owned", price, life_hours, bought_at)
        case Rented(hourly):
            capital = ("rented", hourly, 0, 0)
    return {
        "id": machine.id,
        "name": machine.name,
        **dict(zip(("capital", "amount_pico", "life_hours", "bought_at"), capital, strict=True)),
        "idle_milliwatt": machine.idle_milliwatt,
        "busy_milliwatt": machine.busy_milliwatt,
        "upstreams": json.dumps(list(machine.upstreams)),
        "is_removed": int(machine.is_removed),
        "effective_from": machine.effective_from,
        "recorded_at": machine.recorded_at,
    }
