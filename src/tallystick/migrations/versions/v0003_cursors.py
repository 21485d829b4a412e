"""How far the chain's events were read."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """A ledger that is asked for every open job to one that is told of those that changed."""
    op.create_table(
        "cursors",
        sa.Column("host", sa.String(42), primary_key=True),
        sa.Column("block", sa.BigInteger, nullable=False),
        sa.Column("hash", sa.String(66), nullable=False),
    )
