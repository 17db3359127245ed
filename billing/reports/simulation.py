"""History under another price book, beside what it was billed at: revenue, cost and margin before and after.

Both sides count the same requests, at their own prices and at the scenario's. Corrections are left out of both, since
they are answers to what was billed; what they come to is told apart. Nothing is written.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from billing.ledger import accounts, history
from billing.ledger.database import Connection
from billing.ledger.totals import Selection
from billing.money import Pico, amount_text
from billing.pricing import scenario
from billing.pricing.book import PriceBook
from billing.pricing.scenario import Bucket, Money
from billing.reports.margin import percentage

GROUPS = ("customer", "model")
MONEY_COLUMNS = (
    *("requests", "revenue_before", "revenue_after", "revenue_change_pct", "cost_before", "cost_after"),
    *("margin_before", "margin_after", "margin_pct_before", "margin_pct_after", "currency"),
)


@dataclass(frozen=True, slots=True)
class Line:
    """One group's money on both sides; what was not grouped by is None."""

    customer_id: str | None
    customer: str | None
    model: str | None
    before: Money
    after: Money
    corrections: Pico


def load(conn: Connection, selection: Selection, book: PriceBook, by: Collection[str] = ("customer",)) -> list[Line]:
    """Price the selected requests by `book`, by any of GROUPS, ordered by these; customers by name.

    Buckets are taken in order of time, so that the book works each quote out once and not for each bucket.
    """
    span = history.extent(conn, selection)
    if span is None:
        return []
    starts = scenario.starts_between(book, *span)
    names = accounts.customer_names(conn)
    groups: dict[tuple[str, str], list[Bucket]] = {}
    for bucket in sorted(history.buckets(conn, selection, starts), key=lambda each: each.at):
        groups.setdefault(_key(bucket, by), []).append(bucket)
    corrected: dict[tuple[str, str], int] = {}
    for bucket in history.corrections(conn, selection):
        corrected[_key(bucket, by)] = corrected.get(_key(bucket, by), 0) + bucket.amount
    lines = [
        Line(
            customer_id=key[0] or None,
            customer=names.get(key[0]),
            model=key[1] or None,
            before=_sum(scenario.billed(bucket) for bucket in found),
            after=_sum(scenario.repriced(bucket, book) for bucket in found),
            corrections=Pico(corrected.get(key, 0)),
        )
        for key, found in groups.items()
    ]
    return sorted(lines, key=lambda line: (line.customer or "", line.customer_id or "", line.model or ""))


def total(lines: Iterable[Line]) -> Line:
    """Return the sum of all lines."""
    lines = list(lines)
    corrections = Pico(sum(line.corrections for line in lines))
    before, after = _sum(line.before for line in lines), _sum(line.after for line in lines)
    return Line(None, "total", None, before, after, corrections)


def _key(bucket: Bucket, by: Collection[str]) -> tuple[str, str]:
    return bucket.customer_id if "customer" in by else "", bucket.model if "model" in by else ""


def _sum(each: Iterable[Money]) -> Money:
    result = Money()
    for money in each:
        result = result.plus(money)
    return result


def row(line: Line, currency: str) -> dict[str, object]:
    """Return one row of `weir simulate`."""
    before, after = line.before, line.after
    change = Pico(after.revenue - before.revenue)
    return {
        "customer": line.customer or line.customer_id,
        "customer_id": line.customer_id,
        "model": line.model,
        "requests": before.requests,
        "revenue_before": amount_text(before.revenue),
        "revenue_after": amount_text(after.revenue),
        "revenue_change": amount_text(change),
        "revenue_change_pct": percentage(change, before.revenue),
        "cost_before": amount_text(before.cost),
        "cost_after": amount_text(after.cost),
        "margin_before": amount_text(before.margin),
        "margin_after": amount_text(after.margin),
        "margin_pct_before": percentage(before.margin, before.revenue),
        "margin_pct_after": percentage(after.margin, after.revenue),
        "requests_unpriced": after.requests_unpriced,
        "corrections": amount_text(line.corrections),
        "currency": currency,
    }


def columns(by: Sequence[str]) -> list[str]:
    """Return the columns of a table."""
    return [*by, *MONEY_COLUMNS]
