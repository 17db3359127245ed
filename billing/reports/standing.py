"""How budgets stand, as rows: what they allow, what was used, and when they begin anew."""

from collections.abc import Iterable

from billing.clock import instant_text
from billing.credit.budget import Span
from billing.ledger.budgets import State
from billing.money import Pico, amount_text


def row(of: State, currency: str) -> dict[str, object]:
    """Return one budget as a row; amounts are decimal texts."""
    is_period = of.budget.span is not Span.UNPAID
    return {
        "budget": amount_text(of.budget.amount),
        "per": of.budget.span.value,
        "key_id": of.budget.key_id,
        "soft": of.budget.is_soft,
        "used": amount_text(of.used),
        "used_pct": used_pct(of),
        "held": amount_text(of.held),
        "left": amount_text(Pico(max(0, of.left - of.held))),
        "currency": currency,
        "since": instant_text(of.period.start),
        "until": instant_text(of.period.end) if is_period else None,
    }


def used_pct(of: State) -> str:
    """Return how much of a budget is used, in percent with one decimal, rounded down: 100.0 is used up."""
    permille = _permille(of)
    return f"{permille // 10}.{permille % 10}"


def _permille(of: State) -> int:
    return max(0, of.used) * 1_000 // of.budget.amount if of.budget.amount > 0 else 1_000


def columns_of(states: Iterable[State], customer_id: str | None, key_id: str | None) -> dict[str, object]:
    """Return what a line of usage says of budgets: the fullest of the key's, else of the customer's; null if none."""
    periods = [each for each in states if each.budget.span is not Span.UNPAID]
    of_key = [each for each in periods if key_id is not None and each.budget.key_id == key_id]
    of_customer = [each for each in periods if each.budget.key_id is None and each.budget.customer_id == customer_id]
    found = sorted(of_key or of_customer, key=_permille)
    if not found:
        return {"budget": None, "budget_per": None, "budget_used_pct": None}
    fullest = found[-1]
    return {
        "budget": amount_text(fullest.budget.amount),
        "budget_per": fullest.budget.span.value,
        "budget_used_pct": used_pct(fullest),
    }
