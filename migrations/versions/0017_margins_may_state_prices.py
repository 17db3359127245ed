"""Fixed prices and minimums of a margin rule, per unit in picounits; none for the rules that there are.

Columns that may be null, so that the previous release goes on writing rows here (it prices by the margin alone).
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.types import TypeEngine

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None

BIG: TypeEngine[int] = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
UNITS = ("input", "cached_input", "output", "reasoning", "request", "image_input", "audio_input")


def upgrade() -> None:
    """Add the columns."""
    for name in ("fixed", "minimum"):
        for unit in UNITS:
            op.add_column("margin_rules", sa.Column(f"{name}_{unit}_pico", BIG))
