"""Terms of plans as dated versions, which are only ever added; the newest of the same start holds.

A change takes the row lock of `epoch.advance` first, as every change of prices does.
"""

import json
from typing import Any

import sqlalchemy as sa

from billing.calendar import Per
from billing.clock import instant_text
from billing.ledger import audit, epoch, schema
from billing.money import Pico
from billing.pricing import publish
from billing.pricing.terms import PlanTerms, Terms, Tier

_TERMS = schema.plan_terms


def append(conn: sa.Connection, version: PlanTerms, *, actor: str, reason: str | None) -> None:
    """Add terms, or their end. Raises RefusedError for an instant that is past: what was used keeps its terms."""
    publish.check_start(version.effective_from, version.recorded_at, backdate=False)
    epoch.advance(conn)
    terms = version.terms
    row = {
        "id": version.id,
        "plan_id": version.plan_id,
        "per": None if terms is None else terms.per.value,
        "included_tokens": 0 if terms is None else terms.included_tokens,
        "included_pico": 0 if terms is None else terms.included_amount,
        "tiers": json.dumps([] if terms is None else terms.tiers),
        "effective_from": version.effective_from,
        "recorded_at": version.recorded_at,
    }
    conn.execute(sa.insert(_TERMS).values(row))
    details = {
        "terms": None if terms is None else str(terms),
        "effective_from": instant_text(version.effective_from),
        "reason": reason,
    }
    at = version.recorded_at
    audit.record(conn, at=at, actor=actor, action="plan.terms", subject=version.plan_id, details=details)


def every(conn: sa.Connection) -> list[PlanTerms]:
    """Return all terms of all plans, oldest first."""
    rows = conn.execute(sa.select(_TERMS).order_by(_TERMS.c.id))
    return [PlanTerms(row.id, row.plan_id, _terms(row), row.effective_from, row.recorded_at) for row in rows]


def _terms(row: sa.Row[Any]) -> Terms | None:
    if row.per is None:
        return None
    tiers = tuple(Tier(above, discount_ppm) for above, discount_ppm in json.loads(row.tiers))
    return Terms(Per(row.per), row.included_tokens, Pico(row.included_pico), tiers)
