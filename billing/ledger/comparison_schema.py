"""The tables of the comparison with Stripe: identifiers that were given up, hours, invoices, runs.

`billing/ledger/schema.py` names them with all others.
"""

from sqlalchemy import CheckConstraint, Column, ForeignKey, Index, Integer, Table, Text, text

from billing.ledger.columns import BIG, ID, metadata

meter_repairs = Table(
    "meter_repairs",
    metadata,
    Column("id", ID, primary_key=True),
    Column("batch_id", ID, ForeignKey("meter_batches.id"), nullable=False, index=True),
    Column("at", BIG, nullable=False),
    Column("kind", Text, nullable=False),
    Column("stripe_customer_id", ID, nullable=False),
    Column("identifier", ID, nullable=False),
    Column("units", BIG, nullable=False),
    Column("timestamp_s", BIG, nullable=False),
    Column("reason", Text, nullable=False),
    Column("actor", Text, nullable=False),
    Column("settled_at", BIG),
    Column("refusal", Text),
    CheckConstraint("kind IN ('resend', 'report', 'cancel', 'carry')", name="known_kind"),
    Index("ix_meter_repairs_at_stripe", "stripe_customer_id", "timestamp_s"),
    sqlite_strict=True,
)

stripe_checkpoints = Table(
    "stripe_checkpoints",
    metadata,
    Column("stripe_customer_id", ID, primary_key=True),
    Column("event_name", ID, primary_key=True),
    Column("hour_start", BIG, primary_key=True),
    Column("customer_id", ID, ForeignKey("customers.id"), nullable=False),
    Column("ledger_units", BIG, nullable=False),
    Column("stripe_units", BIG, nullable=False),
    Column("kind", Text, nullable=False),
    Column("explanation", Text, nullable=False),
    Column("is_explained", Integer, nullable=False),
    Column("first_checked_at", BIG, nullable=False),
    Column("checked_at", BIG, nullable=False),
    Column("checks", BIG, nullable=False),
    Column("changed_from", Text),
    CheckConstraint("is_explained IN (0, 1)", name="is_explained_or_not"),
    Index(
        "ix_stripe_checkpoints_unexplained",
        "hour_start",
        sqlite_where=text("is_explained = 0"),
        postgresql_where=text("is_explained = 0"),
    ),
    sqlite_strict=True,
    sqlite_with_rowid=False,
)

invoice_checks = Table(
    "invoice_checks",
    metadata,
    Column("invoice_id", ID, primary_key=True),
    Column("period_start", BIG, primary_key=True),
    Column("period_end", BIG, nullable=False),
    Column("customer_id", ID, ForeignKey("customers.id"), nullable=False, index=True),
    Column("finalized_at", BIG, nullable=False),
    Column("invoiced_units", BIG, nullable=False),
    Column("ledger_units", BIG, nullable=False),
    Column("kind", Text, nullable=False),
    Column("explanation", Text, nullable=False),
    Column("is_explained", Integer, nullable=False),
    Column("checked_at", BIG, nullable=False),
    CheckConstraint("is_explained IN (0, 1)", name="is_explained_or_not"),
    Index(
        "ix_invoice_checks_unexplained",
        "finalized_at",
        sqlite_where=text("is_explained = 0"),
        postgresql_where=text("is_explained = 0"),
    ),
    sqlite_strict=True,
    sqlite_with_rowid=False,
)

reconcile_runs = Table(
    "reconcile_runs",
    metadata,
    Column("id", ID, primary_key=True),
    Column("started_at", BIG, nullable=False),
    Column("finished_at", BIG, nullable=False),
    Column("since", BIG, nullable=False),
    Column("until", BIG, nullable=False),
    Column("customers", BIG, nullable=False),
    Column("unreadable", BIG, nullable=False),
    Column("kinds", Text, nullable=False),
    sqlite_strict=True,
)
