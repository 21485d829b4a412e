"""Reconciling: what does not agree between chain, ledger and meter is brought about, and each is named."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from tallystick import database, proof, reconciliation, tables
from tallystick.chain import Chain
from tallystick.counter import Counter
from tallystick.devnet import Devnet
from tallystick.ledger import Ledger
from tallystick.node import COUNTER
from tallystick.reconciliation import Difference, Kind, Report, compare, reconcile
from tallystick.survey import Story, Survey, audit
from tallystick.types import ETH, JobId, Totals
from tests.settling import DAY, PRICES, Host


@pytest.fixture
async def host(chain: Chain, devnet: Devnet, tmp_path: Path, ledger_url: str | None) -> AsyncIterator[Host]:
    await chain.transact(chain.register(devnet.accounts.host.address, "{}"), devnet.accounts.host.private_key)
    async with Ledger(tmp_path, ledger_url) as ledger:
        yield Host(devnet, chain, ledger)


async def looked(host: Host, **settings: Any) -> Report:
    """One look."""
    return compare(*await audit(host.config(**settings)))


async def found(host: Host, **settings: Any) -> dict[Kind, Difference]:
    """What differs in one look; what is merely under way is left out."""
    differences = [each for each in (await looked(host, **settings)).differences if not each.under_way]
    assert all(each.seen and each.mend for each in differences)
    return {each.kind: each for each in differences}


async def under_way(host: Host, **settings: Any) -> set[Kind]:
    report = await looked(host, **settings)
    assert report.agrees
    return {each.kind for each in report.differences}


def alter(host: Host, job_id: JobId, **columns: Any) -> None:
    """Changes the ledger's row of a job."""
    host.rewrite(sa.update(tables.jobs).where(tables.jobs.c.job_id == job_id).values(**columns))


async def settled(host: Host, tokens: int = 100) -> JobId:
    """A job of which so much is confirmed."""
    job = await host.open()
    await host.sign(job, tokens)
    await host.settle()
    return job


async def test_what_was_settled_agrees_to_the_unit(host: Host) -> None:
    """Jobs in two assets, one completed, one asset paid out: nothing differs, balances are the jobs' sums."""
    await settled(host)
    ended = await host.open()
    await host.sign(ended, 17, 3, due=False)
    await host.ledger.end(ended)
    in_ether = await host.open(asset=ETH, deposit=10**16, prices=replace(PRICES, per_million=10**15))
    await host.sign(in_ether, 100)
    await host.settle()
    await host.chain.transact(
        host.chain.withdraw(host.devnet.dollar, host.host.address), host.host.private_key
    )
    report = await looked(host)
    assert (report.differences, report.agrees, report.jobs) == ((), True, 3)
    balances = {each.asset: each for each in report.balances}
    assert balances[ETH].held == balances[ETH].paid == 9 * 10**10
    dollars = balances[host.devnet.dollar]
    assert dollars.withdrawn == dollars.paid > dollars.held == 0


async def test_a_claim_by_hand_is_named(host: Host) -> None:
    """The chain has settled more than the ledger says; what nobody counted, beside."""
    job = await settled(host)
    await host.sign(job, 150, due=False)
    await host.settle_by_hand(job, 150)
    assert (await found(host)).keys() == {Kind.SETTLED_BEYOND}
    await host.settle_by_hand(job, 400)
    differing = await found(host)
    assert differing.keys() == {Kind.SETTLED_BEYOND, Kind.OVERPAID}
    assert "0 prompt and 400 generated tokens" in differing[Kind.SETTLED_BEYOND].seen
    assert differing[Kind.SETTLED_BEYOND].job_id == job


async def test_the_node_takes_up_what_was_claimed_by_hand(host: Host) -> None:
    """The mend that is named mends it."""
    job = await settled(host)
    await host.sign(job, 150, due=False)
    await host.settle_by_hand(job, 150)
    await host.settle()
    assert (await looked(host)).differences == ()


async def test_a_reorganisation_deeper_than_n_is_named(host: Host) -> None:
    """The ledger says confirmed, and the chain does not; once the node has looked, all agrees again."""
    job = await settled(host)
    await host.devnet.reorganise(2)
    differing = await found(host)
    assert Kind.CONFIRMED_GONE in differing
    assert differing[Kind.CONFIRMED_GONE].job_id == job
    await host.settle(rounds=6)
    assert (await looked(host)).differences == ()


@pytest.mark.parametrize(
    ("columns", "kind"),
    [
        ({"settled_tokens": 300}, Kind.SETTLED_GONE),
        ({"settled_tokens": 300, "confirmed_tokens": 300}, Kind.CONFIRMED_GONE),
        ({"settled_tokens": 50, "confirmed_tokens": 50}, Kind.SETTLED_BEYOND),
        ({"confirmed_tokens": 50}, Kind.UNCONFIRMED),
        ({"settled_tokens": 60, "confirmed_tokens": 100}, Kind.ORDER),
        ({"gross_tokens": 90}, Kind.COUNTS),
        ({"written_off_tokens": 1, "owner": None}, Kind.WRITTEN_OFF),
        ({"acknowledged_tokens": 99, "gross_tokens": 100}, Kind.POSITIONS),
        ({"receipted_tokens": 99}, Kind.RECEIPT),
        ({"receipt_id": None}, Kind.RECEIPT),
        ({"price": 1}, Kind.TERMS),
        ({"claim_window": 9}, Kind.TERMS),
        ({"deposit": 10**12}, Kind.DEPOSIT),
        ({"closed": True}, Kind.CLOSED_IN_LEDGER),
        ({"payer": "0x" + "11" * 20}, Kind.VANISHED),
    ],
    ids=str,
)
async def test_a_row_that_was_changed_is_named(host: Host, columns: dict[str, Any], kind: Kind) -> None:
    """Each figure of the ledger is held against the chain, or against another figure of it."""
    job = await settled(host)
    alter(host, job, **columns)
    differing = await found(host)
    assert kind in differing
    assert differing[kind].job_id == job


async def test_a_receipt_that_nobody_can_claim_with_is_named(host: Host) -> None:
    """Its signature is checked as the contract would."""
    job = await settled(host)
    receipts = tables.receipts
    host.rewrite(sa.update(receipts).values(signature=bytes(65)))
    assert (await found(host)).keys() == {Kind.RECEIPT}
    key = proof.new_key()
    domain = host.domain
    forged = proof.sign(domain.receipt(job, Totals(0, 100), (100).to_bytes(32, "big")), key)
    host.rewrite(sa.update(receipts).values(signature=forged))
    assert proof.address(key) in (await found(host))[Kind.RECEIPT].seen


async def test_what_is_signed_for_is_claimable_until_it_is_settled(host: Host) -> None:
    """While a node sees to it, it is under way; without key or node it is the operator's move."""
    job = await host.open()
    await host.sign(job, 130)
    assert await under_way(host) == {Kind.CLAIMABLE}
    differing = await found(host, host_private_key=None, host_address=host.host.address)
    assert differing.keys() == {Kind.CLAIMABLE}
    assert "HOST_PRIVATE_KEY" in differing[Kind.CLAIMABLE].mend
    await host.ledger.close()
    claimable = (await found(host))[Kind.CLAIMABLE]
    assert (claimable.move, claimable.job_id) == ("host", job)
    assert "tally host run" in claimable.mend
    assert "0.000106 tUSD to claim" in claimable.seen


async def test_a_job_that_is_over_is_to_be_completed(host: Host) -> None:
    """Though nothing is to be claimed, the payer waits for its rest."""
    job = await settled(host)
    await host.devnet.increase_time(2 * DAY)
    assert await under_way(host) == {Kind.TO_COMPLETE}
    await host.ledger.close()
    assert (await found(host))[Kind.TO_COMPLETE].job_id == job


async def test_a_claim_that_came_too_late_is_a_loss(host: Host) -> None:
    """Somebody reclaims after the window: what was signed and not settled is gone, told in money."""
    job = await settled(host)
    await host.sign(job, 1_100)
    await host.devnet.increase_time(2 * DAY)
    await host.reclaim(job)
    assert {Kind.LOST, Kind.CLOSED_ON_CHAIN} <= (await found(host)).keys()
    await host.settle()
    differing = await found(host)
    assert differing.keys() == {Kind.LOST}
    assert "0.000814 tUSD lost" in differing[Kind.LOST].seen


async def test_a_job_that_the_ledger_does_not_know_is_named(host: Host) -> None:
    """It differs once something was settled of it; before, it may just not have been asked for anything."""
    job = await host.open(adopt=False)
    assert await under_way(host) == {Kind.UNASKED}
    await host.settle_by_hand(job, 100)
    assert (await found(host)).keys() == {Kind.UNKNOWN}


async def test_a_job_that_was_reorganised_away_is_named(host: Host) -> None:
    """The ledger has it, and the chain does not."""
    snapshot = await host.devnet.snapshot()
    job = await host.open()
    await host.devnet.revert(snapshot)
    assert (await found(host))[Kind.VANISHED].job_id == job


async def test_a_top_up_is_under_way_until_the_ledger_has_it(host: Host) -> None:
    """A node that runs brings it in."""
    job = await settled(host)
    await host.top_up(job, 1_000)
    assert await under_way(host) == {Kind.DEPOSIT}
    await host.settle()
    assert await under_way(host) == set()


async def test_the_meter_is_never_behind_and_ahead_only_while_it_counts(host: Host) -> None:
    """A slot below the ledger, one above it that nobody serves, one for a job that is not there."""
    job = await settled(host)
    row = await host.ledger.job(job)
    assert row is not None
    with Counter(host.ledger.data_dir / COUNTER) as counter:
        slot = counter.open(job, row.epoch, Totals(0, 90))
        assert await under_way(host) == {Kind.METER_BEHIND}  # the next start mends it
        slot.add(0, 20)
        assert await under_way(host) == {Kind.METER_AHEAD}
        alter(host, job, owner=None)
        assert (await found(host)).keys() == {Kind.METER_AHEAD}
        counter.open(JobId(99), 1)
        assert (await found(host))[Kind.STRAY].job_id == 99


async def test_a_contract_that_pays_otherwise_is_named(host: Host) -> None:
    """What its totals come to, and what the host's balance has to be, is worked out again."""
    job = await settled(host)
    survey, story = await audit(host.config())
    jobs = {job: replace(story.jobs[job], owed=story.jobs[job].owed + 1)}
    assert kinds(survey, replace(story, jobs=jobs)) == {Kind.MONEY, Kind.EARNINGS}
    less = {**story.earnings, host.devnet.dollar: 0}
    assert kinds(survey, replace(story, earnings=less)) == {Kind.EARNINGS}


def kinds(survey: Survey, story: Story) -> set[Kind]:
    return {each.kind for each in compare(survey, story).differences}


async def test_a_job_of_another_key_is_the_operators_move(host: Host) -> None:
    """This key cannot settle it, whatever runs."""
    job = await host.open()
    await host.sign(job, 100)
    other = host.devnet.accounts.stranger
    report = await looked(host, host_address=other.address, host_private_key=None)
    [difference] = report.differences
    assert (difference.kind, difference.under_way) == (Kind.CLAIMABLE, False)
    assert host.host.address in difference.mend


async def test_while_a_node_runs_a_difference_has_to_last(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told as one if it is there in two looks; what came only in the second is under way."""
    monkeypatch.setattr(reconciliation, "AGAIN_AFTER", 0.0)
    job = await settled(host)
    alter(host, job, gross_tokens=90)
    report = await reconcile(host.config())
    assert not report.agrees
    once = compare(*await audit(host.config()))
    nothing = replace(once, differences=())
    assert reconciliation.both(nothing, once).agrees
    assert not reconciliation.both(once, once).agrees


@pytest.mark.parametrize("ledger_url", [None])
async def test_an_old_copy_of_the_ledger_is_named(host: Host, tmp_path: Path) -> None:
    """What was settled since is on the chain, and beyond what the copy counts; it is not claimed again."""
    job = await settled(host)
    copied = tmp_path / "copy"
    copied.mkdir()
    files = (tmp_path / database.DATABASE, copied / database.DATABASE)
    with closing(sqlite3.connect(files[0])) as now, closing(sqlite3.connect(files[1])) as copy:
        now.backup(copy)
    await host.sign(job, 300)
    await host.settle()
    assert (await found(host)).keys() == set()
    differing = await found(host, data_dir=copied)
    assert differing.keys() == {Kind.SETTLED_BEYOND, Kind.OVERPAID}
    async with Ledger(copied) as restored:
        await restored.bury(host.ledger.process)
        host.ledger = restored
        host.restart()
        await host.settle()
        assert await host.confirmed(job) == Totals(0, 300)
        assert (await found(host)).keys() == {Kind.OVERPAID}
    [paid] = (await looked(host)).balances
    assert paid.held == paid.paid


async def test_looking_changes_nothing(host: Host) -> None:
    """Neither the ledger nor the chain: what is read is the same before and after."""
    await settled(host)
    before = [await host.ledger.open_jobs(), await host.chain.block_number(), await host.sent()]
    await reconcile(host.config())
    assert [await host.ledger.open_jobs(), await host.chain.block_number(), await host.sent()] == before
