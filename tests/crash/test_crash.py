"""Ledger, meter and sender are killed, and their disk fails, at any call: nothing is lost or doubled."""

from __future__ import annotations

import pytest

from tallystick.types import Totals
from tests.crash.campaign import crashes, sweeping
from tests.crash.recovery import Truth

POINTS = 50
"""That count, of each of the two halves."""
WHOLE = 6
"""Points of the whole node."""
SEEDS = ([0, 2, 4], [1, 3, 5])


@pytest.mark.timeout(1_200)
@pytest.mark.parametrize("seeds", SEEDS, ids=str)
async def test_a_crash_at_any_call_loses_nothing_and_doubles_nothing(seeds: list[int], strace: str) -> None:
    """Laws 7 and 8: what was delivered is counted, what was acknowledged is there, all is settled once."""
    async with sweeping() as sweep:
        results = [result async for result in crashes(sweep, seeds, POINTS)]
    assert [result for result in results if result.wrong] == []
    assert sum(result.hit for result in results) == POINTS


@pytest.mark.timeout(600)
async def test_a_crash_of_the_whole_node_loses_nothing(strace: str) -> None:
    """Law 7: all that a payer received is counted, and one token more at most; its receipts are there."""
    async with sweeping(whole=True) as sweep:
        results = [result async for result in crashes(sweep, [0], WHOLE)]
    assert [result for result in results if result.wrong] == []


@pytest.mark.timeout(600)
async def test_the_sweep_sees_a_receipt_that_is_acknowledged_before_it_is_stored(strace: str) -> None:
    """A driver that does so loses one, at some write to the journal."""
    async with sweeping() as sweep:
        written = [point for point in await sweep.points(0) if point.call == "pwrite64"]
        for point in written[len(written) // 2 :: 3]:
            result = await sweep.run(point, hasty=True)
            if any("was acknowledged" in wrong for wrong in result.wrong):
                return
    pytest.fail("no point shows it")


def test_the_oracle_sees_a_token_that_was_not_counted_and_one_that_was_not_delivered() -> None:
    """Only what was about to be delivered may be in the count or not."""
    truth = Truth()
    truth.read(["counts 1 5 1", "delivers 1 5 1", "counts 1 0 2"])
    assert truth.miscounted(1, Totals(5, 1)) == []
    assert truth.miscounted(1, Totals(5, 3)) == []
    assert truth.miscounted(1, Totals(5, 0)) != []
    assert truth.miscounted(1, Totals(5, 2)) != []
    assert truth.miscounted(1, Totals(5, 4)) != []


def test_the_oracle_sees_a_receipt_that_is_lost() -> None:
    """The one that was offered last may be stored or not."""
    truth = Truth()
    truth.read(["offered 1 5 10", "acknowledges 1 5 10", "offered 1 5 20"])
    assert truth.lost(1, Totals(5, 10)) == []
    assert truth.lost(1, Totals(5, 20)) == []
    assert truth.lost(1, Totals()) != []
