"""Who takes part, what is paid in, what everybody owns at first: what is known before there is a chain."""

from __future__ import annotations

from typing import Self

from tallystick import proof, types
from tallystick.keccak import keccak
from tallystick.networks import DEVNET, network
from tallystick.types import Address

START = 2_000_000_000
"""The moment at which a sequence begins, in seconds."""
RICH = 2**97
"""Base units: enough for two of the largest deposits."""
POOR = 50_000
"""Base units: less than most deposits."""


class Named(str):
    """An address that prints as its name, so that a failing sequence reads like a story."""

    name: str

    def __new__(cls, name: str, address: str) -> Self:
        made = super().__new__(cls, address)
        made.name = name
        return made

    def __repr__(self) -> str:
        return self.name


class NamedHash(bytes):
    """32 bytes that print as their name."""

    name: str

    def __new__(cls, name: str, value: bytes) -> Self:
        made = super().__new__(cls, value)
        made.name = name
        return made

    def __repr__(self) -> str:
        return self.name


def _named(name: str, address: str) -> Address:
    return Address(Named(name, address))


def _key(name: str) -> bytes:
    return keccak(name.encode())


def _party(name: str) -> Address:
    return _named(name, proof.address(_key(name)))


ALICE = _party("ALICE")
BOB = _party("BOB")
HOST = _party("HOST")
RIVAL = _party("RIVAL")
COLD = _party("COLD")
SIGNER = _party("SIGNER")
OTHER_SIGNER = _party("OTHER_SIGNER")
STRANGER = _party("STRANGER")
VAULT = _party("VAULT")
"""A payer that is a contract: it does what VAULT_OWNER tells it to, can refuse ETH, and has no key."""
VAULT_OWNER = _party("VAULT_OWNER")
TREASURY = _party("TREASURY")

PARTIES = (ALICE, BOB, HOST, RIVAL, COLD, SIGNER, OTHER_SIGNER, STRANGER, VAULT, TREASURY)
HOSTS = (HOST, RIVAL)
PAYERS = (ALICE, BOB, HOST, VAULT)
SIGNERS = (SIGNER, OTHER_SIGNER)
OWNED = {ALICE: RICH, VAULT: RICH, HOST: RICH, BOB: POOR}
"""Base units of each asset that a party starts with; the others start with nothing."""

KEYS = {party: _key(repr(party)) for party in PARTIES if party != VAULT}

CHAIN_ID = DEVNET
BLUEPRINTS = network(DEVNET).blueprints(TREASURY)
_DEPLOYMENT = network(DEVNET).planned(TREASURY)
MARKETPLACE = _named("MARKETPLACE", _DEPLOYMENT.marketplace)
REGISTRY = _named("REGISTRY", _DEPLOYMENT.registry)

ETH = _named("ETH", types.ETH)
DOLLAR = _named("DOLLAR", _DEPLOYMENT.asset("tUSD"))
LISTED = _named("LISTED", proof.address(_key("LISTED")))
"""A dollar with a list of those to whom it does not go, as USDC has one."""
TOKENS = (DOLLAR, LISTED)
ASSETS = (ETH, DOLLAR, LISTED)
READER = _party("READER")
"""A contract that is asked for the books."""
NOBODY = _named("NOBODY", types.ETH)
"""The zero address as a party."""

ANY_MODEL = NamedHash("ANY_MODEL", types.ZERO_HASH)

FIRST_PAYOUTS = {HOST: COLD, VAULT: COLD}
"""HOST has named a cold address, as a host should, and so has VAULT, which is none; RIVAL has not."""
FIRST_REFUSING = ((VAULT, ETH), (VAULT, LISTED), (HOST, LISTED))
"""Who cannot be sent what at first."""


_NAMES = {int(named, 16): repr(named) for named in (*PARTIES, *TOKENS, MARKETPLACE)}


def told(word: int) -> str:
    """A word as a reader knows it: the name of an address, or the number."""
    return _NAMES.get(word, str(word))
