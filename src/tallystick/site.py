"""A chain as one sees it who puts contracts there, or holds what is there against what was built.

Contracts are created through CREATE2's proxy, which anybody may ask to: what counts is the code that is there
afterwards, and who sent it does not.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from eth_utils.conversions import to_hex
from web3 import AsyncWeb3
from web3.types import StateOverrideParams

from tallystick.artifacts import CREATE2_PROXY, Blueprint
from tallystick.chain import Chain, TxResult
from tallystick.contracts import Call
from tallystick.errors import ChainError, RpcError
from tallystick.networks import Asset
from tallystick.types import Address


class Constants(NamedTuple):
    """What a marketplace was given when it was created, as it says itself."""

    registry: Address
    treasury: Address
    separator: bytes
    """Of its EIP-712 domain, which holds the chain's id and its own address."""


class Site(Chain):
    """The contracts of one deployment, there or not yet."""

    async def create(self, blueprint: Blueprint, key: bytes) -> TxResult:
        """Creates a contract at the cost of `key`, and waits for its confirmations. As `transact`."""
        return await self.transact(Call(CREATE2_PROXY, blueprint.order), key)

    async def gas_to_create(self, blueprint: Blueprint, sender: Address) -> int:
        """What creating a contract takes."""
        return await self.estimate_gas(Call(CREATE2_PROXY, blueprint.order), sender)

    async def code(self, address: Address, block: int | None = None) -> bytes:
        """What is at an address, as of a block (None: the latest); nothing: no contract."""
        place = AsyncWeb3.to_checksum_address(address)
        return bytes(await self._w3.eth.get_code(place, "latest" if block is None else block))

    async def built_code(self, blueprint: Blueprint) -> bytes:
        """The code that the blueprint's constructor leaves at its address on this chain.

        The constructor runs in the contract's place, in a call that changes nothing, so that all is filled in
        that follows from arguments, address and chain.
        """
        place = AsyncWeb3.to_checksum_address(blueprint.address)
        instead: dict[Any, StateOverrideParams] = {place: {"code": to_hex(blueprint.init_code)}}
        return bytes(await self._w3.eth.call({"to": place}, "latest", instead))

    async def created_in(self, address: Address) -> int:
        """The block in which a contract that is there was created. ChainError where old state is not kept."""
        low, high = await self._around_creation(address)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if await self._was_there(address, middle) else (middle, high)
        return high

    async def _around_creation(self, address: Address) -> tuple[int, int]:
        """A block without the contract and a later one with it. Backwards, as endpoints forget old state."""
        high, step = await self.block_number(), 1
        while high > 0 and await self._was_there(address, max(0, high - step)):
            high, step = max(0, high - step), 2 * step
        return max(-1, high - step), high

    async def _was_there(self, address: Address, block: int) -> bool:
        try:
            return bool(await self.code(address, block))
        except RpcError as error:
            wanted = f"to find the block in which {address} was created, use an archive node's endpoint"
            raise ChainError(f"{error}: {wanted}") from error

    async def constants(self) -> Constants:
        """What the marketplace was created with."""
        functions = self._marketplace.functions
        return Constants(
            Address(await self._read(functions.registry())),
            Address(await self._read(functions.treasury())),
            bytes(await self._read(functions.DOMAIN_SEPARATOR())),
        )

    async def asset(self, address: Address) -> Asset:
        """What an ERC-20 says of itself."""
        functions = self._token(address).functions
        return Asset(await self._read(functions.symbol()), await self._read(functions.decimals()))
