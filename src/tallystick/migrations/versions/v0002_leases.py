"""Processes, and which of them owns a job or sends for a key."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """A ledger of one process to one that several may share."""
    op.add_column("jobs", sa.Column("owner", sa.String(100)))
    op.create_table(
        "processes",
        sa.Column("id", sa.String(100), primary_key=True),
        sa.Column("address", sa.String(200)),
        sa.Column("until", sa.Float, nullable=False),
    )
    op.create_table(
        "senders",
        sa.Column("address", sa.String(42), primary_key=True),
        sa.Column("owner", sa.String(100), nullable=False),
        sa.Column("epoch", sa.BigInteger, nullable=False),
    )
