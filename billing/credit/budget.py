"""Budgets as values: what a customer or a key may use in a calendar period, or owe.

A budget is like credit that is granted anew in each period: requests are held on leases of what is left of it. It
differs in what is left, which no history of its own keeps: the budget less the usage of the period less what leases may
still use (`billing/ledger/budgets.py`). So nothing has to happen when a period begins, and a budget that is changed
holds at once. Usage belongs to the period in which it ends. What is on a lease when a period ends counts in the next
one, for that is where it is used now.

Invariant: a budget's id names its customer first, so that leases of a budget are found and locked by it like those of
credit, whose purse is the customer's id itself.
"""

from enum import StrEnum
from typing import NamedTuple
from zoneinfo import ZoneInfo

from billing.calendar import Per, Period, period_of
from billing.clock import Instant
from billing.credit.account import BurnOrder
from billing.money import Pico

FOREVER = Period(Instant(0), Instant(2**62))
ORDER: BurnOrder = (0, True, 0, False, 0, "")
"""Budgets have no order of burning: a request is held on each that applies."""


class Span(StrEnum):
    """Which usage a budget limits: that of a calendar period, or (a credit limit) what is not paid yet."""

    UNPAID = "unpaid"
    MONTH = "month"
    DAY = "day"


class Budget(NamedTuple):
    """One limit, of a customer or (with `key_id`) of one of its keys. A soft one only tells, and never refuses."""

    id: str
    customer_id: str
    key_id: str | None
    span: Span
    amount: Pico
    is_soft: bool


def budget_id(customer_id: str, span: Span, key_id: str | None = None) -> str:
    """Name a budget: there is one of each span for a customer, and for a key."""
    return "/".join([customer_id, span.value, *([] if key_id is None else [key_id])])


def is_budget(purse_id: str) -> bool:
    """Tell a budget's id from a customer's, whose purse is its credit."""
    return "/" in purse_id


def customer_of(purse_id: str) -> str:
    """Return whose purse it is."""
    return purse_id.partition("/")[0]


def span_of(purse_id: str) -> Span:
    """Return which usage a budget limits, by its id."""
    return Span(purse_id.split("/")[1])


def key_of(purse_id: str) -> str | None:
    """Return the key whose budget it is, None if it is the whole customer's."""
    parts = purse_id.split("/")
    return parts[2] if len(parts) > 2 else None


def period(span: Span, at: int, zone: ZoneInfo, unpaid_since: int) -> Period:
    """Return the windows that count at an instant; a window belongs where it starts."""
    if span is Span.UNPAID:
        return Period(Instant(unpaid_since), FOREVER.end)
    return period_of(Per(span.value), at, zone)
