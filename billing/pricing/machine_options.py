"""What an admin says of machines and power, read and judged: watts, lives, tariffs by the hour of the day.

Pure. Watts are whole milliwatts, amounts picounits; what can hardly be meant is refused with the limit that it exceeds.
"""

import re
from collections.abc import Iterable, Sequence

from billing.clock import DAY_US, HOUR_US, instant_text
from billing.errors import InvalidAmountError, RefusedError, UsageError
from billing.limits import (
    KWH_PRICE_PICO_MAX,
    MACHINE_LIFE_HOURS_MAX,
    MACHINE_NAME_CHARS_MAX,
    MACHINE_PRICE_PICO_MAX,
    MACHINE_RENT_PICO_MAX,
    MACHINE_UPSTREAMS_MAX,
    POWER_MILLIWATT_MAX,
)
from billing.money import PICO_PER_MAJOR, Pico, amount_number, parse_amount
from billing.pricing.hardware import HOURS_PER_DAY, Machine

_PICO_PER_MILLI = PICO_PER_MAJOR // 1_000
_HOURS_PER = {"y": 365 * DAY_US // HOUR_US, "m": 730, "d": DAY_US // HOUR_US, "h": 1}
_LIFE = re.compile(r"([0-9]{1,7})([ymdh])", re.ASCII)
_HOURS = re.compile(r"([0-9]{1,2})-([0-9]{1,2})=(.+)", re.ASCII)


def read_name(text: str) -> str:
    """Read a machine's name. Raises UsageError."""
    if not text or len(text) > MACHINE_NAME_CHARS_MAX or text != text.strip() or not text.isprintable():
        raise UsageError(f"{text[:40]!r} is no name: 1 to {MACHINE_NAME_CHARS_MAX} printable characters")
    return text


def read_watts(text: str, option: str) -> int:
    """Read a power in watts, with at most 3 decimals, as milliwatts. Raises InvalidAmountError, RefusedError."""
    amount = parse_amount(text)
    milliwatt: int = amount // _PICO_PER_MILLI
    if amount % _PICO_PER_MILLI or milliwatt < 0:
        raise InvalidAmountError(f"{option} {text} is no power: watts, with at most 3 decimals, not negative")
    if milliwatt > POWER_MILLIWATT_MAX:
        raise RefusedError(f"{option} {text} is above {POWER_MILLIWATT_MAX // 1_000} watts")
    return milliwatt


def read_life(text: str) -> int:
    """Read a life such as 3y, 36m, 1000d or 26280h, as hours. Raises UsageError, RefusedError."""
    match = _LIFE.fullmatch(text.strip())
    hours: int = int(match[1]) * _HOURS_PER[match[2]] if match is not None else 0
    if not hours:
        raise UsageError(f"--life {text!r} is no time; write 3y, 36m (of 730 hours), 1000d or 26280h")
    if hours > MACHINE_LIFE_HOURS_MAX:
        raise RefusedError(f"--life {text} is above {MACHINE_LIFE_HOURS_MAX} hours")
    return hours


def read_price(text: str) -> Pico:
    """Read a purchase price. Raises InvalidAmountError, RefusedError."""
    return _amount(text, "--price", MACHINE_PRICE_PICO_MAX)


def read_rent(text: str) -> Pico:
    """Read an hour's rent. Raises InvalidAmountError, RefusedError."""
    return _amount(text, "--rent", MACHINE_RENT_PICO_MAX)


def _amount(text: str, option: str, most: int) -> Pico:
    amount = parse_amount(text)
    if amount < 0:
        raise InvalidAmountError(f"{option} {text} is negative")
    if amount > most:
        raise RefusedError(f"{option} {text} is above {amount_number(Pico(most))}")
    return amount


def read_tariff(text: str, hours: Iterable[str]) -> tuple[Pico, ...]:
    """Read what a kWh costs, and in which hours of the day something else: "22-6=0.18" is from 22:00 to 06:00.

    Raises UsageError, InvalidAmountError, RefusedError.
    """
    prices = [_amount(text, "the tariff", KWH_PRICE_PICO_MAX)] * HOURS_PER_DAY
    for each in hours:
        match = _HOURS.fullmatch(each.strip())
        first, last = (int(match[1]), int(match[2])) if match is not None else (0, 0)
        if match is None or first >= HOURS_PER_DAY or last > HOURS_PER_DAY or first == last:
            raise UsageError(f"--hours {each!r} says no hours; write 22-6=0.18, a kWh's price from 22:00 to 06:00")
        price = _amount(match[3], "--hours", KWH_PRICE_PICO_MAX)
        length = (last - first) % HOURS_PER_DAY
        for hour in range(first, first + (length or HOURS_PER_DAY)):
            prices[hour % HOURS_PER_DAY] = price
    return tuple(prices)


def tariff_text(prices: Sequence[Pico]) -> str:
    """Write a tariff as spans of hours: "0-6 0.18, 6-24 0.32", or one price alone."""
    spans: list[tuple[int, Pico]] = []
    for hour, price in enumerate(prices):
        if not spans or spans[-1][1] != price:
            spans.append((hour, price))
    if len(spans) == 1:
        return amount_number(spans[0][1])
    ends = [hour for hour, _ in spans[1:]] + [HOURS_PER_DAY]
    return ", ".join(f"{hour}-{end} {amount_number(price)}" for (hour, price), end in zip(spans, ends, strict=True))


def check_upstreams(
    machine: Machine, others: Iterable[Sequence[Machine]], known: Sequence[str], *, force: bool
) -> None:
    """Refuse upstreams that nobody configured, and those that run on another machine from then on.

    `others` are the versions of every other machine, in order. Raises UsageError, RefusedError.
    """
    if not machine.upstreams or len(machine.upstreams) > MACHINE_UPSTREAMS_MAX:
        raise UsageError(f"name 1 to {MACHINE_UPSTREAMS_MAX} upstreams that run on {machine.name}: --upstream NAME")
    unknown = [name for name in machine.upstreams if name not in known]
    if unknown and not force:
        has = ", ".join(known) or "none"
        raise RefusedError(f"weir.toml has no upstream {unknown[0]!r} (it has {has}); --force takes it all the same")
    for versions in others:
        for number, version in enumerate(versions):
            is_over = number + 1 < len(versions) and versions[number + 1].effective_from <= machine.effective_from
            shared = set(version.upstreams) & set(machine.upstreams)
            if shared and not is_over and not version.is_removed:
                since = instant_text(max(version.effective_from, machine.effective_from))
                raise RefusedError(
                    f"{min(shared)} runs on {version.name} from {since}; end that first, or enter an upstream's"
                    " machines as one, with the sum of their prices and watts"
                )
