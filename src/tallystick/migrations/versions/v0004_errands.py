"""What the host's key sends for payers."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """A host that sends its own transactions alone to one that brings payers' authorizations as well."""
    op.create_table(
        "errands",
        sa.Column(
            "transaction_id",
            sa.BigInteger().with_variant(sa.Integer, "sqlite"),
            sa.ForeignKey("transactions.id"),
            primary_key=True,
        ),
        sa.Column("payer", sa.String(42), nullable=False),
        sa.Column("nonce", sa.LargeBinary(32), nullable=False),
        sa.Column("job_id", sa.BigInteger),
        sa.Column("at", sa.BigInteger, nullable=False, index=True),
        sa.Column("cost", sa.String(78)),
        sa.UniqueConstraint("payer", "nonce"),
    )
