"""What tests of several modules start from: a devnet for each worker, put back after each test."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from tallystick.chain import Chain
from tallystick.devnet import Devnet


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def anvil() -> AsyncIterator[Devnet]:
    """The worker's devnet, as the last test left it. `devnet` is what a test wants."""
    async with Devnet() as devnet:
        yield devnet


@pytest_asyncio.fixture
async def devnet(anvil: Devnet) -> AsyncIterator[Devnet]:
    """A devnet with nothing on it but the contracts and test dollars; each transaction makes a block."""
    snapshot = await anvil.snapshot()
    yield anvil
    await anvil.set_automine(True)
    await anvil.revert(snapshot)


@pytest_asyncio.fixture
async def chain(devnet: Devnet) -> AsyncIterator[Chain]:
    """The devnet's contracts."""
    async with Chain(devnet.rpc_url, devnet.deployment) as chain:
        yield chain
