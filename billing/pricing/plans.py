"""Plans: groups of customers with margins of their own, and which customer is on which plan from when on. Pure.

An assignment is a dated version, like a rate: it is only ever added, so that what a customer was on at any instant can
be told, and a change of plans may be scheduled. A request keeps the plan of its start.
"""

from dataclasses import dataclass

from billing.clock import Instant

STAND_IN = "plan:"


@dataclass(frozen=True, slots=True)
class Assignment:
    """A customer's plan from an instant on; `plan_id` None: from here on it has none."""

    id: str
    customer_id: str
    plan_id: str | None
    effective_from: Instant
    recorded_at: Instant


def stand_in(plan_id: str) -> str:
    """Return a name that stands, wherever a price is asked, for any customer of a plan without rules of its own."""
    return STAND_IN + plan_id


def plan_of_stand_in(customer_id: str) -> str | None:
    """Return the plan that a stand-in is for; None for a customer."""
    return customer_id.removeprefix(STAND_IN) if customer_id.startswith(STAND_IN) else None
