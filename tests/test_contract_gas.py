"""What the contracts cost is held to limits, and to what was recorded."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from benchmarks import cost, gas
from tallystick.chain import Chain
from tallystick.devnet import Devnet

ACCOUNT = "0x" + "ab" * 20


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def found(anvil: Devnet) -> AsyncIterator[dict[str, Any]]:
    """Every figure, measured now."""
    snapshot = await anvil.snapshot()
    yield await gas.measured(anvil)
    await anvil.revert(snapshot)


@pytest.mark.parametrize("goal", gas.GOALS)
def test_a_figure_is_within_its_limit_and_near_the_recorded_one(goal: str, found: dict[str, Any]) -> None:
    """Each figure, measured again, is at most its limit and at most 2 % above benchmarks/gas.json."""
    assert found[goal] <= gas.most(goal, gas.read())


def test_the_page_shows_what_is_recorded() -> None:
    """The tables of docs/gas.md are those of benchmarks/gas.json."""
    page = gas.PAGE.read_text()
    assert gas.page(page, gas.read()) == page


def test_each_way_to_be_too_dear_is_told() -> None:
    """A figure above its limit, and one more than 2 % above the recorded one, is named with both numbers."""
    recorded: dict[str, Any] = {goal: each.limit // 2 for goal, each in gas.GOALS.items()}
    assert gas.complaints(recorded, recorded) == []
    dearer = {**recorded, "close": 40_801}
    assert gas.complaints({**recorded, "close": 40_800}, recorded) == []
    assert gas.complaints(dearer, recorded) == ["close: 40801 gas, of at most 40800"]
    at_limit = {**recorded, "close": 80_000}
    assert gas.complaints({**at_limit, "close": 80_001}, at_limit) == ["close: 80001 gas, of at most 80000"]


def test_the_floor_has_the_prices_of_the_evm() -> None:
    """Calldata, logs and writes cost what EIPs 2028, 2929 and 3529 say."""
    assert cost.calldata(bytes(3) + b"\x01\xff") == 3 * 4 + 2 * 16
    assert cost.logs([{"topics": ["0x1", "0x2"], "data": "0x" + "00" * 64}]) == 375 * 3 + 8 * 64
    slots = [(ACCOUNT, hex(slot)) for slot in range(4)]
    before, after = dict(zip(slots, (0, 5, 5, 5), strict=True)), dict(zip(slots, (1, 6, 0, 5), strict=True))
    assert cost.writes(before, after) == 20_000 + 2_900 + (2_900 - 4_800)


async def test_the_floor_of_a_transfer_is_all_that_it_costs(devnet: Devnet, chain: Chain) -> None:
    """A transfer of ETH between accounts runs no code, so it costs its floor."""
    payer, stranger = devnet.accounts.payer.address, devnet.accounts.stranger.address
    tx = await devnet.ask("eth_sendTransaction", {"from": payer, "to": stranger, "value": "0x1"})
    await chain.included(tx)
    transfer = await cost.cost_of(devnet, tx, signatures=0)
    assert transfer.gas == transfer.floor == 21_000
