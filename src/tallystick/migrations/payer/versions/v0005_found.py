"""Whether the registry named a job's host, or the user did."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Of hosts from before that is not known: they are asked wherever they are, as the user's own are."""
    op.add_column("jobs", sa.Column("found", sa.Boolean, nullable=False, server_default=sa.false()))
