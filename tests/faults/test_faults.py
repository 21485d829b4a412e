"""Settlement and sender in a storm: whatever fails, each receipt is paid once when quiet has returned."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests import postgresql, scratch
from tests.faults.campaign import line, rage
from tests.faults.classes import faults_of
from tests.faults.ground import Ground
from tests.faults.oracle import Mined, Oracle, Wired, misused, wasted
from tests.faults.report import silent
from tests.faults.storm import Result, Storm

HALVES = (range(25), range(25, 50))
"""Seeds. Each half has every class as its first one."""
HOST, OTHER = "0x" + "aa" * 20, "0x" + "bb" * 20


@pytest.fixture(scope="module")
def server(request: pytest.FixtureRequest) -> postgresql.Server | None:
    """Without PostgreSQL the second process meets the lock of an SQLite ledger, each time."""
    if postgresql.binaries() is None and os.environ.get("CI") != "true":
        return None
    found: postgresql.Server = request.getfixturevalue("postgres")
    return found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def ground(server: postgresql.Server | None) -> AsyncIterator[Ground]:
    """A chain and jobs for this module alone."""
    with scratch.directory() as directory:
        async with Ground(Path(directory), server) as ground:
            yield ground


@pytest.mark.timeout(1_800)
@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("seeds", HALVES, ids=str)
async def test_a_storm_loses_nothing_and_pays_nothing_twice(ground: Ground, seeds: range) -> None:
    """Laws 7 to 9: all that is receipted is on the chain within three blocks of quiet, and once.

    Each class of faults fires, alone and with others.
    """
    results: list[Result] = []
    await rage(ground, seeds, results.append)
    assert [line(result) for result in results if result.wrong] == []
    assert silent(results) == []


@pytest.mark.timeout(600)
@pytest.mark.asyncio(loop_scope="module")
async def test_a_plain_sender_loses_money_in_it(ground: Ground) -> None:
    """The faults are real, and the oracle sees what they do: blocks that are gone, and gas paid twice."""
    reorganised = await Storm(ground, 14, faults_of(14), plain=True).run()
    assert reorganised.lost
    told_twice = await Storm(ground, 4, faults_of(4), plain=True).run()
    assert told_twice.wasted > 0


@pytest.mark.asyncio(loop_scope="module")
async def test_the_oracle_sees_what_is_missing(ground: Ground) -> None:
    """A job whose total is not on the chain is told, and a transaction that never came into a block."""
    await ground.renew()
    devnet = ground.devnet
    host = devnet.accounts.host.address
    oracle = Oracle(devnet.rpc_url, devnet.deployment.marketplace, devnet.dollar, host, deepest=1)
    job = ground.jobs[0].job.id
    assert oracle.behind({job: (0, 0)}) == {}
    assert oracle.behind({job: (0, 1)}) == {job: (0, 0)}
    assert oracle.complaints([job]) == []
    assert oracle.gaps([Wired("0x1", 10**6, 1, 1, OTHER, b"", 1)], foreign=()) != []


def test_the_oracle_sees_a_nonce_that_is_used_twice_and_fees_above_the_ceiling() -> None:
    """A replacement is the same thing at other fees; filling a nonce is nothing at all."""
    sent = Wired("0x1", 7, 10, 1, OTHER, b"claim", 0)
    dearer = Wired("0x2", 7, 12, 2, OTHER, b"claim", 0)
    filler = Wired("0x3", 7, 14, 3, HOST, b"", 0)
    assert misused([sent, dearer, filler], HOST, ceiling=14) == []
    assert len(misused([sent, dearer, filler], HOST, ceiling=13)) == 1
    assert len(misused([sent, Wired("0x4", 7, 12, 2, OTHER, b"other", 0)], HOST, ceiling=14)) == 1


def test_gas_for_nothing_is_counted() -> None:
    """Whatever settles nothing is wasted: what reverts, and what only fills a nonce."""
    paid, reverted = Mined("0x1", 0, 1, 50_000, True, 1), Mined("0x2", 1, 1, 50_000, False, 0)
    filled = Mined("0x3", 2, 1, 21_000, True, 0)
    assert wasted([paid, reverted, filled]) == {"reverted": 1, "empty": 1}
