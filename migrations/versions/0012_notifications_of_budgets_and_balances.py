"""The outbox of webhooks to the operator: thresholds of budgets, low balances. A new table; nothing else changes."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.types import TypeEngine

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

BIG: TypeEngine[int] = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
ID: TypeEngine[str] = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "notifications",
        sa.Column("id", ID, nullable=False),
        sa.Column("once", ID, nullable=False),
        sa.Column("customer_id", ID, nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("attempts", BIG, nullable=False),
        sa.Column("created_at", BIG, nullable=False),
        sa.Column("next_attempt_at", BIG, nullable=False),
        sa.Column("settled_at", BIG),
        sa.Column("last_answer", sa.Text()),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_notifications")),
        sa.CheckConstraint("state IN ('pending', 'delivered', 'failed')", name=op.f("ck_notifications_known_state")),
        sa.ForeignKeyConstraint(["customer_id"], ["customers.id"], name=op.f("fk_notifications_customer_id")),
        sa.UniqueConstraint("once", name=op.f("uq_notifications_once")),
        sqlite_strict=True,
    )
    op.create_index(op.f("ix_notifications_state"), "notifications", ["state", "next_attempt_at"])
