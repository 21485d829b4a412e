"""What happens next with a job: every reason to wait has its words, figures and command in them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from tallystick import prospects, statement
from tallystick.chain import Chain
from tallystick.config import Amounts
from tallystick.devnet import Devnet
from tallystick.ledger import Ledger
from tallystick.policy import Policy
from tallystick.statement import Life, Line, Wait
from tallystick.survey import Survey, survey
from tallystick.tables import State
from tallystick.types import Address, Totals
from tests.settling import Host

WORDS = {
    Wait.OTHER_KEY: "only that one's key settles it",
    Wait.NO_KEY: "set it, and restart the node",
    Wait.NO_NODE: "no node runs, signed as nonce 1: tally host run",
    Wait.NO_GAS: "send it ETH, and it goes on by itself",
    Wait.FAILED: "its last transaction reverted: the node tries again",
    Wait.UNSENT: "signed as nonce 1; no endpoint has taken it yet",
    Wait.SENT: "in no block yet, sent 0 s ago: nonce 1, 0x",
    Wait.MINED: "2 of 1 block deep: nonce 1",
    Wait.SEEN: "confirmed once it is seen 1 block deep",
    Wait.RATE: "at 1 tokens a second its time has earned",
    Wait.INTERVAL: "the next whole interval of 100 tokens",
    Wait.WORTH: "gas is at most 5 % of what goes, or more than 1 is unsettled",
    Wait.NEXT: "within seconds",
}


@pytest.fixture
async def looked(chain: Chain, devnet: Devnet, tmp_path: Path) -> AsyncIterator[tuple[Survey, Line]]:
    """A host-attested job that is in flight, and all that is known of it."""
    key = devnet.accounts.host.private_key
    await chain.transact(chain.register(devnet.accounts.host.address, "{}"), key)
    async with Ledger(tmp_path) as ledger:
        host = Host(devnet, chain, ledger)
        job = await host.open(max_tokens_per_second=1)
        await devnet.increase_time(100)
        await ledger.checkpoint(job, Totals(0, 100), due=True)
        await devnet.set_automine(False)
        await host.settlement.step()
        found = await survey(host.config(policy=Policy.ECONOMIC, eth_price=Amounts("2500")))
        [line] = statement.lines(found)
        assert line.entry.flight is not None
        yield replace(found, clock=1_000_000.0), line


def test_every_reason_has_its_words(looked: tuple[Survey, Line]) -> None:
    """None is told by its name alone; whoever has to do something is told what."""
    found, line = looked
    entry = replace(line.entry, failed=State.REVERTED)
    for wait in Wait:
        told = prospects.why(found, replace(line, entry=entry, wait=wait, depth=2))
        assert WORDS[wait] in told


def test_a_policy_that_knows_no_price_does_not_speak_of_the_share_of_gas(looked: tuple[Survey, Line]) -> None:
    """It never comes to be without the rate; what is missing is named."""
    found, line = looked
    assert found.thrift is not None
    blind = replace(found, thrift=replace(found.thrift, rates={}))
    told = prospects.why(blind, replace(line, wait=Wait.WORTH))
    assert "more than 1 is unsettled, or the job ends" in told
    assert "HOST_ETH_PRICE" in told
    assert "5 %" not in told


def test_a_job_that_waits_for_nothing_says_what_is_next(looked: tuple[Survey, Line]) -> None:
    """Paid, lost, gone, early, at risk, or just waiting for requests."""
    found, line = looked
    free = replace(line, wait=None)
    paid = replace(free, life=Life.CLOSED, job=replace(line.job, settled=Totals(0, 100)))
    assert prospects.prospect(found, paid) == "paid in full"
    assert "0.000081 tUSD of what" in prospects.prospect(found, replace(free, life=Life.CLOSED))
    assert "reorganisation" in prospects.prospect(found, replace(free, life=Life.GONE))
    assert "not 1 block deep" in prospects.prospect(found, replace(free, early=True))
    assert prospects.prospect(found, free) == "waits for requests"
    assert prospects.prospect(found, line) == prospects.why(found, line)


def test_an_asset_that_is_not_known_is_told_in_base_units(looked: tuple[Survey, Line]) -> None:
    """Nobody knows how many of them make one."""
    unknown = Address("0x" + "12" * 20)
    assert prospects.amount(looked[0], unknown, 42) == f"42 of {unknown}"
