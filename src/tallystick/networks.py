"""The chains by name: their assets, how deep a fact has to be, and where the contracts are.

All of it stands in `networks.json`, to which `tally contracts deploy` adds what it has deployed. Asks no
chain.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from tallystick.artifacts import Blueprint, blueprint, blueprints
from tallystick.errors import ConfigError
from tallystick.pricing import from_units
from tallystick.types import ETH, Address

FILE = Path(__file__).with_name("networks.json")

DEVNET = 31337
"""anvil's chain id. Each devnet is new, so where its contracts are follows from this package alone."""


@dataclass(frozen=True, slots=True)
class Asset:
    """What can be paid in: 10 ** `decimals` base units are one `symbol`."""

    symbol: str
    decimals: int


@dataclass(frozen=True, slots=True)
class Deployment:
    """The contracts on one chain."""

    chain_id: int
    name: str
    registry: Address
    marketplace: Address
    treasury: Address
    confirmations: int
    """How many blocks, the one that holds a fact included, make it one to rely on."""
    assets: Mapping[Address, Asset]
    """What host and payer may choose from."""
    from_block: int
    """None of the contracts' events is in an earlier block."""
    gas_cap: int | None = None
    """The most gas that a transaction may have; None: what a block may have."""

    @property
    def is_devnet(self) -> bool:
        """True for a chain of one's own, where gas costs nothing that anybody misses."""
        return self.chain_id == DEVNET

    @property
    def dollar(self) -> Address:
        """The first asset that is not ETH."""
        return next(asset for asset in self.assets if asset != ETH)

    @property
    def depth(self) -> int:
        """How far behind the latest block to read, so that what is read has its confirmations."""
        return self.confirmations - 1

    def amount(self, asset: Address, units: int) -> str:
        """An amount for people: "1.5 tUSD"; of an asset that is not known here, its base units."""
        known = self.assets.get(asset)
        return f"{from_units(units, known.decimals)} {known.symbol}" if known else f"{units} of {asset}"

    def identity(self, genesis: str) -> str:
        """What a ledger is for: the contracts on a chain that begins with the block of that hash."""
        return f"{self.chain_id}:{self.marketplace}:{genesis}"

    def asset(self, symbol: str) -> Address:
        """The address of the asset called `symbol`, in any case. Raises ConfigError if there is none."""
        for address, asset in self.assets.items():
            if asset.symbol.lower() == symbol.lower():
                return address
        known = ", ".join(asset.symbol for asset in self.assets.values())
        raise ConfigError(f"no asset {symbol!r} on {self.name}; it has {known}")


class Addresses(msgspec.Struct, frozen=True, rename="pascal"):
    """Where the contracts were deployed."""

    node_registry: Address
    job_marketplace: Address


class Network(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A chain, as `networks.json` has it."""

    chain_id: int
    name: str
    confirmations: int
    assets: dict[Address, Asset] = {}
    """Beside ETH."""
    treasury: Address | None = None
    """Who receives the fees there, for ever. None: that is not decided yet."""
    contracts: Addresses | None = None
    from_block: int = 0
    """The block in which the first of them was created."""
    gas_cap: int | None = None
    """The most gas that a transaction may have there (EIP-7825). None: what a block may have."""

    @property
    def is_devnet(self) -> bool:
        """True for a chain of one's own, with test dollars."""
        return self.chain_id == DEVNET

    def deployment(self) -> Deployment:
        """What was deployed there. Raises ConfigError if nothing was."""
        if self.is_devnet and self.treasury is not None:
            return self.planned(self.treasury)
        if self.contracts is None or self.treasury is None:
            treasury = " --treasury 0x…" if self.treasury is None else ""
            raise ConfigError(
                f"the contracts are not on {self.name} (chain {self.chain_id}) yet: "
                f"`tally contracts deploy --rpc-url URL{treasury}` puts them there"
            )
        return self._deployment(self.contracts, self.treasury)

    def planned(self, treasury: Address) -> Deployment:
        """Where this package's contracts are, once they are deployed with that treasury."""
        registry, marketplace = blueprints(treasury)
        return self._deployment(Addresses(registry.address, marketplace.address), treasury)

    def blueprints(self, treasury: Address) -> tuple[Blueprint, ...]:
        """What there is to be created, in order."""
        return blueprints(treasury) + ((devnet_dollar(),) if self.is_devnet else ())

    def _deployment(self, contracts: Addresses, treasury: Address) -> Deployment:
        dollar = {devnet_dollar().address: Asset("tUSD", 6)} if self.is_devnet else {}
        return Deployment(
            chain_id=self.chain_id,
            name=self.name,
            registry=contracts.node_registry,
            marketplace=contracts.job_marketplace,
            treasury=treasury,
            confirmations=self.confirmations,
            assets={ETH: Asset("ETH", 18), **self.assets, **dollar},
            from_block=self.from_block,
            gas_cap=self.gas_cap,
        )


def devnet_dollar() -> Blueprint:
    """A devnet's dollar."""
    return blueprint("TestDollar")


def networks() -> dict[int, Network]:
    """All that are known, by chain id. Raises ConfigError if `networks.json` makes no sense."""
    try:
        known = msgspec.json.decode(FILE.read_bytes(), type=list[Network])
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigError(f"{FILE} cannot be read: {error}") from error
    return {network.chain_id: network for network in known}


def network(chain_id: int) -> Network:
    """The network of that chain. Raises ConfigError for one that nothing is known of."""
    known = networks()
    if chain_id not in known:
        told = ", ".join(f"{each.chain_id} ({each.name})" for each in known.values())
        raise ConfigError(
            f"nothing is known of chain {chain_id}; known are {told}: set RPC_URL to an endpoint of one"
        )
    return known[chain_id]


def deployment(chain_id: int) -> Deployment:
    """The contracts on chain `chain_id`. Raises ConfigError for one that they are not on."""
    return network(chain_id).deployment()


def in_source() -> bool:
    """True if `networks.json` is the source's, not an installed package's."""
    return (FILE.parents[2] / "contracts" / "foundry.toml").is_file()


def save(changed: Network) -> None:
    """Puts what is now known of a network into `networks.json`. ConfigError if it cannot be written."""
    known = networks() | {changed.chain_id: changed}
    draft = FILE.with_suffix(".new")
    try:
        draft.write_bytes(msgspec.json.format(msgspec.json.encode(list(known.values())), indent=2) + b"\n")
        draft.replace(FILE)
    except OSError as error:
        raise ConfigError(f"{FILE} cannot be written: {error.strerror}") from error
