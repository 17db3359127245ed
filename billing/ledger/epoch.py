"""One number that grows with each change that gateways must see within a second.

Whatever changes a key, a customer, a suspension, a rate or a rule calls `advance` in the same transaction. A gateway
polls `current`, one row by its primary key, and drops its caches when it grew: no message can be lost, none is needed.
"""

import sqlalchemy as sa

from billing.ledger import schema


def current(conn: sa.Connection) -> int:
    """Return the epoch."""
    epoch: int = conn.execute(sa.select(schema.directory_epoch.c.epoch)).scalar_one()
    return epoch


def advance(conn: sa.Connection) -> None:
    """Tell every gateway to look again, once the caller's transaction commits."""
    table = schema.directory_epoch
    changed = conn.execute(sa.update(table).values(epoch=table.c.epoch + 1))
    assert changed.rowcount == 1, "the migration made the one row"
