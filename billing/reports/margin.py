"""What usage earned over what it cost, by the groups of `billing.reports.usage`.

The margin is a share of the revenue, as in `weir margin set margin:40%`, whatever rule made the prices. Only
the percentage shown is rounded, half away from zero to two decimals, and in integers; the amounts are exact.
"""

from collections.abc import Sequence
from zoneinfo import ZoneInfo

from billing.money import Pico, amount_text
from billing.reports.usage import Line, counts, keys

COLUMNS = ("revenue", "cost", "margin", "margin_pct")

_HUNDREDTHS = 100 * 100


def percentage(margin: Pico, revenue: Pico) -> str | None:
    """Return a margin's share of the revenue in per cent, such as "23.08"; None without a revenue."""
    if revenue <= 0:
        return None
    hundredths = (2 * abs(margin) * _HUNDREDTHS + revenue) // (2 * revenue)
    sign = "-" if margin < 0 < hundredths else ""
    return f"{sign}{hundredths // 100}.{hundredths % 100:02d}"


def row(
    line: Line, by: Sequence[str], currency: str, customer: str | None = None, zone: ZoneInfo | None = None
) -> dict[str, object]:
    """Return one row of `weir report margin`."""
    return {**keys(line, by, customer, zone), **counts(line), **money(line), "currency": currency}


def money(line: Line) -> dict[str, object]:
    """Return a line's money."""
    cost, revenue = line.total.cost, line.total.amount
    margin = Pico(revenue - cost)
    return {
        "revenue": amount_text(revenue),
        "cost": amount_text(cost),
        "margin": amount_text(margin),
        "margin_pct": percentage(margin, revenue),
    }
