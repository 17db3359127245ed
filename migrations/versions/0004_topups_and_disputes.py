"""Money paid in for credit: top-ups, automatic ones, disputes, and what is owed after credit was taken back.

Expands only. The two columns on `credit_entries` have a default; the previous release never takes back more than there
is, so that it has nothing to write there. `suspensions` gets a cause: SQLite changes no constraint in place, and no
table refers to this one, so it is made anew and its rows are copied.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.types import TypeEngine

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

TEXT = sa.Text()
INT = sa.Integer()
BIG: TypeEngine[int] = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
ID: TypeEngine[str] = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
CAUSES = "cause IN ('manual', 'unpaid', 'stripe_deleted', 'disputed')"
IN_FLIGHT = "origin = 'auto' AND state IN ('open', 'processing')"


def upgrade() -> None:
    """Add the columns and the cause, and make the three tables."""
    op.add_column("credit_entries", sa.Column("owed_micro", BIG, nullable=False, server_default="0"))
    op.add_column("credit_entries", sa.Column("owed_pico", BIG, nullable=False, server_default="0"))
    allow_disputed()
    create_topups()
    create_auto_topups()
    create_disputes()


def allow_disputed() -> None:
    """Let a customer be suspended for a disputed payment."""
    name = op.f("ck_suspensions_known_cause")
    if op.get_bind().dialect.name == "postgresql":
        op.drop_constraint(name, "suspensions", type_="check")
        op.create_check_constraint(name, "suspensions", CAUSES)
        return
    op.create_table(
        "suspensions_new",
        sa.Column("customer_id", ID, nullable=False),
        sa.Column("cause", TEXT, nullable=False),
        sa.Column("reason", TEXT, nullable=False),
        sa.Column("since", BIG, nullable=False),
        sa.PrimaryKeyConstraint("customer_id", "cause", name=op.f("pk_suspensions")),
        sa.CheckConstraint(CAUSES, name=name),
        sa.ForeignKeyConstraint(["customer_id"], ["customers.id"], name=op.f("fk_suspensions_customer_id")),
        sqlite_strict=True,
    )
    op.execute(
        "INSERT INTO suspensions_new (customer_id, cause, reason, since)"
        " SELECT customer_id, cause, reason, since FROM suspensions"
    )
    op.drop_table("suspensions")
    op.rename_table("suspensions_new", "suspensions")


def create_topups() -> None:
    """Payments, each with what it has credited; one automatic payment of a customer at a time."""
    op.create_table(
        "topups",
        sa.Column("id", ID, nullable=False),
        sa.Column("customer_id", ID, nullable=False),
        sa.Column("origin", TEXT, nullable=False),
        sa.Column("amount", BIG, nullable=False),
        sa.Column("currency", TEXT, nullable=False),
        sa.Column("checkout_session_id", ID),
        sa.Column("payment_intent_id", ID),
        sa.Column("stripe_customer_id", ID),
        sa.Column("payment_method_id", ID),
        sa.Column("state", TEXT, nullable=False),
        sa.Column("received", BIG, nullable=False),
        sa.Column("refunded", BIG, nullable=False),
        sa.Column("withdrawn", BIG, nullable=False),
        sa.Column("credited", BIG, nullable=False),
        sa.Column("moves", BIG, nullable=False),
        sa.Column("grant_id", ID),
        sa.Column("created_at", BIG, nullable=False),
        sa.Column("checked_at", BIG, nullable=False),
        sa.Column("note", TEXT),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_topups")),
        sa.CheckConstraint("origin IN ('checkout', 'auto')", name=op.f("ck_topups_known_origin")),
        sa.CheckConstraint(
            "state IN ('open', 'processing', 'paid', 'failed', 'expired', 'refused')",
            name=op.f("ck_topups_known_state"),
        ),
        sa.CheckConstraint(
            "amount > 0 AND received >= 0 AND refunded >= 0 AND withdrawn >= 0", name=op.f("ck_topups_not_negative")
        ),
        sa.CheckConstraint("credited BETWEEN 0 AND received", name=op.f("ck_topups_credited_is_received")),
        sa.ForeignKeyConstraint(["customer_id"], ["customers.id"], name=op.f("fk_topups_customer_id")),
        sa.ForeignKeyConstraint(["grant_id"], ["credit_entries.id"], name=op.f("fk_topups_grant_id")),
        sa.UniqueConstraint("checkout_session_id", name=op.f("uq_topups_checkout_session_id")),
        sa.UniqueConstraint("payment_intent_id", name=op.f("uq_topups_payment_intent_id")),
        sqlite_strict=True,
    )
    op.create_index(op.f("ix_topups_customer_id"), "topups", ["customer_id"])
    op.create_index(op.f("ix_topups_state"), "topups", ["state", "checked_at"])
    op.create_index(
        op.f("ix_topups_one_auto_in_flight"),
        "topups",
        ["customer_id"],
        unique=True,
        sqlite_where=sa.text(IN_FLIGHT),
        postgresql_where=sa.text(IN_FLIGHT),
    )


def create_auto_topups() -> None:
    """Below which balance a customer's card is charged, and by how much."""
    op.create_table(
        "auto_topups",
        sa.Column("customer_id", ID, nullable=False),
        sa.Column("below", BIG, nullable=False),
        sa.Column("amount", BIG, nullable=False),
        sa.Column("currency", TEXT, nullable=False),
        sa.Column("failures", BIG, nullable=False),
        sa.Column("next_attempt_at", BIG, nullable=False),
        sa.Column("paused_at", BIG),
        sa.Column("note", TEXT),
        sa.PrimaryKeyConstraint("customer_id", name=op.f("pk_auto_topups")),
        sa.CheckConstraint("below >= 0 AND amount > 0", name=op.f("ck_auto_topups_not_negative")),
        sa.ForeignKeyConstraint(["customer_id"], ["customers.id"], name=op.f("fk_auto_topups_customer_id")),
        sqlite_strict=True,
    )


def create_disputes() -> None:
    """Which disputed payment froze whom."""
    op.create_table(
        "disputes",
        sa.Column("id", ID, nullable=False),
        sa.Column("customer_id", ID, nullable=False),
        sa.Column("status", TEXT, nullable=False),
        sa.Column("amount", BIG, nullable=False),
        sa.Column("currency", TEXT, nullable=False),
        sa.Column("is_freezing", INT, nullable=False),
        sa.Column("seen_at", BIG, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_disputes")),
        sa.CheckConstraint("is_freezing IN (0, 1)", name=op.f("ck_disputes_is_freezing_or_not")),
        sa.ForeignKeyConstraint(["customer_id"], ["customers.id"], name=op.f("fk_disputes_customer_id")),
        sqlite_strict=True,
    )
    op.create_index(op.f("ix_disputes_customer_id"), "disputes", ["customer_id"])
