"""The ledger: accounts, dated prices, usage and its hourly sums, the outbox to Stripe and the inbox from it.

Written out and not derived from `billing/ledger/schema.py`, because a revision never changes once it was
released while the schema does. SQLite's tables are STRICT, so that nothing but integers gets into a column of
money, and the two tables of usage are WITHOUT ROWID: they are read by key, and one tree is written, not two.

On PostgreSQL usage_events is partitioned by month over its id (UUIDv7 text begins with the milliseconds).
Here only the DEFAULT partition is made; the months follow from the clock, so `billing/ledger/partitions.py`
makes them, in the same transaction, and every month from then on.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.types import TypeEngine

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

TEXT = sa.Text()
INT = sa.Integer()
BIG: TypeEngine[int] = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
ID: TypeEngine[str] = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
UNASSIGNED = "CASE WHEN amount_micro <> assigned_micro OR amount_pico <> assigned_pico THEN 1 ELSE 0 END"


def upgrade() -> None:
    """Make every table, and the one row that must exist."""
    create_accounts()
    create_pricing()
    create_usage()
    create_stripe()
    op.execute("INSERT INTO directory_epoch (id, epoch) VALUES (1, 1)")
    if op.get_bind().dialect.name == "postgresql":
        op.execute("CREATE TABLE usage_events_default PARTITION OF usage_events DEFAULT")


def create_accounts() -> None:
    """Customers, why they are suspended, their keys; the epoch that tells gateways; who changed what."""
    op.create_table(
        "directory_epoch",
        sa.Column("id", INT, nullable=False, autoincrement=False),
        sa.Column("epoch", BIG, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_directory_epoch")),
        sa.CheckConstraint("id = 1", name=op.f("ck_directory_epoch_one_row")),
        sqlite_strict=True,
    )
    op.create_table(
        "customers",
        sa.Column("id", ID, nullable=False),
        sa.Column("name", TEXT, nullable=False),
        sa.Column("email", TEXT),
        sa.Column("created_at", BIG, nullable=False),
        sa.Column("deleted_at", BIG),
        sa.Column("stripe_customer_id", ID),
        sa.Column("stripe_subscription_id", ID),
        sa.Column("stripe_subscription_status", TEXT),
        sa.Column("period_start", BIG),
        sa.Column("period_end", BIG),
        sa.Column("past_due_since", BIG),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_customers")),
        sa.UniqueConstraint("name", name=op.f("uq_customers_name")),
        sa.UniqueConstraint("stripe_customer_id", name=op.f("uq_customers_stripe_customer_id")),
        sqlite_strict=True,
    )
    op.create_table(
        "suspensions",
        sa.Column("customer_id", ID, nullable=False),
        sa.Column("cause", TEXT, nullable=False),
        sa.Column("reason", TEXT, nullable=False),
        sa.Column("since", BIG, nullable=False),
        sa.PrimaryKeyConstraint("customer_id", "cause", name=op.f("pk_suspensions")),
        sa.CheckConstraint("cause IN ('manual', 'unpaid', 'stripe_deleted')", name=op.f("ck_suspensions_known_cause")),
        sa.ForeignKeyConstraint(["customer_id"], ["customers.id"], name=op.f("fk_suspensions_customer_id")),
        sqlite_strict=True,
    )
    op.create_table(
        "api_keys",
        sa.Column("id", ID, nullable=False),
        sa.Column("customer_id", ID, nullable=False),
        sa.Column("name", TEXT, nullable=False),
        sa.Column("secret_sha256", ID, nullable=False),
        sa.Column("hint", TEXT, nullable=False),
        sa.Column("models", TEXT),
        sa.Column("rpm", BIG, nullable=False),
        sa.Column("tpm", BIG, nullable=False),
        sa.Column("concurrency", BIG, nullable=False),
        sa.Column("created_at", BIG, nullable=False),
        sa.Column("expires_at", BIG),
        sa.Column("revoked_at", BIG),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_api_keys")),
        sa.CheckConstraint("rpm >= 0 AND tpm >= 0 AND concurrency >= 0", name=op.f("ck_api_keys_limits_not_negative")),
        sa.ForeignKeyConstraint(["customer_id"], ["customers.id"], name=op.f("fk_api_keys_customer_id")),
        sa.UniqueConstraint("secret_sha256", name=op.f("uq_api_keys_secret_sha256")),
        sqlite_strict=True,
    )
    op.create_index(op.f("ix_api_keys_customer_id"), "api_keys", ["customer_id"])
    op.create_table(
        "audit_log",
        sa.Column("id", ID, nullable=False),
        sa.Column("at", BIG, nullable=False),
        sa.Column("actor", TEXT, nullable=False),
        sa.Column("action", TEXT, nullable=False),
        sa.Column("subject", TEXT, nullable=False),
        sa.Column("details", TEXT, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit_log")),
        sqlite_strict=True,
    )


def create_pricing() -> None:
    """Dated costs and margins, and the quotes that events were priced with."""
    op.create_table(
        "cost_rates",
        sa.Column("id", ID, nullable=False),
        sa.Column("model", TEXT, nullable=False),
        sa.Column("input_pico", BIG, nullable=False),
        sa.Column("cached_input_pico", BIG),
        sa.Column("output_pico", BIG, nullable=False),
        sa.Column("reasoning_pico", BIG),
        sa.Column("request_pico", BIG, nullable=False),
        sa.Column("effective_from", BIG, nullable=False),
        sa.Column("recorded_at", BIG, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_cost_rates")),
        sa.CheckConstraint(
            "input_pico >= 0 AND output_pico >= 0 AND request_pico >= 0",
            name=op.f("ck_cost_rates_not_negative"),
        ),
        sqlite_strict=True,
    )
    op.create_index(op.f("ix_cost_rates_model_effective_from"), "cost_rates", ["model", "effective_from"])
    op.create_table(
        "margin_rules",
        sa.Column("id", ID, nullable=False),
        sa.Column("model", TEXT),
        sa.Column("customer_id", ID),
        sa.Column("kind", TEXT, nullable=False),
        sa.Column("share_ppm", BIG, nullable=False),
        sa.Column("allow_loss", INT, nullable=False),
        sa.Column("effective_from", BIG, nullable=False),
        sa.Column("recorded_at", BIG, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_margin_rules")),
        sa.CheckConstraint("kind IN ('markup', 'margin', 'none')", name=op.f("ck_margin_rules_known_kind")),
        sa.ForeignKeyConstraint(["customer_id"], ["customers.id"], name=op.f("fk_margin_rules_customer_id")),
        sqlite_strict=True,
    )
    op.create_table(
        "price_quotes",
        sa.Column("ref", ID, nullable=False),
        sa.Column("model", TEXT, nullable=False),
        sa.Column("cost_rate_id", ID, nullable=False),
        sa.Column("margin_rule_id", ID),
        sa.Column("margin", TEXT, nullable=False),
        sa.Column("currency", TEXT, nullable=False),
        sa.Column("cost_input_pico", BIG, nullable=False),
        sa.Column("cost_cached_input_pico", BIG, nullable=False),
        sa.Column("cost_output_pico", BIG, nullable=False),
        sa.Column("cost_reasoning_pico", BIG, nullable=False),
        sa.Column("cost_request_pico", BIG, nullable=False),
        sa.Column("input_pico", BIG, nullable=False),
        sa.Column("cached_input_pico", BIG, nullable=False),
        sa.Column("output_pico", BIG, nullable=False),
        sa.Column("reasoning_pico", BIG, nullable=False),
        sa.Column("request_pico", BIG, nullable=False),
        sa.PrimaryKeyConstraint("ref", name=op.f("pk_price_quotes")),
        sqlite_strict=True,
    )


def create_usage() -> None:
    """One row per request, and its sums per hour."""
    op.create_table(
        "usage_events",
        sa.Column("id", ID, nullable=False),
        sa.Column("customer_id", ID, nullable=False),
        sa.Column("api_key_id", ID, nullable=False),
        sa.Column("model", TEXT, nullable=False),
        sa.Column("upstream", TEXT, nullable=False),
        sa.Column("upstream_model", TEXT, nullable=False),
        sa.Column("endpoint", TEXT, nullable=False),
        sa.Column("started_at", BIG, nullable=False),
        sa.Column("first_token_at", BIG),
        sa.Column("finished_at", BIG, nullable=False),
        sa.Column("outcome", TEXT, nullable=False),
        sa.Column("http_status", INT, nullable=False),
        sa.Column("count_source", TEXT, nullable=False),
        sa.Column("input_tokens", BIG, nullable=False),
        sa.Column("cached_input_tokens", BIG, nullable=False),
        sa.Column("output_tokens", BIG, nullable=False),
        sa.Column("reasoning_tokens", BIG, nullable=False),
        sa.Column("cost_pico", BIG, nullable=False),
        sa.Column("amount_pico", BIG, nullable=False),
        sa.Column("price_ref", ID, nullable=False),
        sa.Column("window_start", BIG, nullable=False),
        sa.Column("anomaly", TEXT),
        sa.Column("adjusts", ID),
        sa.Column("tags", TEXT),
        sa.Column("shard", INT, nullable=False),
        sa.Column("window_seq", BIG, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_usage_events")),
        sqlite_strict=True,
        sqlite_with_rowid=False,
        postgresql_partition_by="RANGE (id)",
    )
    op.create_table(
        "usage_hourly",
        sa.Column("customer_id", ID, nullable=False),
        sa.Column("window_start", BIG, nullable=False),
        sa.Column("api_key_id", ID, nullable=False),
        sa.Column("model", TEXT, nullable=False),
        sa.Column("shard", INT, nullable=False),
        sa.Column("requests", BIG, nullable=False),
        sa.Column("input_tokens", BIG, nullable=False),
        sa.Column("cached_input_tokens", BIG, nullable=False),
        sa.Column("output_tokens", BIG, nullable=False),
        sa.Column("reasoning_tokens", BIG, nullable=False),
        sa.Column("cost_micro", BIG, nullable=False),
        sa.Column("cost_pico", BIG, nullable=False),
        sa.Column("amount_micro", BIG, nullable=False),
        sa.Column("amount_pico", BIG, nullable=False),
        sa.Column("assigned_micro", BIG, nullable=False),
        sa.Column("assigned_pico", BIG, nullable=False),
        sa.Column("window_seq", BIG, nullable=False),
        sa.Column("is_unassigned", INT, sa.Computed(UNASSIGNED, persisted=True), nullable=False),
        sa.PrimaryKeyConstraint(
            "customer_id", "window_start", "api_key_id", "model", "shard", name=op.f("pk_usage_hourly")
        ),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )
    op.create_index(op.f("ix_usage_hourly_window_start"), "usage_hourly", ["window_start"])
    op.create_index(
        op.f("ix_usage_hourly_unassigned"),
        "usage_hourly",
        ["is_unassigned", "customer_id", "window_start"],
        sqlite_where=sa.text("is_unassigned = 1"),
        postgresql_where=sa.text("is_unassigned = 1"),
    )


def create_stripe() -> None:
    """What is sent to Stripe, what exists there, and what it told us."""
    op.create_table(
        "meter_batches",
        sa.Column("id", ID, nullable=False),
        sa.Column("customer_id", ID, nullable=False),
        sa.Column("seq", BIG, nullable=False),
        sa.Column("stripe_customer_id", ID, nullable=False),
        sa.Column("event_name", TEXT, nullable=False),
        sa.Column("idempotency_key", ID, nullable=False),
        sa.Column("window_start", BIG, nullable=False),
        sa.Column("timestamp_s", BIG, nullable=False),
        sa.Column("units", BIG, nullable=False),
        sa.Column("carry_in_pico", BIG, nullable=False),
        sa.Column("carry_pico", BIG, nullable=False),
        sa.Column("covers", TEXT, nullable=False),
        sa.Column("state", TEXT, nullable=False),
        sa.Column("attempts", BIG, nullable=False),
        sa.Column("created_at", BIG, nullable=False),
        sa.Column("first_sent_at", BIG),
        sa.Column("next_attempt_at", BIG, nullable=False),
        sa.Column("settled_at", BIG),
        sa.Column("last_answer", TEXT),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_meter_batches")),
        sa.CheckConstraint(
            "carry_in_pico BETWEEN 0 AND 999999 AND carry_pico BETWEEN 0 AND 999999",
            name=op.f("ck_meter_batches_carry_below_unit"),
        ),
        sa.CheckConstraint(
            "state IN ('pending', 'sending', 'accepted', 'confirmed', 'rejected', 'uncertain', 'held', 'carried')",
            name=op.f("ck_meter_batches_known_state"),
        ),
        sa.CheckConstraint("units >= 0", name=op.f("ck_meter_batches_units_not_negative")),
        sa.ForeignKeyConstraint(["customer_id"], ["customers.id"], name=op.f("fk_meter_batches_customer_id")),
        sa.UniqueConstraint("customer_id", "seq", name=op.f("uq_meter_batches_customer_id_seq")),
        sqlite_strict=True,
    )
    op.create_index(op.f("ix_meter_batches_state"), "meter_batches", ["state", "next_attempt_at"])
    op.create_index(op.f("ix_meter_batches_window"), "meter_batches", ["customer_id", "window_start"])
    op.create_table(
        "stripe_objects",
        sa.Column("kind", TEXT, nullable=False),
        sa.Column("stripe_id", ID, nullable=False),
        sa.Column("recorded_at", BIG, nullable=False),
        sa.PrimaryKeyConstraint("kind", name=op.f("pk_stripe_objects")),
        sqlite_strict=True,
    )
    op.create_table(
        "stripe_events",
        sa.Column("id", ID, nullable=False),
        sa.Column("type", TEXT, nullable=False),
        sa.Column("object_id", TEXT),
        sa.Column("stripe_customer_id", TEXT),
        sa.Column("created_at", BIG, nullable=False),
        sa.Column("received_at", BIG, nullable=False),
        sa.Column("state", TEXT, nullable=False),
        sa.Column("attempts", BIG, nullable=False),
        sa.Column("next_attempt_at", BIG, nullable=False),
        sa.Column("settled_at", BIG),
        sa.Column("last_error", TEXT),
        sa.Column("payload", TEXT, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_stripe_events")),
        sa.CheckConstraint(
            "state IN ('pending', 'done', 'ignored', 'failed')", name=op.f("ck_stripe_events_known_state")
        ),
        sqlite_strict=True,
    )
    op.create_index(op.f("ix_stripe_events_state"), "stripe_events", ["state", "next_attempt_at"])
