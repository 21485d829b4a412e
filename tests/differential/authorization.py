"""What a payer signs so that another can bring its money: EIP-3009, with a nonce that binds the terms."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

from eth_abi.abi import encode

from tallystick.keccak import keccak
from tallystick.types import Address, Terms
from tests.differential import codec
from tests.differential.parties import CHAIN_ID, MARKETPLACE

_OPEN = keccak(b"Tallystick open")
_TOP_UP = keccak(b"Tallystick top-up")
_DOMAIN = keccak(b"EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)")
_RECEIVE = keccak(
    b"ReceiveWithAuthorization(address from,address to,uint256 value,"
    b"uint256 validAfter,uint256 validBefore,bytes32 nonce)"
)
_TERMS = "(address,address,uint256,uint256,uint256,address,uint256,uint256,uint256,uint256,bytes32)"


class Authorization(NamedTuple):
    """The contract's `Authorization`."""

    payer: Address
    valid_after: int
    valid_before: int
    signature: bytes


def open_nonce(terms: Terms, relay_fee: int, salt: bytes) -> bytes:
    """As `openNonce`."""
    types = ["bytes32", "address", "uint256", _TERMS, "uint256", "bytes32"]
    bound = (_OPEN, MARKETPLACE, CHAIN_ID, codec.terms(terms), relay_fee, salt)
    return keccak(encode(types, bound))


def top_up_nonce(job_id: int, amount: int, salt: bytes) -> bytes:
    """As `topUpNonce`."""
    types = ["bytes32", "address", "uint256", "uint256", "uint256", "bytes32"]
    return keccak(encode(types, (_TOP_UP, MARKETPLACE, CHAIN_ID, job_id, amount, salt)))


def digest(token: Address, to: Address, amount: int, nonce: bytes, auth: Authorization) -> bytes:
    """What the payer signs, in the domain of the token."""
    types = ["bytes32", "address", "address", "uint256", "uint256", "uint256", "bytes32"]
    values = (_RECEIVE, auth.payer, to, amount, auth.valid_after, auth.valid_before, nonce)
    return keccak(b"\x19\x01" + _separator(token) + keccak(encode(types, values)))


@cache
def _separator(token: Address) -> bytes:
    types = ["bytes32", "bytes32", "bytes32", "uint256", "address"]
    name, version = keccak(b"Test Dollar"), keccak(b"2")
    return keccak(encode(types, (_DOMAIN, name, version, CHAIN_ID, token)))
