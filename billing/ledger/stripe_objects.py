"""The ids of what `weir stripe setup` made or adopted at Stripe: one meter, one product, one price."""

from enum import StrEnum

import sqlalchemy as sa

from billing.clock import Instant
from billing.ledger import schema


class Kind(StrEnum):
    """What Weir needs at Stripe, once per account."""

    METER = "meter"
    PRODUCT = "product"
    PRICE = "price"


def known(conn: sa.Connection) -> dict[Kind, str]:
    """Return the ids that were recorded; empty before the first setup."""
    table = schema.stripe_objects
    return {Kind(row[0]): row[1] for row in conn.execute(sa.select(table.c.kind, table.c.stripe_id))}


def recorded_at(conn: sa.Connection, kind: Kind) -> Instant | None:
    """Return since when an object is known, None before the first setup."""
    table = schema.stripe_objects
    found = conn.scalar(sa.select(table.c.recorded_at).where(table.c.kind == str(kind)))
    return None if found is None else Instant(found)


def record(conn: sa.Connection, kind: Kind, stripe_id: str, at: Instant) -> bool:
    """Record an id; False if it is known already."""
    if known(conn).get(kind) == stripe_id:
        return False
    table = schema.stripe_objects
    conn.execute(sa.delete(table).where(table.c.kind == str(kind)))
    conn.execute(sa.insert(table).values(kind=str(kind), stripe_id=stripe_id, recorded_at=at))
    return True
