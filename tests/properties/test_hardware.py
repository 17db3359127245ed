"""A machine's cost is spread without a rest, whatever it costs, draws and does; and explained without a rest."""

from dataclasses import replace
from datetime import timedelta
from fractions import Fraction
from itertools import pairwise
from random import Random
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.clock import HOUR_US, Instant, parse_instant
from billing.money import Pico, amount_number, parse_amount
from billing.pricing import worth
from billing.pricing.hardware import Drawn, Fleet, Machine, Owned, Rented, Tariff, Work, hour_cost
from billing.pricing.machine_options import read_life, read_tariff, tariff_text
from billing.pricing.rates import in_order
from billing.pricing.worth import Idle, Reference, Seen, Variance, Worked

UTC, KOLKATA = ZoneInfo("UTC"), ZoneInfo("Asia/Kolkata")
NOON = Instant(parse_instant("2026-03-01T12:00:00Z", Instant(0)))


def machine(
    capital: Owned | Rented,
    start: int = 0,
    *,
    idle: int = 0,
    busy: int = 0,
    upstreams: tuple[str, ...] = ("a", "b"),
    is_removed: bool = False,
) -> Machine:
    """The machine `box`, on which the upstreams a and b run."""
    since = Instant(start)
    return Machine(f"m{start}", "box", capital, idle, busy, upstreams, is_removed, since, since)


def work(upstream: str, prompt_us: int, generation_us: int, model: str = "m") -> Work:
    """What an upstream did at noon."""
    return Work(NOON, upstream, model, 1, 10, 0, 5, prompt_us, generation_us, Pico(0))


def fleet(
    *machines: Machine, price: str = "0", hours: tuple[str, ...] = (), zone: ZoneInfo = UTC, drawn: Drawn | None = None
) -> Fleet:
    """One machine, and one tariff from the beginning on."""
    tariff = Tariff("t", None, read_tariff(price, hours), Instant(0), Instant(0))
    return Fleet({"box": in_order(machines)}, {None: (tariff,)}, {} if drawn is None else {("box", NOON): drawn}, zone)


def any_fleet(random: Random) -> Fleet:
    """Any machine, which may change, end or begin within the hour; any tariff; perhaps measured."""

    def near() -> int:
        return NOON + random.randint(-HOUR_US, HOUR_US)

    def capital() -> Owned | Rented:
        if random.random() < 0.5:
            return Rented(Pico(random.randint(0, 10**17)))
        return Owned(
            Pico(random.randint(0, 9 * 10**18)), random.randint(1, 10**5), Instant(random.randint(0, 2 * NOON))
        )

    versions = [
        machine(
            capital(),
            near(),
            idle=random.randint(0, 10**9),
            busy=random.randint(0, 10**9),
            upstreams=random.choice([("a",), ("b",), ("a", "b")]),
            is_removed=random.random() < 0.3,
        )
        for _ in range(random.randint(1, 3))
    ]
    prices = tuple(Pico(random.randint(0, 10**15)) for _ in range(24))
    tariff = Tariff("t", random.choice([None, "box"]), prices, Instant(near()), Instant(0))
    drawn = {("box", int(NOON)): Drawn(random.randint(0, 10**12), random.randint(1, 10**4))}
    zone = random.choice([UTC, KOLKATA, ZoneInfo("Australia/Lord_Howe")])
    is_measured = random.random() < 0.3
    return Fleet({"box": in_order(versions)}, {tariff.machine: (tariff,)}, drawn if is_measured else {}, zone)


@given(st.integers(0, 2**64))
def test_shares_and_idle_time_are_the_machines_cost(seed: int) -> None:
    """To the picounit: against its capital and energy worked out anew, without anybody's shares."""
    random = Random(seed)
    all_of = any_fleet(random)
    spans = (-5, 0, 7, 10**8, 10**9, 2 * HOUR_US)
    did = [(random.choice("abc"), random.choice(spans), random.choice(spans)) for _ in range(random.randint(0, 6))]
    until = random.choice((1, HOUR_US // 7, HOUR_US))
    end = Instant(NOON + until)
    works = [work(each, prompt, generation, f"m{number}") for number, (each, prompt, generation) in enumerate(did)]
    cost = hour_cost(all_of, "box", NOON, end, works)
    given_out = sum(each.prompt + each.generation for each in cost.shares.values())
    assert cost.total == given_out + cost.idle
    assert min([cost.idle, *(min(each.prompt, each.generation) for each in cost.shares.values())]) >= 0
    starts = {int(each.effective_from) for each in all_of.machines["box"]}
    starts |= {int(each.effective_from) for versions in all_of.tariffs.values() for each in versions}
    bounds = sorted({NOON, end, *range(NOON, end, HOUR_US // 4), *(start for start in starts if NOON < start < end)})
    there = capital = 0
    least = most = Fraction(0)
    for since, to in pairwise(bounds):
        now = all_of.machine_at("box", Instant(since))
        if now is not None:
            there += to - since
            capital += now.capital.until(to) - now.capital.until(since)
            drawn = all_of.drawn.get(("box", NOON))
            powers = (
                [Fraction(drawn.milliwatts, drawn.samples)]
                if drawn
                else [Fraction(now.idle_milliwatt), Fraction(now.busy_milliwatt)]
            )
            kwh = Fraction(all_of.kwh_price("box", Instant(since)) * (to - since), 10**6 * HOUR_US)
            least, most = least + min(powers) * kwh, most + max(powers) * kwh
    assert cost.idle_us + cost.busy_us == there
    assert hour_cost(replace(all_of, tariffs={}), "box", NOON, end, works).total == capital, "with power for nothing"
    assert capital + least - 20 <= cost.total <= capital + most, "a fraction of a picounit is dropped for each stretch"


def test_a_price_is_written_off_whole() -> None:
    """Hour by hour, over the life and beyond; and a part of an hour's rent is a part."""
    bought = Owned(Pico(10**13 + 7), 1_000, NOON)
    hours = [
        hour_cost(
            fleet(machine(bought)), "box", Instant(NOON + n * HOUR_US), Instant(NOON + (n + 1) * HOUR_US), []
        ).idle
        for n in range(1_003)
    ]
    assert sum(hours) == 10**13 + 7
    assert hours[1_000:] == [0, 0, 0]
    assert hour_cost(fleet(machine(Rented(Pico(3_600)))), "box", NOON, Instant(NOON + HOUR_US // 4), []).idle == 900


def test_an_hour_by_hand() -> None:
    """0.36 an hour and 1 kW at 0.36: half the hour busy, three quarters of that with output."""
    all_of = fleet(machine(Rented(parse_amount("0.36")), idle=0, busy=1_000_000), price="0.36")
    did = [work("a", 450_000_000, 1_350_000_000)]
    cost = hour_cost(all_of, "box", NOON, Instant(NOON + HOUR_US), did)
    (share,) = cost.shares.values()
    assert (share.prompt, share.generation, cost.idle) == (9 * 10**10, 27 * 10**10, 18 * 10**10)
    assert (cost.busy_us, cost.idle_us) == (HOUR_US // 2, HOUR_US // 2)
    busy = hour_cost(all_of, "box", NOON, Instant(NOON + HOUR_US), [work("a", 0, HOUR_US), work("b", 0, 3 * HOUR_US)])
    assert [each.generation for each in busy.shares.values()] == [18 * 10**10, 54 * 10**10], (
        "more than an hour: all of it"
    )
    assert busy.idle == 0
    elsewhere = hour_cost(all_of, "box", NOON, Instant(NOON + HOUR_US), [work("c", 0, HOUR_US)])
    assert (elsewhere.shares, elsewhere.idle) == ({}, 36 * 10**10)


def test_power_costs_what_it_does_at_that_hour_of_the_day() -> None:
    """Of the billing time zone, half hours too; the hour in which it changes has the new price. Measured wins."""
    box = machine(Rented(Pico(0)), idle=1_000_000, busy=1_000_000)

    def idle(at: str, zone: ZoneInfo = UTC, drawn: Drawn | None = None) -> str:
        start = Instant(parse_instant(at, Instant(0)))
        own = fleet(box, price="0.40", hours=("22-6=0.10",), zone=zone, drawn=drawn)
        return amount_number(Pico(hour_cost(own, "box", start, Instant(start + HOUR_US), []).idle))

    assert [idle(f"2026-03-01T{hour:02d}:00:00Z") for hour in (5, 6, 21, 22)] == [
        "0.1",
        "0.4",
        "0.4",
        "0.1",
    ]
    assert idle("2026-03-01T00:00:00Z", zone=KOLKATA) == "0.25", "from 05:30 to 06:30 there"
    assert idle("2026-03-01T12:00:00Z", drawn=Drawn(900_000, 3)) == "0.12", "300 W"
    assert (
        tariff_text(read_tariff("0.40", ("22-6=0.10", "12-13=0.2")))
        == "0-6 0.1, 6-12 0.4, 12-13 0.2, 13-22 0.4, 22-24 0.1"
    )
    assert tariff_text(read_tariff("0.40", ("0-24=0.3",))) == "0.3"
    assert read_life("3y") == timedelta(days=3 * 365) // timedelta(hours=1)


def any_work(random: Random) -> Worked:
    """Work of any size, or none."""
    tokens = [random.choice((0, 1, 1_000, random.randint(0, 10**9))) for _ in range(3)]
    rest = [random.choice((0, random.randint(0, 10**13))) for _ in range(2)]
    money = [random.choice((0, random.randint(0, 10**19))) for _ in range(3)]
    return Worked(tokens[0], tokens[1], random.randint(0, tokens[1]), tokens[2], *rest, *money)


def any_idle(random: Random) -> Idle:
    """Idle time, or none."""
    return Idle(*(random.choice((0, random.randint(0, 10**13))) for _ in range(3)))


@given(st.integers(0, 2**64))
def test_the_parts_of_a_variance_are_the_difference(seed: int) -> None:
    """Whatever was, and whatever is known of it; they also add up over groups."""
    random = Random(seed)
    now, then, other = (any_work(random) for _ in range(3))
    idle, before = any_idle(random), any_idle(random)
    everything = Worked()
    everything.add(then)
    everything.add(other)
    total = Variance()
    for reference in (
        Reference(then, everything, before),
        Reference(Worked(), everything, Idle()),
        Reference(Worked(), Worked(), Idle()),
    ):
        for each in (worth.of_work(now, reference), worth.of_idle(idle, reference.idle)):
            assert each.volume + each.efficiency + each.price + each.idle == each.difference
            total.add(each)
        if not reference.worked.requests and not reference.everything.time_us:
            assert worth.of_work(now, reference).price == worth.of_work(now, reference).efficiency == 0
    assert total.volume + total.efficiency + total.price + total.idle == total.actual - total.standard
    assert total.standard == 3 * now.booked


def test_a_variance_by_hand() -> None:
    """Then: 100 tokens in 100 s at 1 a second. Now: in 150 s at 2 a second, booked at 180; and 50 s of idle time."""
    second = 10**6
    then = Worked(output_tokens=100, generation_us=100 * second, generation=100)
    now = Worked(output_tokens=100, generation_us=150 * second, generation=300, booked=180)
    found = worth.of_work(now, Reference(then, then, Idle()))
    assert (found.price, found.efficiency, found.volume) == (150, 50, -80)
    apart = worth.of_idle(Idle(100, 50 * second, 0), Idle(50, 50 * second, 0))
    assert (apart.price, apart.idle, apart.standard) == (50, 50, 0)


def test_suggested_rates_pay_for_the_machine() -> None:
    """With its idle time as it was, or as it will be; a cached token counts as a tenth."""
    did = Worked(1, 1_100_000, 1_000_000, 500_000, 100, 300, 2 * 10**11, 6 * 10**11)
    seen = Seen(did, did, Idle(8 * 10**11, 1_000, 1_000))
    found = worth.suggest([seen], None)
    assert found.busy == found.idle == 8 * 10**11
    rates = found.rates
    assert rates.input is not None
    assert rates.cached_input is not None
    assert rates.output is not None
    assert 100_000 * rates.input + 1_000_000 * rates.cached_input == 4 * 10**11
    assert 500_000 * rates.output == 12 * 10**11
    assert worth.suggest([seen], 250_000).idle == 24 * 10**11, "busy a quarter of the time: three idle to one busy"
    assert worth.suggest([seen], 1_000_000).idle == 0
    assert worth.suggest([Seen(did, did, Idle(0, 0, 1_000))], 500_000).idle == 8 * 10**11


@pytest.mark.parametrize("model_first", [True, False])
def test_idle_time_is_borne_in_proportion_to_time(*, model_first: bool) -> None:
    """A model that took a quarter of the busy time bears a quarter of the idle time."""
    small, large = (Worked(1, 10, 0, 10, part, 0, 0, 0) for part in (100, 300))
    everything = Worked()
    for each in (small, large):
        everything.add(each)
    mine = small if model_first else large
    assert worth.suggest([Seen(mine, everything, Idle(400, 10, 10))], None).idle == (100 if model_first else 300)
