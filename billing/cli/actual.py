"""`weir cost actual|suggest` and `weir report variance`: what models really cost on own machines, and what follows."""

import re
import shlex

import click

from billing.cli.app import Session, pass_session
from billing.cli.output import emit, emit_one, listing
from billing.clock import DAY_US, Instant, instant_text, parse_instant
from billing.errors import NotFoundError, RefusedError, UsageError
from billing.limits import HARDWARE_DAYS_MAX, RATE_UNUSUAL_HIGH, RATE_UNUSUAL_LOW
from billing.money import Pico, PicoPerToken, amount_text, format_amount
from billing.pricing.worth import PPM, Rates
from billing.reports import hardware as report
from billing.reports.hardware import Books

_BY_DAY, _BY_MODEL = "day,model", "model"
_PERCENT = re.compile(r"([0-9]{1,3})(?:\.([0-9]{1,4}))?%", re.ASCII)


def _books(session: Session, since: Instant | None, until: Instant | None) -> Books:
    with session.database.reading() as conn:
        return report.load(conn, session.config.billing.zone, since, until, session.now)


def _instants(session: Session, *texts: str | None) -> list[Instant | None]:
    return [None if text is None else parse_instant(text, session.now) for text in texts]


def _title(what: str, books: Books) -> str:
    return f"{what} from {instant_text(books.since)} to {instant_text(books.until)}"


def _tell_outside(books: Books, currency: str, form: str) -> None:
    """Say what no machine explains: requests to upstreams that run on none."""
    if books.outside and form == "table":
        booked = format_amount(Pico(books.outside), currency)
        click.echo(f"\n{booked} were booked for upstreams that run on no machine; see `weir cost hardware list`")


@click.command()
@click.option("--since", metavar="INSTANT", help="From this instant on, such as -7d.  [default: the first machine's]")
@click.option("--until", metavar="INSTANT", help="Up to this instant.  [default: now]")
@click.option("--by", metavar="GROUPS", default=_BY_DAY, help="day,model,machine.  [default: day,model]")
@listing
@pass_session
def actual(session: Session, since: str | None, until: str | None, by: str, form: str) -> None:
    """Show what models cost on your own machines: in all, and per 1M tokens of each type; idle time apart.

    Each hour of a machine costs its depreciation or rent and its power. It is spread over that hour's requests in
    proportion to their time, which they share fairly; time without requests is idle. The rows add up to the total.
    """
    groups = report.parse_groups(by)
    books = _books(session, *_instants(session, since, until))
    currency = session.config.billing.currency
    rows = report.actual_rows(books, groups, currency)
    emit(form, rows, [*groups, *report.ACTUAL_COLUMNS], title=_title("actual cost", books))
    _tell_outside(books, currency, form)


@click.command()
@click.argument("model")
@click.option("--days", type=click.IntRange(1, HARDWARE_DAYS_MAX), default=7, help="Look back so far.  [default: 7]")
@click.option("--utilisation", metavar="60%", help="How busy the machines will be.  [default: as they were]")
@listing
@pass_session
def suggest(session: Session, model: str, *, days: int, utilisation: str | None, form: str) -> None:
    """Suggest rates for MODEL at which its tokens pay for your machines, and the command that sets them.

    From what the last --days showed: the time its tokens took, what that time cost, and its part of the idle time. With
    --utilisation the idle time is what it will be if the machines are busy for so much of the time: a machine that
    stood still for a week is no reason for dear tokens. A cached prompt token counts as a tenth of a computed one.
    """
    used_ppm = None if utilisation is None else _read_percent(utilisation)
    now = session.now
    books = _books(session, Instant(max(0, now - days * DAY_US)), None)
    found, worked, idle = report.suggestion(books, model, used_ppm)
    if not worked.time_us:
        raise NotFoundError(
            f"no machine worked for {model!r} in the last {days} days; enter it with `weir cost hardware add`, or look"
            " back further with --days"
        )
    if found.rates.input is None or found.rates.output is None:
        raise RefusedError(f"{model!r} has no prompts or no output in these {days} days: not enough to go by")
    currency = session.config.billing.currency
    busy, unused = Pico(int(found.busy)), Pico(int(found.idle))
    row = {
        "model": model,
        **report.rate_cells(found.rates),
        "currency": currency,
        "since": instant_text(books.since),
        "until": instant_text(books.until),
        "requests": worked.requests,
        "cost": amount_text(busy),
        "idle_cost": amount_text(unused),
        "booked": amount_text(Pico(worked.booked)),
        "used_pct": report.percent(idle.used_ppm),
        "utilisation_pct": report.percent(idle.used_ppm if used_ppm is None else used_ppm),
        "command": _command(model, found.rates, days, instant_text(books.until)),
    }
    emit_one(form, row)


def _read_percent(text: str) -> int:
    """Read "60%" as millionths. Raises UsageError."""
    match = _PERCENT.fullmatch(text.strip())
    ppm = int(match[1]) * 10_000 + int((match[2] or "").ljust(4, "0")) if match is not None else 0
    if not 0 < ppm <= PPM:
        raise UsageError(f"--utilisation {text!r} is no part of the time; write 60%, above 0% and at most 100%")
    return ppm


def _command(model: str, rates: Rates, days: int, until: str) -> str:
    cells = report.rate_cells(rates)
    options = [f"--{name.replace('_', '-')} {cell}" for name, cell in cells.items() if cell is not None]
    given: list[PicoPerToken] = [rate for rate in (rates.input, rates.cached_input, rates.output) if rate is not None]
    if any(not RATE_UNUSUAL_LOW <= rate <= RATE_UNUSUAL_HIGH for rate in given):
        options.append("--force")
    reason = shlex.quote(f"suggested from {days} days until {until}")
    return f"weir cost set {shlex.quote(model)} {' '.join(options)} --reason {reason}"


@click.command()
@click.option("--since", metavar="INSTANT", default="-7d", help="From this instant on.  [default: -7d]")
@click.option("--until", metavar="INSTANT", help="Up to this instant.  [default: now]")
@click.option("--reference", metavar="INSTANT", help="Compare with the time from then to --since.  [default: as long]")
@click.option("--by", metavar="GROUPS", default=_BY_MODEL, help="day,model,machine.  [default: model]")
@listing
@pass_session
def variance(session: Session, *, since: str, until: str | None, reference: str | None, by: str, form: str) -> None:
    """Show standard cost (what requests were booked at) against what your machines cost, and why they differ.

    Against a reference time before: price (an hour of the machine cost more), efficiency (tokens took more of it),
    volume (what the rates charge for idle time, negative where tokens paid for it), idle (time without requests). The
    four add up to the difference.
    """
    groups = report.parse_groups(by)
    first, last, before = _instants(session, since, until, reference)
    assert first is not None, "--since has a default"
    now = _books(session, first, last)
    start = Instant(max(0, now.since - (now.until - now.since))) if before is None else before
    then = _books(session, start, now.since)
    currency = session.config.billing.currency
    rows = report.variance_rows(now, then, groups, currency)
    title = f"{_title('variance', now)}, against the time from {instant_text(then.since)}"
    emit(form, rows, [*groups, *report.VARIANCE_COLUMNS], title=title)
    _tell_outside(now, currency, form)
