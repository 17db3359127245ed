"""Which thresholds are crossed, and what is said of them. Pure.

A message's `once` is what it may be told once for: a threshold of a budget in a period, a low balance since credit was
given last.
"""

import json
from collections.abc import Mapping
from typing import NamedTuple

from billing.clock import Instant, instant_text
from billing.ledger.budgets import State
from billing.ledger.leases import Standing
from billing.money import Pico, amount_text
from billing.reports import standing

THRESHOLDS_PCT = (50, 80, 100)
BUDGET_THRESHOLD = "budget.threshold_reached"
BUDGET_EXHAUSTED = "budget.exhausted"
CREDIT_LOW = "credit.low"


class Message(NamedTuple):
    """What is told of a customer; `body` is JSON, as it is signed and sent."""

    once: str
    customer_id: str
    type: str
    body: str


class Who(NamedTuple):
    """A customer, as receivers know it."""

    id: str
    name: str


def of_budget(of: State, who: Who, currency: str, at: Instant) -> list[Message]:
    """Return a message for each threshold that the usage of a period has reached, the lowest first."""
    told = []
    for threshold in THRESHOLDS_PCT:
        if of.used * 100 >= of.budget.amount * threshold:
            data = {"threshold_pct": threshold, **standing.row(of, currency)}
            once = f"{of.budget.id}@{of.period.start}:{threshold}"
            told.append(_message(once, who, BUDGET_THRESHOLD, data, at))
    return told


def of_refusal(of: State, who: Who, currency: str, at: Instant) -> Message:
    """Return what is told when a hard budget refuses a request for the first time in a period."""
    once = f"{of.budget.id}@{of.period.start}:exhausted"
    return _message(once, who, BUDGET_EXHAUSTED, standing.row(of, currency), at)


def of_balance(of: Standing, who: Who, below: Pico, given_seq: int, currency: str, at: Instant) -> Message | None:
    """Return what is told of a balance below the configured amount, once for each time that credit was given."""
    if of.balance >= below or given_seq == 0:
        return None
    data = {"balance": amount_text(of.balance), "below": amount_text(below), "currency": of.currency or currency}
    return _message(f"{who.id}@{given_seq}:low", who, CREDIT_LOW, data, at)


def _message(once: str, who: Who, kind: str, data: Mapping[str, object], at: Instant) -> Message:
    whole = {
        "type": kind,
        "timestamp": instant_text(at),
        "data": {"customer_id": who.id, "customer": who.name, **data},
    }
    return Message(once, who.id, kind, json.dumps(whole, ensure_ascii=False, separators=(",", ":")))
