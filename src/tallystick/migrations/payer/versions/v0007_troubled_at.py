"""When the last trouble with a host was noted, so that what befell several requests at once counts once."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Of troubles from before no time is known: the next one is another."""
    op.add_column("hosts", sa.Column("troubled_at", sa.Float, nullable=False, server_default=sa.text("0")))
