"""The host's rows that survive kill -9: jobs with their receipts, and the transactions that settle them.

Every change is on disk, flushed, when the call that makes it returns (law 7). What is to be settled follows
from the rows alone (law 8). The statements are in rows.py and outbox.py, the tables in tables.py.

One thread writes, with group commit, another one reads, and the event loop waits for neither. Which database
that is, SQLite or PostgreSQL, only database.py knows; where several processes share it, leases.py says which
of them may write what. Knows no chain and no clock; what they say comes in as arguments.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

import structlog
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

from tallystick import cursors, database, leases, outbox, rows
from tallystick.counter import Record
from tallystick.errors import DatabaseFailed, LedgerError
from tallystick.heartbeat import Heartbeat
from tallystick.leases import Hold, Owner
from tallystick.rows import Arrived, DueRow, Outstanding
from tallystick.tables import Attempt, Cursor, Draft, JobRow, Sent, State, Transaction, UnderWay
from tallystick.types import Address, Completion, Job, JobId, Receipt, RequestId, Settlement, Totals
from tallystick.writer import Writer

P = ParamSpec("P")
T = TypeVar("T")

PAGE = 1_000
"""Rows that are read at a time, where very many are."""

_MIGRATIONS = Path(__file__).parent / "migrations"

log = structlog.get_logger(__name__)


class Ledger:
    """The rows, for one process. `open` before use, `close` after, or `async with`.

    Every method may raise LedgerError: the disk is full or fails, or the job or transaction is not there.
    """

    def __init__(self, data_dir: Path, url: str | None = None) -> None:
        """`url`: `postgresql://…`; by default an SQLite file in `data_dir`."""
        self.data_dir = data_dir
        self.url = url or database.url_in(data_dir)
        self.process = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(8)}"
        """This process, as long as the ledger is open, and no other one ever."""
        self.address: str | None = None
        """Where other processes reach this one; told with the next renewal of its lease."""
        self.heartbeat = Heartbeat(self.renew)
        self._epochs: dict[Address, int] = {}
        """Of the keys that this process sends for."""
        self.database = ""
        """Which one it is in, with its version; known once it is open."""
        self._lock: int | None = None
        self._engines: list[Engine] = []
        self._writer: Writer | None = None
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="tallystick-reader")

    async def __aenter__(self) -> Ledger:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def open(self) -> None:
        """Brings the tables up to date and starts writing."""
        try:
            await asyncio.to_thread(self._open)
            since = asyncio.get_running_loop().time()
            await self.renew()
            self.heartbeat.start(since)
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Writes what is queued, frees what this process owns, and lets the ledger go.

        Harmless when repeated.
        """
        await self.heartbeat.stop()
        if self._writer is not None and self._writer.is_open:
            # Otherwise it is free once the lease runs out.
            with suppress(LedgerError):
                await self._write(leases.leave, self.process)
        await asyncio.to_thread(self._close)

    @property
    def failure(self) -> str | None:
        """Why no new work may be begun: the last write failed, for the database or its disk, or the lease of
        this process is out. None since a write succeeded and the lease was granted.
        """
        if self._writer is not None and self._writer.failure is not None:
            return self._writer.failure
        return None if self.heartbeat.held else "this process's lease ran out and was not renewed"

    def _open(self) -> None:
        try:
            self.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
            if not database.is_shared(self.url):
                self._lock = database.lock(self.data_dir)
            for writing in (True, False):
                self._engines.append(database.engine(self.url, writing=writing))
            with self._engines[0].begin() as connection:
                self._prepare(connection)
        except (OSError, SQLAlchemyError) as error:
            told = getattr(error, "orig", None) or error
            raise LedgerError(f"the ledger in {database.place(self.url)} cannot be opened: {told}") from error
        self._writer = Writer(self._engines[0])
        self._writer.start()

    def _prepare(self, connection: Connection) -> None:
        database.begin_migrating(connection)
        migrate(connection)
        self.database = database.version(connection)
        if database.is_unsafe(connection):
            log.error(
                "ledger.unsafe",
                place=database.place(self.url),
                meaning="fsync is off: a power cut can take back what payers were told is written",
                mend="set fsync = on in the server's configuration",
            )

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._reader.shutdown()
        for engine in self._engines:
            engine.dispose()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    async def _write(
        self, statement: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        return await self._open_writer.submit(lambda connection: statement(connection, *args, **kwargs))

    @property
    def _open_writer(self) -> Writer:
        if self._writer is None:
            raise LedgerError("the ledger is not open")
        return self._writer

    async def _read(
        self, query: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        if self._writer is None or not self._writer.is_open:
            raise LedgerError("the ledger is not open")
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._reader, partial(self._query, query, *args, **kwargs))

    def _query(self, query: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        if self._open_writer.is_away:
            # One after the other would wait for a server that the writer finds again by itself.
            raise DatabaseFailed(f"the ledger could not be read: {self.failure}")
        try:
            with self._engines[1].connect() as connection:
                return query(connection, *args, **kwargs)
        except SQLAlchemyError as error:
            kind = DatabaseFailed if database.has_failed(error) else LedgerError
            raise kind(f"the ledger could not be read: {error}") from error

    async def bind(self, identity: str) -> None:
        """Ties the ledger to a chain and its contracts: job ids mean nothing on another one.

        The first call decides; LedgerError if that was with another identity. At most 200 characters.
        """
        await self._write(rows.bind, identity)

    # Processes

    async def renew(self) -> bool:
        """Keeps what this process owns. False if its lease had run out."""
        return await self._write(leases.renew, self.process, self.address)

    async def reach(self, address: str) -> None:
        """From now on other processes reach this one at that URL."""
        self.address = address
        await self.renew()

    async def bury(self, process: str) -> None:
        """Frees what a process owned that is known to be dead."""
        await self._write(leases.leave, process)

    async def lead(self, address: Address) -> bool:
        """Sends for a key, if no other process does. Without it no transaction of the key's is written.

        A transaction is written in the epoch of the last call: nothing that was begun in an earlier one.
        """
        epoch = await self._read(leases.led, address, self.process)
        if epoch is None and not await self._read(leases.is_led_by_other, address, self.process):
            epoch = await self._write(leases.lead, address, self.process)
        self._epochs[address] = epoch or 0
        return epoch is not None

    async def leads(self, address: Address) -> bool:
        """True if this process sends for a key, in the epoch of the last `lead`."""
        epoch = await self._read(leases.led, address, self.process)
        return epoch is not None and epoch == self.epoch(address)

    def epoch(self, address: Address) -> int:
        """The epoch of the last `lead`; 0: this process does not send for the key."""
        return self._epochs.get(address, 0)

    def _hold(self, transaction: Draft) -> Hold:
        return Hold(self.process, self.epoch(transaction.sender))

    # Jobs

    async def serve(self, job: Job, records: Iterable[Record] = (), *, deep: bool = True) -> JobRow:
        """Adopts a job that this process is going to serve: in a new epoch, in which only it writes.

        `records`: what slots of this or dead processes hold of it. Elsewhere if another process serves it.
        `deep`: the job is not going to vanish; another one that had its id before it did, and is forgotten.
        """
        return await self._write(rows.serve, self.process, job, list(records), deep=deep)

    async def served_elsewhere(self, job_id: JobId) -> Owner | None:
        """The other process that serves a job now."""
        return await self._read(rows.served_elsewhere, job_id, self.process)

    async def served(self) -> list[JobRow]:
        """Every job that this process serves, or served until it was closed; `release` takes it off."""
        return await self._read(rows.served, self.process)

    async def release(self, job_id: JobId) -> None:
        """This process serves a job no more: another one may, at once."""
        await self._write(leases.release_job, job_id, self.process)

    async def adopt(self, job: Job) -> JobRow:
        """The row of a job, made or brought up to what the chain says now.

        Refusal `signer_reused` if its signer has served another job. What a job has settled on the chain
        counts as counted: a host that lost its ledger claims nothing twice.
        """
        return await self._write(rows.adopt, job)

    async def job(self, job_id: JobId) -> JobRow | None:
        """The row of a job, or None."""
        return await self._read(rows.find, job_id)

    async def job_of(self, signer: Address) -> JobId | None:
        """The job that a signer serves here, or None."""
        return await self._read(rows.served_by, signer)

    async def open_jobs(self) -> list[JobRow]:
        """Every job that is not closed."""
        return await self._read(rows.open_jobs)

    async def open_page(self, after: JobId, most: int) -> list[JobRow]:
        """The next jobs after that one that are not closed, by id: all of them, a page at a time."""
        return await self._read(rows.open_page, after, most)

    async def open_of(self, these: Collection[JobId]) -> list[JobRow]:
        """Of these jobs, those that are known and not closed."""
        return await self._read(rows.open_of, these)

    async def due(
        self, now: int, these: Collection[JobId] | None = None, *, whole: bool = False
    ) -> list[DueRow]:
        """What is to be settled at the chain's time `now`, of all (or these) jobs that are not in flight.

        `whole`: all that is claimable, and not only what whole intervals let the host claim.
        """
        return await self._read(rows.due, now, these, whole=whole)

    async def outstanding(self, now: int, *, whole: bool = False) -> list[Outstanding]:
        """The same of all jobs, in short; the ledger is read a page at a time."""
        found: list[Outstanding] = []
        after: JobId | None = JobId(0)
        while after is not None:
            page, after = await self._read(rows.outstanding, now, self.process, after, PAGE, whole=whole)
            found += page
        return found

    async def positions(self, job_id: JobId) -> dict[RequestId, Totals]:
        """How far every request of a job is acknowledged."""
        return await self._read(rows.acknowledged_positions, job_id)

    async def receipts(self, job_id: JobId) -> list[Receipt]:
        """Every receipt of a job, oldest first: the evidence."""
        return await self._read(rows.stored_receipts, job_id)

    # Counts: by the process that serves the job, in the epoch in which it does; raise Elsewhere for another
    # one. Without an epoch a job that nobody serves becomes this process's.

    async def store_receipt(
        self,
        receipt: Receipt,
        *,
        acknowledged: Totals,
        gross: Totals,
        due: bool,
        epoch: int | None = None,
        check: Callable[[], None] | None = None,
    ) -> None:
        """A receipt ahead of the stored one, what all positions so far add up to, and the slot's gross count.

        `due`: it is the first at or past a whole interval, so what it lets the host claim is to be settled.
        `check` is run before, in another thread; if it raises, nothing is stored.
        LedgerError for a receipt that is not ahead; the stored one, again, is harmless.
        """
        arrived = Arrived(Hold(self.process, epoch), receipt, acknowledged, gross, due)
        await self._open_writer.join(rows.store_receipts, arrived, check)

    async def checkpoint(
        self, job_id: JobId, gross: Totals, *, due: bool = False, epoch: int | None = None
    ) -> None:
        """The slot's gross count. `due`: settle all that is claimable (an attested job's whole interval)."""
        await self._write(rows.checkpoint, Hold(self.process, epoch), job_id, gross, due)

    async def write_off(self, job_id: JobId, written_off: Totals, *, epoch: int | None = None) -> None:
        """The total that is written off now."""
        await self._write(rows.write_off, Hold(self.process, epoch), job_id, written_off)

    async def end(self, job_id: JobId, gross: Totals | None = None, *, epoch: int | None = None) -> None:
        """The session is over: all that is claimable is to be settled, and the job completed."""
        await self._write(rows.end, Hold(self.process, epoch), job_id, gross)

    async def recover(self, records: Iterable[Record]) -> list[JobId]:
        """Takes over what killed processes had counted; a slot of another epoch is void.

        Returns the jobs whose slots count for nothing: closed, unknown or of another epoch.
        """
        return await self._write(rows.recover, list(records))

    # What the chain says of a job, beside the host's own transactions

    async def settled(self, job_id: JobId, totals: Totals) -> None:
        """Totals seen settled in the latest block."""
        await self._write(rows.settled, job_id, totals)

    async def witnessed(self, settlement: Settlement) -> bool:
        """A settlement seen N blocks deep. True if it is ahead of what was confirmed."""
        return await self._write(rows.witnessed, settlement)

    async def unsettled(self, job_id: JobId, totals: Totals) -> None:
        """No more than these totals are settled: a reorganisation took the rest back."""
        await self._write(rows.unsettled, job_id, totals)

    async def closed(self, completion: Completion) -> bool:
        """A completion seen N blocks deep. True if the job was not known to be closed."""
        return await self._write(rows.closed, completion, self.process)

    async def cursor(self, host: Address) -> Cursor | None:
        """How far a host's events were read; None: they never were."""
        return await self._read(cursors.find, host)

    async def move_cursor(self, host: Address, cursor: Cursor) -> None:
        """A host's events are read up to there, and what they tell is in the ledger."""
        await self._write(cursors.move, host, cursor)

    # Transactions: written by the process that sends for their key (`lead`), LedgerError for any other

    async def next_nonce(self, sender: Address) -> int:
        """The nonce after the highest one that the ledger knows of; 0 if it knows none."""
        return await self._read(outbox.next_nonce, sender)

    async def save(self, draft: Draft, attempt: Attempt) -> Transaction:
        """A signed transaction, before it is sent: from here on its nonce is used and its jobs in flight.

        LedgerError if the nonce is used already, or one of its jobs is in flight.
        """
        return await self._write(outbox.save, self._hold(draft), draft, attempt)

    async def add_attempt(self, transaction: Transaction, attempt: Attempt) -> Transaction:
        """One more signed form of a transaction, before it is sent."""
        return await self._write(outbox.add_attempt, self._hold(transaction.draft), transaction, attempt)

    async def taken(self, transaction: Transaction, attempt: Attempt, at: float) -> Transaction:
        """An endpoint took an attempt at `at`, in seconds since 1970; only the first time counts."""
        return await self._write(outbox.taken, self._hold(transaction.draft), transaction, attempt, at)

    async def in_flight(self, sender: Address) -> list[Transaction]:
        """The transactions of a key that are not final, by nonce."""
        return await self._read(outbox.in_flight, sender)

    async def under_way(self, sender: Address) -> UnderWay:
        """The same, in short."""
        return await self._read(outbox.under_way, sender)

    async def known(self, hashes: Collection[str]) -> set[str]:
        """Of these hashes, those of transactions that were ever signed here."""
        asked, found = list(hashes), set[str]()
        for at in range(0, len(asked), PAGE):
            found |= await self._read(outbox.known, asked[at : at + PAGE])
        return found

    async def at_nonces(self, sender: Address, nonces: range) -> list[Transaction]:
        """The transactions of a key with these nonces, final or not, by nonce."""
        return await self._read(outbox.at_nonces, sender, nonces)

    async def mined(
        self, transaction: Transaction, tx: str, block: int, settlements: Sequence[Settlement] = ()
    ) -> Transaction:
        """One of its hashes has a receipt, which settled these."""
        return await self._write(
            outbox.mined, self._hold(transaction.draft), transaction, tx, block, settlements
        )

    async def finish(
        self,
        transaction: Transaction,
        state: State,
        tx: str | None = None,
        block: int | None = None,
        settlements: Sequence[Settlement] = (),
        completions: Sequence[Completion] = (),
    ) -> Transaction:
        """It is final, with what its receipt says N blocks deep: its jobs are free for the next one."""
        return await self._write(
            outbox.finish,
            self._hold(transaction.draft),
            transaction,
            state,
            tx,
            block,
            settlements,
            completions,
        )

    # What is sent for payers

    async def errand(self, payer: Address, nonce: bytes) -> Sent | None:
        """What was sent with an authorization of a payer's; None: nothing was."""
        return await self._read(outbox.errand, payer, nonce)

    async def errands_since(self, at: int) -> list[Sent]:
        """All that was sent for payers from a moment of the chain's clock on, oldest first."""
        return await self._read(outbox.errands_since, at)

    async def errands_of(self, job_id: JobId) -> list[Sent]:
        """The top-ups of a job that were sent for its payer, oldest first."""
        return await self._read(outbox.errands_of, job_id)

    async def errand_cost(self, sent: Sent, wei: int) -> None:
        """What an errand has cost, by its receipt."""
        await self._write(outbox.cost, sent.transaction.id, wei)

    async def sender_elsewhere(self, address: Address) -> Owner | None:
        """The other process that sends for a key now."""
        return await self._read(leases.led_elsewhere, address, self.process)

    async def take_back(self, transaction: Transaction) -> Transaction:
        """Its receipt is gone: it is in flight again, and what it did is undone."""
        return await self._write(outbox.take_back, self._hold(transaction.draft), transaction)


def migrate(connection: Connection, revision: str = "head") -> None:
    """Brings the tables up to a revision. LedgerError if they are of one that this program does not know."""
    database.migrate(connection, _MIGRATIONS, revision, "the ledger")
