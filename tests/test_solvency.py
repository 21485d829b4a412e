"""The contract's books: what it holds is what it owes, and what it owes was paid in and not taken out."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from tallystick.chain import Chain
from tallystick.devnet import Devnet
from tallystick.ledger import Ledger
from tallystick.solvency import audit, judge
from tallystick.types import ETH
from tests.settling import DEPOSIT, Host


@pytest.fixture
async def host(chain: Chain, devnet: Devnet, tmp_path: Path) -> AsyncIterator[Host]:
    await chain.transact(chain.register(devnet.accounts.host.address, "{}"), devnet.accounts.host.private_key)
    async with Ledger(tmp_path) as ledger:
        yield Host(devnet, chain, ledger)


async def test_what_is_held_is_owed_to_the_unit(host: Host) -> None:
    """Open and closed jobs in two assets, a withdrawal of the host's and one of the treasury's."""
    going, over = await host.open(), await host.open()
    in_ether = await host.open(asset=ETH, deposit=10**16)
    await host.sign(going, 1_000)
    await host.sign(over, 170)
    await host.sign(in_ether, 100)
    await host.ledger.end(over)
    await host.settle()
    key, dollar = host.host.private_key, host.devnet.dollar
    await host.chain.transact(host.chain.withdraw(dollar, host.host.address), key)
    treasury = host.devnet.accounts.treasury
    await host.chain.transact(host.chain.withdraw_treasury(dollar, treasury.address), treasury.private_key)
    await host.sign(going, 2_000)
    await host.settle()
    books = {each.address: each for each in await audit(host.devnet.rpc_url)}
    assert books.keys() == {ETH, dollar}
    assert all(each.held == each.owed for each in books.values())
    dollars = books[dollar]
    assert (dollars.rest, dollars.jobs) == (DEPOSIT - 1_808, 2)
    assert (dollars.paid, dollars.withdrawn) == (1_628 + 138, 814 + 138)
    assert dollars.paid - dollars.withdrawn == dollars.earnings
    assert dollars.paid_fees - dollars.withdrawn_fees == dollars.fees == 90
    assert all(check.passed for check in judge(books.values()))


async def test_what_was_sent_to_it_is_told_as_nobodys(host: Host) -> None:
    """A plain transfer is no deposit; the books balance all the same."""
    await host.open()
    await host.devnet.mint(host.chain.deployment.marketplace, 5_000_000)
    [books] = await audit(host.devnet.rpc_url)
    checks = judge([books])
    assert all(check.passed for check in checks)
    assert checks[0].seen.endswith("; 5 tUSD were given to nobody")


async def test_books_that_do_not_balance_fail(host: Host) -> None:
    """Less held than owed, balances that are not what was paid: each fails its own check, with a mend."""
    await host.open()
    [books] = await audit(host.devnet.rpc_url)
    for wrong, name in (
        (replace(books, held=books.owed - 1), "tUSD held"),
        (replace(books, withdrawn=1), "tUSD hosts"),
        (replace(books, paid_fees=1), "tUSD treasury"),
    ):
        failing = [check for check in judge([wrong]) if not check.passed]
        assert [check.name for check in failing] == [name]
        assert "--rpc-url" in failing[0].mend
