"""Streams in flight: what a crash would leave unbilled, and which worker it is that must be gone before it is billed.

Two tables of their own, so that the previous release runs on as it did: its streams leave no checkpoints.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.types import TypeEngine

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

TEXT = sa.Text()
BIG: TypeEngine[int] = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
ID: TypeEngine[str] = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    """Make both tables."""
    op.create_table(
        "workers",
        sa.Column("id", ID, nullable=False),
        sa.Column("host", TEXT, nullable=False),
        sa.Column("started_at", BIG, nullable=False),
        sa.Column("seen_at", BIG, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_workers")),
        sqlite_strict=True,
    )
    op.create_table(
        "inflight",
        sa.Column("id", ID, nullable=False),
        sa.Column("worker_id", ID, nullable=False),
        sa.Column("customer_id", ID, nullable=False),
        sa.Column("checkpointed_at", BIG, nullable=False),
        sa.Column("input_tokens", BIG, nullable=False),
        sa.Column("output_tokens", BIG, nullable=False),
        sa.Column("amount_pico", BIG, nullable=False),
        sa.Column("due", TEXT, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_inflight")),
        sa.CheckConstraint(
            "input_tokens >= 0 AND output_tokens >= 0 AND amount_pico >= 0", name=op.f("ck_inflight_not_negative")
        ),
        sa.ForeignKeyConstraint(["worker_id"], ["workers.id"], name=op.f("fk_inflight_worker_id")),
        sqlite_strict=True,
    )
    op.create_index(op.f("ix_inflight_worker_id"), "inflight", ["worker_id"])
