"""Deploying: each contract once, the same addresses on every chain, nothing paid for that is not kept."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from tallystick import deployment, networks
from tallystick.artifacts import CREATE2_PROXY, blueprints
from tallystick.chain import Chain
from tallystick.config import DeployerConfig, Secret
from tallystick.deployment import Plan
from tallystick.devnet import Anvil, Devnet, account
from tallystick.errors import ChainError, ConfigError
from tallystick.networks import Addresses, network
from tallystick.site import Site
from tallystick.testing.faults import Erring, nth
from tallystick.testing.geth import Upstream
from tallystick.testing.rpc import FaultyRpc
from tallystick.types import ETH, Address
from tests.deploying import BASE, BASE_SEPOLIA, DEPLOYER, TREASURY, deploy, sent, undeployed


@pytest.fixture(autouse=True)
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The `networks.json` of a test."""
    monkeypatch.setattr(networks, "FILE", undeployed(tmp_path / "networks.json"))
    return networks.FILE


@pytest.fixture
async def base() -> AsyncIterator[Anvil]:
    """An empty chain that says that it is Base."""
    async with Anvil(chain_id=BASE) as anvil:
        yield anvil


async def refused(anvil: Anvil, treasury: Address | None = TREASURY.address, **how: bytes | None) -> str:
    """Why nothing was sent, and nothing recorded."""
    before, record = await sent(anvil), networks.networks()
    with pytest.raises(ConfigError) as caught:
        await deploy(anvil, treasury, **how)
    assert await sent(anvil) == before
    assert networks.networks() == record
    return str(caught.value)


async def test_deploys_records_and_is_found(base: Anvil) -> None:
    """What was deployed is what `deployment` answers from then on, from the block of its creation."""
    await base.mine(5)
    plan, done = await deploy(base)
    assert [each.name for each in plan.missing] == ["NodeRegistry", "JobMarketplace"]
    assert [each.block for each in done.created.values()] == [6, 7]
    found = networks.deployment(BASE)
    assert (found.registry, found.marketplace) == (plan.deployment.registry, plan.deployment.marketplace)
    assert (found.treasury, found.from_block, done.from_block) == (TREASURY.address, 6, 6)
    async with Chain(base.rpc_url, found) as chain:
        assert await chain.code_ok()
        assert await chain.jobs() == []


async def test_the_addresses_are_the_same_on_every_chain(base: Anvil) -> None:
    """Two chains, two keys, one treasury: the same addresses. Another treasury: another marketplace."""
    await deploy(base)
    async with Anvil(chain_id=BASE_SEPOLIA) as sepolia:
        await sepolia.mine(3)
        await deploy(sepolia, key=account(5).private_key)
    one, other = networks.deployment(BASE), networks.deployment(BASE_SEPOLIA)
    assert (one.registry, one.marketplace) == (other.registry, other.marketplace)
    elsewhere = network(BASE).planned(account(4).address)
    assert elsewhere.registry == one.registry
    assert elsewhere.marketplace != one.marketplace


async def test_deploying_again_changes_nothing(base: Anvil, file: Path) -> None:
    """What is there is left alone: nothing is sent, no key is needed, the record stays as it is."""
    await deploy(base)
    before, record = await sent(base), file.read_bytes()
    for treasury in (TREASURY.address, None):
        plan, done = await deploy(base, treasury, key=None)
        assert [each.name for each in plan.there] == ["NodeRegistry", "JobMarketplace"]
        assert (plan.missing, plan.costs, done.created) == ((), None, {})
    assert (await sent(base), file.read_bytes()) == (before, record)


async def test_a_deployment_that_was_interrupted_is_completed(base: Anvil) -> None:
    """The registry alone is there: the marketplace is added, and the registry's block is the first of all."""
    planned = network(BASE).planned(TREASURY.address)
    registry, _ = network(BASE).blueprints(TREASURY.address)
    await base.mine(9)
    async with Site(base.rpc_url, planned) as site:
        await site.create(registry, DEPLOYER.private_key)
    await base.mine(20)
    plan, done = await deploy(base)
    assert (plan.there, list(done.created)) == ((registry,), ["JobMarketplace"])
    assert networks.deployment(BASE).from_block == 10


async def test_an_interrupted_deployment_keeps_its_treasury(base: Anvil) -> None:
    """The treasury is written down before anything is sent: the next deployment can name no other."""
    async with Upstream(base.rpc_url) as node, FaultyRpc(node) as rpc:
        rpc.fail(Erring(-32000, "out of order"), "eth_sendRawTransaction", when=nth(2))
        config = DeployerConfig(Secret(DEPLOYER.private_key), rpc.url)
        with pytest.raises(ChainError, match="out of order"):
            await deployment.deploy(config, TREASURY.address, lambda _: None, lambda _: None)
    with pytest.raises(ConfigError, match=r"not on Base .*: `tally contracts deploy --rpc-url URL` puts"):
        networks.deployment(BASE)
    assert f"the treasury on Base is {TREASURY.address}" in await refused(base, account(4).address)
    _, done = await deploy(base, None)
    assert list(done.created) == ["JobMarketplace"]
    assert networks.deployment(BASE).treasury == TREASURY.address


async def test_a_deployment_that_was_not_recorded_is(base: Anvil) -> None:
    """Killed between confirmation and record: the next one finds the contracts, and their block."""
    await base.mine(9)
    await deploy(base)
    record = networks.deployment(BASE)
    undeployed(networks.FILE)
    await base.mine(30)
    await deploy(base, key=None)
    assert networks.deployment(BASE) == record


async def test_there_is_one_treasury_for_a_chain(base: Anvil, devnet: Devnet) -> None:
    """A second one is refused, where the first was deployed and on a devnet."""
    await deploy(base)
    other = account(4).address
    assert f"treasury on Base is {TREASURY.address}, for ever" in await refused(base, other)
    assert f"treasury on devnet is {devnet.deployment.treasury}" in await refused(devnet, other)


async def test_a_treasury_has_to_be_named_and_payable(base: Anvil) -> None:
    """None, zero, no address, and one with a wrong digit are refused before anything is sent."""
    assert "name the treasury on Base with --treasury" in await refused(base, None)
    mistyped = TREASURY.address[:-1] + ("a" if TREASURY.address[-1] != "a" else "b")
    for wrong, why in (
        (ETH, "nobody can be paid at the zero address"),
        (Address("0x12"), "is not an address"),
        (Address(mistyped), f"the capitals of {mistyped} do not add up"),
    ):
        assert why in await refused(base, wrong)


async def test_a_chain_without_the_proxy_is_refused(base: Anvil) -> None:
    """Without CREATE2's proxy the addresses would be others: it says what puts it there."""
    await base.ask("anvil_setCode", CREATE2_PROXY, "0x")
    told = await refused(base)
    assert f"Base has no CREATE2 proxy at {CREATE2_PROXY}" in told
    assert "send its transaction first" in told


async def test_nothing_is_sent_without_key_or_money(base: Anvil) -> None:
    """A missing key is told by its variable, a poor account with what it has and what it needs."""
    assert "DEPLOYER_PRIVATE_KEY is not set" in await refused(base, key=None)
    await base.set_balance(DEPLOYER.address, 10**15)
    assert f"{DEPLOYER.address} has 0.001" in await refused(base)


async def test_a_record_that_cannot_be_written_costs_nothing(base: Anvil, file: Path) -> None:
    """Whether `networks.json` can be written is seen before anything is sent."""
    file.with_suffix(".new").mkdir()
    assert "networks.json cannot be written" in await refused(base)


async def test_who_does_not_agree_sends_nothing(base: Anvil) -> None:
    """The plan is shown, with its cost, before anything is sent."""

    def disagree(plan: Plan) -> None:
        assert plan.costs is not None
        assert plan.costs.balance == 10_000 * 10**18
        raise KeyboardInterrupt

    config = DeployerConfig(Secret(DEPLOYER.private_key), base.rpc_url)
    with pytest.raises(KeyboardInterrupt):
        await deployment.deploy(config, TREASURY.address, disagree, lambda _: None)
    assert await sent(base) == 0
    assert network(BASE).contracts is None


async def test_the_plan_costs_what_is_paid_then(base: Anvil) -> None:
    """The gas that is shown is enough, and little more is used: endpoints estimate to 1.5 %."""
    plan, done = await deploy(base)
    assert plan.costs is not None
    used = sum(result.gas_used for result in done.created.values())
    assert used <= plan.costs.gas <= used * 1.02


async def test_waits_for_the_confirmations_of_the_network(base: Anvil) -> None:
    """The marketplace is sent once the registry is as deep as the network asks, and is as deep at the end."""
    networks.save(msgspec.structs.replace(network(BASE), confirmations=4))
    deploying = asyncio.create_task(deploy(base))
    while not deploying.done():
        await base.mine()
        await asyncio.sleep(0.01)
    _, done = await deploying
    head = int(await base.ask("eth_blockNumber"), 16)
    first, last = (result.block for result in done.created.values())
    assert first + 3 <= last <= head - 3


async def test_other_code_at_an_address_is_not_recorded(base: Anvil) -> None:
    """Code that is there but was not built is no contract of ours: it is told, and not recorded."""
    planned = network(BASE).planned(TREASURY.address)
    await base.ask("anvil_setCode", planned.marketplace, "0x00")
    with pytest.raises(ChainError, match=r"JobMarketplace: .* 1 bytes"):
        await deploy(base)
    assert network(BASE).contracts is None


async def test_contracts_of_another_version_are_replaced_in_the_record(base: Anvil) -> None:
    """A new version's contracts are others: the plan says where the jobs of the old ones go on."""
    old = Addresses(account(7).address, account(8).address)
    networks.save(msgspec.structs.replace(network(BASE), treasury=TREASURY.address, contracts=old))
    plan, _ = await deploy(base, None)
    assert any(old.job_marketplace in line for line in plan.lines())
    assert networks.deployment(BASE) == networks.network(BASE).planned(TREASURY.address)


async def test_a_devnet_has_it_all_and_keeps_no_record(devnet: Devnet, file: Path) -> None:
    """On a devnet the test dollar belongs to it, and nothing is written down."""
    before = file.read_bytes()
    plan, done = await deploy(devnet, None)
    assert [each.name for each in plan.there] == ["NodeRegistry", "JobMarketplace", "TestDollar"]
    assert done.told()["recorded"] is None
    assert file.read_bytes() == before


async def test_what_came_of_it_is_told(base: Anvil, file: Path) -> None:
    """People read addresses, cost, transactions and the record's place; machines read the same."""
    plan, done = await deploy(base)
    told = "\n".join([*plan.lines(), *done.lines()])
    facts = done.told()
    assert f"Base (chain 8453), treasury {TREASURY.address} for ever" in told
    assert f"{file} has the addresses" in told
    assert "an upgrade replaces it" in told
    assert (facts["chain_id"], facts["recorded"]) == (BASE, str(file))
    arguments = [bytes.fromhex(each["arguments"][2:]) for each in facts["contracts"].values()]
    assert arguments == [each.arguments for each in blueprints(TREASURY.address)]
    for contract in facts["contracts"].values():
        assert contract["address"] in told
        assert f"{contract['tx']}, {contract['gas']} gas, block {contract['block']}" in told
