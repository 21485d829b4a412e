"""Contracts created, and read back from the chain."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tallystick import proof
from tallystick.artifacts import CREATE2_PROXY, blueprint
from tallystick.devnet import Devnet
from tallystick.errors import ChainError, UnknownRevert
from tallystick.networks import Asset
from tallystick.site import Constants, Site
from tallystick.testing.faults import Erring
from tallystick.testing.geth import Upstream
from tallystick.testing.rpc import FaultyRpc


@pytest.fixture
async def site(devnet: Devnet) -> AsyncIterator[Site]:
    """The devnet, with its contracts."""
    async with Site(devnet.rpc_url, devnet.deployment) as site:
        yield site


async def test_built_code_is_the_code_that_is_created(site: Site, devnet: Devnet) -> None:
    """What a constructor leaves is known without creating anything: arguments, address and chain are in."""
    for each in devnet.blueprints:
        assert await site.built_code(each) == await site.code(each.address) != b""


async def test_a_contract_is_created_once(site: Site, devnet: Devnet) -> None:
    """The proxy refuses a second one, at no cost."""
    before = await site.nonce(devnet.accounts.deployer.address)
    with pytest.raises(UnknownRevert):
        await site.create(devnet.blueprints[0], devnet.accounts.deployer.private_key)
    assert await site.nonce(devnet.accounts.deployer.address) == before


@pytest.mark.parametrize("since", [0, 1, 2, 3, 63, 64, 200])
async def test_the_block_of_a_contract_is_found(site: Site, devnet: Devnet, since: int) -> None:
    """However many blocks have come since, from the next one on."""
    # Any bytes are arguments to a contract without a constructor, and give it an address of its own.
    fresh = blueprint("NodeRegistry", b"\x01")
    result = await site.create(fresh, devnet.accounts.deployer.private_key)
    if since:
        await devnet.mine(since)
    assert await site.created_in(fresh.address) == result.block


async def test_the_block_of_a_contract_that_was_always_there_is_the_first(site: Site) -> None:
    """anvil's proxy is in its block 0."""
    assert await site.created_in(CREATE2_PROXY) == 0


async def test_an_endpoint_that_forgets_is_told(devnet: Devnet) -> None:
    """Without old state the block cannot be found: it says which kind of endpoint has it."""
    async with Upstream(devnet.rpc_url) as node, FaultyRpc(node) as rpc:
        rpc.fail(Erring(-32000, "missing trie node"), "eth_getCode")
        async with Site(rpc.url, devnet.deployment) as site:
            with pytest.raises(ChainError, match=r"missing trie node .* use an archive node's endpoint"):
                await site.created_in(devnet.deployment.registry)


async def test_contracts_and_assets_tell_what_they_are(site: Site, devnet: Devnet) -> None:
    """The marketplace names registry, treasury and its domain; the token symbol and decimals."""
    place = devnet.deployment
    separator = proof.Domain(place.chain_id, place.marketplace).separator
    assert await site.constants() == Constants(place.registry, place.treasury, separator)
    assert await site.asset(devnet.dollar) == place.assets[devnet.dollar] == Asset("tUSD", 6)
