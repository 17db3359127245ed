"""Corrections of events: which event an adjustment corrects, as the how-manieth, by which command, and why.

A table of its own rather than an index on `usage_events.adjusts`: the gateway, which writes an event per request, pays
nothing for it. It is filled with the write-offs of prepaid credit, the only adjustments that there were.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.types import TypeEngine

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

TEXT = sa.Text()
BIG: TypeEngine[int] = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
ID: TypeEngine[str] = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")

FILL = (
    "INSERT INTO adjustments (event_id, adjusts, seq, run_key, change, reason, actor, at, credit_pico)"
    " SELECT id, adjusts, row_number() OVER (PARTITION BY adjusts ORDER BY id), id, 'uncovered',"
    " 'no credit was left for it', 'gateway', finished_at, 0 FROM usage_events WHERE adjusts IS NOT NULL"
)


def upgrade() -> None:
    """Make the table, and name what the adjustments up to now correct."""
    op.create_table(
        "adjustments",
        sa.Column("event_id", ID, nullable=False),
        sa.Column("adjusts", ID, nullable=False),
        sa.Column("seq", BIG, nullable=False),
        sa.Column("run_key", ID, nullable=False),
        sa.Column("change", TEXT, nullable=False),
        sa.Column("reason", TEXT, nullable=False),
        sa.Column("actor", TEXT, nullable=False),
        sa.Column("at", BIG, nullable=False),
        sa.Column("credit_pico", BIG, nullable=False),
        sa.PrimaryKeyConstraint("event_id", name=op.f("pk_adjustments")),
        sa.UniqueConstraint("adjusts", "seq", name=op.f("uq_adjustments_adjusts_seq")),
        sa.UniqueConstraint("run_key", "adjusts", name=op.f("uq_adjustments_run_key_adjusts")),
        sa.CheckConstraint("credit_pico <= 0", name=op.f("ck_adjustments_credit_given_back")),
        sqlite_strict=True,
    )
    op.execute(FILL)
