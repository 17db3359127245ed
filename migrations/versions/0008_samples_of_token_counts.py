"""What recounting a sample of live traffic found, and a way to the events whose usage could not be true.

Expands only: a table of its own and an index on the few events with an anomaly, which costs the others nothing. The
index is made in place: PostgreSQL makes none concurrently on a partitioned table.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.types import TypeEngine

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

TEXT = sa.Text()
BIG: TypeEngine[int] = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
SUMS = ("samples", "reported", "counted", "slack", "over", "under", "worst_over", "worst_under")


def upgrade() -> None:
    """Make the table and the index."""
    op.create_table(
        "token_audits",
        sa.Column("day", BIG, nullable=False),
        sa.Column("model", TEXT, nullable=False),
        sa.Column("upstream", TEXT, nullable=False),
        sa.Column("kind", TEXT, nullable=False),
        sa.Column("version", TEXT, nullable=False),
        *(sa.Column(f"{side}_{name}", BIG, nullable=False) for side in ("input", "output") for name in SUMS),
        sa.PrimaryKeyConstraint("day", "model", "upstream", "kind", "version", name=op.f("pk_token_audits")),
        sqlite_strict=True,
    )
    op.create_index(
        op.f("ix_usage_events_anomaly"),
        "usage_events",
        ["finished_at"],
        sqlite_where=sa.text("anomaly IS NOT NULL"),
        postgresql_where=sa.text("anomaly IS NOT NULL"),
    )
