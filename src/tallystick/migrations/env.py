"""Where Alembic begins: it runs on the connection that the ledger gives it, inside one transaction."""

from alembic import context

from tallystick.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()
