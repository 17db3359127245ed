"""What a plan includes and its volume tiers, dated; and how far each customer's periods are settled under such terms.

`plan_counts` can be made anew from the events: it only remembers where the last settlement ended.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.types import TypeEngine

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None

TEXT = sa.Text()
BIG: TypeEngine[int] = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
ID: TypeEngine[str] = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "plan_terms",
        sa.Column("id", ID, nullable=False),
        sa.Column("plan_id", ID, nullable=False),
        sa.Column("per", TEXT),
        *(sa.Column(name, BIG, nullable=False) for name in ("included_tokens", "included_pico")),
        sa.Column("tiers", TEXT, nullable=False),
        *(sa.Column(name, BIG, nullable=False) for name in ("effective_from", "recorded_at")),
        sa.CheckConstraint("per IN ('day', 'month')", name=op.f("ck_plan_terms_known_period")),
        sa.CheckConstraint("included_tokens >= 0 AND included_pico >= 0", name=op.f("ck_plan_terms_not_negative")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_plan_terms")),
        sa.ForeignKeyConstraint(["plan_id"], ["plans.id"], name=op.f("fk_plan_terms_plan_id")),
        sqlite_strict=True,
    )
    op.create_table(
        "plan_counts",
        sa.Column("customer_id", ID, nullable=False),
        sa.Column("per", TEXT, nullable=False),
        sa.Column("period_start", BIG, nullable=False, autoincrement=False),
        *(sa.Column(name, BIG, nullable=False) for name in ("period_end", "tokens", "covered_pico", "requests")),
        sa.Column("until_at", BIG, nullable=False),
        sa.Column("until_id", ID, nullable=False),
        *(sa.Column(name, BIG, nullable=False) for name in ("corrections", "corrections_settled")),
        sa.CheckConstraint(
            "tokens >= 0 AND covered_pico >= 0 AND requests >= 0", name=op.f("ck_plan_counts_counts_not_negative")
        ),
        sa.PrimaryKeyConstraint("customer_id", "per", "period_start", name=op.f("pk_plan_counts")),
        sa.ForeignKeyConstraint(["customer_id"], ["customers.id"], name=op.f("fk_plan_counts_customer_id")),
        sqlite_strict=True,
    )
