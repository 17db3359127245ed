"""The tables of plans' terms (dated versions, never changed), and of how far each period of a customer is settled.

`plan_counts` holds nothing that the events do not say: it remembers where the last settlement of a period ended, so
that the next one reads what came since. `corrections` grows with each correction of an event of the period; while it
differs from `corrections_settled`, the period has to be walked through again.
"""

from sqlalchemy import CheckConstraint, Column, ForeignKey, Table, Text

from billing.ledger.columns import BIG, ID, metadata

plan_terms = Table(
    "plan_terms",
    metadata,
    Column("id", ID, primary_key=True),
    Column("plan_id", ID, ForeignKey("plans.id"), nullable=False),
    Column("per", Text),
    Column("included_tokens", BIG, nullable=False),
    Column("included_pico", BIG, nullable=False),
    Column("tiers", Text, nullable=False),
    Column("effective_from", BIG, nullable=False),
    Column("recorded_at", BIG, nullable=False),
    CheckConstraint("per IN ('day', 'month')", name="known_period"),
    CheckConstraint("included_tokens >= 0 AND included_pico >= 0", name="not_negative"),
    sqlite_strict=True,
)

plan_counts = Table(
    "plan_counts",
    metadata,
    Column("customer_id", ID, ForeignKey("customers.id"), primary_key=True),
    Column("per", Text, primary_key=True),
    Column("period_start", BIG, primary_key=True, autoincrement=False),
    Column("period_end", BIG, nullable=False),
    Column("tokens", BIG, nullable=False),
    Column("covered_pico", BIG, nullable=False),
    Column("requests", BIG, nullable=False),
    Column("until_at", BIG, nullable=False),
    Column("until_id", ID, nullable=False),
    Column("corrections", BIG, nullable=False),
    Column("corrections_settled", BIG, nullable=False),
    CheckConstraint("tokens >= 0 AND covered_pico >= 0 AND requests >= 0", name="counts_not_negative"),
    sqlite_strict=True,
)
