"""The payer's store: session keys, jobs and receipts, on disk before they are used. Knows SQLite and nothing
of chain or host.

A session key is written before the transaction that opens its job, and a receipt before it is sent (law 7): a
payer that is killed at any point finds its job, its key and the most that it may have signed. The file is
readable by its owner only.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import orjson
import sqlalchemy as sa
from sqlalchemy.dialects import sqlite

from tallystick import database, wire
from tallystick.caps import Stake
from tallystick.errors import LedgerError
from tallystick.record import Came, Record
from tallystick.types import Ack, Address, JobId, Receipt, Totals

MIGRATIONS = Path(__file__).parent / "migrations" / "payer"
REVISION = "0007"
"""The newest of them: what a store is brought to when it is opened."""

metadata = sa.MetaData()

jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column("signer", sa.String(42), primary_key=True),
    sa.Column("key", sa.LargeBinary, nullable=False),
    sa.Column("chain_id", sa.Integer, nullable=False),
    sa.Column("contract", sa.String(42), nullable=False),
    sa.Column("payer", sa.String(42), nullable=False),
    sa.Column("host_url", sa.String, nullable=False),
    sa.Column("model", sa.String, nullable=False),
    sa.Column("job_id", sa.Integer),
    sa.Column("ended", sa.Boolean, nullable=False, default=False),
    sa.Column("good_until", sa.Integer),
    sa.Column("found", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("nonce", sa.Integer),
    sa.Column("raw", sa.LargeBinary),
    sa.UniqueConstraint("chain_id", "contract", "job_id"),
)

receipts = sa.Table(
    "receipts",
    metadata,
    sa.Column("signer", sa.String(42), sa.ForeignKey("jobs.signer"), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("body", sa.LargeBinary, nullable=False),
    sa.Column("acknowledged_prompt_tokens", sa.BigInteger, nullable=False),
    sa.Column("acknowledged_tokens", sa.BigInteger, nullable=False),
    sa.Column("ack", sa.LargeBinary),
)


stakes = sa.Table(
    "stakes",
    metadata,
    sa.Column("signer", sa.String(42), sa.ForeignKey("jobs.signer"), primary_key=True),
    sa.Column("asset", sa.String(42), nullable=False),
    sa.Column("day", sa.String(10), nullable=False),
    # Base units as decimal digits: SQLite's integers end at 2^63.
    sa.Column("began", sa.String(29), nullable=False),
    sa.Column("most", sa.String(29), nullable=False),
)

hosts = sa.Table(
    "hosts",
    metadata,
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
    sa.Column("troubled_at", sa.Float, nullable=False, server_default=sa.text("0")),
    sa.Column("aside_until", sa.Float, nullable=False),
    sa.Column("cause", sa.String, nullable=False),
)

_PENDING = (jobs.c.job_id.is_(None), ~jobs.c.ended)


@dataclass(frozen=True, slots=True)
class StoredJob:
    """A job of this payer. `job_id` is None between writing the key and learning the id from the chain."""

    signer: Address
    key: bytes = field(repr=False)
    chain_id: int
    contract: Address
    payer: Address
    host_url: str
    model: str
    job_id: JobId | None
    ended: bool
    good_until: int | None = None
    """Until when somebody else may pay into the job, of the chain's clock, if one was authorized to."""
    nonce: int | None = None
    """Of the payer's transaction that was signed last to pay into the job; None: none was."""
    raw: bytes | None = field(default=None, repr=False)
    """The payer's transaction that opens the job, signed."""
    found: bool = False
    """The registry named its host, and not the user."""

    @property
    def found_on(self) -> int | None:
        """The chain whose registry named its host; None: the user did."""
        return self.chain_id if self.found else None

    @property
    def is_signed(self) -> bool:
        """Something that can pay into the job has been signed."""
        return self.nonce is not None or self.good_until is not None

    @property
    def may_come(self) -> bool:
        """Something is known to be signed that can open the job."""
        return self.raw is not None or self.good_until is not None


@dataclass(frozen=True, slots=True)
class StoredReceipt:
    """The last receipt of a job, what it acknowledged, and the host's word on it if that came."""

    receipt: Receipt
    acknowledged: Totals
    ack: Ack | None


class Store:
    """SQLite in `directory/payer.db`. Every write is on disk when its method returns. Raises LedgerError."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "payer.db"
        with told(self.path):
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            os.close(os.open(self.path, os.O_CREAT | os.O_RDWR, 0o600))
            self._engine = sa.create_engine(f"sqlite:///{self.path}")
            sa.event.listen(self._engine, "connect", _durable)
            with self._engine.begin() as connection:
                connection.exec_driver_sql("BEGIN IMMEDIATE")
                if _revision(connection) != REVISION:
                    database.migrate(connection, MIGRATIONS, "head", f"the payer's store {self.path}")

    def close(self) -> None:
        """Closes the file."""
        self._engine.dispose()

    def opening(
        self, job: StoredJob, stake: Stake | None = None, seen: Collection[Stake] | None = None
    ) -> bool:
        """Writes a session key before its job is opened, and what it may cost where that is capped.

        False, and nothing is written, if other stakes are there than those that were `seen`.
        """
        opening = jobs.insert().values(**{c.name: getattr(job, c.name) for c in jobs.columns})
        staking = [] if stake is None else [_staking(stake)]
        return self._write_if(_unchanged(job.chain_id, job.contract, seen), opening, *staking)

    def sending(self, signer: Address, nonce: int, raw: bytes | None = None) -> None:
        """Writes the payer's transaction that pays into a job, before it is sent; `raw` if it opens it."""
        self._write(jobs.update().where(jobs.c.signer == signer).values(nonce=nonce, raw=raw))

    def authorized(self, signer: Address, good_until: int) -> None:
        """Writes until when somebody may pay into a job in the payer's name, before that is made possible."""
        self._write(jobs.update().where(jobs.c.signer == signer).values(good_until=good_until))

    def opened(self, signer: Address, job_id: JobId) -> None:
        """The chain has given the job its id.

        A contract gives an id once, so a job that had it here was in a block that is gone, and has none now.
        """
        of_signer = jobs.c.signer == signer
        place = sa.select(jobs.c.chain_id, jobs.c.contract).where(of_signer)
        here = sa.tuple_(jobs.c.chain_id, jobs.c.contract).in_(place)
        self._write(
            jobs.update().where(here, jobs.c.job_id == job_id, ~of_signer).values(job_id=None),
            jobs.update().where(of_signer).values(job_id=job_id),
        )

    def vanished(self, signer: Address) -> None:
        """A reorganisation took the opening back: the job has no id, unless it comes once more."""
        self._write(jobs.update().where(jobs.c.signer == signer).values(job_id=None))

    def end(self, signer: Address) -> None:
        """The job takes no more requests; it stays in the store as evidence."""
        self._write(jobs.update().where(jobs.c.signer == signer).values(ended=True))

    def job(self, chain_id: int, contract: Address, job_id: JobId) -> StoredJob | None:
        """The job with this id on this chain and contract, if its key is here."""
        found = self._read(_jobs_of(chain_id, contract).where(jobs.c.job_id == job_id))
        return _stored_job(found[0]) if found else None

    def jobs(self, chain_id: int, contract: Address, *, ended: bool = False) -> list[StoredJob]:
        """The jobs of this chain and contract that were not ended (all: `ended=True`), oldest first."""
        query = _jobs_of(chain_id, contract).where(jobs.c.job_id.is_not(None)).order_by(jobs.c.job_id)
        return [_stored_job(row) for row in self._read(query if ended else query.where(~jobs.c.ended))]

    def stake(self, stake: Stake, seen: Collection[Stake] | None = None) -> bool:
        """Writes what a job may cost, before that is made possible.

        False, and nothing is written, if other stakes are there than those that were `seen`.
        """
        [place] = self._read(sa.select(jobs.c.chain_id, jobs.c.contract).where(jobs.c.signer == stake.signer))
        return self._write_if(_unchanged(place.chain_id, place.contract, seen), _staking(stake))

    def drop(self, signer: Address) -> None:
        """The opening never comes: its key is worth nothing, and nothing is staked."""
        self._write(
            stakes.delete().where(stakes.c.signer == signer),
            jobs.update().where(jobs.c.signer == signer).values(ended=True),
        )

    def stakes(self, chain_id: int, contract: Address) -> list[Stake]:
        """What jobs of this chain and contract may cost, each on the last day that it was looked at."""
        return [_stake(row) for row in self._read(_stakes_of(chain_id, contract))]

    def pending(self, signer: Address) -> StoredJob | None:
        """A job that was not ended, whose key was written and whose id is not known."""
        found = self._read(sa.select(jobs).where(jobs.c.signer == signer, *_PENDING))
        return _stored_job(found[0]) if found else None

    def openings(self, chain_id: int, contract: Address) -> list[StoredJob]:
        """Jobs that were not ended, whose key was written and whose id is not known."""
        query = _jobs_of(chain_id, contract).where(*_PENDING)
        return [_stored_job(row) for row in self._read(query)]

    def signed(self, signer: Address, receipt: Receipt, acknowledged: Totals) -> None:
        """Writes a receipt before it is sent."""
        number = sa.select(sa.func.coalesce(sa.func.max(receipts.c.number), 0) + 1).where(
            receipts.c.signer == signer
        )
        self._write(
            receipts.insert().values(
                signer=signer,
                number=number.scalar_subquery(),
                body=orjson.dumps(wire.receipt_out(receipt)),
                acknowledged_prompt_tokens=acknowledged.prompt_tokens,
                acknowledged_tokens=acknowledged.tokens,
            )
        )

    def acked(self, signer: Address, ack: Ack) -> None:
        """Writes the host's acknowledgement beside the receipt that it is of."""
        newest = (
            sa.select(sa.func.max(receipts.c.number)).where(receipts.c.signer == signer).scalar_subquery()
        )
        here = (receipts.c.signer == signer) & (receipts.c.number == newest)
        self._write(receipts.update().where(here).values(ack=orjson.dumps(wire.ack_out(ack))))

    def last(self, signer: Address) -> StoredReceipt | None:
        """The newest receipt of a job."""
        query = (
            receipts.select().where(receipts.c.signer == signer).order_by(receipts.c.number.desc()).limit(1)
        )
        found = self._read(query)
        return _stored_receipt(found[0]) if found else None

    def receipts(self, signer: Address) -> list[StoredReceipt]:
        """All receipts of a job, in the order in which they were signed."""
        query = receipts.select().where(receipts.c.signer == signer).order_by(receipts.c.number)
        return [_stored_receipt(row) for row in self._read(query)]

    def records(self, chain_id: int) -> dict[Address, Record]:
        """What came of what was asked of each host of a chain."""
        rows = self._read(hosts.select().where(hosts.c.chain_id == chain_id))
        return {row.host: _record(row) for row in rows}

    def note(self, chain_id: int, host: Address, came: Came, now: float, aside: float) -> Record:
        """Adds what came of one request to its host's record (see Record.after): the record."""
        with told(self.path), self._engine.begin() as connection:
            connection.exec_driver_sql("BEGIN IMMEDIATE")  # other programs of this payer add to it too
            of_host = (hosts.c.chain_id == chain_id) & (hosts.c.host == host)
            row = connection.execute(hosts.select().where(of_host)).one_or_none()
            record = (Record(host) if row is None else _record(row)).after(came, now, aside)
            connection.execute(hosts.delete().where(of_host))
            connection.execute(hosts.insert().values(chain_id=chain_id, **asdict(record)))
            return record

    def claim(self, signer: Address) -> int | None:
        """Says that a job is in use, until the descriptor is closed. None: somebody else uses it."""
        path = self.path.parent / "in-use" / signer
        with told(path):
            path.parent.mkdir(exist_ok=True, mode=0o700)
            file = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            return None
        return file

    @contextmanager
    def claiming(self, signer: Address) -> Iterator[bool]:
        """Says inside that a job is in use. False: somebody else uses it."""
        file = self.claim(signer)
        try:
            yield file is not None
        finally:
            if file is not None:
                os.close(file)

    def is_claimed(self, signer: Address) -> bool:
        """True while somebody uses a job: two that sign for it would only be in each other's way."""
        with self.claiming(signer) as mine:
            return not mine

    def keep(self, name: str, content: bytes) -> Path:
        """Keeps a file beside the store, whole or not at all: where it is."""
        path = self.path.parent / "evidence" / name
        with told(path):
            path.parent.mkdir(exist_ok=True, mode=0o700)
            unfinished = path.with_suffix(".part")
            unfinished.write_bytes(content)
            unfinished.replace(path)
        return path

    def acknowledged(self, signer: Address, transcript: bytes) -> Totals | None:
        """What the receipt with this transcript acknowledged; None if it was not signed from this store."""
        query = receipts.select().where(receipts.c.signer == signer).order_by(receipts.c.number.desc())
        for row in self._read(query):
            stored = _stored_receipt(row)
            if stored.receipt.transcript == transcript:
                return stored.acknowledged
        return None

    def _write(self, *statements: sa.Executable) -> None:
        self._write_if(_always, *statements)

    def _write_if(self, holds: Callable[[sa.Connection], bool], *statements: sa.Executable) -> bool:
        """Writes if that holds, and still does when it is written: no other program writes in between."""
        with told(self.path), self._engine.begin() as connection:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            if not holds(connection):
                return False
            for statement in statements:
                connection.execute(statement)
            return True

    def _read(self, query: sa.Select[Any]) -> list[Any]:
        with told(self.path), self._engine.connect() as connection:
            return list(connection.execute(query))


@contextmanager
def told(path: Path) -> Iterator[None]:
    """Turns what the disk or SQLite says into an error that names the file."""
    try:
        yield
    except (OSError, sa.exc.SQLAlchemyError) as error:
        cause = getattr(error, "orig", None) or error
        raise LedgerError(
            f"the payer's store {path} cannot be used: {cause}; check PAYER_DATA_DIR"
        ) from error


def _revision(connection: sa.Connection) -> str | None:
    """What a store is at; None: it is new, or from before there were revisions."""
    if not sa.inspect(connection).has_table("alembic_version"):
        return None
    found: str | None = connection.scalar(sa.text("SELECT version_num FROM alembic_version"))
    return found


def _durable(connection: Any, _record: Any) -> None:
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA busy_timeout=5000")


def _jobs_of(chain_id: int, contract: Address) -> sa.Select[Any]:
    return sa.select(jobs).where(jobs.c.chain_id == chain_id, jobs.c.contract == contract)


def _staking(stake: Stake) -> sa.Executable:
    values = {"asset": stake.asset, "day": stake.day, "began": str(stake.began), "most": str(stake.most)}
    written = sqlite.insert(stakes).values(signer=stake.signer, **values)
    return written.on_conflict_do_update(index_elements=["signer"], set_=values)


def _stakes_of(chain_id: int, contract: Address) -> sa.Select[Any]:
    here = sa.select(jobs.c.signer).where(jobs.c.chain_id == chain_id, jobs.c.contract == contract)
    return sa.select(stakes).where(stakes.c.signer.in_(here))


def _stake(row: Any) -> Stake:
    return Stake(row.signer, row.asset, row.day, int(row.began), int(row.most))


def _always(_: sa.Connection) -> bool:
    return True


def _unchanged(
    chain_id: int, contract: Address, seen: Collection[Stake] | None
) -> Callable[[sa.Connection], bool]:
    """Whether the stakes are those that were seen; None: whatever they are."""
    if seen is None:
        return _always
    return lambda connection: (
        set(map(_stake, connection.execute(_stakes_of(chain_id, contract)))) == set(seen)
    )


def _stored_job(row: Any) -> StoredJob:
    return StoredJob(**row._mapping)


def _record(row: Any) -> Record:
    return Record(**{name: value for name, value in row._mapping.items() if name != "chain_id"})


def _stored_receipt(row: Any) -> StoredReceipt:
    return StoredReceipt(
        receipt=wire.receipt_in(orjson.loads(row.body)),
        acknowledged=Totals(row.acknowledged_prompt_tokens, row.acknowledged_tokens),
        ack=wire.ack_in(orjson.loads(row.ack)) if row.ack else None,
    )
