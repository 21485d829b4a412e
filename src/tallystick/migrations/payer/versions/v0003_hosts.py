"""What came of what was asked of each host, by which the next one is chosen."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Nothing is known of hosts that were asked before."""
    op.create_table(
        "hosts",
        sa.Column("chain_id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("host", sa.String(42), primary_key=True),
        sa.Column("replies", sa.Integer, nullable=False),
        sa.Column("tokens", sa.BigInteger, nullable=False),
        sa.Column("failures", sa.Integer, nullable=False),
        sa.Column("late", sa.Integer, nullable=False),
        sa.Column("overcounts", sa.Integer, nullable=False),
        sa.Column("first_token_ms", sa.Integer),
        sa.Column("last_seen", sa.Float, nullable=False),
        sa.Column("in_a_row", sa.Integer, nullable=False),
        sa.Column("aside_until", sa.Float, nullable=False),
        sa.Column("cause", sa.String, nullable=False),
    )
