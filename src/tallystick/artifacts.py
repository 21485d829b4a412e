"""The contracts as compiled: ABI and bytecode, the compiler's input, and the addresses that follow from it.

`abi/` is generated from `contracts/` by `scripts/abi.py`. Knows no chain: an address depends on the bytecode,
the constructor's arguments and `SALT` alone, so it is the same on each.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import NamedTuple

from eth_abi.abi import encode
from eth_typing import ABI, HexAddress, HexStr
from eth_utils.conversions import to_bytes, to_hex
from web3.utils.address import get_create2_address

from tallystick.keccak import keccak
from tallystick.types import Address

CREATE2_PROXY = Address("0x4e59b44847b379578588920cA78FbF26c0B4956C")
"""Arachnid's deterministic deployment proxy. Base has it; anvil has it from its first block on."""

SALT = keccak(b"tallystick/1")
"""Another salt would give other addresses, and leave the running jobs at the old ones."""


class Artifact(NamedTuple):
    """One contract as compiled."""

    abi: ABI
    bytecode: bytes
    """What creates it, without the constructor's arguments."""
    compiler: str
    """The version, like `0.8.30+commit.73712a01`."""
    source: str
    """Where it stands in the compiler's input, like `src/NodeRegistry.sol:NodeRegistry`."""


@cache
def artifact(name: str) -> Artifact:
    """`JobMarketplace`, `NodeRegistry` or `TestDollar`."""
    raw = json.loads(_abi_file(f"{name}.json"))
    return Artifact(raw["abi"], to_bytes(hexstr=raw["bytecode"]), raw["compiler"], raw["source"])


def standard_json(name: str) -> str:
    """The compiler's input that gives `JobMarketplace` or `NodeRegistry`, as block explorers take it."""
    return _abi_file(f"{name}.input.json")


def _abi_file(name: str) -> str:
    return files("tallystick").joinpath("abi", name).read_text()


@dataclass(frozen=True, slots=True)
class Blueprint:
    """One contract with its constructor's arguments."""

    name: str
    arguments: bytes
    """ABI-encoded."""
    address: Address
    """Where CREATE2's proxy puts it, on any chain."""
    init_code: bytes = field(repr=False)
    """What creates it."""

    @property
    def order(self) -> bytes:
        """What CREATE2's proxy has to be sent to create it."""
        return SALT + self.init_code


def blueprint(name: str, arguments: bytes = b"") -> Blueprint:
    """A contract of this package, to be created with these arguments."""
    init_code = artifact(name).bytecode + arguments
    proxy = HexAddress(HexStr(CREATE2_PROXY))
    address = Address(get_create2_address(proxy, to_hex(SALT), to_hex(init_code)))
    return Blueprint(name, arguments, address, init_code)


def blueprints(treasury: Address) -> tuple[Blueprint, Blueprint]:
    """NodeRegistry and the JobMarketplace that pays its fees to `treasury`, in the order of creation."""
    registry = blueprint("NodeRegistry")
    return registry, blueprint("JobMarketplace", encode(["address"] * 2, [registry.address, treasury]))
