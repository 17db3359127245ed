"""`weir cost hardware`: own machines, what power costs, and what they drew, as dated versions.

Each `add`, `set`, `remove` and `tariff` adds a version and a line in the audit log, and nothing is ever changed. No
price follows from it by itself: `weir cost actual` shows what models cost, `weir cost suggest` the rates to set.
"""

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import click

from billing import ids
from billing.cli.app import Session, pass_session
from billing.cli.output import Row, emit, emit_one, listing
from billing.cli.scenario import explaining
from billing.clock import Instant, instant_text, parse_instant
from billing.errors import RefusedError, UsageError
from billing.ledger import machines
from billing.ledger.database import Connection
from billing.limits import POWER_SAMPLES_MAX
from billing.pricing import machine_options
from billing.pricing.hardware import Machine, Owned, Rented, Tariff
from billing.pricing.rates import next_start, standing, version_at

COLUMNS = (
    *("name", "price", "life_hours", "rent", "idle_watts", "busy_watts", "upstreams", "currency"),
    *("effective_from", "effective_until", "state"),
)
TARIFF_COLUMNS = ("machine", "kwh", "currency", "effective_from", "effective_until", "state")
_LIFE = "3y"
_Command = TypeVar("_Command", bound=Callable[..., Any])


@click.group()
def hardware() -> None:
    """Your own machines: what they cost, what they draw, and which model servers run on them."""


def _describing(command: _Command) -> _Command:
    """Add the options that say what a machine is; none of them has a default here."""
    options = (
        click.option("--price", "price_text", metavar="AMOUNT", help="What it was bought for."),
        click.option("--life", "life_text", metavar="TIME", help="How long it lasts: 3y, 36m, 1000d.  [default: 3y]"),
        click.option("--bought", "bought_text", metavar="INSTANT", help="When it was bought.  [default: --from]"),
        click.option("--rent", "rent_text", metavar="AMOUNT", help="What an hour costs, if it is rented."),
        click.option("--watts", "watts_text", metavar="W", help="What it draws, always."),
        click.option("--idle-watts", "idle_text", metavar="W", help="What it draws while nothing runs."),
        click.option("--busy-watts", "busy_text", metavar="W", help="What it draws while requests run."),
        click.option("--upstream", "upstreams", metavar="NAME", multiple=True, help="What runs on it; repeatable."),
    )
    for option in reversed(options):
        command = option(command)
    return _dating(command)


def _dating(command: _Command) -> _Command:
    command = click.option("--backdate", is_flag=True, help="Let --from lie in the past.")(command)
    start = click.option("--from", "from_text", metavar="INSTANT", default="now", help="When.  [default: now]")
    return start(command)


_forcing = click.option("--force", is_flag=True, help="Take upstreams that weir.toml does not name.")


@hardware.command()
@click.argument("name")
@_describing
@_forcing
@explaining
@listing
@pass_session
def add(session: Session, /, name: str, *, backdate: bool, force: bool, form: str, **given: Any) -> None:
    """Add the machine NAME: bought (--price, --life) or rented (--rent), with its power and its upstreams.

    A price is written off evenly over the life, from when it was bought. Enter the sum where several boxes serve one
    upstream, and one machine for each GPU where each has an upstream of its own.
    """
    machine_options.read_name(name)
    start = parse_instant(given["from_text"], session.now)
    capital = _capital(given, start, session.now, None)
    if capital is None:
        raise UsageError("say what the machine costs: --price AMOUNT --life 3y, or --rent AMOUNT an hour")
    idle, busy = _watts(given, None)
    machine = Machine(
        *(ids.new_id("machine"), name, capital, idle, busy, given["upstreams"], False, start, session.now)
    )
    with session.database.writing() as conn:
        there = version_at(machines.all_machines(conn).get(name, ()), start)
        if there is not None and not there.is_removed:
            raise RefusedError(f"{name} is there already; `weir cost hardware set {name}` changes it")
        _append(session, conn, machine, given, backdate=backdate, force=force)
    emit_one(form, _row(session, (machine,), machine))


@hardware.command("set")
@click.argument("name")
@_describing
@_forcing
@explaining
@listing
@pass_session
def set_machine(session: Session, /, name: str, *, backdate: bool, force: bool, form: str, **given: Any) -> None:
    """Change the machine NAME from now on, or from an instant to come; what is not given stays."""
    start = parse_instant(given["from_text"], session.now)
    with session.database.writing() as conn:
        before = machines.find(conn, name, start)
        idle, busy = _watts(given, before)
        machine = replace(
            before,
            id=ids.new_id("machine"),
            capital=_capital(given, start, session.now, before.capital) or before.capital,
            idle_milliwatt=idle,
            busy_milliwatt=busy,
            upstreams=given["upstreams"] or before.upstreams,
            effective_from=start,
            recorded_at=session.now,
        )
        _append(session, conn, machine, given, backdate=backdate, force=force)
    emit_one(form, _row(session, (machine,), machine))


@hardware.command()
@click.argument("name")
@_dating
@explaining
@listing
@pass_session
def remove(session: Session, /, name: str, *, backdate: bool, form: str, **given: Any) -> None:
    """End the machine NAME: it costs nothing from then on; its past stays."""
    start = parse_instant(given["from_text"], session.now)
    with session.database.writing() as conn:
        before = machines.find(conn, name, start)
        machine = replace(
            before, id=ids.new_id("machine"), is_removed=True, effective_from=start, recorded_at=session.now
        )
        _append(session, conn, machine, given, backdate=backdate, force=True)
    emit_one(form, _row(session, (machine,), machine))


@hardware.command("list")
@click.option("--at", "at_text", metavar="INSTANT", help="Only what is there at that instant.")
@listing
@pass_session
def list_machines(session: Session, *, at_text: str | None, form: str) -> None:
    """List all machines, past and scheduled versions too; with --at only those there then."""
    at = session.now if at_text is None else parse_instant(at_text, session.now)
    with session.database.reading() as conn:
        every = machines.all_machines(conn)
    rows = [
        _row(session, versions, version)
        for versions in every.values()
        for version in versions
        if at_text is None or (version_at(versions, at) == version and not version.is_removed)
    ]
    emit(form, rows, COLUMNS, title="machines")


@hardware.command()
@click.argument("price", required=False, metavar="[AMOUNT]")
@click.option("--hours", multiple=True, metavar="22-6=AMOUNT", help="What it is in some hours of the day; repeatable.")
@click.option("--machine", metavar="NAME", help="Only for this machine.")
@_dating
@explaining
@listing
@pass_session
def tariff(
    session: Session,
    /,
    price: str | None,
    *,
    hours: tuple[str, ...],
    machine: str | None,
    backdate: bool,
    form: str,
    **given: Any,
) -> None:
    """Set what a kWh costs, AMOUNT, and in which hours something else; without AMOUNT, list all tariffs.

    Hours are those of billing.timezone: --hours 22-6=0.18 is from 22:00 to 06:00.
    """
    if price is None:
        if hours or machine is not None:
            raise UsageError("say what a kWh costs: `weir cost hardware tariff AMOUNT --hours 22-6=AMOUNT`")
        with session.database.reading() as conn:
            every = machines.all_tariffs(conn)
        rows = [_tariff_row(session, versions, version) for versions in every.values() for version in versions]
        emit(form, rows, TARIFF_COLUMNS, title="tariffs")
        return
    start = parse_instant(given["from_text"], session.now)
    prices = machine_options.read_tariff(price, hours)
    made = Tariff(ids.new_id("tariff"), machine, prices, start, session.now)
    with session.database.writing() as conn:
        who = given["actor"] or session.actor
        machines.append_tariff(conn, made, backdate=backdate, actor=who, reason=given["reason"])
    emit_one(form, _tariff_row(session, (made,), made))


@hardware.command("import")
@click.argument("machine")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@explaining
@listing
@pass_session
def import_power(
    session: Session, machine: str, file: Path, *, reason: str | None, actor: str | None, form: str
) -> None:
    """Import what MACHINE drew: a CSV FILE of lines such as 2026-03-01T12:00:00Z,312.5 (instant, watts).

    In an hour with samples their mean is what the machine drew, whatever its watts are said to be. The same file may be
    imported again: what is known already is left out.
    """
    samples = _samples(file, session.now)
    with session.database.writing() as conn:
        who = actor or session.actor
        added = machines.add_samples(conn, machine, samples, session.now, actor=who, reason=reason)
    found = {"machine": machine, "samples": len(samples), "added": added}
    emit_one(form, found)


def _samples(file: Path, now: Instant) -> dict[Instant, int]:
    """Read samples. Raises UsageError, which names the line."""
    found: dict[Instant, int] = {}
    with file.open(encoding="utf-8", newline="") as lines:
        try:
            for number, cells in enumerate(csv.reader(lines), 1):
                if not cells or (number == 1 and not cells[-1].strip()[:1].isdigit()):
                    continue
                if len(cells) != 2:
                    raise UsageError(f"{file}, line {number}: an instant and its watts are needed, no more")
                at = parse_instant(cells[0], now)
                watts = machine_options.read_watts(cells[1], f"{file}, line {number}:")
                if found.setdefault(at, watts) != watts:
                    raise UsageError(f"{file}, line {number}: {instant_text(at)} is there twice, with different watts")
                if len(found) > POWER_SAMPLES_MAX:
                    raise UsageError(f"{file} has more than {POWER_SAMPLES_MAX} samples; cut it")
        except (UnicodeDecodeError, csv.Error):
            raise UsageError(f"{file} is no CSV in UTF-8") from None
    return found


def _append(
    session: Session, conn: Connection, machine: Machine, given: dict[str, Any], *, backdate: bool, force: bool
) -> None:
    machines.append(
        conn,
        machine,
        known=[upstream.name for upstream in session.config.upstreams],
        backdate=backdate,
        force=force,
        actor=given["actor"] or session.actor,
        reason=given["reason"],
    )


def _capital(
    given: dict[str, Any], start: Instant, now: Instant, before: Owned | Rented | None
) -> Owned | Rented | None:
    """Return what the options say that it costs, None if nothing. Raises UsageError."""
    price, life, bought, rent = (given[f"{name}_text"] for name in ("price", "life", "bought", "rent"))
    if rent is not None:
        if price is not None or life is not None or bought is not None:
            raise UsageError("a machine is bought (--price, --life, --bought) or rented (--rent), not both")
        return Rented(machine_options.read_rent(rent))
    was = before if isinstance(before, Owned) else None
    if price is None and life is None and bought is None:
        return None
    if price is None and was is None:
        raise UsageError("--life and --bought are about a machine that was bought: give its --price")
    price_pico = machine_options.read_price(price) if price is not None else was.price if was is not None else None
    assert price_pico is not None, "given, or known"
    hours = was.life_hours if life is None and was is not None else machine_options.read_life(life or _LIFE)
    since = was.bought_at if bought is None and was is not None else parse_instant(bought, now) if bought else start
    return Owned(price_pico, hours, since)


def _watts(given: dict[str, Any], before: Machine | None) -> tuple[int, int]:
    """Return the power while idle and while busy, in milliwatts. Raises UsageError."""
    always, idle, busy = (given[f"{name}_text"] for name in ("watts", "idle", "busy"))
    if always is not None:
        if idle is not None or busy is not None:
            raise UsageError("give --watts, or --idle-watts and --busy-watts, not both")
        milliwatt = machine_options.read_watts(always, "--watts")
        return milliwatt, milliwatt
    if before is None and (idle is None) != (busy is None):
        raise UsageError("give both --idle-watts and --busy-watts, or --watts for both")
    was_idle, was_busy = (0, 0) if before is None else (before.idle_milliwatt, before.busy_milliwatt)
    return (
        was_idle if idle is None else machine_options.read_watts(idle, "--idle-watts"),
        was_busy if busy is None else machine_options.read_watts(busy, "--busy-watts"),
    )


def _row(session: Session, versions: tuple[Machine, ...], machine: Machine) -> Row:
    until = next_start(versions, machine.effective_from)
    described = machines.described(machine)
    state = "removed" if machine.is_removed else standing(versions, machine, session.now).value
    return {
        "id": machine.id,
        **described,
        "currency": session.config.billing.currency,
        "effective_until": None if until is None else instant_text(until),
        "recorded_at": instant_text(machine.recorded_at),
        "state": state,
    }


def _tariff_row(session: Session, versions: tuple[Tariff, ...], made: Tariff) -> Row:
    until = next_start(versions, made.effective_from)
    return {
        "id": made.id,
        "machine": made.machine,
        "kwh": machine_options.tariff_text(made.prices),
        "currency": session.config.billing.currency,
        "timezone": session.config.billing.timezone,
        "effective_from": instant_text(made.effective_from),
        "effective_until": None if until is None else instant_text(until),
        "recorded_at": instant_text(made.recorded_at),
        "state": standing(versions, made, session.now).value,
    }
