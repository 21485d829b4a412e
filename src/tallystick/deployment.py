"""`tally contracts deploy`: the contracts put on a chain, each once, and written down in `networks.json`.

What is there already is left alone, so a deployment that was interrupted is completed by the next one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from eth_utils.conversions import to_hex

from tallystick import networks, proof
from tallystick.artifacts import CREATE2_PROXY, Blueprint
from tallystick.chain import TxResult, network_at
from tallystick.config import DeployerConfig, checked_address
from tallystick.errors import ChainError, ConfigError
from tallystick.inspection import inspect_contracts
from tallystick.networks import Deployment, Network
from tallystick.pricing import from_units
from tallystick.site import Site
from tallystick.types import ETH, Address


@dataclass(frozen=True, slots=True)
class Costs:
    """What is missing takes `gas`, at `fee` wei per gas as it is now; `payer` has `balance` wei for it."""

    gas: int
    fee: int
    payer: Address
    balance: int

    def __str__(self) -> str:
        cost, balance = (from_units(wei, 18) for wei in (self.gas * self.fee, self.balance))
        price = f"{self.gas} gas, {cost} ETH at the present fee (a rollup adds one for data)"
        return f"{price}; {self.payer} has {balance} ETH"


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done. `deployment` is as it will be."""

    network: Network
    deployment: Deployment
    there: tuple[Blueprint, ...]
    missing: tuple[Blueprint, ...]
    costs: Costs | None
    """None: nothing is missing."""

    @property
    def contracts(self) -> tuple[Blueprint, ...]:
        """All that will be there."""
        return self.there + self.missing

    @property
    def is_recorded(self) -> bool:
        """True if `networks.json` has it; a devnet's addresses follow from the package and are not kept."""
        known = self.network
        return known.is_devnet or (known.contracts is not None and known.deployment() == self.deployment)

    def lines(self) -> Iterator[str]:
        """For people."""
        network = self.network
        yield f"{network.name} (chain {network.chain_id}), treasury {self.deployment.treasury} for ever"
        for told, contracts in (("is there", self.there), ("is to be created", self.missing)):
            yield from (f"{each.name:<14}  {each.address}  {told}" for each in contracts)
        if network.contracts is not None and not self.is_recorded:
            yield f"jobs at {network.contracts.job_marketplace} go on there, with the version that it is of"
        if self.costs is not None:
            yield f"cost            {self.costs}"


@dataclass(frozen=True, slots=True)
class Deployed:
    """What came of it. `created`: by contract, the transaction of just now."""

    plan: Plan
    from_block: int
    created: dict[str, TxResult]

    def lines(self) -> Iterator[str]:
        """For people: what was not said in the plan."""
        for name, result in self.created.items():
            yield f"{name:<14}  {result.hash}, {result.gas_used} gas, block {result.block}"
        yield "code, treasury and domain are on the chain as they were built"
        if not self.plan.network.is_devnet:
            yield f"{networks.FILE} has the addresses"
            if not networks.in_source():
                yield (
                    "it is an installed package's, since that is where hosts and payers look; an upgrade "
                    "replaces it: put the entry into the source as well"
                )

    def told(self) -> dict[str, Any]:
        """For machines."""
        deployment = self.plan.deployment
        return {
            "chain_id": deployment.chain_id,
            "name": deployment.name,
            "treasury": deployment.treasury,
            "from_block": self.from_block,
            "contracts": {each.name: self._contract(each) for each in self.plan.contracts},
            "recorded": None if self.plan.network.is_devnet else str(networks.FILE),
        }

    def _contract(self, blueprint: Blueprint) -> dict[str, Any]:
        result = self.created.get(blueprint.name)
        created = {"tx": result.hash, "gas": result.gas_used, "block": result.block} if result else {}
        return {"address": blueprint.address, "arguments": to_hex(blueprint.arguments), **created}


async def deploy(
    config: DeployerConfig, treasury: str | None, agree: Callable[[Plan], None], say: Callable[[str], object]
) -> Deployed:
    """Puts on the chain what is missing, sees that it is what was built, and records it.

    `agree` is shown the plan, and raises what it likes to stop it before anything is sent. ConfigError for a
    chain, treasury or key that will not do; ChainError.
    """
    network = await network_at(config.rpc_url)
    deployment = network.planned(_treasury(network, treasury))
    async with Site(config.rpc_url, deployment) as site:
        plan = await _plan(site, network, config)
        agree(plan)
        if not plan.is_recorded:
            # The treasury is known before anything is sent: whoever completes this can name no other.
            networks.save(msgspec.structs.replace(network, treasury=deployment.treasury))
        created = await _create(site, plan, config, say)
        await _require_sound(site, plan.contracts)
        return Deployed(plan, await _record(site, plan, created), created)


def _treasury(network: Network, named: str | None) -> Address:
    """The treasury that was named, or is known. There is one for a chain, for ever."""
    if named is None:
        if network.treasury is None:
            raise ConfigError(
                f"name the treasury on {network.name} with --treasury: it gets the fees, for ever"
            )
        return network.treasury
    treasury = _payable(named)
    if network.treasury not in (None, treasury):
        raise ConfigError(
            f"the treasury on {network.name} is {network.treasury}, for ever: leave out --treasury, since "
            "another one makes a second marketplace, where no host or payer of this package looks"
        )
    return treasury


def _payable(named: str) -> Address:
    try:
        treasury = checked_address(named)
    except ValueError as error:
        raise ConfigError(f"--treasury: {error}") from None
    if treasury == ETH:  # the zero address
        raise ConfigError("--treasury: nobody can be paid at the zero address")
    return treasury


async def _plan(site: Site, network: Network, config: DeployerConfig) -> Plan:
    wanted = network.blueprints(site.deployment.treasury)
    there = [each for each in wanted if await site.code(each.address)]
    missing = [each for each in wanted if each not in there]
    costs = await _costs(site, missing, _key(config)) if missing else None
    return Plan(network, site.deployment, tuple(there), tuple(missing), costs)


async def _costs(site: Site, missing: Sequence[Blueprint], key: bytes) -> Costs:
    """ConfigError where the proxy is missing, or there is not enough ETH."""
    if not await site.code(CREATE2_PROXY):
        raise ConfigError(
            f"{site.deployment.name} has no CREATE2 proxy at {CREATE2_PROXY}, from which addresses follow: "
            "send its transaction first, which is at github.com/Arachnid/deterministic-deployment-proxy"
        )
    payer = proof.address(key)
    gas = sum([await site.gas_to_create(each, payer) for each in missing])
    fee = (await site.block()).base_fee + await site.priority_fee()
    costs = Costs(gas, fee, payer, await site.eth_balance(payer))
    if costs.balance < gas * fee:
        raise ConfigError(f"not enough ETH: {costs}; send it more")
    return costs


def _key(config: DeployerConfig) -> bytes:
    if config.deployer_private_key is None:
        raise ConfigError("DEPLOYER_PRIVATE_KEY is not set: its account pays for what has to be created")
    return config.deployer_private_key.reveal()


async def _create(
    site: Site, plan: Plan, config: DeployerConfig, say: Callable[[str], object]
) -> dict[str, TxResult]:
    created = {}
    for blueprint in plan.missing:
        say(f"creating {blueprint.name}, and waiting until it is confirmed")
        created[blueprint.name] = await site.create(blueprint, _key(config))
    return created


async def _require_sound(site: Site, contracts: Sequence[Blueprint]) -> None:
    failed = [check for check in await inspect_contracts(site, contracts) if not check.passed]
    if failed:
        told = "; ".join(f"{check.name}: {check.seen}" for check in failed)
        raise ChainError(f"what is on the chain is not what was built, and is not recorded: {told}")


async def _record(site: Site, plan: Plan, created: dict[str, TxResult]) -> int:
    """The first block in which there was one of the contracts."""
    if plan.is_recorded:
        return plan.network.from_block
    blocks = [result.block for result in created.values()]
    blocks += [await site.created_in(each.address) for each in plan.there]
    recorded = msgspec.structs.replace(
        plan.network,
        treasury=plan.deployment.treasury,
        contracts=networks.Addresses(plan.deployment.registry, plan.deployment.marketplace),
        from_block=min(blocks),
    )
    networks.save(recorded)
    return recorded.from_block
