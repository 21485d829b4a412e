"""What was signed to pay into a job: the payer's own transaction, by nonce and bytes."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Of jobs from before no transaction is known: they are taken to have one, whose nonce nothing uses."""
    op.add_column("jobs", sa.Column("nonce", sa.Integer))
    op.add_column("jobs", sa.Column("raw", sa.LargeBinary))
    op.execute(f"UPDATE jobs SET nonce = {2**62} WHERE good_until IS NULL")
