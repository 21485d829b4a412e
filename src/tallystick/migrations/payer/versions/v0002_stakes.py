"""What each job may cost on a day, for payers that keep within caps."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Jobs from before are staked when they are gone on with."""
    op.create_table(
        "stakes",
        sa.Column("signer", sa.String(42), sa.ForeignKey("jobs.signer"), primary_key=True),
        sa.Column("asset", sa.String(42), nullable=False),
        sa.Column("day", sa.String(10), nullable=False),
        sa.Column("began", sa.String(29), nullable=False),
        sa.Column("most", sa.String(29), nullable=False),
        if_not_exists=True,
    )
