"""Jobs with their receipts, and the transactions that settle them."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

BIG = sa.String(78)
SERIAL = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def totals(*names: str) -> list[sa.Column[int]]:
    """The columns of pairs of totals."""
    return [
        sa.Column(f"{name}_{column}", sa.BigInteger, nullable=False, server_default="0")
        for name in names
        for column in ("prompt_tokens", "tokens")
    ]


def job_id(*, primary_key: bool = False, index: bool = False) -> sa.Column[int]:
    """A reference to a job."""
    job = sa.ForeignKey("jobs.job_id")
    return sa.Column("job_id", sa.BigInteger, job, nullable=False, primary_key=primary_key, index=index)


def upgrade() -> None:
    """An empty database to this revision."""
    op.create_table("identity", sa.Column("identity", sa.String(200), primary_key=True))
    create_jobs()
    create_receipts()
    create_transactions()


def create_jobs() -> None:
    """`jobs`."""
    op.create_table(
        "jobs",
        sa.Column("job_id", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("payer", sa.String(42), nullable=False),
        sa.Column("host", sa.String(42), nullable=False),
        sa.Column("asset", sa.String(42), nullable=False),
        sa.Column("signer", sa.String(42), nullable=False, unique=True),
        sa.Column("deposit", BIG, nullable=False),
        sa.Column("price", BIG, nullable=False),
        sa.Column("prompt_price", BIG, nullable=False),
        sa.Column("max_tokens_per_second", sa.BigInteger, nullable=False),
        sa.Column("claim_window", sa.BigInteger, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.BigInteger, nullable=False),
        sa.Column("asked_at", sa.BigInteger, nullable=False),
        sa.Column("closes_at", sa.BigInteger, nullable=False),
        sa.Column("owed", BIG, nullable=False),
        sa.Column("fee", BIG, nullable=False),
        sa.Column("status", sa.Integer, nullable=False),
        sa.Column("interval", BIG, nullable=False),
        sa.Column("model_id", sa.LargeBinary(32), nullable=False),
        *totals("chain"),
        sa.Column("epoch", sa.BigInteger, nullable=False, server_default="1"),
        *totals("gross", "written_off", "acknowledged", "receipted"),
        sa.Column("receipt_id", sa.BigInteger),
        *totals("due"),
        sa.Column("due_receipt_id", sa.BigInteger),
        *totals("settled", "confirmed"),
        sa.Column("ending", sa.Boolean, nullable=False, server_default=sa.text("false")),
        sa.Column("closed", sa.Boolean, nullable=False, server_default=sa.text("false")),
        sa.Column("closed_by", sa.String(66)),
    )
    op.create_index("jobs_open", "jobs", ["closed", "job_id"])


def create_receipts() -> None:
    """`receipts` and `positions`."""
    op.create_table(
        "receipts",
        sa.Column("id", SERIAL, primary_key=True),
        job_id(index=True),
        sa.Column("prompt_tokens", sa.BigInteger, nullable=False),
        sa.Column("tokens", sa.BigInteger, nullable=False),
        sa.Column("previous", sa.LargeBinary(32), nullable=False),
        sa.Column("transcript", sa.LargeBinary(32), nullable=False),
        sa.Column("signature", sa.LargeBinary(65), nullable=False),
        sa.Column("positions", sa.JSON, nullable=False),
    )
    op.create_table(
        "positions",
        job_id(primary_key=True),
        sa.Column("request", sa.String(32), primary_key=True),
        sa.Column("prompt_tokens", sa.BigInteger, nullable=False),
        sa.Column("tokens", sa.BigInteger, nullable=False),
    )


def create_transactions() -> None:
    """`transactions`, `attempts` and `claims`."""
    op.create_table(
        "transactions",
        sa.Column("id", SERIAL, primary_key=True),
        sa.Column("sender", sa.String(42), nullable=False),
        sa.Column("nonce", sa.BigInteger, nullable=False),
        sa.Column("purpose", sa.String(40), nullable=False),
        sa.Column("to", sa.String(42), nullable=False),
        sa.Column("data", sa.LargeBinary, nullable=False),
        sa.Column("value", BIG, nullable=False),
        sa.Column("gas", sa.BigInteger, nullable=False),
        sa.Column("state", sa.String(10), nullable=False),
        sa.Column("mined_hash", sa.String(66)),
        sa.Column("mined_block", sa.BigInteger),
        sa.UniqueConstraint("sender", "nonce"),
    )
    op.create_index("transactions_state", "transactions", ["state", "sender"])
    op.create_table(
        "attempts",
        sa.Column("hash", sa.String(66), primary_key=True),
        sa.Column("transaction_id", SERIAL, sa.ForeignKey("transactions.id"), nullable=False, index=True),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("raw", sa.LargeBinary, nullable=False),
        sa.Column("max_fee", BIG, nullable=False),
        sa.Column("tip", BIG, nullable=False),
        sa.Column("cancelling", sa.Boolean, nullable=False),
        sa.Column("taken_at", sa.Float),
        sa.UniqueConstraint("transaction_id", "number"),
    )
    op.create_table(
        "claims",
        sa.Column("transaction_id", SERIAL, sa.ForeignKey("transactions.id"), primary_key=True),
        job_id(primary_key=True),
        sa.Column("prompt_tokens", sa.BigInteger, nullable=False),
        sa.Column("tokens", sa.BigInteger, nullable=False),
        sa.Column("complete", sa.Boolean, nullable=False),
        sa.Column("active", sa.Boolean, nullable=False),
        sa.Column("paid", sa.Boolean, nullable=False, server_default=sa.text("false")),
    )
    op.create_index(
        "claims_one_in_flight",
        "claims",
        ["job_id"],
        unique=True,
        sqlite_where=sa.text("active"),
        postgresql_where=sa.text("active"),
    )
