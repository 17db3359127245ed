"""The tables of what customers may use and owe: credit, payments for it, budgets, and the leases on both.

`schema.py` has the others, and hands out all of them. `credit_entries` and `credit_charges` are append-only. What
Stripe takes from a card (`topups`, `auto_topups`, `disputes`) is in the currency's minor unit, as at Stripe.
"""

from sqlalchemy import CheckConstraint, Column, ForeignKey, Index, Integer, Table, Text, UniqueConstraint, text

from billing.ledger.columns import BIG, ID, metadata

credit_entries = Table(
    "credit_entries",
    metadata,
    Column("id", ID, primary_key=True),
    Column("customer_id", ID, ForeignKey("customers.id"), nullable=False),
    Column("seq", BIG, nullable=False),
    Column("at", BIG, nullable=False),
    Column("kind", Text, nullable=False),
    Column("grant_id", ID, ForeignKey("credit_entries.id"), nullable=False),
    Column("amount_micro", BIG, nullable=False),
    Column("amount_pico", BIG, nullable=False),
    Column("left_micro", BIG, nullable=False),
    Column("left_pico", BIG, nullable=False),
    Column("currency", Text, nullable=False),
    Column("priority", Integer, nullable=False),
    Column("expires_at", BIG),
    Column("lease_id", ID),
    Column("source", ID, unique=True),
    Column("reason", Text),
    Column("grants", Text, nullable=False),
    Column("owed_micro", BIG, nullable=False, server_default="0"),
    Column("owed_pico", BIG, nullable=False, server_default="0"),
    UniqueConstraint("customer_id", "seq"),
    CheckConstraint(
        "kind IN ('grant', 'topup', 'burn', 'expiry', 'refund', 'reversal', 'adjustment')", name="known_kind"
    ),
    CheckConstraint("left_micro >= 0", name="nothing_overspent"),
    CheckConstraint("amount_pico BETWEEN 0 AND 999999 AND left_pico BETWEEN 0 AND 999999", name="pico_below_micro"),
    sqlite_strict=True,
)

topups = Table(
    "topups",
    metadata,
    Column("id", ID, primary_key=True),
    Column("customer_id", ID, ForeignKey("customers.id"), nullable=False, index=True),
    Column("origin", Text, nullable=False),
    Column("amount", BIG, nullable=False),
    Column("currency", Text, nullable=False),
    Column("checkout_session_id", ID, unique=True),
    Column("payment_intent_id", ID, unique=True),
    Column("stripe_customer_id", ID),
    Column("payment_method_id", ID),
    Column("state", Text, nullable=False),
    Column("received", BIG, nullable=False),
    Column("refunded", BIG, nullable=False),
    Column("withdrawn", BIG, nullable=False),
    Column("credited", BIG, nullable=False),
    Column("moves", BIG, nullable=False),
    Column("grant_id", ID, ForeignKey("credit_entries.id")),
    Column("created_at", BIG, nullable=False),
    Column("checked_at", BIG, nullable=False),
    Column("note", Text),
    CheckConstraint("origin IN ('checkout', 'auto')", name="known_origin"),
    CheckConstraint("state IN ('open', 'processing', 'paid', 'failed', 'expired', 'refused')", name="known_state"),
    CheckConstraint("amount > 0 AND received >= 0 AND refunded >= 0 AND withdrawn >= 0", name="not_negative"),
    CheckConstraint("credited BETWEEN 0 AND received", name="credited_is_received"),
    Index("ix_topups_state", "state", "checked_at"),
    Index(
        "ix_topups_one_auto_in_flight",
        "customer_id",
        unique=True,
        sqlite_where=text("origin = 'auto' AND state IN ('open', 'processing')"),
        postgresql_where=text("origin = 'auto' AND state IN ('open', 'processing')"),
    ),
    sqlite_strict=True,
)

auto_topups = Table(
    "auto_topups",
    metadata,
    Column("customer_id", ID, ForeignKey("customers.id"), primary_key=True),
    Column("below", BIG, nullable=False),
    Column("amount", BIG, nullable=False),
    Column("currency", Text, nullable=False),
    Column("failures", BIG, nullable=False),
    Column("next_attempt_at", BIG, nullable=False),
    Column("paused_at", BIG),
    Column("note", Text),
    CheckConstraint("below >= 0 AND amount > 0", name="not_negative"),
    sqlite_strict=True,
)

disputes = Table(
    "disputes",
    metadata,
    Column("id", ID, primary_key=True),
    Column("customer_id", ID, ForeignKey("customers.id"), nullable=False, index=True),
    Column("status", Text, nullable=False),
    Column("amount", BIG, nullable=False),
    Column("currency", Text, nullable=False),
    Column("is_freezing", Integer, nullable=False),
    Column("seen_at", BIG, nullable=False),
    CheckConstraint("is_freezing IN (0, 1)", name="is_freezing_or_not"),
    sqlite_strict=True,
)

budgets = Table(
    "budgets",
    metadata,
    Column("id", ID, primary_key=True),
    Column("customer_id", ID, ForeignKey("customers.id"), nullable=False, index=True),
    Column("api_key_id", ID, ForeignKey("api_keys.id")),
    Column("span", Text, nullable=False),
    Column("amount_micro", BIG, nullable=False),
    Column("amount_pico", BIG, nullable=False),
    Column("is_soft", Integer, nullable=False),
    Column("set_at", BIG, nullable=False),
    CheckConstraint("span IN ('day', 'month', 'unpaid')", name="known_span"),
    CheckConstraint("amount_micro >= 0 AND amount_pico BETWEEN 0 AND 999999", name="not_negative"),
    CheckConstraint("is_soft IN (0, 1)", name="is_soft_or_not"),
    sqlite_strict=True,
)

leases = Table(
    "leases",
    metadata,
    Column("id", ID, primary_key=True),
    Column("customer_id", ID, ForeignKey("customers.id"), nullable=False),
    Column("grant_id", ID, ForeignKey("credit_entries.id")),
    Column("holder", Text, nullable=False),
    Column("amount_pico", BIG, nullable=False),
    Column("used_pico", BIG, nullable=False),
    Column("taken_at", BIG, nullable=False),
    Column("valid_until", BIG, nullable=False),
    Column("recalled_at", BIG),
    Column("answered_at", BIG),
    Column("closed_at", BIG),
    Column("budget_id", ID),
    CheckConstraint("(grant_id IS NULL) <> (budget_id IS NULL)", name="of_one_source"),
    CheckConstraint("used_pico BETWEEN 0 AND amount_pico", name="nothing_overspent"),
    Index("ix_leases_customer_id_closed_at", "customer_id", "closed_at"),
    Index(
        "ix_leases_open",
        "holder",
        sqlite_where=text("closed_at IS NULL"),
        postgresql_where=text("closed_at IS NULL"),
    ),
    sqlite_strict=True,
)

credit_charges = Table(
    "credit_charges",
    metadata,
    Column("lease_id", ID, primary_key=True),
    Column("event_id", ID, primary_key=True),
    Column("at", BIG, nullable=False),
    Column("amount_pico", BIG, nullable=False),
    CheckConstraint("amount_pico >= 0", name="not_negative"),
    sqlite_strict=True,
    sqlite_with_rowid=False,
)

notifications = Table(
    "notifications",
    metadata,
    Column("id", ID, primary_key=True),
    Column("once", ID, nullable=False, unique=True),
    Column("customer_id", ID, ForeignKey("customers.id"), nullable=False),
    Column("type", Text, nullable=False),
    Column("body", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("attempts", BIG, nullable=False),
    Column("created_at", BIG, nullable=False),
    Column("next_attempt_at", BIG, nullable=False),
    Column("settled_at", BIG),
    Column("last_answer", Text),
    CheckConstraint("state IN ('pending', 'delivered', 'failed')", name="known_state"),
    Index("ix_notifications_state", "state", "next_attempt_at"),
    sqlite_strict=True,
)
