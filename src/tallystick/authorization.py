"""What a payer signs so that another can bring its money: EIP-3009, with a nonce that binds the terms.

    terms, relay fee, salt -> nonce -> ReceiveWithAuthorization -> digest, which the payer's wallet signs

The token checks the signature, the contract makes the nonce anew: who brings it can change nothing. Rules
only; the vectors are the contract's own `openNonce` and `topUpNonce`.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from eth_abi.abi import encode

from tallystick import proof
from tallystick.keccak import keccak
from tallystick.proof import Domain, TokenDomain
from tallystick.types import Address, Authorization, JobId, Terms

VALID = 900
"""Seconds of the chain's clock for which a payer's authorization is good."""
OPEN_TYPE = keccak(b"Tallystick open")
TOP_UP_TYPE = keccak(b"Tallystick top-up")
RECEIVE_TYPE = keccak(
    b"ReceiveWithAuthorization(address from,address to,uint256 value,uint256 validAfter,uint256 validBefore,"
    b"bytes32 nonce)"
)
_TERMS = "(address,address,uint256,uint256,uint256,address,uint256,uint256,uint256,uint256,bytes32)"


def terms_out(terms: Terms) -> tuple[Any, ...]:
    """Terms as the contract's ABI has them."""
    return (
        terms.host,
        terms.asset,
        terms.deposit,
        terms.prices.per_million,
        terms.prices.prompt_per_million,
        terms.signer,
        terms.max_tokens_per_second,
        terms.claim_window,
        terms.expires_at,
        terms.checkpoint_interval,
        terms.model_id,
    )


def new_salt() -> bytes:
    """32 bytes that make a nonce one of its own."""
    return secrets.token_bytes(32)


@dataclass(frozen=True, slots=True)
class Opening:
    """A job to be opened. `relay_fee` base units of the deposit go to who sends it, the rest into escrow."""

    terms: Terms
    relay_fee: int
    salt: bytes

    @property
    def asset(self) -> Address:
        return self.terms.asset

    @property
    def amount(self) -> int:
        return self.terms.deposit

    def nonce(self, domain: Domain) -> bytes:
        types = ["bytes32", "address", "uint256", _TERMS, "uint256", "bytes32"]
        place = (OPEN_TYPE, domain.contract, domain.chain_id)
        return keccak(encode(types, (*place, terms_out(self.terms), self.relay_fee, self.salt)))


@dataclass(frozen=True, slots=True)
class TopUp:
    """A job to be added to: `amount` base units of its asset, all into escrow."""

    job_id: JobId
    asset: Address
    amount: int
    salt: bytes

    def nonce(self, domain: Domain) -> bytes:
        types = ["bytes32", "address", "uint256", "uint256", "uint256", "bytes32"]
        place = (TOP_UP_TYPE, domain.contract, domain.chain_id)
        return keccak(encode(types, (*place, self.job_id, self.amount, self.salt)))


Purpose = Opening | TopUp
"""What money may be brought for: `amount` base units of `asset`, with the `nonce` that binds all of it."""
P = TypeVar("P", bound=Purpose)


@dataclass(frozen=True, slots=True)
class Consent(Generic[P]):
    """What a payer's wallet is to sign, whole: `purpose` may be done with its money, and nothing else."""

    purpose: P
    payer: Address
    valid_before: int
    domain: Domain
    """Of the marketplace, which receives."""
    token: TokenDomain
    valid_after: int = 0

    @property
    def nonce(self) -> bytes:
        """The authorization's, 32 bytes: the hash of the purpose."""
        return self.purpose.nonce(self.domain)

    @property
    def message(self) -> bytes:
        """The hash of the message, 32 bytes, as wallets show it."""
        types = ["bytes32", "address", "address", "uint256", "uint256", "uint256", "bytes32"]
        moves = (self.payer, self.domain.contract, self.purpose.amount)
        return keccak(encode(types, (RECEIVE_TYPE, *moves, self.valid_after, self.valid_before, self.nonce)))

    @property
    def digest(self) -> bytes:
        """The 32 bytes that are signed."""
        return keccak(b"\x19\x01" + self.token.separator + self.message)

    def sign(self, key: bytes) -> Authorization:
        """The payer's authorization. `key`: its private key, 32 bytes."""
        signature = proof.sign(self.digest, key)
        return Authorization(self.payer, self.valid_after, self.valid_before, signature)
