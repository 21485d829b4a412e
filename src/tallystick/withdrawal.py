"""`tally withdraw`: a party's balance in the contract, paid out to it or to where it says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from tallystick import proof, wallet
from tallystick.chain import Chain, deployment_at
from tallystick.config import HostConfig, PayerConfig, TreasuryConfig, checked_address
from tallystick.contracts import Call, Event, TreasuryWithdrawn, Withdrawn
from tallystick.errors import ConfigError
from tallystick.types import Address

Party = Literal["host", "payer", "treasury"]


@dataclass(frozen=True, slots=True)
class Drawn:
    """What was paid out."""

    party: Party
    asset: Address
    units: int
    amount: str
    """The units for people."""
    receiver: Address
    tx: str
    gas: int

    def told(self) -> dict[str, Any]:
        """For machines."""
        return {
            "as": self.party,
            "asset": self.asset,
            "amount": self.units,
            "to": self.receiver,
            "tx": self.tx,
            "gas": self.gas,
        }


async def withdraw(party: Party, symbol: str | None = None, to: str | None = None) -> Drawn:
    """Pays out the whole balance of a party. ConfigError without its key; NothingToWithdraw."""
    rpc_url, key = _settings(party)
    async with Chain(rpc_url, await deployment_at(rpc_url)) as chain:
        asset = wallet.named_asset(chain, symbol) if symbol else wallet.dollar(chain)
        call, receiver = await _withdrawal(chain, party, proof.address(key), asset, to)
        result = await chain.transact(call, key)
        units = sum(map(_paid_out, result.events))
        amount = wallet.money(chain, asset, units)
    return Drawn(party, asset, units, amount, receiver, result.hash, result.gas_used)


def _settings(party: Party) -> tuple[str, bytes]:
    """The endpoint and the party's key."""
    if party == "payer":
        payer = PayerConfig.from_env()
        return payer.rpc_url, wallet.key_of(payer)
    if party == "host":
        host = HostConfig.from_env()
        rpc_url, secret = host.rpc_url, host.host_private_key
    else:
        treasury = TreasuryConfig.from_env()
        rpc_url, secret = treasury.rpc_url, treasury.treasury_private_key
    if secret is None:
        raise ConfigError(f"{party.upper()}_PRIVATE_KEY is not set: a balance is withdrawn by its owner")
    return rpc_url, secret.reveal()


async def _withdrawal(
    chain: Chain, party: Party, owner: Address, asset: Address, to: str | None
) -> tuple[Call, Address]:
    """The call, and who receives. Earnings of a host with another payout address go there alone."""
    payout = await chain.payout(owner) if party == "host" else owner
    if payout != owner:
        if to not in (None, payout):
            raise ConfigError(f"the host's earnings belong to its payout address {payout}: leave out --to")
        return chain.withdraw_for(owner, asset), payout
    receiver = owner if to is None else _receiver(to)
    draw = chain.withdraw_treasury if party == "treasury" else chain.withdraw
    return draw(asset, receiver), receiver


def _receiver(to: str) -> Address:
    try:
        return checked_address(to)
    except ValueError as error:
        raise ConfigError(f"--to: {error}") from None


def _paid_out(event: Event) -> int:
    """What an event says was paid out, in base units."""
    if isinstance(event, Withdrawn):
        return event.refunds + event.earnings
    return event.amount if isinstance(event, TreasuryWithdrawn) else 0
