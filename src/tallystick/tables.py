"""The shape of the ledger: its tables, and the values that their rows are read into.

`migrations/` builds the same tables step by step; a test holds the two together. Money and prices go up to 96
bits and are kept as decimal text, totals and times as integers. Knows no connection.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    UniqueConstraint,
    text,
)
from sqlalchemy.engine import Dialect, RowMapping
from sqlalchemy.types import TypeDecorator

from tallystick.fees import Fees
from tallystick.types import (
    Address,
    Job,
    JobId,
    JobStatus,
    Position,
    Prices,
    Receipt,
    RequestId,
    Totals,
)


class Big(TypeDecorator[int]):
    """An integer beyond 64 bits, as decimal text: not for comparing or summing in SQL."""

    impl = String(78)
    cache_ok = True

    def process_bind_param(self, value: int | None, dialect: Dialect) -> str | None:
        return None if value is None else str(value)

    def process_result_value(self, value: str | None, dialect: Dialect) -> int | None:
        return None if value is None else int(value)


# SQLite numbers its rows by itself in a column of exactly this type.
Serial = BigInteger().with_variant(Integer, "sqlite")

metadata = MetaData()


def _two(name: str) -> list[Column[int]]:
    """The columns of one pair of totals."""
    return [
        Column(f"{name}_prompt_tokens", BigInteger, nullable=False, server_default="0"),
        Column(f"{name}_tokens", BigInteger, nullable=False, server_default="0"),
    ]


def _job_id(*, primary_key: bool = False, index: bool = False) -> Column[int]:
    job = ForeignKey("jobs.job_id")
    return Column("job_id", BigInteger, job, nullable=False, primary_key=primary_key, index=index)


identity = Table("identity", metadata, Column("identity", String(200), primary_key=True))

jobs = Table(
    "jobs",
    metadata,
    # as the chain tells it
    Column("job_id", BigInteger, primary_key=True, autoincrement=False),
    Column("payer", String(42), nullable=False),
    Column("host", String(42), nullable=False),
    Column("asset", String(42), nullable=False),
    Column("signer", String(42), nullable=False, unique=True),
    Column("deposit", Big, nullable=False),
    Column("price", Big, nullable=False),
    Column("prompt_price", Big, nullable=False),
    Column("max_tokens_per_second", BigInteger, nullable=False),
    Column("claim_window", BigInteger, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
    Column("asked_at", BigInteger, nullable=False),
    Column("closes_at", BigInteger, nullable=False),
    Column("owed", Big, nullable=False),
    Column("fee", Big, nullable=False),
    Column("status", Integer, nullable=False),
    Column("interval", Big, nullable=False),
    Column("model_id", LargeBinary(32), nullable=False),
    *_two("chain"),
    # as the host counts it
    Column("owner", String(100)),
    Column("epoch", BigInteger, nullable=False, server_default="1"),
    *_two("gross"),
    *_two("written_off"),
    *_two("acknowledged"),
    *_two("receipted"),
    Column("receipt_id", BigInteger),
    *_two("due"),
    Column("due_receipt_id", BigInteger),
    *_two("settled"),
    *_two("confirmed"),
    Column("ending", Boolean, nullable=False, server_default=text("false")),
    Column("closed", Boolean, nullable=False, server_default=text("false")),
    Column("closed_by", String(66)),
    Index("jobs_open", "closed", "job_id"),
)

receipts = Table(
    "receipts",
    metadata,
    Column("id", Serial, primary_key=True),
    _job_id(index=True),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("tokens", BigInteger, nullable=False),
    Column("previous", LargeBinary(32), nullable=False),
    Column("transcript", LargeBinary(32), nullable=False),
    Column("signature", LargeBinary(65), nullable=False),
    Column("positions", JSON, nullable=False),
)

positions = Table(
    "positions",
    metadata,
    _job_id(primary_key=True),
    Column("request", String(32), primary_key=True),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("tokens", BigInteger, nullable=False),
)

transactions = Table(
    "transactions",
    metadata,
    Column("id", Serial, primary_key=True),
    Column("sender", String(42), nullable=False),
    Column("nonce", BigInteger, nullable=False),
    Column("purpose", String(40), nullable=False),
    Column("to", String(42), nullable=False),
    Column("data", LargeBinary, nullable=False),
    Column("value", Big, nullable=False),
    Column("gas", BigInteger, nullable=False),
    Column("state", String(10), nullable=False),
    Column("mined_hash", String(66)),
    Column("mined_block", BigInteger),
    UniqueConstraint("sender", "nonce"),
    Index("transactions_state", "state", "sender"),
)

attempts = Table(
    "attempts",
    metadata,
    Column("hash", String(66), primary_key=True),
    Column("transaction_id", Serial, ForeignKey("transactions.id"), nullable=False, index=True),
    Column("number", Integer, nullable=False),
    Column("raw", LargeBinary, nullable=False),
    Column("max_fee", Big, nullable=False),
    Column("tip", Big, nullable=False),
    Column("cancelling", Boolean, nullable=False),
    Column("taken_at", Float),
    UniqueConstraint("transaction_id", "number"),
)

claims = Table(
    "claims",
    metadata,
    Column("transaction_id", Serial, ForeignKey("transactions.id"), primary_key=True),
    _job_id(primary_key=True),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("tokens", BigInteger, nullable=False),
    Column("complete", Boolean, nullable=False),
    Column("active", Boolean, nullable=False),
    Column("paid", Boolean, nullable=False, server_default=text("false")),
    # At most one transaction in flight carries a job.
    Index(
        "claims_one_in_flight",
        "job_id",
        unique=True,
        sqlite_where=text("active"),
        postgresql_where=text("active"),
    ),
)


# What the host's key sends for payers: see sponsor.py

errands = Table(
    "errands",
    metadata,
    Column("transaction_id", Serial, ForeignKey("transactions.id"), primary_key=True),
    Column("payer", String(42), nullable=False),
    Column("nonce", LargeBinary(32), nullable=False),
    Column("job_id", BigInteger),
    Column("at", BigInteger, nullable=False, index=True),
    Column("cost", Big),
    UniqueConstraint("payer", "nonce"),
)


# How far the chain's events were read: see watcher.py

cursors = Table(
    "cursors",
    metadata,
    Column("host", String(42), primary_key=True),
    Column("block", BigInteger, nullable=False),
    Column("hash", String(66), nullable=False),
)


# Who owns what: see leases.py

processes = Table(
    "processes",
    metadata,
    Column("id", String(100), primary_key=True),
    Column("address", String(200)),
    Column("until", Float, nullable=False),
)

senders = Table(
    "senders",
    metadata,
    Column("address", String(42), primary_key=True),
    Column("owner", String(100), nullable=False),
    Column("epoch", BigInteger, nullable=False),
)


class Counts(msgspec.Struct, frozen=True):
    """What was counted and signed of a job in its whole life."""

    attested: bool
    gross: Totals
    """All that was ever counted, as far as it was brought to the ledger."""
    written_off: Totals
    acknowledged: Totals
    """What the payer's positions add up to."""
    receipted: Totals
    """What the newest receipt signs."""

    @property
    def counted(self) -> Totals:
        """The gross count less what was written off, never below what the payer acknowledged."""
        return (self.gross - self.written_off).higher(self.acknowledged)

    @property
    def claimable(self) -> Totals:
        """The most that the host may settle (law 8)."""
        return self.counted if self.attested else self.counted.lower(self.receipted)


@dataclass(frozen=True, slots=True)
class JobRow:
    """All that the host knows of a job. Every total is of the job's whole life."""

    job: Job
    """As last read from the chain."""
    epoch: int
    """Of the job's ownership by a process; a counter's slot of another one is void."""
    counts: Counts
    receipted: Receipt | None
    """The newest receipt."""
    due: Totals
    """What the first receipt at or past the last whole interval lets the host claim."""
    due_receipt: Receipt | None
    settled: Totals
    """Seen settled on the chain, at any depth."""
    confirmed: Totals
    """Seen settled on the chain, N blocks deep."""
    ending: bool
    """The session has ended: claim what there is, and complete."""
    closed: bool
    """Seen closed, N blocks deep."""
    owner: str | None = None
    """The process that serves it, or did."""

    @property
    def gross(self) -> Totals:
        return self.counts.gross

    @property
    def written_off(self) -> Totals:
        return self.counts.written_off

    @property
    def acknowledged(self) -> Totals:
        return self.counts.acknowledged

    @property
    def counted(self) -> Totals:
        return self.counts.counted

    @property
    def claimable(self) -> Totals:
        return self.counts.claimable


class State(enum.StrEnum):
    """Of a logical transaction. The first two are in flight."""

    OPEN = "open"
    """Signed, on disk, without a receipt from the chain."""
    MINED = "mined"
    CONFIRMED = "confirmed"
    REVERTED = "reverted"
    CANCELLED = "cancelled"
    """Its nonce was filled by a transfer of nothing."""
    DISPLACED = "displaced"
    """Its nonce was used by a transaction that is not ours."""


IN_FLIGHT = (State.OPEN, State.MINED)


@dataclass(frozen=True, slots=True)
class Attempt:
    """One signed form of a transaction."""

    hash: str
    raw: bytes = field(repr=False)
    fees: Fees
    cancelling: bool = False
    """A transfer of nothing to oneself, that only fills the nonce."""
    taken_at: float | None = None
    """When an endpoint first took it, in seconds since 1970."""


@dataclass(frozen=True, slots=True)
class Carried:
    """What a transaction claims for one job."""

    job_id: JobId
    totals: Totals
    complete: bool = False


@dataclass(frozen=True, slots=True)
class Errand:
    """What a transaction does for a payer that has authorized it. No other one does the same."""

    payer: Address
    nonce: bytes
    """Of the payer's authorization, 32 bytes."""
    at: int
    """Seconds of the chain's clock."""
    job_id: JobId | None = None
    """The job that is topped up; None: one is opened."""


@dataclass(frozen=True, slots=True)
class Draft:
    """A transaction before it is saved. `value` and fees are in wei."""

    sender: Address
    nonce: int
    purpose: str
    to: Address
    data: bytes = field(repr=False)
    value: int
    gas: int
    carried: tuple[Carried, ...] = ()
    errand: Errand | None = None
    """Only of one that is to be saved; `Sent` has it afterwards."""


@dataclass(frozen=True, slots=True)
class Transaction:
    """A nonce, what it is used for, and every hash that may use it."""

    id: int
    draft: Draft
    state: State
    mined_hash: str | None
    mined_block: int | None
    attempts: tuple[Attempt, ...]
    """Oldest first; never empty."""

    @property
    def nonce(self) -> int:
        return self.draft.nonce

    @property
    def newest(self) -> Attempt:
        return self.attempts[-1]


@dataclass(frozen=True, slots=True)
class Sent:
    """An errand, and what became of its transaction."""

    errand: Errand
    transaction: Transaction
    cost: int | None
    """Wei that its receipt says it has cost; None: that was not looked up yet."""

    @property
    def at_most(self) -> int:
        """Wei that it has cost, or may cost."""
        if self.cost is not None:
            return self.cost
        return self.transaction.draft.gas * max(each.fees.max_fee for each in self.transaction.attempts)

    @property
    def tx(self) -> str:
        """The hash that is in a block, or the newest."""
        return self.transaction.mined_hash or self.transaction.newest.hash


@dataclass(frozen=True, slots=True)
class UnderWay:
    """What of a key's transactions is in flight."""

    transactions: int
    jobs: frozenset[JobId]


@dataclass(frozen=True, slots=True)
class Cursor:
    """The block up to which a host's events were read."""

    block: int
    hash: str


Row = RowMapping | Mapping[str, Any]


def totals_in(row: Row, name: str) -> Totals:
    """One pair of totals of a row."""
    return Totals(row[f"{name}_prompt_tokens"], row[f"{name}_tokens"])


def totals_out(name: str, totals: Totals) -> dict[str, int]:
    """One pair of totals as columns."""
    return {f"{name}_prompt_tokens": totals.prompt_tokens, f"{name}_tokens": totals.tokens}


def job_out(job: Job) -> dict[str, Any]:
    """The columns that the chain tells."""
    return {
        "job_id": job.id,
        "payer": job.payer,
        "host": job.host,
        "asset": job.asset,
        "signer": job.signer,
        "deposit": job.deposit,
        "price": job.prices.per_million,
        "prompt_price": job.prices.prompt_per_million,
        "max_tokens_per_second": job.max_tokens_per_second,
        "claim_window": job.claim_window,
        "created_at": job.created_at,
        "expires_at": job.expires_at,
        "asked_at": job.asked_at,
        "closes_at": job.closes_at,
        "owed": job.owed,
        "fee": job.fee,
        "status": int(job.status),
        "interval": job.interval,
        "model_id": job.model_id,
        **totals_out("chain", job.settled),
    }


def job_in(row: Row) -> Job:
    """What `job_out` wrote."""
    return Job(
        id=JobId(row["job_id"]),
        payer=Address(row["payer"]),
        host=Address(row["host"]),
        asset=Address(row["asset"]),
        signer=Address(row["signer"]),
        deposit=row["deposit"],
        prices=Prices(row["price"], row["prompt_price"]),
        max_tokens_per_second=row["max_tokens_per_second"],
        claim_window=row["claim_window"],
        created_at=row["created_at"],
        expires_at=row["expires_at"],
        asked_at=row["asked_at"],
        closes_at=row["closes_at"],
        settled=totals_in(row, "chain"),
        owed=row["owed"],
        fee=row["fee"],
        status=JobStatus(row["status"]),
        interval=row["interval"],
        model_id=row["model_id"],
    )


def counts_in(row: Row) -> Counts:
    """What a row of `jobs` counts."""
    return Counts(
        attested=row["max_tokens_per_second"] > 0,
        gross=totals_in(row, "gross"),
        written_off=totals_in(row, "written_off"),
        acknowledged=totals_in(row, "acknowledged"),
        receipted=totals_in(row, "receipted"),
    )


def job_row(row: Row, receipt: Receipt | None, due_receipt: Receipt | None) -> JobRow:
    """A row of `jobs` with its two receipts."""
    return JobRow(
        job=job_in(row),
        epoch=row["epoch"],
        counts=counts_in(row),
        receipted=receipt,
        due=totals_in(row, "due"),
        due_receipt=due_receipt,
        settled=totals_in(row, "settled"),
        confirmed=totals_in(row, "confirmed"),
        ending=row["ending"],
        closed=row["closed"],
        owner=row["owner"],
    )


def receipt_out(receipt: Receipt) -> dict[str, Any]:
    """A receipt as columns."""
    return {
        "job_id": receipt.job_id,
        "prompt_tokens": receipt.totals.prompt_tokens,
        "tokens": receipt.totals.tokens,
        "previous": receipt.previous,
        "transcript": receipt.transcript,
        "signature": receipt.signature,
        "positions": [
            [p.request, p.prompt_tokens, p.tokens, p.prompt_hash.hex(), p.text_hash.hex()]
            for p in receipt.positions
        ],
    }


def receipt_in(row: Row) -> Receipt:
    """What `receipt_out` wrote."""
    return Receipt(
        job_id=JobId(row["job_id"]),
        totals=Totals(row["prompt_tokens"], row["tokens"]),
        previous=row["previous"],
        transcript=row["transcript"],
        signature=row["signature"],
        positions=tuple(
            Position(RequestId(request), prompt_tokens, tokens, bytes.fromhex(prompt), bytes.fromhex(text_))
            for request, prompt_tokens, tokens, prompt, text_ in row["positions"]
        ),
    )


def attempt_in(row: Row) -> Attempt:
    """A row of `attempts`."""
    fees = Fees(row["max_fee"], row["tip"])
    return Attempt(row["hash"], row["raw"], fees, row["cancelling"], row["taken_at"])


def attempt_out(transaction_id: int, number: int, attempt: Attempt) -> dict[str, Any]:
    """An attempt as columns; `number` counts a transaction's attempts from 0."""
    return {
        "hash": attempt.hash,
        "transaction_id": transaction_id,
        "number": number,
        "raw": attempt.raw,
        "max_fee": attempt.fees.max_fee,
        "tip": attempt.fees.tip,
        "cancelling": attempt.cancelling,
        "taken_at": attempt.taken_at,
    }
