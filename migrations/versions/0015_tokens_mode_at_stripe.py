"""Tokens mode: what is assigned in tokens, meters and prices of tokens, the unit of a batch; and facts of the ledger.

Expands only. Rollup rows of before name no quote, so they go to Stripe as amounts, in either mode; the columns of what
is assigned count from here on. A batch of before is in millionths, which is the default. The previous release goes on
writing rows here: it leaves the new columns at their defaults. The ledger's currency is read from its quotes, if all
of them name the same.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.types import TypeEngine

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

BIG: TypeEngine[int] = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
ID: TypeEngine[str] = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
COUNTS = (
    *("requests", "input_tokens", "cached_input_tokens", "output_tokens", "reasoning_tokens"),
    *("image_input_tokens", "audio_input_tokens"),
)


def upgrade() -> None:
    """Add the columns, and make the four tables."""
    op.add_column("usage_hourly", sa.Column("price_ref", ID))
    for name in COUNTS:
        op.add_column("usage_hourly", sa.Column(f"assigned_{name}", BIG, nullable=False, server_default="0"))
    big = "INTEGER" if op.get_bind().dialect.name == "sqlite" else "BIGINT"
    op.execute(
        f"ALTER TABLE meter_batches ADD COLUMN unit_pico {big} DEFAULT '1000000' NOT NULL"
        " CONSTRAINT ck_meter_batches_unit_has_a_price CHECK (unit_pico > 0)"
    )
    create_meters()
    create_lanes()
    create_facts()


def create_meters() -> None:
    """Each meter of a model's tokens, and its prices."""
    op.create_table(
        "stripe_meters",
        sa.Column("event_name", ID, nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("token_type", sa.Text(), nullable=False),
        sa.Column("number", BIG, nullable=False),
        sa.Column("meter_id", ID, nullable=False),
        sa.Column("product_id", ID, nullable=False),
        sa.Column("recorded_at", BIG, nullable=False),
        sa.PrimaryKeyConstraint("event_name", name=op.f("pk_stripe_meters")),
        sa.UniqueConstraint("model", "token_type", "number", name=op.f("uq_stripe_meters_model_token_type_number")),
        sa.CheckConstraint("number >= 1", name=op.f("ck_stripe_meters_counted_from_one")),
        sqlite_strict=True,
    )
    op.create_table(
        "stripe_prices",
        sa.Column("event_name", ID, nullable=False),
        sa.Column("unit_pico", BIG, nullable=False, autoincrement=False),
        sa.Column("currency", ID, nullable=False),
        sa.Column("price_id", ID, nullable=False),
        sa.Column("recorded_at", BIG, nullable=False),
        sa.PrimaryKeyConstraint("event_name", "unit_pico", "currency", name=op.f("pk_stripe_prices")),
        sa.UniqueConstraint("price_id", name=op.f("uq_stripe_prices_price_id")),
        sa.CheckConstraint("unit_pico > 0", name=op.f("ck_stripe_prices_unit_has_a_price")),
        sqlite_strict=True,
    )


def create_lanes() -> None:
    """Which meter counts a customer's tokens at which price, and since when its subscription bills it."""
    op.create_table(
        "stripe_lanes",
        sa.Column("customer_id", ID, nullable=False),
        sa.Column("event_name", ID, nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("token_type", sa.Text(), nullable=False),
        sa.Column("unit_pico", BIG, nullable=False),
        sa.Column("number", BIG, nullable=False),
        sa.Column("created_at", BIG, nullable=False),
        sa.Column("subscription_id", ID),
        sa.Column("opens_s", BIG),
        sa.PrimaryKeyConstraint("customer_id", "event_name", name=op.f("pk_stripe_lanes")),
        sa.ForeignKeyConstraint(["customer_id"], ["customers.id"], name=op.f("fk_stripe_lanes_customer_id")),
        sa.UniqueConstraint(
            "customer_id",
            "model",
            "token_type",
            "unit_pico",
            name=op.f("uq_stripe_lanes_customer_id_model_token_type_unit_pico"),
        ),
        sa.CheckConstraint("unit_pico > 0", name=op.f("ck_stripe_lanes_unit_has_a_price")),
        sqlite_strict=True,
    )


def create_facts() -> None:
    """What is true of the whole ledger: the currency of its rates."""
    op.create_table(
        "ledger_facts",
        sa.Column("name", ID, nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.Column("recorded_at", BIG, nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_ledger_facts")),
        sqlite_strict=True,
    )
    op.execute(
        "INSERT INTO ledger_facts (name, value, recorded_at)"
        " SELECT 'currency', min(currency), 0 FROM price_quotes HAVING count(DISTINCT currency) = 1"
    )
