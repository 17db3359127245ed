"""Reconciliation with Stripe as rows: how often a batch was given a fresh identifier, and what each check found.

Expands only: two columns with a default on `meter_batches` and one that may be null on `customers`, so that the
previous release goes on writing rows here; it sends under the batch's own id, which is what `resend = 0` says. The
constraints on the new columns are written in place, since SQLite adds none to a table that exists.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.types import TypeEngine

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

TEXT = sa.Text()
INT = sa.Integer()
BIG: TypeEngine[int] = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
ID: TypeEngine[str] = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    """Add the columns, and make the four tables."""
    op.execute(
        "ALTER TABLE meter_batches ADD COLUMN resend INTEGER DEFAULT '0' NOT NULL"
        " CONSTRAINT ck_meter_batches_resends_counted CHECK (resend >= 0)"
    )
    op.execute(
        "ALTER TABLE meter_batches ADD COLUMN via TEXT DEFAULT 'v1' NOT NULL"
        " CONSTRAINT ck_meter_batches_known_way CHECK (via IN ('v1', 'stream'))"
    )
    op.add_column("customers", sa.Column("billed_until", BIG))
    op.create_index("ix_meter_batches_at_stripe", "meter_batches", ["stripe_customer_id", "timestamp_s"])
    create_repairs()
    create_checkpoints()
    create_invoice_checks()
    create_runs()


def create_repairs() -> None:
    """Each identifier that was given up or taken back, so that what arrives late under it is known."""
    op.create_table(
        "meter_repairs",
        sa.Column("id", ID, nullable=False),
        sa.Column("batch_id", ID, nullable=False),
        sa.Column("at", BIG, nullable=False),
        sa.Column("kind", TEXT, nullable=False),
        sa.Column("stripe_customer_id", ID, nullable=False),
        sa.Column("identifier", ID, nullable=False),
        sa.Column("units", BIG, nullable=False),
        sa.Column("timestamp_s", BIG, nullable=False),
        sa.Column("reason", TEXT, nullable=False),
        sa.Column("actor", TEXT, nullable=False),
        sa.Column("settled_at", BIG),
        sa.Column("refusal", TEXT),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_meter_repairs")),
        sa.ForeignKeyConstraint(["batch_id"], ["meter_batches.id"], name=op.f("fk_meter_repairs_batch_id")),
        sa.CheckConstraint("kind IN ('resend', 'report', 'cancel', 'carry')", name=op.f("ck_meter_repairs_known_kind")),
        sqlite_strict=True,
    )
    op.create_index(op.f("ix_meter_repairs_batch_id"), "meter_repairs", ["batch_id"])
    op.create_index("ix_meter_repairs_at_stripe", "meter_repairs", ["stripe_customer_id", "timestamp_s"])


def create_checkpoints() -> None:
    """What each customer's hour came to at the last check, and at the first."""
    op.create_table(
        "stripe_checkpoints",
        sa.Column("stripe_customer_id", ID, nullable=False),
        sa.Column("event_name", ID, nullable=False),
        sa.Column("hour_start", BIG, nullable=False),
        sa.Column("customer_id", ID, nullable=False),
        sa.Column("ledger_units", BIG, nullable=False),
        sa.Column("stripe_units", BIG, nullable=False),
        sa.Column("kind", TEXT, nullable=False),
        sa.Column("explanation", TEXT, nullable=False),
        sa.Column("is_explained", INT, nullable=False),
        sa.Column("first_checked_at", BIG, nullable=False),
        sa.Column("checked_at", BIG, nullable=False),
        sa.Column("checks", BIG, nullable=False),
        sa.Column("changed_from", TEXT),
        sa.PrimaryKeyConstraint("stripe_customer_id", "event_name", "hour_start", name=op.f("pk_stripe_checkpoints")),
        sa.ForeignKeyConstraint(["customer_id"], ["customers.id"], name=op.f("fk_stripe_checkpoints_customer_id")),
        sa.CheckConstraint("is_explained IN (0, 1)", name=op.f("ck_stripe_checkpoints_is_explained_or_not")),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )
    op.create_index(
        "ix_stripe_checkpoints_unexplained",
        "stripe_checkpoints",
        ["hour_start"],
        sqlite_where=sa.text("is_explained = 0"),
        postgresql_where=sa.text("is_explained = 0"),
    )


def create_invoice_checks() -> None:
    """What each finalized invoice bills of our meter, beside what the ledger sent for its period."""
    op.create_table(
        "invoice_checks",
        sa.Column("invoice_id", ID, nullable=False),
        sa.Column("period_start", BIG, nullable=False),
        sa.Column("period_end", BIG, nullable=False),
        sa.Column("customer_id", ID, nullable=False),
        sa.Column("finalized_at", BIG, nullable=False),
        sa.Column("invoiced_units", BIG, nullable=False),
        sa.Column("ledger_units", BIG, nullable=False),
        sa.Column("kind", TEXT, nullable=False),
        sa.Column("explanation", TEXT, nullable=False),
        sa.Column("is_explained", INT, nullable=False),
        sa.Column("checked_at", BIG, nullable=False),
        sa.PrimaryKeyConstraint("invoice_id", "period_start", name=op.f("pk_invoice_checks")),
        sa.ForeignKeyConstraint(["customer_id"], ["customers.id"], name=op.f("fk_invoice_checks_customer_id")),
        sa.CheckConstraint("is_explained IN (0, 1)", name=op.f("ck_invoice_checks_is_explained_or_not")),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )
    op.create_index(op.f("ix_invoice_checks_customer_id"), "invoice_checks", ["customer_id"])
    op.create_index(
        "ix_invoice_checks_unexplained",
        "invoice_checks",
        ["finalized_at"],
        sqlite_where=sa.text("is_explained = 0"),
        postgresql_where=sa.text("is_explained = 0"),
    )


def create_runs() -> None:
    """When the whole account was last compared, and what came of it."""
    op.create_table(
        "reconcile_runs",
        sa.Column("id", ID, nullable=False),
        sa.Column("started_at", BIG, nullable=False),
        sa.Column("finished_at", BIG, nullable=False),
        sa.Column("since", BIG, nullable=False),
        sa.Column("until", BIG, nullable=False),
        sa.Column("customers", BIG, nullable=False),
        sa.Column("unreadable", BIG, nullable=False),
        sa.Column("kinds", TEXT, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_reconcile_runs")),
        sqlite_strict=True,
    )
