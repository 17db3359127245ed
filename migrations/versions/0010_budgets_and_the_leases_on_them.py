"""Budgets of customers and keys, credit limits, limits of a whole customer, and leases on what budgets leave.

A lease is now a slice of a credit or of a budget: `grant_id` may be null, and exactly one of it and `budget_id` is set.
SQLite can not relax a column in place, so the table is made anew there and its rows are copied. The previous release
goes on writing leases of credits here; it knows no budgets, and lets through what they would refuse.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.types import TypeEngine

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

TEXT = sa.Text()
INT = sa.Integer()
BIG: TypeEngine[int] = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
ID: TypeEngine[str] = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")

ONE_SOURCE = "(grant_id IS NULL) <> (budget_id IS NULL)"
LEASE_COLUMNS = ", ".join(
    (
        *("id", "customer_id", "grant_id", "holder", "amount_pico", "used_pico"),
        *("taken_at", "valid_until", "recalled_at", "answered_at", "closed_at"),
    )
)


def upgrade() -> None:
    """Make the table, add the columns, and let leases be of budgets."""
    op.add_column("customers", sa.Column("paid_until", BIG))
    for name in ("rpm", "tpm", "concurrency"):
        op.execute(
            f"ALTER TABLE customers ADD COLUMN {name} {'INTEGER' if _is_sqlite() else 'BIGINT'} DEFAULT '0' NOT NULL"
            f" CONSTRAINT ck_customers_{name}_not_negative CHECK ({name} >= 0)"
        )
    create_budgets()
    if _is_sqlite():
        remake_leases()
    else:
        op.alter_column("leases", "grant_id", nullable=True)
        op.add_column("leases", sa.Column("budget_id", ID))
        op.create_check_constraint(op.f("ck_leases_of_one_source"), "leases", ONE_SOURCE)


def create_budgets() -> None:
    """What a customer or a key may use in a period, or owe."""
    op.create_table(
        "budgets",
        sa.Column("id", ID, nullable=False),
        sa.Column("customer_id", ID, nullable=False),
        sa.Column("api_key_id", ID),
        sa.Column("span", TEXT, nullable=False),
        sa.Column("amount_micro", BIG, nullable=False),
        sa.Column("amount_pico", BIG, nullable=False),
        sa.Column("is_soft", INT, nullable=False),
        sa.Column("set_at", BIG, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_budgets")),
        sa.CheckConstraint("span IN ('day', 'month', 'unpaid')", name=op.f("ck_budgets_known_span")),
        sa.CheckConstraint(
            "amount_micro >= 0 AND amount_pico BETWEEN 0 AND 999999", name=op.f("ck_budgets_not_negative")
        ),
        sa.CheckConstraint("is_soft IN (0, 1)", name=op.f("ck_budgets_is_soft_or_not")),
        sa.ForeignKeyConstraint(["customer_id"], ["customers.id"], name=op.f("fk_budgets_customer_id")),
        sa.ForeignKeyConstraint(["api_key_id"], ["api_keys.id"], name=op.f("fk_budgets_api_key_id")),
        sqlite_strict=True,
    )
    op.create_index(op.f("ix_budgets_customer_id"), "budgets", ["customer_id"])


def remake_leases() -> None:
    """The table as it is to be, with the rows that there are."""
    op.create_table(
        "leases_new",
        sa.Column("id", ID, nullable=False),
        sa.Column("customer_id", ID, nullable=False),
        sa.Column("grant_id", ID),
        sa.Column("holder", TEXT, nullable=False),
        sa.Column("amount_pico", BIG, nullable=False),
        sa.Column("used_pico", BIG, nullable=False),
        sa.Column("taken_at", BIG, nullable=False),
        sa.Column("valid_until", BIG, nullable=False),
        sa.Column("recalled_at", BIG),
        sa.Column("answered_at", BIG),
        sa.Column("closed_at", BIG),
        sa.Column("budget_id", ID),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_leases")),
        sa.CheckConstraint("used_pico BETWEEN 0 AND amount_pico", name=op.f("ck_leases_nothing_overspent")),
        sa.CheckConstraint(ONE_SOURCE, name=op.f("ck_leases_of_one_source")),
        sa.ForeignKeyConstraint(["customer_id"], ["customers.id"], name=op.f("fk_leases_customer_id")),
        sa.ForeignKeyConstraint(["grant_id"], ["credit_entries.id"], name=op.f("fk_leases_grant_id")),
        sqlite_strict=True,
    )
    op.execute(f"INSERT INTO leases_new ({LEASE_COLUMNS}) SELECT {LEASE_COLUMNS} FROM leases")  # noqa: S608 (names)
    op.drop_table("leases")
    op.rename_table("leases_new", "leases")
    op.create_index(op.f("ix_leases_customer_id_closed_at"), "leases", ["customer_id", "closed_at"])
    op.create_index(op.f("ix_leases_open"), "leases", ["holder"], sqlite_where=sa.text("closed_at IS NULL"))


def _is_sqlite() -> bool:
    return op.get_bind().dialect.name == "sqlite"
