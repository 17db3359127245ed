"""What others ask for models, imported from their public files, to compare with our own prices."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.types import TypeEngine

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None

TEXT = sa.Text()
BIG: TypeEngine[int] = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
ID: TypeEngine[str] = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "market_prices",
        sa.Column("id", ID, nullable=False),
        sa.Column("source", TEXT, nullable=False),
        sa.Column("model", TEXT, nullable=False),
        sa.Column("input_pico", BIG, nullable=False),
        sa.Column("output_pico", BIG, nullable=False),
        sa.Column("cached_input_pico", BIG),
        sa.Column("reasoning_pico", BIG),
        sa.Column("request_pico", BIG, nullable=False),
        sa.Column("recorded_at", BIG, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_market_prices")),
        sa.CheckConstraint("source IN ('litellm', 'openrouter')", name=op.f("ck_market_prices_known_source")),
        sqlite_strict=True,
    )
