"""Own hardware: machines, tariffs, measured power; and how long each upstream worked for each request.

Expands only: the columns of events have a default, so that the previous release goes on writing there. What it records
has no times and no row of `upstream_hourly`, as what was recorded before: nobody measured it.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.types import TypeEngine

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

TEXT = sa.Text()
INT = sa.Integer()
BIG: TypeEngine[int] = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
ID: TypeEngine[str] = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
SUMS = (
    *("requests", "input_tokens", "cached_input_tokens", "output_tokens"),
    *("prompt_us", "generation_us", "cost_micro", "cost_pico"),
)


def upgrade() -> None:
    """Add the columns, and make the tables."""
    for name in ("prompt_us", "generation_us"):
        op.add_column("usage_events", sa.Column(name, BIG, nullable=False, server_default="0"))
    op.create_table(
        "upstream_hourly",
        sa.Column("hour", BIG, nullable=False),
        sa.Column("upstream", TEXT, nullable=False),
        sa.Column("model", TEXT, nullable=False),
        sa.Column("shard", INT, nullable=False),
        *(sa.Column(name, BIG, nullable=False) for name in SUMS),
        sa.PrimaryKeyConstraint("hour", "upstream", "model", "shard", name=op.f("pk_upstream_hourly")),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )
    create_machines()
    create_power()


def create_machines() -> None:
    """The versions of every machine."""
    op.create_table(
        "machines",
        sa.Column("id", ID, nullable=False),
        sa.Column("name", TEXT, nullable=False),
        sa.Column("capital", TEXT, nullable=False),
        sa.Column("amount_pico", BIG, nullable=False),
        sa.Column("life_hours", BIG, nullable=False),
        sa.Column("bought_at", BIG, nullable=False),
        sa.Column("idle_milliwatt", BIG, nullable=False),
        sa.Column("busy_milliwatt", BIG, nullable=False),
        sa.Column("upstreams", TEXT, nullable=False),
        sa.Column("is_removed", INT, nullable=False),
        sa.Column("effective_from", BIG, nullable=False),
        sa.Column("recorded_at", BIG, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_machines")),
        sa.CheckConstraint("capital IN ('owned', 'rented')", name=op.f("ck_machines_known_capital")),
        sa.CheckConstraint(
            "amount_pico >= 0 AND idle_milliwatt >= 0 AND busy_milliwatt >= 0", name=op.f("ck_machines_not_negative")
        ),
        sa.CheckConstraint("capital = 'rented' OR life_hours > 0", name=op.f("ck_machines_lives")),
        sa.CheckConstraint("is_removed IN (0, 1)", name=op.f("ck_machines_is_removed_or_not")),
        sqlite_strict=True,
    )


def create_power() -> None:
    """What power costs by the hour of the day, and what was measured."""
    op.create_table(
        "power_tariffs",
        sa.Column("id", ID, nullable=False),
        sa.Column("machine", TEXT),
        sa.Column("prices", TEXT, nullable=False),
        sa.Column("effective_from", BIG, nullable=False),
        sa.Column("recorded_at", BIG, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_power_tariffs")),
        sqlite_strict=True,
    )
    op.create_table(
        "power_samples",
        sa.Column("machine", TEXT, nullable=False),
        sa.Column("at", BIG, nullable=False),
        sa.Column("milliwatt", BIG, nullable=False),
        sa.PrimaryKeyConstraint("machine", "at", name=op.f("pk_power_samples")),
        sa.CheckConstraint("milliwatt >= 0", name=op.f("ck_power_samples_not_negative")),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )
