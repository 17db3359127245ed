"""The log of who changed what: a row per change, written in the change's own transaction, never altered.

Details are JSON and name what was changed, never a secret: an API key appears by its id and hint only.
"""

import json
from collections.abc import Mapping

import sqlalchemy as sa

from billing import ids
from billing.ledger import schema


def record(
    conn: sa.Connection, *, at: int, actor: str, action: str, subject: str, details: Mapping[str, object]
) -> None:
    """Append one change: an actor ("cli:anna") did an action ("customer.suspend") to a subject (an id)."""
    row = {
        "id": ids.uuid7(),
        "at": at,
        "actor": actor,
        "action": action,
        "subject": subject,
        "details": json.dumps(details, ensure_ascii=False, sort_keys=True),
    }
    conn.execute(sa.insert(schema.audit_log), row)
