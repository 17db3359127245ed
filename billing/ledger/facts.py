"""What is true of the whole ledger: the currency of its rates and amounts.

Invariant: rates, amounts and credit carry no currency of their own, so the ledger has one, for ever: the one in which
its first rate, credit or price at Stripe was made. Another `billing.currency` would only call the same numbers by
another name, and is refused before anything is read with it.
"""

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from billing.clock import Instant
from billing.errors import RefusedError
from billing.ledger import schema

_FACTS = schema.ledger_facts
_CURRENCY = "currency"


def currency(conn: sa.Connection) -> str | None:
    """Return the ledger's currency, None before anything has an amount."""
    found: str | None = conn.scalar(sa.select(_FACTS.c.value).where(_FACTS.c.name == _CURRENCY))
    return found


def require_currency(conn: sa.Connection, wanted: str) -> None:
    """Refuse another currency than the ledger's. Raises RefusedError."""
    known = currency(conn)
    if known not in (None, wanted):
        raise RefusedError(
            f"this ledger is in {known}, and billing.currency = {wanted!r} would only rename its numbers: set it to"
            f" {known!r} again, or begin a new database"
        )


def pin_currency(conn: sa.Connection, wanted: str, at: Instant) -> None:
    """Let the ledger be in this currency, if nothing was made in one yet. Raises RefusedError if it is in another."""
    if currency(conn) is None:
        insert = sqlite.insert if conn.dialect.name == "sqlite" else postgresql.insert
        statement = insert(_FACTS).values(name=_CURRENCY, value=wanted, recorded_at=at)
        conn.execute(statement.on_conflict_do_nothing())
    require_currency(conn, wanted)


def settle_currency(conn: sa.Connection, wanted: str, at: Instant) -> None:
    """Do what `pin_currency` does where there are rates, else only `require_currency`: for a gateway that starts."""
    if conn.scalar(sa.select(schema.cost_rates.c.id).limit(1)) is None:
        require_currency(conn, wanted)
    else:
        pin_currency(conn, wanted, at)
