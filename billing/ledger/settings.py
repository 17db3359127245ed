"""What an admin may change of a customer or a key that exists: rate limits, and until when usage is paid.

Like every change of an account, each begins with `epoch.advance`, so that all gateways see it within a second, and ends
with its line in the audit log.
"""

from collections.abc import Mapping

import sqlalchemy as sa

from billing.clock import Instant, instant_text
from billing.errors import NotFoundError, UsageError
from billing.ledger import audit, epoch, schema
from billing.ledger.accounts import KEY_LIMIT_MAX

LIMITS = ("rpm", "tpm", "concurrency")


def set_customer_limits(
    conn: sa.Connection, customer_id: str, limits: Mapping[str, int], at: Instant, actor: str
) -> None:
    """Set rate limits of all keys of a customer together; 0 is none. Raises UsageError."""
    _set_limits(conn, schema.customers, "customer.limits", customer_id, limits, at, actor)


def set_key_limits(conn: sa.Connection, key_id: str, limits: Mapping[str, int], at: Instant, actor: str) -> None:
    """Set rate limits of a key; 0 is none of its own. Raises UsageError, NotFoundError."""
    _set_limits(conn, schema.api_keys, "key.limits", key_id, limits, at, actor)


def _set_limits(
    conn: sa.Connection, table: sa.Table, action: str, of: str, limits: Mapping[str, int], at: Instant, actor: str
) -> None:
    assert set(limits) <= set(LIMITS), "there are no others"
    for limit in limits.values():
        if not 0 <= limit <= KEY_LIMIT_MAX:
            raise UsageError(f"a limit of {limit} is not between 0 (none) and {KEY_LIMIT_MAX}")
    epoch.advance(conn)
    if conn.execute(sa.update(table).where(table.c.id == of).values(dict(limits))).rowcount == 0:
        raise NotFoundError(f"there is no {of!r}; `weir key list` and `weir customer list` show all")
    audit.record(conn, at=at, actor=actor, action=action, subject=of, details=dict(limits))


def set_paid_until(conn: sa.Connection, customer_id: str, until: Instant, at: Instant, actor: str) -> None:
    """Say that a customer's usage before an instant is paid: its credit limit is for what came after."""
    epoch.advance(conn)
    table = schema.customers
    conn.execute(sa.update(table).where(table.c.id == customer_id).values(paid_until=until))
    details = {"paid_until": instant_text(until)}
    audit.record(conn, at=at, actor=actor, action="customer.paid", subject=customer_id, details=details)
