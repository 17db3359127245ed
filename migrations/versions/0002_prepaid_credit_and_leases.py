"""Prepaid credit: what customers were given, the slices of it that workers hold, and which usage it paid for.

Expands only: two columns with a default on `usage_hourly` and one on `customers`, so that the previous release goes on
writing rows here; what it writes is postpaid usage, of which credit pays nothing. The constraint on the new column is
written in place, since SQLite adds none to a table that exists.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.types import TypeEngine

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

TEXT = sa.Text()
INT = sa.Integer()
BIG: TypeEngine[int] = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
ID: TypeEngine[str] = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    """Add the columns, and make the three tables."""
    op.execute(
        "ALTER TABLE customers ADD COLUMN is_prepaid INTEGER DEFAULT '0' NOT NULL"
        " CONSTRAINT ck_customers_is_prepaid_or_not CHECK (is_prepaid IN (0, 1))"
    )
    op.add_column("usage_hourly", sa.Column("credit_micro", BIG, nullable=False, server_default="0"))
    op.add_column("usage_hourly", sa.Column("credit_pico", BIG, nullable=False, server_default="0"))
    create_entries()
    create_leases()


def create_entries() -> None:
    """The history of each customer's credit; every entry keeps what its grants have left after it."""
    op.create_table(
        "credit_entries",
        sa.Column("id", ID, nullable=False),
        sa.Column("customer_id", ID, nullable=False),
        sa.Column("seq", BIG, nullable=False),
        sa.Column("at", BIG, nullable=False),
        sa.Column("kind", TEXT, nullable=False),
        sa.Column("grant_id", ID, nullable=False),
        sa.Column("amount_micro", BIG, nullable=False),
        sa.Column("amount_pico", BIG, nullable=False),
        sa.Column("left_micro", BIG, nullable=False),
        sa.Column("left_pico", BIG, nullable=False),
        sa.Column("currency", TEXT, nullable=False),
        sa.Column("priority", INT, nullable=False),
        sa.Column("expires_at", BIG),
        sa.Column("lease_id", ID),
        sa.Column("source", ID),
        sa.Column("reason", TEXT),
        sa.Column("grants", TEXT, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_credit_entries")),
        sa.CheckConstraint(
            "kind IN ('grant', 'topup', 'burn', 'expiry', 'refund', 'reversal', 'adjustment')",
            name=op.f("ck_credit_entries_known_kind"),
        ),
        sa.CheckConstraint("left_micro >= 0", name=op.f("ck_credit_entries_nothing_overspent")),
        sa.CheckConstraint(
            "amount_pico BETWEEN 0 AND 999999 AND left_pico BETWEEN 0 AND 999999",
            name=op.f("ck_credit_entries_pico_below_micro"),
        ),
        sa.ForeignKeyConstraint(["customer_id"], ["customers.id"], name=op.f("fk_credit_entries_customer_id")),
        sa.ForeignKeyConstraint(["grant_id"], ["credit_entries.id"], name=op.f("fk_credit_entries_grant_id")),
        sa.UniqueConstraint("customer_id", "seq", name=op.f("uq_credit_entries_customer_id_seq")),
        sa.UniqueConstraint("source", name=op.f("uq_credit_entries_source")),
        sqlite_strict=True,
    )


def create_leases() -> None:
    """What workers hold, and what each request was paid with."""
    op.create_table(
        "leases",
        sa.Column("id", ID, nullable=False),
        sa.Column("customer_id", ID, nullable=False),
        sa.Column("grant_id", ID, nullable=False),
        sa.Column("holder", TEXT, nullable=False),
        sa.Column("amount_pico", BIG, nullable=False),
        sa.Column("used_pico", BIG, nullable=False),
        sa.Column("taken_at", BIG, nullable=False),
        sa.Column("valid_until", BIG, nullable=False),
        sa.Column("recalled_at", BIG),
        sa.Column("answered_at", BIG),
        sa.Column("closed_at", BIG),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_leases")),
        sa.CheckConstraint("used_pico BETWEEN 0 AND amount_pico", name=op.f("ck_leases_nothing_overspent")),
        sa.ForeignKeyConstraint(["customer_id"], ["customers.id"], name=op.f("fk_leases_customer_id")),
        sa.ForeignKeyConstraint(["grant_id"], ["credit_entries.id"], name=op.f("fk_leases_grant_id")),
        sqlite_strict=True,
    )
    op.create_index(op.f("ix_leases_customer_id_closed_at"), "leases", ["customer_id", "closed_at"])
    op.create_index(
        op.f("ix_leases_open"),
        "leases",
        ["holder"],
        sqlite_where=sa.text("closed_at IS NULL"),
        postgresql_where=sa.text("closed_at IS NULL"),
    )
    op.create_table(
        "credit_charges",
        sa.Column("lease_id", ID, nullable=False),
        sa.Column("event_id", ID, nullable=False),
        sa.Column("at", BIG, nullable=False),
        sa.Column("amount_pico", BIG, nullable=False),
        sa.PrimaryKeyConstraint("lease_id", "event_id", name=op.f("pk_credit_charges")),
        sa.CheckConstraint("amount_pico >= 0", name=op.f("ck_credit_charges_not_negative")),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )
