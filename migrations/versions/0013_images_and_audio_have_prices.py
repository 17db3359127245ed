"""Tokens of images and audio apart in events and rollups, and their rates in costs and quotes.

Counts begin at 0, for nothing was known of them. Rates may be null, which stands for what input costs: so the rows
of costs and quotes stay as they were written, and the previous release goes on writing here.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.types import TypeEngine

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

BIG: TypeEngine[int] = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
UNITS = ("image_input", "audio_input")


def upgrade() -> None:
    """Add the columns."""
    for table in ("usage_events", "usage_hourly"):
        for unit in UNITS:
            op.add_column(table, sa.Column(f"{unit}_tokens", BIG, nullable=False, server_default="0"))
    for table, prefixes in (("cost_rates", ("",)), ("price_quotes", ("cost_", ""))):
        for prefix in prefixes:
            for unit in UNITS:
                op.add_column(table, sa.Column(f"{prefix}{unit}_pico", BIG))
