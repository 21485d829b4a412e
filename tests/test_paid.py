"""What a payer's reconciliation finds: each difference made for real, named, with what mends it."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tallystick import archive, paid, proof
from tallystick.chain import Chain
from tallystick.cli import app
from tallystick.config import PayerConfig, Secret
from tallystick.devnet import Devnet
from tallystick.opening import Wishes
from tallystick.paid import Difference, Kind, Report
from tallystick.session import Session
from tallystick.store import StoredJob
from tallystick.testing.engine import Script, say
from tallystick.types import ETH, JobStatus, Prices, Totals
from tests.buying import Bench, open_staked
from tests.paying import open_job as opened
from tests.paying import register

DEPOSIT = 500_000
REPLY = Script(say(*"x" * 100))


class Books(Bench):
    """A payer's bench, with what its reconciliation says."""

    async def look(self, directory: Path | None = None) -> Report:
        """As the command does it."""
        key = Secret(self.devnet.accounts.payer.private_key)
        where = directory or self.directory / "payer"
        config = PayerConfig(payer_private_key=key, rpc_url=self.devnet.rpc_url, data_dir=where)
        return await paid.reconcile(config)

    async def told(self, directory: Path | None = None) -> list[Difference]:
        return list((await self.look(directory)).differences)

    async def kinds(self, directory: Path | None = None) -> list[Kind]:
        return [each.kind for each in await self.told(directory)]

    async def talk(self, session: Session) -> None:
        async for _ in session.stream("Tell me.", max_tokens=100):
            pass


@pytest.fixture
async def books(devnet: Devnet, chain: Chain, tmp_path: Path) -> AsyncIterator[Books]:
    await register(devnet, chain)
    async with AsyncExitStack() as parts:
        yield Books(devnet, chain, tmp_path, parts)


async def test_what_agrees(books: Books) -> None:
    """A job that was talked on, and completed: to the unit, in store, chain and evidence, no difference."""
    url = await books.serve(REPLY, REPLY)
    wallet = books.wallet()
    session = await wallet.open(url, Wishes(DEPOSIT), lambda _: None)
    assert await books.kinds() == []
    async with session:
        await books.talk(session)
        completion = await session.complete()
    report = await books.look()
    assert (report.agrees, report.differences, len(report.jobs)) == (True, (), 1)
    assert report.sums() == {
        books.devnet.dollar: {
            "deposits": DEPOSIT,
            "paid": completion.owed,
            "returned": completion.refund,
            "relay_fees": 0,
            "in_escrow": 0,
        }
    }


async def test_an_older_store(books: Books) -> None:
    """A copy from before has forgotten receipts: what is settled is beyond it; the evidence knows more."""
    url = await books.serve(REPLY, REPLY)
    wallet, old = books.wallet(), books.directory / "old"
    session = await wallet.open(url, Wishes(DEPOSIT), lambda _: None)
    async with session:
        await books.talk(session)
        shutil.copytree(wallet.store.path.parent, old)
        await books.talk(session)
        await session.complete()
    beyond, closed = await books.told(old)
    assert (beyond.kind, closed.kind) == (Kind.BEYOND, Kind.CLOSED)
    assert "put the newest copy of PAYER_DATA_DIR in its place" in beyond.mend
    assert f"tally job complete {session.job.id}" in closed.mend
    shutil.copytree(wallet.store.path.parent / "evidence", old / "evidence")
    assert await books.kinds(old) == [Kind.BEYOND, Kind.CLOSED, Kind.EVIDENCE_STORE]


async def test_a_lost_store(books: Books) -> None:
    """The chain tells which jobs there are; what is in an open one can be had back, a closed one is told."""
    job = (await opened(books.devnet, books.chain)).job
    [lost] = await books.told()
    assert (lost.kind, lost.job_id, lost.counts) == (Kind.UNKNOWN, job.id, True)
    assert f"tally job complete {job.id} --on-chain" in lost.mend
    payer = books.devnet.accounts.payer.private_key
    await books.chain.transact(books.chain.complete_session(job.id), payer)
    assert f"tally job reclaim {job.id}" in (await books.told())[0].mend
    await books.chain.transact(books.chain.complete_session(job.id), books.devnet.accounts.host.private_key)
    report = await books.look()
    assert (report.agrees, [each.kind for each in report.differences]) == (True, [Kind.UNKNOWN])


async def test_evidence_that_changed(books: Books) -> None:
    """A byte of it, the file itself, or a file from before the end: each is found."""
    url = await books.serve(REPLY)
    wallet = books.wallet()
    session = await wallet.open(url, Wishes(DEPOSIT), lambda _: None)
    async with session:
        await books.talk(session)
        stored = wallet.stored(session.job.id)
        assert stored is not None
        early = await archive.gather(books.chain, wallet.store, stored)
        await session.complete()
    path = archive.place(wallet.store, stored)
    whole = path.read_bytes()
    path.write_bytes(whole.replace(str(DEPOSIT).encode(), str(DEPOSIT + 1).encode(), 1))
    assert Kind.EVIDENCE in await books.kinds()
    path.write_bytes(b"{")
    assert await books.kinds() == [Kind.EVIDENCE]
    path.write_bytes(early)
    assert set(await books.kinds()) == {Kind.EVIDENCE_CHAIN}
    path.unlink()
    [missing] = await books.told()
    assert (missing.kind, missing.mend[:21]) == (Kind.NO_EVIDENCE, f"tally job evidence {session.job.id} ")
    path.write_bytes(whole)
    assert await books.kinds() == []


async def test_an_opening_that_a_reorganisation_took_back(books: Books) -> None:
    """The store has a job, and the chain does not: the deposit is on the account again."""
    url = await books.serve(REPLY)
    snapshot = await books.devnet.snapshot()
    session = await books.wallet().open(url, Wishes(DEPOSIT), lambda _: None)
    await books.devnet.revert(snapshot)
    await books.devnet.mine(3)
    [gone] = await books.told()
    assert (gone.kind, gone.job_id) == (Kind.VANISHED, session.job.id)
    await opened(books.devnet, books.chain)
    assert await books.kinds() == [Kind.VANISHED]


async def test_what_is_over_on_one_side(books: Books) -> None:
    """Ended here and open there, expired, or closed there and in use here: each with its command."""
    url = await books.serve(REPLY)
    wallet = books.wallet()
    session = await wallet.open(url, Wishes(DEPOSIT), lambda _: None)
    wallet.store.end(session.job.signer)
    [ended] = await books.told()
    assert (ended.kind, ended.counts) == (Kind.OPEN, True)
    payer = books.devnet.accounts.payer.private_key
    await books.chain.transact(books.chain.complete_session(session.job.id), payer)
    [completing] = await books.told()
    assert (completing.kind, completing.counts) == (Kind.OPEN, False)
    job = await books.chain.job(session.job.id)
    assert job is not None
    await books.devnet.increase_time(job.closes_at - (await books.chain.block()).timestamp)
    [over] = await books.told()
    assert (over.kind, over.mend) == (Kind.RECLAIMABLE, f"tally job reclaim {job.id}")


async def test_a_refund_that_was_kept(books: Books) -> None:
    """A refund that could not be sent lies in the contract, and is named with the command that gets it."""
    payer, host = books.devnet.accounts.payer, books.devnet.accounts.host
    terms = (await opened(books.devnet, books.chain)).job
    eth: dict[str, Any] = {"asset": ETH, "prices": Prices(1, 1), "deposit": 10**15}
    created = await opened(books.devnet, books.chain, **eth)
    await books.devnet.ask("anvil_setCode", payer.address, "0x60006000fd")
    await books.chain.transact(books.chain.complete_session(created.job.id), host.private_key)
    kept = [each for each in await books.told() if each.kind is Kind.KEPT]
    assert [each.mend for each in kept] == ["tally withdraw --as payer --asset ETH"]
    assert terms.status is JobStatus.OPEN


async def test_what_the_caps_were_not_told(books: Books) -> None:
    """A deposit that was added to past the proxy counts against no day: its caps know too little."""
    url = await books.serve(REPLY)
    wallet = books.wallet()
    _, job = await open_staked(wallet, url, Wishes(DEPOSIT))
    report = await books.look()
    assert (report.differences, report.staked) == ((), {("2027-01-15", job.asset): DEPOSIT})
    await wallet.top_up(job, 1_000)
    [low] = await books.told()
    assert (low.kind, low.job_id) == (Kind.STAKE, job.id)
    assert "it may cost 0.501 tUSD, and 0.5 tUSD are counted" in low.seen


async def test_a_key_without_a_job(books: Books) -> None:
    """An opening that never came is told, and counts for nothing."""
    key, deployment = proof.new_key(), books.chain.deployment
    payer = books.devnet.accounts.payer.address
    place = (deployment.chain_id, deployment.marketplace)
    opening = StoredJob(proof.address(key), key, *place, payer, "http://host", "tally", None, False)
    books.wallet().store.opening(opening)
    report = await books.look()
    assert (report.agrees, [each.kind for each in report.differences]) == (True, [Kind.PENDING])


async def test_amounts_that_do_not_add_up(books: Books) -> None:
    """What the contract paid is held against what the totals come to, and the refund against the rest."""
    job = (await opened(books.devnet, books.chain)).job
    wrong = replace(job, settled=Totals(0, 1_000_000), owed=900_001, fee=90_000)
    told = list(paid.amounts(paid.Seen(job.id, None, wrong), wrong, 0))
    assert [each.kind for each in told] == [Kind.MONEY]
    right = replace(wrong, owed=900_000)
    assert list(paid.amounts(paid.Seen(job.id, None, right), right, 0)) == []


async def test_the_command(books: Books) -> None:
    """It tells people and programs, by its status too, and goes by the settings where no party is named."""
    job = (await opened(books.devnet, books.chain)).job
    env = {
        "RPC_URL": books.devnet.rpc_url,
        "PAYER_PRIVATE_KEY": "0x" + books.devnet.accounts.payer.private_key.hex(),
        "PAYER_DATA_DIR": str(books.directory / "payer"),
        "HOST_PRIVATE_KEY": "",
        "HOST_ADDRESS": "",
    }
    ran = await asyncio.to_thread(CliRunner().invoke, app, ["reconcile"], env=env)
    assert ran.exit_code == 1, ran.output
    assert f"{job.id:>5}  unknown_job: opened" in ran.output
    assert "1 difference\n" in ran.output
    as_json = await asyncio.to_thread(
        CliRunner().invoke, app, ["reconcile", "--as", "payer", "--json"], env=env
    )
    assert (as_json.exit_code, '"kind": "unknown_job"' in as_json.output) == (1, True)
