"""How many more tokens may be generated for a key's client that has left (`billing/disconnect.py`).

0 is none, null all of them. Expands only: the default is what the previous release does, so that keys that it makes
stay what they are. The constraint is written in place, since SQLite adds none to a table that exists.
"""

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column."""
    big = "INTEGER" if op.get_bind().dialect.name == "sqlite" else "BIGINT"
    op.execute(
        f"ALTER TABLE api_keys ADD COLUMN drain_tokens {big} DEFAULT '0'"
        " CONSTRAINT ck_api_keys_drain_not_negative CHECK (drain_tokens >= 0)"
    )
