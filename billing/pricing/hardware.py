"""What own machines cost, hour by hour, and how that is spread over what they did.

A machine costs its depreciation (or rent) and its power. Of each stretch of time the part in which its upstreams were
busy is charged to their requests, in proportion to their time; the rest is idle, and told apart. What requests that
came to nothing took is idle time, too: nobody was served by it.

Invariant: Σ shares + idle = the machine's cost, to the picounit. Whatever is divided is divided by differences of
running totals, so that no remainder is lost: depreciation over a life comes to the price, rent over a time to the rent,
and the shares of an hour to its cost. A stretch's energy is a whole number of picounits (a fraction below is dropped).

Upstreams of one machine are taken to work in turns: where their requests' time is more than an hour in an hour, the
hour is busy throughout, and spread over all of it. (Workers that share an upstream each measure their own.)
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple
from zoneinfo import ZoneInfo

from billing.clock import HOUR_US, Instant, to_datetime
from billing.money import Pico
from billing.pricing.rates import version_at

MILLIWATT_US_PER_KWH = 10**6 * HOUR_US
HOURS_PER_DAY = 24
_QUARTER_US = HOUR_US // 4
"""Clocks of the world differ by quarters of an hour, so within one the hour of the day does not change."""


@dataclass(frozen=True, slots=True)
class Owned:
    """Bought for a price at an instant; worth nothing after so many hours, and the same less in each."""

    price: Pico
    life_hours: int
    bought_at: Instant

    def until(self, instant: int) -> int:
        """Return what it has lost of its price up to an instant."""
        life_us = self.life_hours * HOUR_US
        return self.price * min(max(0, instant - self.bought_at), life_us) // life_us


@dataclass(frozen=True, slots=True)
class Rented:
    """Rented by the hour."""

    hourly: Pico

    def until(self, instant: int) -> int:
        """Return the rent up to an instant, since 1970."""
        return self.hourly * instant // HOUR_US


@dataclass(frozen=True, slots=True)
class Machine:
    """What a machine is from an instant on; `is_removed`: it is there no more. Power is what it draws at the plug."""

    id: str
    name: str
    capital: Owned | Rented
    idle_milliwatt: int
    busy_milliwatt: int
    upstreams: tuple[str, ...]
    is_removed: bool
    effective_from: Instant
    recorded_at: Instant


@dataclass(frozen=True, slots=True)
class Tariff:
    """What a kWh costs from an instant on in each hour of the day, for one machine or (None) for all others."""

    id: str
    machine: str | None
    prices: tuple[Pico, ...]
    effective_from: Instant
    recorded_at: Instant


class Drawn(NamedTuple):
    """What was measured in an hour: the sum of so many samples."""

    milliwatts: int
    samples: int


class Work(NamedTuple):
    """What one upstream did for one model in one hour: its time, tokens, and what its requests were booked at."""

    hour: Instant
    upstream: str
    model: str
    requests: int
    input_tokens: int
    cached_input_tokens: int
    output_tokens: int
    prompt_us: int
    generation_us: int
    booked: Pico


@dataclass(frozen=True, slots=True)
class Fleet:
    """All machines and tariffs as dated versions in order, what was measured (by machine and hour), the days' zone."""

    machines: Mapping[str, Sequence[Machine]]
    tariffs: Mapping[str | None, Sequence[Tariff]]
    drawn: Mapping[tuple[str, int], Drawn]
    zone: ZoneInfo

    def machine_at(self, name: str, instant: Instant) -> Machine | None:
        """Return a machine as it is then, None if it is not there."""
        machine = version_at(self.machines.get(name, ()), instant)
        return None if machine is None or machine.is_removed else machine

    def kwh_price(self, name: str, instant: Instant) -> Pico:
        """Return what a kWh costs then; nothing before the first tariff."""
        own = version_at(self.tariffs.get(name, ()), instant)
        tariff = own if own is not None else version_at(self.tariffs.get(None, ()), instant)
        return Pico(0) if tariff is None else tariff.prices[to_datetime(instant).astimezone(self.zone).hour]


@dataclass(slots=True)
class Spent:
    """What a machine's time cost for one model: the prompts' part and the output's."""

    prompt: int = 0
    generation: int = 0


@dataclass(slots=True)
class Cost:
    """What a machine cost in a stretch: by upstream and model, and idle; the times are those of the machine."""

    shares: dict[tuple[str, str], Spent] = field(default_factory=dict)
    idle: int = 0
    idle_us: int = 0
    busy_us: int = 0

    @property
    def total(self) -> Pico:
        """All of it."""
        return Pico(self.idle + sum(each.prompt + each.generation for each in self.shares.values()))


class _Stretch(NamedTuple):
    """A time in which nothing changes: neither the machine nor what power costs."""

    start: int
    end: int
    machine: Machine
    kwh_price: Pico


def hour_cost(fleet: Fleet, name: str, start: Instant, end: Instant, works: Iterable[Work]) -> Cost:
    """Return what a machine costs from `start` to `end`, which lie in one UTC hour, and for whom.

    `works` are the hour's. Where the machine changes within the hour, they are taken to be spread evenly over it.
    """
    cost = Cost()
    stretches = list(_stretches(fleet, name, start, end))
    whole_us = sum(stretch.end - stretch.start for stretch in stretches)
    works = list(works)
    drawn = fleet.drawn.get((name, start - start % HOUR_US))
    for stretch in stretches:
        own = [work for work in works if work.upstream in stretch.machine.upstreams]
        _charge(cost, stretch, own, drawn, whole_us)
    return cost


def _stretches(fleet: Fleet, name: str, start: int, end: int) -> Iterator[_Stretch]:
    starts = {start, *range(start - start % _QUARTER_US + _QUARTER_US, end, _QUARTER_US)}
    for versions in (fleet.machines.get(name, ()), fleet.tariffs.get(name, ()), fleet.tariffs.get(None, ())):
        starts |= {int(version.effective_from) for version in versions if start < version.effective_from < end}
    bounds = [*sorted(starts), end]
    last: _Stretch | None = None
    for since, until in pairwise(bounds):
        machine, price = fleet.machine_at(name, Instant(since)), fleet.kwh_price(name, Instant(since))
        if last is not None and (last.machine, last.kwh_price) == (machine, price):
            last = last._replace(end=until)
            continue
        if last is not None:
            yield last
        last = None if machine is None else _Stretch(since, until, machine, price)
    if last is not None:
        yield last


def _charge(cost: Cost, stretch: _Stretch, works: Sequence[Work], drawn: Drawn | None, whole_us: int) -> None:
    """Add a stretch's cost, to the hour's requests and to idle."""
    length_us = stretch.end - stretch.start
    parts = [(work, max(0, work.prompt_us), max(0, work.generation_us)) for work in works]
    taken_us = sum(prompt_us + generation_us for _, prompt_us, generation_us in parts)
    busy_us = min(taken_us * length_us // whole_us, length_us)
    idle_us = length_us - busy_us
    capital = stretch.machine.capital.until(stretch.end) - stretch.machine.capital.until(stretch.start)
    of_requests = capital * busy_us // length_us
    machine, price = stretch.machine, stretch.kwh_price
    cost.busy_us += busy_us
    cost.idle_us += idle_us
    cost.idle += capital - of_requests + _energy(machine.idle_milliwatt, drawn, idle_us, price)
    of_requests += _energy(machine.busy_milliwatt, drawn, busy_us, price)
    assert taken_us or not of_requests, "nobody took any time"
    run = given = 0
    for work, *times in parts:
        spent = cost.shares.setdefault((work.upstream, work.model), Spent())
        for name, time_us in zip(("prompt", "generation"), times, strict=True):
            run += time_us
            share = of_requests * run // max(1, taken_us) - given
            given += share
            setattr(spent, name, getattr(spent, name) + share)


def _energy(milliwatt: int, drawn: Drawn | None, time_us: int, kwh_price: Pico) -> int:
    """Return what power costs over a time: as measured in that hour, else as the machine is said to draw."""
    if drawn is not None:
        return drawn.milliwatts * time_us * kwh_price // (drawn.samples * MILLIWATT_US_PER_KWH)
    return milliwatt * time_us * kwh_price // MILLIWATT_US_PER_KWH
