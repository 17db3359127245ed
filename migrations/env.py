"""Alembic's entry: runs the revisions on the connection that `billing.ledger.migrate` opened and will commit.

There is no other way in (no alembic.ini, no offline mode): the locks, the time limits and the one transaction
of an upgrade are decided there, and an upgrade without them could leave half a schema behind.

A new revision is made by `alembic.command.revision(config, message="what and why", rev_id="0002")`, where the
config's `script_location` is this folder.
"""

from alembic import context

from billing.ledger import schema

context.configure(connection=context.config.attributes["connection"], target_metadata=schema.metadata)
context.run_migrations()
