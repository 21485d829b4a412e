"""Until when an opening may still come that somebody else was to send."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Openings from before were the payer's own transactions."""
    op.add_column("jobs", sa.Column("good_until", sa.Integer))
