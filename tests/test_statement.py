"""A host's statement: what each job has come to, in tokens and money, and the reason for which it waits."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from tallystick import pricing, statement, tables
from tallystick.chain import Chain
from tallystick.config import Amounts
from tallystick.counter import Counter
from tallystick.devnet import Devnet
from tallystick.ledger import Ledger
from tallystick.node import COUNTER
from tallystick.policy import Policy
from tallystick.statement import Figure, Life, Line, Wait
from tallystick.survey import survey
from tallystick.tables import State
from tallystick.types import JobId, Totals
from tests.settling import DAY, PRICES, Host


@pytest.fixture
async def host(chain: Chain, devnet: Devnet, tmp_path: Path, ledger_url: str | None) -> AsyncIterator[Host]:
    await chain.transact(chain.register(devnet.accounts.host.address, "{}"), devnet.accounts.host.private_key)
    async with Ledger(tmp_path, ledger_url) as ledger:
        yield Host(devnet, chain, ledger)


async def lines(host: Host, **settings: Any) -> dict[JobId, Line]:
    found = statement.lines(await survey(host.config(**settings)))
    return {line.job.id: line for line in found}


async def wait(host: Host, job: JobId, **settings: Any) -> Wait | None:
    return (await lines(host, **settings))[job].wait


def part(tokens: int, prompt_tokens: int = 0) -> int:
    """The host's nine tenths, as the contract reckons."""
    owed = pricing.owed(Totals(prompt_tokens, tokens), PRICES)
    return owed - owed // 10


async def test_each_figure_is_told_in_tokens_and_money(host: Host) -> None:
    """Served is what the meter has, signed what receipts cover, settled and confirmed what the chain has."""
    job = await host.open()
    await host.sign(job, 100, 12)
    await host.settle()
    await host.sign(job, 130, 12, due=False)
    row = await host.ledger.job(job)
    assert row is not None
    with Counter(host.ledger.data_dir / COUNTER) as counter:
        counter.open(job, row.epoch, Totals(12, 175))
        line = (await lines(host))[job]
    assert line.figures() == {
        "served": Figure(Totals(12, 175), part(175, 12)),
        "signed": Figure(Totals(12, 130), part(130, 12)),
        "settled": Figure(Totals(12, 100), part(100, 12)),
        "confirmed": Figure(Totals(12, 100), part(100, 12)),
        "at risk": Figure(Totals(0, 45), part(175, 12) - part(130, 12)),
    }
    assert (line.life, line.owed, line.lost) == (Life.OPEN, part(130, 12) - part(100, 12), 0)


async def test_sums_are_the_jobs_and_the_balance_is_the_chains(host: Host) -> None:
    """Over all jobs of an asset, closed ones included; what can be withdrawn is read from the contract."""
    first, second = await host.open(), await host.open()
    await host.sign(first, 100)
    await host.sign(second, 17, due=False)
    await host.ledger.end(second)
    await host.settle()
    looked = await survey(host.config())
    [dollars] = statement.by_asset(looked, statement.lines(looked))
    assert dollars.figures()["confirmed"] == Figure(Totals(0, 117), part(100) + part(17))
    assert dollars.earnings == part(100) + part(17)
    assert [line.life for line in dollars.lines] == [Life.OPEN, Life.CLOSED]


async def test_what_was_written_off_is_lost(host: Host) -> None:
    """It is no longer served, and told in money. A closed job has lost what was not settled, too."""
    job = await host.open()
    await host.sign(job, 100)
    await host.ledger.checkpoint(job, Totals(0, 190))
    await host.ledger.write_off(job, Totals(0, 40))
    line = (await lines(host))[job]
    assert (line.served, line.lost) == (Totals(0, 150), part(190) - part(150))
    await host.ledger.end(job)
    await host.settle()
    line = (await lines(host))[job]
    assert (line.life, line.settled, line.at_risk) == (Life.CLOSED, Totals(0, 100), Totals())
    assert line.lost == part(190) - part(100)


async def test_a_host_attested_job_needs_no_signature(host: Host) -> None:
    """The host's word is the claim: nothing of it is at risk, and it waits for its time to earn it."""
    job = await host.open(max_tokens_per_second=1)
    await host.ledger.checkpoint(job, Totals(0, 100), due=True)
    line = (await lines(host))[job]
    assert (line.claimable, line.at_risk, line.wait) == (Totals(0, 100), Totals(), Wait.RATE)


async def test_a_job_that_is_not_deep_is_at_risk_as_a_whole(host: Host) -> None:
    """A reorganisation could take deposit and job back."""
    job = await host.open()
    await host.sign(job, 60, due=False)
    line = (await lines(host, confirmations=5))[job]
    assert (line.early, line.at_risk) == (True, Totals(0, 60))
    await host.devnet.mine(5)
    line = (await lines(host, confirmations=5))[job]
    assert (line.early, line.at_risk) == (False, Totals())


async def test_the_life_of_a_job(host: Host) -> None:
    """Ending here, completing on the chain, expired, closed, or gone with a reorganisation."""
    ending, completing, expired = [await host.open() for _ in range(3)]
    await host.ledger.end(ending)
    await host.ask_to_complete(completing)
    assert {job: line.life for job, line in (await lines(host)).items()} == {
        ending: Life.ENDING,
        completing: Life.COMPLETING,
        expired: Life.OPEN,
    }
    await host.devnet.increase_time(DAY + 60)
    snapshot = await host.devnet.snapshot()
    gone = await host.open(expires_at=(await host.chain.block()).timestamp + DAY)
    await host.devnet.revert(snapshot)
    found = await lines(host)
    assert (found[expired].life, found[gone].life) == (Life.EXPIRED, Life.GONE)
    assert found[expired].wait is Wait.NEXT


# Why it waits


async def test_in_the_pool_then_in_a_block_then_confirmed(host: Host) -> None:
    """While it is in flight it is told how deep it is; at last nothing is waited for."""
    job = await host.open()
    assert await wait(host, job) is None
    await host.sign(job, 100)
    assert await wait(host, job) is Wait.NEXT
    await host.devnet.set_automine(False)
    await host.settlement.step()
    line = (await lines(host))[job]
    assert (line.wait, line.depth) == (Wait.SENT, None)
    await host.devnet.mine()
    host.confirm_after(4)
    await host.sender.step()
    line = (await lines(host, confirmations=4))[job]
    assert (line.wait, line.depth) == (Wait.MINED, 1)
    await host.devnet.mine(2)
    assert (await lines(host, confirmations=4))[job].depth == 3
    await host.devnet.mine()
    await host.sender.step()
    assert await wait(host, job, confirmations=4) is None


async def test_what_no_endpoint_has_taken_is_told(host: Host) -> None:
    """It is signed and on disk, and will be sent again."""
    job = await host.open()
    await host.sign(job, 100)
    await host.devnet.set_automine(False)
    await host.settlement.step()
    host.rewrite(sa.update(tables.attempts).values(taken_at=None))
    assert await wait(host, job) is Wait.UNSENT


async def test_out_of_gas_comes_before_what_the_policy_says(host: Host) -> None:
    """Whether or not anything is in flight."""
    job = await host.open()
    await host.sign(job, 100)
    await host.devnet.set_balance(host.host.address, 10**9)
    assert await wait(host, job) is Wait.NO_GAS


async def test_a_tail_waits_for_its_interval_or_for_its_worth(host: Host) -> None:
    """By policy: `checkpoint` waits for the next whole interval, `economic` until it is worth the gas."""
    job = await host.open()
    await host.sign(job, 100)
    await host.settle()
    await host.sign(job, 130, due=False)
    assert await wait(host, job) is Wait.INTERVAL
    economic = {"policy": Policy.ECONOMIC, "eth_price": Amounts("2500")}
    assert await wait(host, job, **economic) is Wait.WORTH
    assert await wait(host, job, **economic, unsettled_max=Amounts("0.00002")) is Wait.NEXT


async def test_without_key_or_node_or_with_another_key_nothing_goes(host: Host) -> None:
    """These are the operator's moves."""
    job = await host.open()
    await host.sign(job, 100)
    keyless = {"host_private_key": None, "host_address": host.host.address}
    assert await wait(host, job, **keyless) is Wait.NO_KEY
    stranger = {"host_private_key": None, "host_address": host.payer.address}
    assert await wait(host, job, **stranger) is Wait.OTHER_KEY
    await host.ledger.close()
    assert await wait(host, job) is Wait.NO_NODE
    assert Wait.NO_KEY.stuck
    assert Wait.OTHER_KEY.stuck
    assert Wait.NO_NODE.stuck


async def test_what_came_to_nothing_is_told_until_it_is_paid(host: Host) -> None:
    """The last transaction that carried the job reverted, or left its row out."""
    job = await host.open()
    await host.sign(job, 100)
    await host.devnet.set_automine(False)
    await host.settlement.step()
    [flight] = await host.ledger.in_flight(host.host.address)
    await host.ledger.finish(flight, State.REVERTED)
    assert await wait(host, job) is Wait.FAILED


async def test_what_the_chain_has_settled_and_the_ledger_not_seen_deep(host: Host) -> None:
    """Somebody else carried it there: it counts once it is N deep."""
    job = await host.open()
    await host.sign(job, 100)
    await host.settle_by_hand(job, 100)
    assert await wait(host, job) is Wait.SEEN
    await host.settle()
    assert await wait(host, job) is None
