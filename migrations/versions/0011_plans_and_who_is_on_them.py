"""Plans, dated assignments of customers to them, and margin rules for a plan.

The column may be null, so that the previous release goes on writing rules here. It has no foreign key: SQLite adds none
by name to a table that exists, and plans are never deleted.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.types import TypeEngine

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

TEXT = sa.Text()
BIG: TypeEngine[int] = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
ID: TypeEngine[str] = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    """Make the tables, and add the column."""
    op.create_table(
        "plans",
        sa.Column("id", ID, nullable=False),
        sa.Column("name", TEXT, nullable=False),
        sa.Column("created_at", BIG, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_plans")),
        sa.UniqueConstraint("name", name=op.f("uq_plans_name")),
        sqlite_strict=True,
    )
    op.create_table(
        "plan_assignments",
        sa.Column("id", ID, nullable=False),
        sa.Column("customer_id", ID, nullable=False),
        sa.Column("plan_id", ID),
        sa.Column("effective_from", BIG, nullable=False),
        sa.Column("recorded_at", BIG, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_plan_assignments")),
        sa.ForeignKeyConstraint(["customer_id"], ["customers.id"], name=op.f("fk_plan_assignments_customer_id")),
        sa.ForeignKeyConstraint(["plan_id"], ["plans.id"], name=op.f("fk_plan_assignments_plan_id")),
        sqlite_strict=True,
    )
    op.create_index(op.f("ix_plan_assignments_customer_id"), "plan_assignments", ["customer_id"])
    op.add_column("margin_rules", sa.Column("plan_id", ID))
