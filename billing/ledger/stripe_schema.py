"""The tables of tokens mode: meters of tokens, their prices, which of them bill a customer; and facts of the ledger.

`billing/ledger/schema.py` names them with all others.
"""

from sqlalchemy import CheckConstraint, Column, ForeignKey, Table, Text, UniqueConstraint

from billing.ledger.columns import BIG, ID, metadata

stripe_meters = Table(
    "stripe_meters",
    metadata,
    Column("event_name", ID, primary_key=True),
    Column("model", Text, nullable=False),
    Column("token_type", Text, nullable=False),
    Column("number", BIG, nullable=False),
    Column("meter_id", ID, nullable=False),
    Column("product_id", ID, nullable=False),
    Column("recorded_at", BIG, nullable=False),
    UniqueConstraint("model", "token_type", "number"),
    CheckConstraint("number >= 1", name="counted_from_one"),
    sqlite_strict=True,
)

stripe_prices = Table(
    "stripe_prices",
    metadata,
    Column("event_name", ID, primary_key=True),
    Column("unit_pico", BIG, primary_key=True, autoincrement=False),
    Column("currency", ID, primary_key=True),
    Column("price_id", ID, nullable=False, unique=True),
    Column("recorded_at", BIG, nullable=False),
    CheckConstraint("unit_pico > 0", name="unit_has_a_price"),
    sqlite_strict=True,
)

stripe_lanes = Table(
    "stripe_lanes",
    metadata,
    Column("customer_id", ID, ForeignKey("customers.id"), primary_key=True),
    Column("event_name", ID, primary_key=True),
    Column("model", Text, nullable=False),
    Column("token_type", Text, nullable=False),
    Column("unit_pico", BIG, nullable=False),
    Column("number", BIG, nullable=False),
    Column("created_at", BIG, nullable=False),
    Column("subscription_id", ID),
    Column("opens_s", BIG),
    UniqueConstraint("customer_id", "model", "token_type", "unit_pico"),
    CheckConstraint("unit_pico > 0", name="unit_has_a_price"),
    sqlite_strict=True,
)

ledger_facts = Table(
    "ledger_facts",
    metadata,
    Column("name", ID, primary_key=True),
    Column("value", Text, nullable=False),
    Column("recorded_at", BIG, nullable=False),
    sqlite_strict=True,
)
