"""Session keys with their jobs, and the receipts that they signed."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """A new store, or one from before there were revisions: such a one has these tables."""
    op.create_table(
        "jobs",
        sa.Column("signer", sa.String(42), primary_key=True),
        sa.Column("key", sa.LargeBinary, nullable=False),
        sa.Column("chain_id", sa.Integer, nullable=False),
        sa.Column("contract", sa.String(42), nullable=False),
        sa.Column("payer", sa.String(42), nullable=False),
        sa.Column("host_url", sa.String, nullable=False),
        sa.Column("model", sa.String, nullable=False),
        sa.Column("job_id", sa.Integer),
        sa.Column("ended", sa.Boolean, nullable=False),
        sa.UniqueConstraint("chain_id", "contract", "job_id"),
        if_not_exists=True,
    )
    op.create_table(
        "receipts",
        sa.Column("signer", sa.String(42), sa.ForeignKey("jobs.signer"), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("body", sa.LargeBinary, nullable=False),
        sa.Column("acknowledged_prompt_tokens", sa.BigInteger, nullable=False),
        sa.Column("acknowledged_tokens", sa.BigInteger, nullable=False),
        sa.Column("ack", sa.LargeBinary),
        if_not_exists=True,
    )
