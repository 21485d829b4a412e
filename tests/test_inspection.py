"""What is on a chain, held against what was built: whatever differs fails its own check."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from tallystick import networks
from tallystick.devnet import Anvil, Devnet, account
from tallystick.errors import ConfigError, RpcError
from tallystick.inspection import difference, inspect
from tallystick.networks import Addresses, network
from tallystick.testing.faults import Erring, nth
from tallystick.testing.geth import Upstream
from tallystick.testing.rpc import FaultyRpc
from tallystick.types import Check
from tests.deploying import BASE, deploy, undeployed


@pytest.fixture(autouse=True)
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The `networks.json` of a test."""
    monkeypatch.setattr(networks, "FILE", undeployed(tmp_path / "networks.json"))
    return networks.FILE


@pytest.fixture
async def base() -> AsyncIterator[Anvil]:
    """A chain that says that it is Base, with nothing but our contracts."""
    async with Anvil(chain_id=BASE) as anvil:
        await deploy(anvil)
        yield anvil


async def failing(anvil: Anvil) -> dict[str, Check]:
    """The checks that fail, by name; each names a mend, and the others need none."""
    checks = await inspect(anvil.rpc_url)
    assert all(check.passed == (not check.mend) for check in checks)
    return {check.name: check for check in checks if not check.passed}


async def test_a_devnet_passes_every_check(devnet: Devnet) -> None:
    """All that there is to check is checked, by name."""
    assert await failing(devnet) == {}
    assert [check.name for check in await inspect(devnet.rpc_url)] == [
        *("NodeRegistry", "JobMarketplace", "TestDollar"),
        *("registry", "treasury", "DOMAIN_SEPARATOR", "ETH", "tUSD"),
    ]


@pytest.mark.parametrize("at", [0, 700, -1])
@pytest.mark.parametrize("name", ["NodeRegistry", "JobMarketplace", "TestDollar"])
async def test_a_byte_that_was_changed_is_found(devnet: Devnet, name: str, at: int) -> None:
    """Wherever the code was tampered with, the contract fails, and it is said where."""
    [place] = [each.address for each in devnet.blueprints if each.name == name]
    code = bytearray.fromhex((await devnet.ask("eth_getCode", place, "latest"))[2:])
    code[at] ^= 0x01
    await devnet.ask("anvil_setCode", place, "0x" + code.hex())
    failed = await failing(devnet)
    assert name in failed
    assert failed[name].seen.endswith(f"the first that differs is byte {at % len(code)}")


async def test_another_treasury_in_the_code_is_found(devnet: Devnet) -> None:
    """A marketplace that pays its fees to somebody else fails for its code, and says to whom it pays."""
    place, thief = devnet.deployment.marketplace, account(9).address
    code = (await devnet.ask("eth_getCode", place, "latest")).lower()
    await devnet.ask(
        "anvil_setCode", place, code.replace(devnet.deployment.treasury[2:].lower(), thief[2:].lower())
    )
    failed = await failing(devnet)
    assert set(failed) == {"JobMarketplace", "treasury"}
    assert failed["treasury"].seen.startswith(thief)


async def test_missing_code_is_found(devnet: Devnet) -> None:
    """Where there is no contract, `tally contracts deploy` makes one."""
    for place in (devnet.deployment.marketplace, devnet.dollar):
        await devnet.ask("anvil_setCode", place, "0x")
    failed = await failing(devnet)
    assert set(failed) == {"JobMarketplace", "TestDollar", "constants", "tUSD"}
    assert failed["JobMarketplace"].seen == f"no code at {devnet.deployment.marketplace}"
    assert failed["JobMarketplace"].mend == "tally contracts deploy"


async def test_a_chain_without_contracts_has_nothing_to_check(base: Anvil) -> None:
    """A chain that is not known, or has no contracts yet, is refused with what to do."""
    undeployed(networks.FILE)
    with pytest.raises(ConfigError, match=r"not on Base .* `tally contracts deploy"):
        await inspect(base.rpc_url)
    async with Anvil(chain_id=1) as mainnet:
        with pytest.raises(ConfigError, match=r"nothing is known of chain 1; .* set RPC_URL"):
            await inspect(mainnet.rpc_url)


async def test_an_asset_that_is_not_there_is_found(base: Anvil) -> None:
    """The contracts of this chain are sound; of USDC there is nothing at its address."""
    assert set(await failing(base)) == {"USDC"}


async def test_another_asset_at_the_address_is_found(base: Anvil, devnet: Devnet) -> None:
    """A token with another symbol is not the asset that is known."""
    usdc = networks.deployment(BASE).asset("USDC")
    await base.ask("anvil_setCode", usdc, await devnet.ask("eth_getCode", devnet.dollar, "latest"))
    [failed] = (await failing(base)).values()
    assert failed.seen == f"{usdc}: '' with 6 decimals, where 'USDC' with 6 decimals is expected"


async def test_contracts_of_another_version_are_not_these(base: Anvil, devnet: Devnet) -> None:
    """A record of other addresses is another version's: it says where this one's belong."""
    known = network(BASE)
    assert known.contracts is not None
    elsewhere = Addresses(account(7).address, known.contracts.job_marketplace)
    await base.ask("anvil_setCode", elsewhere.node_registry, "0x00")
    networks.save(msgspec.structs.replace(known, contracts=elsewhere))
    failed = await failing(base)
    assert failed["NodeRegistry"].seen == (
        f"recorded at {elsewhere.node_registry}; this version's belongs to {known.contracts.node_registry}"
    )
    assert failed["registry"].seen.startswith(known.contracts.node_registry)


async def test_an_endpoint_that_does_not_answer_gives_no_verdict(devnet: Devnet) -> None:
    """What could not be asked is an error, and no failure of the contracts."""
    async with Upstream(devnet.rpc_url) as node, FaultyRpc(node) as rpc:
        rpc.fail(Erring(-32601, "no such method"), "eth_call", when=nth(1))
        with pytest.raises(RpcError, match="no such method"):
            await inspect(rpc.url)


def test_a_difference_is_told_by_its_first_byte() -> None:
    """Also where one is only longer than the other."""
    assert difference(b"abc", b"abd") == "3 bytes, 3 were built; the first that differs is byte 2"
    assert difference(b"ab", b"abc") == "2 bytes, 3 were built; the first that differs is byte 2"
