"""How budgets stand, as rows: what they allow, what was used, and when they begin anew."""

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
    if of.budget.amount <= 0:
        return "100.0"
    permille = max(0, of.used) * 1_000 // of.budget.amount
    return f"{permille // 10}.{permille % 10}"
