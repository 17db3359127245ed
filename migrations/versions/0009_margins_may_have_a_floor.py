"""The floor of a margin rule: the least margin of all that falls under its scope; none for the rules that there are.

Two columns that may be null, so that the previous release goes on writing rows here. The constraint is written in
place, since SQLite adds none to a table that exists.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.types import TypeEngine

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

BIG: TypeEngine[int] = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Add the columns."""
    op.execute(
        "ALTER TABLE margin_rules ADD COLUMN floor_kind TEXT"
        " CONSTRAINT ck_margin_rules_known_floor CHECK (floor_kind IN ('markup', 'margin'))"
    )
    op.add_column("margin_rules", sa.Column("floor_ppm", BIG))
