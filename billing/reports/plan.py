"""How far a customer is in its periods under a plan's terms, as rows for listings and for the customer itself."""

from billing.clock import Instant, instant_text
from billing.ledger import plan_counts
from billing.ledger.database import Connection
from billing.ledger.plan_counts import Settled
from billing.money import Pico, amount_text


def count_row(settled: Settled, currency: str) -> dict[str, object]:
    """Return a period: the tokens that count for allowance and tiers, and the included money that is used."""
    return {
        "per": settled.per.value,
        "period_start": instant_text(settled.period.start),
        "period_end": instant_text(settled.period.end),
        "tokens": settled.count.tokens,
        "covered": amount_text(Pico(settled.count.covered)),
        "currency": currency,
    }


def present(conn: Connection, customer_id: str, currency: str, now: Instant) -> list[dict[str, object]]:
    """Return the customer's periods that hold this instant, as far as they are settled; none without terms."""
    found = plan_counts.of_customer(conn, customer_id, now)
    return [count_row(each, currency) for each in found if each.period.holds(now)]
