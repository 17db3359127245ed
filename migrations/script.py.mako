"""${message}.

Why: say which need this serves, and why the previous release still runs on the new schema.
"""

from alembic import op

revision = "${up_revision}"
down_revision = "${down_revision}"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Expand only; what fills or removes is a revision of its own."""
    ${upgrades if upgrades else 'op.execute("SELECT 1")'}
