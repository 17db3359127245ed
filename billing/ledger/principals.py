"""Whom a key stands for, and all that its requests fall under: what a gateway asks once for each key and epoch."""

import json
from typing import Any

import sqlalchemy as sa

from billing.disconnect import Disconnect
from billing.ledger import budgets, schema
from billing.ledger.accounts import Principal, Rate


def _query() -> sa.Select[Any]:
    keys, customers, suspensions = schema.api_keys, schema.customers, schema.suspensions
    entries, of_budgets = schema.credit_entries, schema.budgets
    reason = (
        sa.select(suspensions.c.reason)
        .where(suspensions.c.customer_id == customers.c.id)
        .order_by(suspensions.c.since, suspensions.c.cause)
        .limit(1)
        .scalar_subquery()
    )
    newest = sa.select(entries.c.grants).where(entries.c.customer_id == customers.c.id)
    return (
        sa.select(
            *(keys.c[name] for name in ("id", "models", "rpm", "tpm", "concurrency", "expires_at", "revoked_at")),
            keys.c.drain_tokens,
            *(customers.c[name] for name in ("name", "period_start", "period_end", "is_prepaid")),
            *(customers.c[name].label(f"customer_{name}") for name in ("id", "rpm", "tpm", "concurrency")),
            reason.label("suspension"),
            newest.order_by(entries.c.seq.desc()).limit(1).scalar_subquery().label("grants"),
            sa.exists().where(of_budgets.c.customer_id == customers.c.id).label("has_budget"),
        )
        .join(customers, customers.c.id == keys.c.customer_id)
        .where(keys.c.secret_sha256 == sa.bindparam("secret"))
    )


_PRINCIPAL = _query()


def load(conn: sa.Connection, secret_sha256_hex: str, default_rpm: int = 0, default_tpm: int = 0) -> Principal | None:
    """Return whom a secret's SHA-256 stands for, None if no key has it: one query, by a unique index.

    Where there are budgets, another one tells them. Of several suspensions the oldest gives its reason. Whether the key
    may act is the caller's decision. The defaults are for keys without such a limit of their own.
    """
    row = conn.execute(_PRINCIPAL, {"secret": secret_sha256_hex}).one_or_none()
    if row is None:
        return None
    applying = budgets.applying(conn, row.customer_id, row.id) if row.has_budget else ()
    purses = [*([row.customer_id] if row.is_prepaid else []), *(each.id for each in applying if not each.is_soft)]
    has_credit = bool(row.is_prepaid) or (row.grants or "[]") != "[]"
    rates = (
        Rate(row.id, row.rpm or default_rpm, row.tpm or default_tpm, row.concurrency, is_customers=False),
        Rate(row.customer_id, row.customer_rpm, row.customer_tpm, row.customer_concurrency, is_customers=True),
    )
    limiting = tuple(rate for rate in rates if rate.rpm or rate.tpm or rate.concurrency)
    return Principal(
        key_id=row.id,
        customer_id=row.customer_id,
        customer_name=row.name,
        models=None if row.models is None else frozenset(json.loads(row.models)),
        rpm=row.rpm,
        tpm=row.tpm,
        concurrency=row.concurrency,
        expires_at=row.expires_at,
        is_revoked=row.revoked_at is not None,
        suspension=row.suspension,
        period_start=row.period_start,
        period_end=row.period_end,
        is_prepaid=bool(row.is_prepaid),
        on_disconnect=Disconnect(row.drain_tokens),
        has_credit=has_credit,
        purses=tuple(purses) if purses or has_credit else None,
        rates=limiting or None,
    )
