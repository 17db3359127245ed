"""Every table, and the invariant that each constraint guards.

Types are the same on both engines: Text, and integers of 64 bits. Instants are microseconds since 1970 UTC,
amounts picounits; SQLite's tables are STRICT, so that no float and no text can slip into an integer column.
Sums of money run over two columns (`_micro`, `_pico`: see `billing.money.split`), since SQL integers end at 2⁶³.
What Stripe takes from a card (`topups`, `auto_topups`, `disputes`) is in the currency's minor unit, as at Stripe.

History is append-only: `usage_events`, `adjustments`, `price_quotes`, `cost_rates`, `margin_rules`, `audit_log`,
`credit_entries`, `credit_charges`, `plan_terms`, `machines` and `power_tariffs` are never updated or deleted.
`usage_hourly` and `upstream_hourly` are the sums of the events, kept in their transaction.
"""

from sqlalchemy import (
    CheckConstraint,
    Column,
    Computed,
    ForeignKey,
    Index,
    Integer,
    Table,
    Text,
    UniqueConstraint,
    text,
)

from billing.ledger import comparison_schema, credit_schema, machine_schema, plan_schema, stripe_schema
from billing.ledger.columns import BIG, ID
from billing.ledger.columns import metadata as metadata  # noqa: PLC0414 (the metadata of every table)

meter_repairs = comparison_schema.meter_repairs
stripe_checkpoints = comparison_schema.stripe_checkpoints
invoice_checks = comparison_schema.invoice_checks
reconcile_runs = comparison_schema.reconcile_runs

credit_entries = credit_schema.credit_entries
credit_charges = credit_schema.credit_charges
budgets = credit_schema.budgets
leases = credit_schema.leases
topups = credit_schema.topups
auto_topups = credit_schema.auto_topups
disputes = credit_schema.disputes
notifications = credit_schema.notifications

plan_terms = plan_schema.plan_terms
plan_counts = plan_schema.plan_counts

upstream_hourly = machine_schema.upstream_hourly
machines = machine_schema.machines
power_tariffs = machine_schema.power_tariffs
power_samples = machine_schema.power_samples

directory_epoch = Table(
    "directory_epoch",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("epoch", BIG, nullable=False),
    CheckConstraint("id = 1", name="one_row"),
    sqlite_strict=True,
)

customers = Table(
    "customers",
    metadata,
    Column("id", ID, primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    Column("email", Text),
    Column("created_at", BIG, nullable=False),
    Column("deleted_at", BIG),
    Column("stripe_customer_id", ID, unique=True),
    Column("stripe_subscription_id", ID),
    Column("stripe_subscription_status", Text),
    Column("period_start", BIG),
    Column("period_end", BIG),
    Column("past_due_since", BIG),
    Column("is_prepaid", Integer, nullable=False, server_default="0"),
    Column("billed_until", BIG),
    Column("paid_until", BIG),
    Column("rpm", BIG, nullable=False, server_default="0"),
    Column("tpm", BIG, nullable=False, server_default="0"),
    Column("concurrency", BIG, nullable=False, server_default="0"),
    CheckConstraint("is_prepaid IN (0, 1)", name="is_prepaid_or_not"),
    CheckConstraint("rpm >= 0", name="rpm_not_negative"),
    CheckConstraint("tpm >= 0", name="tpm_not_negative"),
    CheckConstraint("concurrency >= 0", name="concurrency_not_negative"),
    sqlite_strict=True,
)

suspensions = Table(
    "suspensions",
    metadata,
    Column("customer_id", ID, ForeignKey("customers.id"), primary_key=True),
    Column("cause", Text, primary_key=True),
    Column("reason", Text, nullable=False),
    Column("since", BIG, nullable=False),
    CheckConstraint("cause IN ('manual', 'unpaid', 'stripe_deleted', 'disputed')", name="known_cause"),
    sqlite_strict=True,
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", ID, primary_key=True),
    Column("customer_id", ID, ForeignKey("customers.id"), nullable=False, index=True),
    Column("name", Text, nullable=False),
    Column("secret_sha256", ID, nullable=False, unique=True),
    Column("hint", Text, nullable=False),
    Column("models", Text),
    Column("rpm", BIG, nullable=False),
    Column("tpm", BIG, nullable=False),
    Column("concurrency", BIG, nullable=False),
    Column("created_at", BIG, nullable=False),
    Column("expires_at", BIG),
    Column("revoked_at", BIG),
    Column("drain_tokens", BIG, server_default="0"),
    CheckConstraint("rpm >= 0 AND tpm >= 0 AND concurrency >= 0", name="limits_not_negative"),
    CheckConstraint("drain_tokens >= 0", name="drain_not_negative"),
    sqlite_strict=True,
)

key_tags = Table(
    "key_tags",
    metadata,
    Column("api_key_id", ID, ForeignKey("api_keys.id"), primary_key=True),
    Column("name", Text, primary_key=True),
    Column("value", Text, nullable=False),
    sqlite_strict=True,
)

cost_rates = Table(
    "cost_rates",
    metadata,
    Column("id", ID, primary_key=True),
    Column("model", Text, nullable=False),
    Column("input_pico", BIG, nullable=False),
    Column("cached_input_pico", BIG),
    Column("output_pico", BIG, nullable=False),
    Column("reasoning_pico", BIG),
    Column("request_pico", BIG, nullable=False),
    Column("effective_from", BIG, nullable=False),
    Column("recorded_at", BIG, nullable=False),
    Column("image_input_pico", BIG),
    Column("audio_input_pico", BIG),
    CheckConstraint("input_pico >= 0 AND output_pico >= 0 AND request_pico >= 0", name="not_negative"),
    Index("ix_cost_rates_model_effective_from", "model", "effective_from"),
    sqlite_strict=True,
)

market_prices = Table(
    "market_prices",
    metadata,
    Column("id", ID, primary_key=True),
    Column("source", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("input_pico", BIG, nullable=False),
    Column("output_pico", BIG, nullable=False),
    Column("cached_input_pico", BIG),
    Column("reasoning_pico", BIG),
    Column("request_pico", BIG, nullable=False),
    Column("recorded_at", BIG, nullable=False),
    CheckConstraint("source IN ('litellm', 'openrouter')", name="known_source"),
    sqlite_strict=True,
)

plans = Table(
    "plans",
    metadata,
    Column("id", ID, primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    Column("created_at", BIG, nullable=False),
    sqlite_strict=True,
)

plan_assignments = Table(
    "plan_assignments",
    metadata,
    Column("id", ID, primary_key=True),
    Column("customer_id", ID, ForeignKey("customers.id"), nullable=False, index=True),
    Column("plan_id", ID, ForeignKey("plans.id")),
    Column("effective_from", BIG, nullable=False),
    Column("recorded_at", BIG, nullable=False),
    sqlite_strict=True,
)

_UNITS = ("input", "cached_input", "output", "reasoning", "request", "image_input", "audio_input")

margin_rules = Table(
    "margin_rules",
    metadata,
    Column("id", ID, primary_key=True),
    Column("model", Text),
    Column("customer_id", ID, ForeignKey("customers.id")),
    Column("kind", Text, nullable=False),
    Column("share_ppm", BIG, nullable=False),
    Column("allow_loss", Integer, nullable=False),
    Column("effective_from", BIG, nullable=False),
    Column("recorded_at", BIG, nullable=False),
    Column("floor_kind", Text),
    Column("floor_ppm", BIG),
    Column("plan_id", ID),
    *(Column(f"{name}_{unit}_pico", BIG) for name in ("fixed", "minimum") for unit in _UNITS),
    CheckConstraint("kind IN ('markup', 'margin', 'none')", name="known_kind"),
    CheckConstraint("floor_kind IN ('markup', 'margin')", name="known_floor"),
    sqlite_strict=True,
)

price_quotes = Table(
    "price_quotes",
    metadata,
    Column("ref", ID, primary_key=True),
    Column("model", Text, nullable=False),
    Column("cost_rate_id", ID, nullable=False),
    Column("margin_rule_id", ID),
    Column("margin", Text, nullable=False),
    Column("currency", Text, nullable=False),
    Column("cost_input_pico", BIG, nullable=False),
    Column("cost_cached_input_pico", BIG, nullable=False),
    Column("cost_output_pico", BIG, nullable=False),
    Column("cost_reasoning_pico", BIG, nullable=False),
    Column("cost_request_pico", BIG, nullable=False),
    Column("input_pico", BIG, nullable=False),
    Column("cached_input_pico", BIG, nullable=False),
    Column("output_pico", BIG, nullable=False),
    Column("reasoning_pico", BIG, nullable=False),
    Column("request_pico", BIG, nullable=False),
    Column("cost_image_input_pico", BIG),
    Column("cost_audio_input_pico", BIG),
    Column("image_input_pico", BIG),
    Column("audio_input_pico", BIG),
    sqlite_strict=True,
)

_IS_ODD = text("anomaly IS NOT NULL")

usage_events = Table(
    "usage_events",
    metadata,
    Column("id", ID, primary_key=True),
    Column("customer_id", ID, nullable=False),
    Column("api_key_id", ID, nullable=False),
    Column("model", Text, nullable=False),
    Column("upstream", Text, nullable=False),
    Column("upstream_model", Text, nullable=False),
    Column("endpoint", Text, nullable=False),
    Column("started_at", BIG, nullable=False),
    Column("first_token_at", BIG),
    Column("finished_at", BIG, nullable=False),
    Column("outcome", Text, nullable=False),
    Column("http_status", Integer, nullable=False),
    Column("count_source", Text, nullable=False),
    Column("input_tokens", BIG, nullable=False),
    Column("cached_input_tokens", BIG, nullable=False),
    Column("output_tokens", BIG, nullable=False),
    Column("reasoning_tokens", BIG, nullable=False),
    Column("cost_pico", BIG, nullable=False),
    Column("amount_pico", BIG, nullable=False),
    Column("price_ref", ID, nullable=False),
    Column("window_start", BIG, nullable=False),
    Column("anomaly", Text),
    Column("adjusts", ID),
    Column("tags", Text),
    Column("shard", Integer, nullable=False),
    Column("window_seq", BIG, nullable=False),
    Column("image_input_tokens", BIG, nullable=False, server_default="0"),
    Column("audio_input_tokens", BIG, nullable=False, server_default="0"),
    Column("prompt_us", BIG, nullable=False, server_default="0"),
    Column("generation_us", BIG, nullable=False, server_default="0"),
    Index("ix_usage_events_anomaly", "finished_at", sqlite_where=_IS_ODD, postgresql_where=_IS_ODD),
    sqlite_strict=True,
    sqlite_with_rowid=False,
    postgresql_partition_by="RANGE (id)",
)

adjustments = Table(
    "adjustments",
    metadata,
    Column("event_id", ID, primary_key=True),
    Column("adjusts", ID, nullable=False),
    Column("seq", BIG, nullable=False),
    Column("run_key", ID, nullable=False),
    Column("change", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("actor", Text, nullable=False),
    Column("at", BIG, nullable=False),
    Column("credit_pico", BIG, nullable=False),
    UniqueConstraint("adjusts", "seq"),
    UniqueConstraint("run_key", "adjusts"),
    CheckConstraint("credit_pico <= 0", name="credit_given_back"),
    sqlite_strict=True,
)

_UNASSIGNED = "CASE WHEN amount_micro <> assigned_micro OR amount_pico <> assigned_pico THEN 1 ELSE 0 END"
"""A stored column and not an index on the comparison itself: PostgreSQL counts a predicate's columns as indexed, so
each event's update would write every index anew (measured: 0 of 4,950 updates were HOT; with the column, all)."""

_ASSIGNED_COUNTS = tuple(
    f"assigned_{name}"
    for name in (
        *("requests", "input_tokens", "cached_input_tokens", "output_tokens", "reasoning_tokens"),
        *("image_input_tokens", "audio_input_tokens"),
    )
)

usage_hourly = Table(
    "usage_hourly",
    metadata,
    Column("customer_id", ID, primary_key=True),
    Column("window_start", BIG, primary_key=True),
    Column("api_key_id", ID, primary_key=True),
    Column("model", Text, primary_key=True),
    Column("shard", Integer, primary_key=True),
    Column("requests", BIG, nullable=False),
    Column("input_tokens", BIG, nullable=False),
    Column("cached_input_tokens", BIG, nullable=False),
    Column("output_tokens", BIG, nullable=False),
    Column("reasoning_tokens", BIG, nullable=False),
    Column("cost_micro", BIG, nullable=False),
    Column("cost_pico", BIG, nullable=False),
    Column("amount_micro", BIG, nullable=False),
    Column("amount_pico", BIG, nullable=False),
    Column("assigned_micro", BIG, nullable=False),
    Column("assigned_pico", BIG, nullable=False),
    Column("window_seq", BIG, nullable=False),
    Column("is_unassigned", Integer, Computed(_UNASSIGNED, persisted=True), nullable=False),
    Column("credit_micro", BIG, nullable=False, server_default="0"),
    Column("credit_pico", BIG, nullable=False, server_default="0"),
    Column("image_input_tokens", BIG, nullable=False, server_default="0"),
    Column("audio_input_tokens", BIG, nullable=False, server_default="0"),
    Column("price_ref", ID),
    *(Column(name, BIG, nullable=False, server_default="0") for name in _ASSIGNED_COUNTS),
    Index("ix_usage_hourly_window_start", "window_start"),
    Index(
        "ix_usage_hourly_unassigned",
        "is_unassigned",  # Always 1 here: without it SQLite, which has no statistics, prefers the primary key.
        "customer_id",
        "window_start",
        sqlite_where=text("is_unassigned = 1"),
        postgresql_where=text("is_unassigned = 1"),
    ),
    sqlite_strict=True,
    sqlite_with_rowid=False,
)

meter_batches = Table(
    "meter_batches",
    metadata,
    Column("id", ID, primary_key=True),
    Column("customer_id", ID, ForeignKey("customers.id"), nullable=False),
    Column("seq", BIG, nullable=False),
    Column("stripe_customer_id", ID, nullable=False),
    Column("event_name", Text, nullable=False),
    Column("idempotency_key", ID, nullable=False),
    Column("window_start", BIG, nullable=False),
    Column("timestamp_s", BIG, nullable=False),
    Column("units", BIG, nullable=False),
    Column("carry_in_pico", BIG, nullable=False),
    Column("carry_pico", BIG, nullable=False),
    Column("covers", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("attempts", BIG, nullable=False),
    Column("created_at", BIG, nullable=False),
    Column("first_sent_at", BIG),
    Column("next_attempt_at", BIG, nullable=False),
    Column("settled_at", BIG),
    Column("last_answer", Text),
    Column("resend", Integer, nullable=False, server_default="0"),
    Column("via", Text, nullable=False, server_default="v1"),
    UniqueConstraint("customer_id", "seq"),
    CheckConstraint("units >= 0", name="units_not_negative"),
    CheckConstraint("carry_in_pico BETWEEN 0 AND 999999 AND carry_pico BETWEEN 0 AND 999999", name="carry_below_unit"),
    CheckConstraint(
        "state IN ('pending', 'sending', 'accepted', 'confirmed', 'rejected', 'uncertain', 'held', 'carried')",
        name="known_state",
    ),
    Index("ix_meter_batches_state", "state", "next_attempt_at"),
    CheckConstraint("resend >= 0", name="resends_counted"),
    CheckConstraint("via IN ('v1', 'stream')", name="known_way"),
    Index("ix_meter_batches_window", "customer_id", "window_start"),
    Index("ix_meter_batches_at_stripe", "stripe_customer_id", "timestamp_s"),
    Column("unit_pico", BIG, nullable=False, server_default="1000000"),
    CheckConstraint("unit_pico > 0", name="unit_has_a_price"),
    sqlite_strict=True,
)

stripe_objects = Table(
    "stripe_objects",
    metadata,
    Column("kind", Text, primary_key=True),
    Column("stripe_id", ID, nullable=False),
    Column("recorded_at", BIG, nullable=False),
    sqlite_strict=True,
)

stripe_meters = stripe_schema.stripe_meters
stripe_prices = stripe_schema.stripe_prices
stripe_lanes = stripe_schema.stripe_lanes
ledger_facts = stripe_schema.ledger_facts

stripe_events = Table(
    "stripe_events",
    metadata,
    Column("id", ID, primary_key=True),
    Column("type", Text, nullable=False),
    Column("object_id", Text),
    Column("stripe_customer_id", Text),
    Column("created_at", BIG, nullable=False),
    Column("received_at", BIG, nullable=False),
    Column("state", Text, nullable=False),
    Column("attempts", BIG, nullable=False),
    Column("next_attempt_at", BIG, nullable=False),
    Column("settled_at", BIG),
    Column("last_error", Text),
    Column("payload", Text, nullable=False),
    CheckConstraint("state IN ('pending', 'done', 'ignored', 'failed')", name="known_state"),
    Index("ix_stripe_events_state", "state", "next_attempt_at"),
    sqlite_strict=True,
)

workers = Table(
    "workers",
    metadata,
    Column("id", ID, primary_key=True),
    Column("host", Text, nullable=False),
    Column("started_at", BIG, nullable=False),
    Column("seen_at", BIG, nullable=False),
    sqlite_strict=True,
)

inflight = Table(
    "inflight",
    metadata,
    Column("id", ID, primary_key=True),
    Column("worker_id", ID, ForeignKey("workers.id"), nullable=False, index=True),
    Column("customer_id", ID, nullable=False),
    Column("checkpointed_at", BIG, nullable=False),
    Column("input_tokens", BIG, nullable=False),
    Column("output_tokens", BIG, nullable=False),
    Column("amount_pico", BIG, nullable=False),
    Column("due", Text, nullable=False),
    CheckConstraint("input_tokens >= 0 AND output_tokens >= 0 AND amount_pico >= 0", name="not_negative"),
    sqlite_strict=True,
)

_AUDITED = ("samples", "reported", "counted", "slack", "over", "under", "worst_over", "worst_under")
token_audits = Table(
    "token_audits",
    metadata,
    Column("day", BIG, primary_key=True, autoincrement=False),
    *(Column(name, Text, primary_key=True) for name in ("model", "upstream", "kind", "version")),
    *(Column(f"{side}_{name}", BIG, nullable=False) for side in ("input", "output") for name in _AUDITED),
    sqlite_strict=True,
)

audit_log = Table(
    "audit_log",
    metadata,
    Column("id", ID, primary_key=True),
    Column("at", BIG, nullable=False),
    Column("actor", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("details", Text, nullable=False),
    sqlite_strict=True,
)
