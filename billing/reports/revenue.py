"""What usage earned, who paid it how, and its share of the whole: rows of `weir report revenue`.

What credit paid for was paid before; the rest is metered, and goes to Stripe. Corrections are in the revenue.
"""

from collections.abc import Sequence
from zoneinfo import ZoneInfo

from billing.money import Pico, amount_text
from billing.reports.margin import percentage
from billing.reports.usage import Line, counts, keys

COLUMNS = ("revenue", "from_credit", "metered", "share_pct")


def row(
    line: Line,
    by: Sequence[str],
    currency: str,
    whole: Pico,
    customer: str | None = None,
    zone: ZoneInfo | None = None,
) -> dict[str, object]:
    """Return one row; `whole` is the revenue of all rows."""
    return {**keys(line, by, customer, zone), **counts(line), **money(line, whole), "currency": currency}


def money(line: Line, whole: Pico) -> dict[str, object]:
    """Return a line's money."""
    total = line.total
    return {
        "revenue": amount_text(total.amount),
        "from_credit": amount_text(total.credit),
        "metered": amount_text(Pico(total.amount - total.credit)),
        "share_pct": percentage(total.amount, whole),
    }
