"""The ledger: what it said is written is there, whatever happens to the process."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from subprocess import DEVNULL, PIPE

import pytest
import structlog
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from structlog.testing import capture_logs

from tallystick import database
from tallystick.counter import Record
from tallystick.errors import DatabaseFailed, LedgerError, Refusal
from tallystick.fees import Fees
from tallystick.ledger import Ledger, migrate
from tallystick.rows import EXPIRY_MARGIN
from tallystick.tables import Attempt, Carried, Draft, State, Transaction, job_out, jobs, metadata
from tallystick.types import (
    ETH,
    Address,
    Completion,
    Job,
    JobId,
    JobStatus,
    Position,
    Prices,
    Receipt,
    RequestId,
    Settlement,
    Totals,
)
from tests import postgresql
from tests.disk import SmallDisk

HOST = Address("0x00000000000000000000000000000000000000AA")
PAYER = Address("0x00000000000000000000000000000000000000BB")
NOW = 2_000
EXPIRES = 1_000_000
NOTHING = Totals()
REQUEST = RequestId("ab" * 16)


def log_beside() -> None:
    """Keeps the log out of what a process is read by."""
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))


STORE_FOR_EVER = """
import asyncio, itertools, os, sys
from pathlib import Path
from tallystick.ledger import Ledger, migrate
from tests.test_ledger import a_job, a_receipt, log_beside
log_beside()

async def main():
    async with Ledger(Path(sys.argv[1]), sys.argv[2] or None) as ledger:
        await ledger.adopt(a_job())
        for tokens in itertools.count(1):
            receipt = a_receipt(tokens=tokens)
            await ledger.store_receipt(receipt, acknowledged=receipt.totals, gross=receipt.totals, due=True)
            os.write(1, b".")

asyncio.run(main())
"""


STORE_SOME = """
import asyncio, os, sys
from pathlib import Path
from tallystick.errors import LedgerError
from tallystick.ledger import Ledger
from tests.test_ledger import a_job, a_receipt, log_beside
log_beside()

async def main():
    async with Ledger(Path(sys.argv[1])) as ledger:
        await ledger.adopt(a_job())
        for tokens in range(1, 21):
            receipt = a_receipt(tokens=tokens)
            try:
                await ledger.store_receipt(
                    receipt, acknowledged=receipt.totals, gross=receipt.totals, due=True
                )
                os.write(1, b".")
            except LedgerError:
                os.write(1, b"x")

asyncio.run(main())
"""


def a_job(job_id: int = 121, **changes: object) -> Job:
    job = Job(
        id=JobId(job_id),
        payer=PAYER,
        host=HOST,
        asset=ETH,
        signer=Address(f"0x{job_id:040x}"),
        deposit=2**96 - 1,
        prices=Prices(2**80 - 1, 904_000),
        max_tokens_per_second=0,
        claim_window=3_600,
        created_at=1_000,
        expires_at=EXPIRES,
        asked_at=0,
        closes_at=EXPIRES + 3_600,
        settled=NOTHING,
        owed=0,
        fee=0,
        status=JobStatus.OPEN,
        interval=100,
        model_id=bytes(range(32)),
    )
    return replace(job, **changes)  # type: ignore[arg-type]


def a_receipt(job_id: int = 121, prompt_tokens: int = 0, tokens: int = 100) -> Receipt:
    position = Position(REQUEST, prompt_tokens, tokens, b"\x11" * 32, b"\x22" * 32)
    return Receipt(
        job_id=JobId(job_id),
        totals=Totals(prompt_tokens, tokens),
        previous=bytes(32),
        transcript=tokens.to_bytes(32, "big"),
        signature=b"\x33" * 65,
        positions=(position,),
    )


async def sign(ledger: Ledger, receipt: Receipt, *, gross: Totals | None = None, due: bool = True) -> None:
    """Stores a receipt over what was counted."""
    gross = receipt.totals if gross is None else gross
    await ledger.store_receipt(receipt, acknowledged=receipt.totals.lower(gross), gross=gross, due=due)


def a_draft(nonce: int, *carried: Carried) -> Draft:
    return Draft(HOST, nonce, "settle", PAYER, b"\x01", 0, 21_000, carried)


def an_attempt(number: int) -> Attempt:
    return Attempt(f"0x{number:064x}", bytes([number]), Fees(10, 1))


async def send(ledger: Ledger, nonce: int, tokens: int, *, complete: bool = False) -> Transaction:
    """Saves a transaction that claims for job 121."""
    carried = Carried(JobId(121), Totals(0, tokens), complete)
    return await ledger.save(a_draft(nonce, carried), an_attempt(nonce))


def a_settlement(tokens: int, tx: str = "0xaa") -> Settlement:
    return Settlement(JobId(121), Totals(0, tokens), 90, 10, bytes(32), tx, 7)


def a_completion(tx: str = "0xaa", job_id: int = 121) -> Completion:
    return Completion(JobId(job_id), 100, 10, 900, tx, 7)


@pytest.fixture
async def ledger(tmp_path: Path, ledger_url: str | None) -> AsyncIterator[Ledger]:
    async with Ledger(tmp_path, ledger_url) as ledger:
        await ledger.lead(HOST)
        yield ledger


async def standing(ledger: Ledger, job_id: int = 121) -> tuple[int, int, int]:
    """Due, settled and confirmed tokens of a job."""
    row = await ledger.job(JobId(job_id))
    assert row is not None
    return row.due.tokens, row.settled.tokens, row.confirmed.tokens


# Durability


async def test_kill_9_loses_no_receipt_that_was_said_to_be_stored(
    tmp_path: Path, ledger_url: str | None
) -> None:
    """Law 7: a receipt is on disk before anyone is told so."""
    told = store_until_killed(tmp_path, ledger_url, lambda process: os.kill(process.pid, signal.SIGKILL))
    async with Ledger(tmp_path, ledger_url) as ledger:
        await holds_receipts(ledger, told)


async def test_a_server_that_crashes_loses_no_receipt_that_was_said_to_be_stored(
    tmp_path: Path, postgres: postgresql.Server, postgres_url: str
) -> None:
    """Law 7: the writer in one process, the database in another: either may go, and it is all there."""
    told = store_until_killed(tmp_path, postgres_url, lambda _: postgres.stop("immediate"))
    postgres.start()
    async with Ledger(tmp_path, postgres_url) as ledger:
        await holds_receipts(ledger, told)


def store_until_killed(
    directory: Path, url: str | None, kill: Callable[[subprocess.Popen[bytes]], None]
) -> int:
    """Receipts that a process said were stored before it was brought down."""
    command = [sys.executable, "-c", STORE_FOR_EVER, str(directory), url or ""]
    root = Path(__file__).parent.parent
    with subprocess.Popen(command, stdout=PIPE, stderr=DEVNULL if url else None, cwd=root) as process:
        assert process.stdout is not None
        told = len(process.stdout.read(20))
        kill(process)
        told += len(process.stdout.read())
    assert told >= 20
    return told


async def holds_receipts(ledger: Ledger, told: int) -> None:
    row = await ledger.job(JobId(121))
    assert row is not None
    assert row.receipted is not None
    assert row.receipted.totals.tokens in (told, told + 1)
    [due] = await ledger.due(NOW)
    assert (due.totals, due.receipt) == (row.receipted.totals, row.receipted)


async def test_a_server_that_was_restarted_costs_no_write(
    tmp_path: Path, postgres: postgresql.Server, postgres_url: str
) -> None:
    """While it is down the ledger says so; once it is back, the same ledger goes on."""
    async with Ledger(tmp_path, postgres_url) as ledger:
        await ledger.adopt(a_job())
        postgres.stop("immediate")
        with pytest.raises(LedgerError, match="could not be written"):
            await sign(ledger, a_receipt(tokens=100))
        assert ledger.failure is not None
        postgres.start()
        await sign(ledger, a_receipt(tokens=100))
        await mended(ledger)
        assert await ledger.receipts(JobId(121)) == [a_receipt(tokens=100)]


async def test_a_server_that_stands_still_is_given_up(
    tmp_path: Path,
    postgres: postgresql.Server,
    postgres_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is told what is wrong, no reader waits for long, and the ledger goes on by itself."""
    monkeypatch.setattr(database, "SILENCE_LIMIT", 0.5)
    monkeypatch.setattr(database, "CONNECT_LIMIT", 2)
    with capture_logs() as lines:
        async with Ledger(tmp_path, postgres_url) as ledger:
            await ledger.adopt(a_job())
            await stands_still(ledger, postgres)
    said = [line["event"] for line in lines]
    assert (said.count("ledger.failing"), said.count("ledger.mended")) == (1, 1)


async def stands_still(ledger: Ledger, postgres: postgresql.Server) -> None:
    postgres.freeze()
    try:
        with pytest.raises(DatabaseFailed, match="could not be written: connection timeout"):
            await sign(ledger, a_receipt(tokens=100))
        assert "timeout" in str(ledger.failure)
        with pytest.raises(DatabaseFailed, match="could not be read: connection timeout"):
            await ledger.job(JobId(121))
    finally:
        postgres.thaw()
    await mended(ledger)
    await sign(ledger, a_receipt(tokens=100))
    assert await ledger.receipts(JobId(121)) == [a_receipt(tokens=100)]


# A disk or server that takes nothing


async def test_a_full_disk_is_told_and_loses_nothing(small_disk: SmallDisk) -> None:
    """What could not be written is said not to be; what was is there; and it goes on by itself."""
    async with Ledger(small_disk.path) as ledger:
        await ledger.adopt(a_job())
        await sign(ledger, a_receipt(tokens=100))
        small_disk.fill()
        with pytest.raises(LedgerError, match="full"):
            await sign(ledger, a_receipt(tokens=200))
        assert "full" in str(ledger.failure)
        assert await ledger.receipts(JobId(121)) == [a_receipt(tokens=100)]
        small_disk.free()
        await mended(ledger)
        await sign(ledger, a_receipt(tokens=200))
    async with Ledger(small_disk.path) as ledger:
        assert await ledger.receipts(JobId(121)) == [a_receipt(tokens=100), a_receipt(tokens=200)]


async def mended(ledger: Ledger) -> None:
    """Waits until the ledger has found out by itself that it can be written."""
    async with asyncio.timeout(30):
        while ledger.failure is not None:  # noqa: ASYNC110 - a thread brings it about
            await asyncio.sleep(0.01)


async def test_a_disk_that_may_not_be_written_is_told(small_disk: SmallDisk) -> None:
    """A ledger that cannot be locked is not opened, and left as it is."""
    async with Ledger(small_disk.path) as ledger:
        await ledger.adopt(a_job())
    small_disk.protect()
    with pytest.raises(LedgerError, match="Read-only file system"):
        await Ledger(small_disk.path).open()


async def test_a_server_that_takes_no_writes_is_told(
    tmp_path: Path, postgres: postgresql.Server, postgres_url: str
) -> None:
    """As a standby does until it is promoted; then the same ledger goes on."""
    name = postgres_url.rpartition("/")[2]
    async with Ledger(tmp_path, postgres_url) as ledger:
        await ledger.adopt(a_job())
        with postgres.connect() as server:
            server.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
            server.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name]
            )
            with pytest.raises(LedgerError, match="read-only"):
                await sign(ledger, a_receipt(tokens=100))
            assert "read-only" in str(ledger.failure)
            server.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only")
        await mended(ledger)
        await sign(ledger, a_receipt(tokens=100))


async def test_a_disk_that_fails_to_flush_is_told(tmp_path: Path, strace: str) -> None:
    """Law 7: a receipt whose flush failed is not said to be stored, and none that was is lost."""
    failing = "inject=fdatasync:error=EIO:when=8..11"
    traced = [strace, "-f", "-qq", "--seccomp-bpf", "-o", "/dev/null", "-e", "trace=fdatasync", "-e", failing]
    store = [sys.executable, "-c", STORE_SOME, str(tmp_path)]
    done = subprocess.run([*traced, *store], stdout=PIPE, cwd=Path(__file__).parent.parent, check=True)
    told = done.stdout.decode()
    assert (told.count("x"), told[-1]) == (4, ".")
    stored = [number for number, letter in enumerate(told, 1) if letter == "."]
    async with Ledger(tmp_path) as ledger:
        receipts = await ledger.receipts(JobId(121))
    assert [receipt.totals.tokens for receipt in receipts] == stored


async def test_two_processes_do_not_write_one_ledger(tmp_path: Path) -> None:
    """The second one is told which process has it, and gets it once that is gone."""
    async with Ledger(tmp_path):
        second = Ledger(tmp_path)
        with pytest.raises(LedgerError, match=rf"process {os.getpid()} has the ledger"):
            await second.open()
    async with Ledger(tmp_path) as third:
        assert await third.open_jobs() == []


async def test_the_migrations_build_the_tables(ledger: Ledger) -> None:
    """The tables in the code and those that the migrations leave behind are the same."""
    options = {"compare_type": True, "compare_server_default": True}
    with database.looking(ledger.url) as connection:
        assert connection is not None
        assert compare_metadata(MigrationContext.configure(connection, opts=options), metadata) == []


async def test_a_ledger_of_an_earlier_version_goes_on(tmp_path: Path, ledger_url: str | None) -> None:
    """Rows from before there were leases are nobody's; what a slot of then counted still counts."""
    url = ledger_url or database.url_in(tmp_path)
    engine = database.engine(url, writing=True)
    with engine.begin() as connection:
        migrate(connection, "0001")
        connection.execute(jobs.insert(), job_out(a_job()))
    engine.dispose()
    async with Ledger(tmp_path, ledger_url) as ledger:
        assert await ledger.recover([Record(JobId(121), 1, Totals(12, 50))]) == []
        row = await ledger.serve(a_job())
        assert (row.owner, row.epoch, row.gross) == (ledger.process, 2, Totals(12, 50))


async def test_a_ledger_of_a_later_version_is_left_alone(tmp_path: Path, ledger_url: str | None) -> None:
    """Rather than write what it does not understand, the program says so."""
    async with Ledger(tmp_path, ledger_url) as ledger:
        pass
    engine = database.engine(ledger.url, writing=True)
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    engine.dispose()
    with pytest.raises(LedgerError, match="another version"):
        await Ledger(tmp_path, ledger_url).open()


async def test_a_directory_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    """The error names the directory."""
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(LedgerError, match="file/data"):
        await Ledger(tmp_path / "file" / "data").open()


async def test_a_closed_ledger_takes_and_gives_nothing(tmp_path: Path) -> None:
    """Before opening and after closing, every call is a LedgerError."""
    ledger = Ledger(tmp_path)
    with pytest.raises(LedgerError, match="not open"):
        await ledger.adopt(a_job())
    await ledger.open()
    await ledger.close()
    with pytest.raises(LedgerError, match="not open"):
        await ledger.open_jobs()


async def test_a_server_that_does_not_answer_is_told_without_its_password(tmp_path: Path) -> None:
    """The error names server and database, and nothing that is secret."""
    with pytest.raises(LedgerError, match=r"127\.0\.0\.1:9/tally cannot be opened") as caught:
        await Ledger(tmp_path, "postgresql://host:secret@127.0.0.1:9/tally").open()
    assert "secret" not in str(caught.value)


async def test_a_ledger_belongs_to_one_chain(tmp_path: Path, ledger_url: str | None) -> None:
    """Job 1 of another chain is another job."""
    async with Ledger(tmp_path, ledger_url) as ledger:
        await ledger.bind("31337:0xaa")
        await ledger.bind("31337:0xaa")
    async with Ledger(tmp_path, ledger_url) as ledger:
        with pytest.raises(LedgerError, match="belongs to 31337:0xaa, not to 8453:0xaa"):
            await ledger.bind("8453:0xaa")


# Jobs


async def test_a_job_comes_back_as_it_was(ledger: Ledger) -> None:
    """The largest deposits and prices of the contract lose no digit."""
    job = a_job(max_tokens_per_second=2**32 - 1, owed=2**96 - 2, fee=2**92)
    assert (await ledger.adopt(job)).job == job
    row = await ledger.job(job.id)
    assert row is not None
    assert row.job == job
    assert await ledger.job(JobId(122)) is None


async def test_one_signer_serves_one_job(ledger: Ledger) -> None:
    """Law 10: a session key that has served a job is refused for another, even once that is closed."""
    await ledger.adopt(a_job(121))
    await ledger.closed(a_completion())
    with pytest.raises(Refusal) as refusal:
        await ledger.adopt(a_job(122, signer=a_job(121).signer))
    assert refusal.value.code == "signer_reused"
    assert await ledger.job_of(a_job(121).signer) == 121
    assert await ledger.job_of(PAYER) is None
    assert await ledger.open_jobs() == []


async def test_the_chains_news_of_a_job_replace_the_old(ledger: Ledger) -> None:
    """A top-up and a request to complete arrive; the counts stay."""
    await ledger.adopt(a_job(deposit=100))
    await sign(ledger, a_receipt(tokens=50))
    row = await ledger.adopt(a_job(deposit=200, asked_at=5))
    assert (row.job.deposit, row.job.asked_at, row.claimable) == (200, 5, Totals(0, 50))


async def test_a_request_to_complete_is_not_forgotten(ledger: Ledger) -> None:
    """A read N blocks deep, which does not have it yet, takes nothing back."""
    await ledger.adopt(a_job(asked_at=5))
    assert (await ledger.adopt(a_job(asked_at=0))).job.asked_at == 5


async def test_a_host_that_lost_its_ledger_claims_nothing_twice(ledger: Ledger) -> None:
    """What the chain has settled counts as counted and settled."""
    row = await ledger.adopt(a_job(settled=Totals(12, 100)))
    assert (row.gross, row.settled, row.confirmed) == (Totals(12, 100), Totals(12, 100), NOTHING)
    assert await ledger.due(NOW) == []


async def test_a_job_that_vanished_leaves_its_id_to_another(ledger: Ledger) -> None:
    """Once that lies deep: it begins with nothing, and no slot of the one before counts for it."""
    gone = await ledger.serve(a_job())
    signed = a_receipt(tokens=40)
    await ledger.store_receipt(signed, acknowledged=signed.totals, gross=Totals(0, 60), due=True)
    other = a_job(signer=PAYER)
    with pytest.raises(LedgerError, match="another one"):
        await ledger.serve(other, deep=False)
    row = await ledger.serve(other, [Record(other.id, gone.epoch, Totals(0, 60))])
    assert (row.job, row.gross, row.receipted, row.due) == (other, NOTHING, None, NOTHING)
    assert row.epoch > gone.epoch
    assert await ledger.receipts(other.id) == []


async def test_what_was_confirmed_does_not_vanish(ledger: Ledger) -> None:
    """A ledger that is held against another chain keeps what it has."""
    await ledger.serve(a_job())
    await ledger.witnessed(a_settlement(40))
    with pytest.raises(LedgerError, match="another one"):
        await ledger.serve(a_job(signer=PAYER))


async def test_a_job_that_was_opened_again_in_another_block_is_the_same(ledger: Ledger) -> None:
    """A reorganisation put its transaction elsewhere: it is a little younger, and its receipts are good."""
    await ledger.adopt(a_job())
    younger = a_job(created_at=a_job().created_at + 2)
    assert (await ledger.adopt(younger)).job == younger


async def test_a_job_of_another_chain_is_not_taken_for_this_one(ledger: Ledger) -> None:
    """The same id with another signer is an error, and changes nothing."""
    await ledger.adopt(a_job())
    with pytest.raises(LedgerError, match="another one"):
        await ledger.adopt(a_job(signer=PAYER, deposit=1))
    row = await ledger.job(JobId(121))
    assert row is not None
    assert row.job == a_job()


# Receipts


async def test_a_receipt_comes_back_whole(ledger: Ledger) -> None:
    """The evidence is kept as it was signed, with its positions, every one of them."""
    await ledger.adopt(a_job())
    first, second = a_receipt(prompt_tokens=12, tokens=25), a_receipt(prompt_tokens=12, tokens=50)
    await sign(ledger, first)
    await sign(ledger, second)
    row = await ledger.job(JobId(121))
    assert row is not None
    assert row.receipted == second
    assert await ledger.receipts(JobId(121)) == [first, second]
    assert await ledger.positions(JobId(121)) == {REQUEST: Totals(12, 50)}


@pytest.mark.parametrize("tokens", [100, 99], ids=["equal", "lower"])
async def test_a_receipt_that_is_not_ahead_is_not_stored(ledger: Ledger, tokens: int) -> None:
    """Law 1: the stored receipt only ever grows."""
    await ledger.adopt(a_job())
    await sign(ledger, a_receipt(tokens=100))
    with pytest.raises(LedgerError, match="does not come after"):
        await sign(ledger, replace(a_receipt(tokens=tokens), signature=b"\x44" * 65))
    assert await ledger.receipts(JobId(121)) == [a_receipt(tokens=100)]


async def test_a_receipt_stored_twice_is_there_once(ledger: Ledger) -> None:
    """A commit whose answer was lost is asked for again, and changes nothing then."""
    await ledger.adopt(a_job())
    for _ in range(2):
        await sign(ledger, a_receipt(tokens=100))
    assert await ledger.receipts(JobId(121)) == [a_receipt(tokens=100)]


async def test_receipts_that_come_at_once(ledger: Ledger) -> None:
    """Of many jobs, and several of one: each is stored with its positions, and what is wrong with one is told
    to it alone.
    """
    ids = range(121, 131)
    for job_id in ids:
        await ledger.adopt(a_job(job_id))
    good = [a_receipt(job_id, tokens=tokens) for tokens in (100, 250) for job_id in ids]
    stale, unknown = a_receipt(125, tokens=40), a_receipt(999)
    asked = [*good[:7], stale, *good[7:], unknown]
    told = await asyncio.gather(*(sign(ledger, each) for each in asked), return_exceptions=True)
    wrong = {each.job_id: str(error) for each, error in zip(asked, told, strict=True) if error is not None}
    assert wrong.keys() == {125, 999}
    assert "does not come after" in wrong[JobId(125)]
    assert "is not in the ledger" in wrong[JobId(999)]
    for job_id in ids:
        row = await ledger.job(JobId(job_id))
        assert row is not None
        assert row.receipted == row.due_receipt == a_receipt(job_id, tokens=250)
        assert row.due == row.acknowledged == row.gross == Totals(0, 250)
        stored = await ledger.receipts(JobId(job_id))
        assert stored == [a_receipt(job_id, tokens=100), a_receipt(job_id, tokens=250)]
        assert await ledger.positions(JobId(job_id)) == {REQUEST: Totals(0, 250)}


async def test_a_receipt_that_is_forged_is_not_stored(ledger: Ledger) -> None:
    """What a check raises comes back, and the ledger is as it was."""
    await ledger.adopt(a_job())
    await ledger.adopt(a_job(122))

    def refuse() -> None:
        raise Refusal("receipt_forged", "not the signer's")

    forged, good = a_receipt(), a_receipt(122)
    with pytest.raises(Refusal, match="not the signer's"):
        await ledger.store_receipt(
            forged, acknowledged=forged.totals, gross=forged.totals, due=True, check=refuse
        )
    await sign(ledger, good)
    assert await ledger.receipts(JobId(121)) == []
    assert await ledger.receipts(JobId(122)) == [good]


async def test_a_receipt_for_an_unknown_job_is_an_error(ledger: Ledger) -> None:
    """Nothing is stored for a job that was never read from the chain."""
    with pytest.raises(LedgerError, match="job 121 is not in the ledger"):
        await sign(ledger, a_receipt())


async def test_what_is_signed_ahead_and_not_served_is_not_claimable(ledger: Ledger) -> None:
    """Law 5: the host claims the smaller of counted and receipted."""
    await ledger.adopt(a_job())
    await sign(ledger, a_receipt(prompt_tokens=5_000, tokens=100), gross=Totals(12, 80))
    row = await ledger.job(JobId(121))
    assert row is not None
    assert row.claimable == row.due == Totals(12, 80)


async def test_tokens_written_off_leave_the_count(ledger: Ledger) -> None:
    """What nobody acknowledged is off the count, and back on it if the payer acknowledges it after all."""
    await ledger.adopt(a_job())
    await sign(ledger, a_receipt(tokens=60), gross=Totals(0, 60))
    await ledger.checkpoint(JobId(121), Totals(0, 90))
    await ledger.write_off(JobId(121), Totals(0, 30))
    row = await ledger.job(JobId(121))
    assert row is not None
    assert row.counted == Totals(0, 60)
    await sign(ledger, a_receipt(tokens=90), gross=Totals(0, 90))
    row = await ledger.job(JobId(121))
    assert row is not None
    assert row.counted == row.claimable == Totals(0, 90)
    assert row.written_off == NOTHING


async def test_a_slots_count_is_taken_over_after_a_kill(ledger: Ledger) -> None:
    """Recovery takes the later of slot and ledger; slots of others count for nothing."""
    row = await ledger.serve(a_job(121))
    await ledger.serve(a_job(122))
    await ledger.checkpoint(JobId(121), Totals(12, 50))
    records = [
        Record(JobId(121), row.epoch, Totals(10, 70)),
        Record(JobId(122), row.epoch + 1, Totals(0, 10)),
        Record(JobId(123), row.epoch, Totals(0, 10)),
    ]
    assert await ledger.recover(records) == [122, 123]
    rows = {row.job.id: row.gross for row in await ledger.open_jobs()}
    assert rows == {121: Totals(12, 70), 122: NOTHING}


# Due


async def test_a_checkpoint_is_due_with_the_receipt_that_reached_it(ledger: Ledger) -> None:
    """The first receipt at or past a whole interval is settled as such, whatever was signed since."""
    await ledger.adopt(a_job())
    await sign(ledger, a_receipt(tokens=75), due=False)
    assert await ledger.due(NOW) == []
    await sign(ledger, a_receipt(tokens=101))
    await sign(ledger, a_receipt(tokens=126), due=False)
    [due] = await ledger.due(NOW)
    assert (due.totals, due.receipt, due.complete) == (Totals(0, 101), a_receipt(tokens=101), False)
    await ledger.settled(JobId(121), Totals(0, 101))
    assert await ledger.due(NOW) == []


@pytest.mark.parametrize(
    ("change", "now", "complete"),
    [
        ({"asked_at": 1_500}, NOW, True),
        ({}, EXPIRES, True),
        ({}, EXPIRES - EXPIRY_MARGIN, False),
    ],
    ids=["asked to complete", "expired", "about to expire"],
)
async def test_a_job_that_goes_is_settled_at_once(
    ledger: Ledger, change: dict[str, int], now: int, complete: bool
) -> None:
    """All that is claimable is due, though no interval is whole; a job that is over is completed with it."""
    await ledger.adopt(a_job(**change))
    await sign(ledger, a_receipt(tokens=17), due=False)
    [due] = await ledger.due(now)
    assert (due.totals, due.receipt, due.complete) == (Totals(0, 17), a_receipt(tokens=17), complete)


async def test_an_ended_session_is_settled_and_completed(ledger: Ledger) -> None:
    """Law 5: a tail under an interval is paid."""
    await ledger.adopt(a_job())
    await sign(ledger, a_receipt(tokens=17), gross=Totals(0, 10), due=False)
    await ledger.end(JobId(121), Totals(0, 17))
    [due] = await ledger.due(NOW)
    assert (due.totals, due.complete) == (Totals(0, 17), True)


async def test_an_ended_session_with_nothing_to_claim_is_still_completed(ledger: Ledger) -> None:
    """The payer gets the rest back at once."""
    await ledger.adopt(a_job(settled=Totals(12, 100)))
    await ledger.end(JobId(121))
    [due] = await ledger.due(NOW)
    assert (due.totals, due.receipt, due.complete) == (Totals(12, 100), None, True)
    await ledger.closed(a_completion())
    assert await ledger.due(NOW) == []


async def test_an_attested_job_needs_no_receipt(ledger: Ledger) -> None:
    """In a host-attested job what is counted is claimable."""
    await ledger.adopt(a_job(max_tokens_per_second=100))
    await ledger.checkpoint(JobId(121), Totals(12, 100), due=True)
    await ledger.checkpoint(JobId(121), Totals(12, 130))
    [due] = await ledger.due(NOW)
    assert (due.totals, due.receipt, due.complete) == (Totals(12, 100), None, False)


# Transactions


async def test_a_transaction_is_on_disk_with_its_nonce_bytes_and_claims(
    tmp_path: Path, ledger_url: str | None
) -> None:
    """Law 7: all that is needed to send it again is there before it is sent."""
    async with Ledger(tmp_path, ledger_url) as ledger:
        await ledger.adopt(a_job())
        await ledger.lead(HOST)
        assert await ledger.next_nonce(HOST) == 0
        sent = await send(ledger, 7, 100)
        sent = await ledger.add_attempt(sent, an_attempt(99))
        sent = await ledger.taken(sent, sent.attempts[0], 12.5)
        sent = await ledger.taken(sent, sent.attempts[0], 13.5)
    async with Ledger(tmp_path, ledger_url) as ledger:
        assert await ledger.in_flight(HOST) == [sent]
        assert await ledger.in_flight(PAYER) == []
        assert [attempt.taken_at for attempt in sent.attempts] == [12.5, None]
        assert sent.newest == an_attempt(99)
        assert await ledger.next_nonce(HOST) == 8


async def test_a_nonce_is_used_once(ledger: Ledger) -> None:
    """Of two transactions with one nonce the second is not saved, nor anything of it."""
    await ledger.adopt(a_job())
    await ledger.save(a_draft(7), an_attempt(1))
    with pytest.raises(LedgerError, match=r"(?i)unique"):
        await send(ledger, 7, 100)
    assert len(await ledger.in_flight(HOST)) == 1


async def test_one_transaction_at_a_time_carries_a_job(ledger: Ledger) -> None:
    """While one is in flight newer totals wait, and a second one is refused."""
    await ledger.adopt(a_job())
    await sign(ledger, a_receipt(tokens=100))
    first = await send(ledger, 0, 100)
    await sign(ledger, a_receipt(tokens=200))
    assert await ledger.due(NOW) == []
    with pytest.raises(LedgerError, match=r"(?i)unique"):
        await send(ledger, 1, 200)
    await ledger.finish(first, State.CONFIRMED, "0xaa", 7, [a_settlement(100)])
    [due] = await ledger.due(NOW)
    assert due.totals == Totals(0, 200)


async def test_totals_are_confirmed_when_the_transaction_is_final(ledger: Ledger) -> None:
    """Law 9: mined is settled; N blocks deep is confirmed."""
    await ledger.adopt(a_job())
    await sign(ledger, a_receipt(tokens=100))
    sent = await send(ledger, 0, 100)
    sent = await ledger.mined(sent, "0xaa", 7, [a_settlement(100)])
    assert await standing(ledger) == (100, 100, 0)
    assert await ledger.in_flight(HOST) == [sent]
    sent = await ledger.finish(sent, State.CONFIRMED, "0xaa", 7, [a_settlement(100)])
    assert await standing(ledger) == (100, 100, 100)
    assert await ledger.in_flight(HOST) == []
    assert await ledger.at_nonces(HOST, range(1)) == [sent]


@pytest.mark.parametrize("state", [State.REVERTED, State.CANCELLED, State.DISPLACED])
async def test_what_was_not_settled_is_due_again(ledger: Ledger, state: State) -> None:
    """Law 8: a transaction that failed leaves its intent behind."""
    await ledger.adopt(a_job())
    await sign(ledger, a_receipt(tokens=100))
    await ledger.finish(await send(ledger, 0, 100), state, "0xaa", 7)
    [due] = await ledger.due(NOW)
    assert due.totals == Totals(0, 100)


async def test_a_reorganisation_takes_a_confirmation_back(ledger: Ledger) -> None:
    """Law 9: what the gone transaction did is undone, what an earlier one did is not."""
    await ledger.adopt(a_job())
    await sign(ledger, a_receipt(tokens=200))
    first, settled_first = await send(ledger, 0, 100), a_settlement(100, "0xaa")
    await ledger.finish(first, State.CONFIRMED, "0xaa", 7, [settled_first])
    second = await send(ledger, 1, 200, complete=True)
    second = await ledger.finish(
        second, State.CONFIRMED, "0xbb", 8, [a_settlement(200, "0xbb")], [a_completion("0xbb")]
    )
    assert await standing(ledger) == (200, 200, 200)
    assert await ledger.open_jobs() == []

    second = await ledger.take_back(second)
    assert (second.state, second.mined_hash) == (State.OPEN, None)
    assert await standing(ledger) == (200, 100, 100)
    assert await ledger.in_flight(HOST) == [second]
    assert await ledger.due(NOW) == []
    [row] = await ledger.open_jobs()
    assert not row.closed


async def test_a_transaction_taken_back_does_not_disturb_a_later_one(ledger: Ledger) -> None:
    """Both go on: totals cannot be paid twice."""
    await ledger.adopt(a_job())
    await sign(ledger, a_receipt(tokens=200))
    first = await ledger.finish(await send(ledger, 0, 100), State.CONFIRMED, "0xaa", 7, [a_settlement(100)])
    second = await send(ledger, 1, 200)
    first = await ledger.take_back(first)
    assert await ledger.in_flight(HOST) == [first, second]
    await ledger.finish(first, State.CONFIRMED, "0xaa", 9, [a_settlement(100)])
    assert await ledger.due(NOW) == []
    await ledger.finish(second, State.CONFIRMED, "0xbb", 9, [a_settlement(200, "0xbb")])
    assert await standing(ledger) == (200, 200, 200)


async def test_what_others_settled_is_witnessed_once(ledger: Ledger) -> None:
    """A settlement that our ledger knows no transaction of counts like one of ours, until it is gone."""
    await ledger.adopt(a_job())
    assert await ledger.witnessed(a_settlement(100))
    assert not await ledger.witnessed(a_settlement(100))
    assert await standing(ledger) == (0, 100, 100)
    await ledger.unsettled(JobId(121), Totals(0, 40))
    assert await standing(ledger) == (0, 40, 40)
    assert await ledger.closed(a_completion())
    assert not await ledger.closed(a_completion())
