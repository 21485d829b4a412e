"""Where Alembic begins with a payer's store: on the connection that it is given, inside one transaction."""

from alembic import context

from tallystick.store import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()
