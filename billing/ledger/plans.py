"""Plans and who is on them: names of plans, and dated assignments, which are only ever added.

A change takes the row lock of `epoch.advance` first, as every change of prices does, so that every gateway sees it
within a second.
"""

from dataclasses import dataclass

import sqlalchemy as sa

from billing import ids
from billing.clock import Instant, instant_text
from billing.errors import NotFoundError, RefusedError, UsageError
from billing.ledger import audit, epoch, schema
from billing.pricing import publish

NAME_CHARS_MAX = 100
NO_PLAN = "none"
"""What `weir plan assign` calls the absence of a plan; no plan may have this name."""

_PLANS, _ASSIGNMENTS = schema.plans, schema.plan_assignments


@dataclass(frozen=True, slots=True)
class Plan:
    """A group of customers with margins of its own."""

    id: str
    name: str
    created_at: Instant


def add(conn: sa.Connection, name: str, at: Instant, actor: str) -> Plan:
    """Add a plan. Raises UsageError for what is no name, RefusedError for a name in use."""
    if not name or len(name) > NAME_CHARS_MAX or name != name.strip() or not name.isprintable() or name == NO_PLAN:
        raise UsageError(
            f"{name[:40]!r} is no plan's name: 1 to {NAME_CHARS_MAX} printable characters, no blank before or after,"
            f" not {NO_PLAN!r}"
        )
    epoch.advance(conn)
    if conn.scalar(sa.select(_PLANS.c.id).where(_PLANS.c.name == name)) is not None:
        raise RefusedError(f"the plan {name!r} exists already; choose another name")
    plan = Plan(ids.new_id("plan"), name, at)
    conn.execute(sa.insert(_PLANS).values(id=plan.id, name=plan.name, created_at=plan.created_at))
    audit.record(conn, at=at, actor=actor, action="plan.add", subject=plan.id, details={"name": name})
    return plan


def every(conn: sa.Connection) -> list[Plan]:
    """Return all plans, oldest first."""
    return [Plan(row.id, row.name, row.created_at) for row in conn.execute(sa.select(_PLANS).order_by(_PLANS.c.id))]


def find(conn: sa.Connection, name_or_id: str) -> Plan:
    """Return the plan of this id or name. Raises NotFoundError."""
    named = sa.or_(_PLANS.c.id == name_or_id, _PLANS.c.name == name_or_id)
    row = conn.execute(sa.select(_PLANS).where(named).order_by(_PLANS.c.id)).first()
    if row is None:
        raise NotFoundError(f"there is no plan {name_or_id!r}; `weir plan list` shows all, `weir plan add` makes one")
    return Plan(row.id, row.name, row.created_at)


def assign(
    conn: sa.Connection,
    customer_id: str,
    plan: Plan | None,
    effective_from: Instant,
    at: Instant,
    actor: str,
    *,
    backdate: bool = False,
    reason: str | None = None,
) -> None:
    """Put a customer on a plan (None: on none) from an instant on. Raises RefusedError for an instant that is past."""
    publish.check_start(effective_from, at, backdate=backdate)
    epoch.advance(conn)
    row = {
        "id": ids.new_id("assignment"),
        "customer_id": customer_id,
        "plan_id": None if plan is None else plan.id,
        "effective_from": effective_from,
        "recorded_at": at,
    }
    conn.execute(sa.insert(_ASSIGNMENTS).values(row))
    details = {
        "plan": None if plan is None else plan.name,
        "plan_id": row["plan_id"],
        "effective_from": instant_text(effective_from),
        "reason": reason,
    }
    audit.record(conn, at=at, actor=actor, action="plan.assign", subject=customer_id, details=details)


def names(conn: sa.Connection) -> dict[str, str]:
    """Return the name of every plan by its id."""
    return {plan.id: plan.name for plan in every(conn)}
