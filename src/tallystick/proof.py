"""EIP-712 signatures: what is signed, who signed it, and what the chain wants to see of it (protocol §3).

Digests are put together from a precomputed domain and signatures go straight to libsecp256k1, since a host
checks one for every receipt; the tests compare both with eth-account. Knows nothing of money or of what the
chain holds.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass, field
from functools import lru_cache

import coincurve
from eth_utils.address import to_checksum_address

from tallystick.errors import ReceiptError
from tallystick.keccak import keccak
from tallystick.types import Address, JobId, Receipt, Totals

DOMAIN_NAME = "Tallystick"
DOMAIN_VERSION = "1"
_DOMAIN_TYPE = keccak(b"EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)")
RECEIPT_TYPE = keccak(b"Receipt(uint256 jobId,uint64 promptTokens,uint64 tokens,bytes32 transcript)")
ACCESS_TYPE = keccak(b"Access(uint256 jobId,uint64 expiresAt)")
END_TYPE = keccak(b"End(uint256 jobId)")

MAX_JOB_ID = 2**53 - 1
"""What a JSON reader keeps exactly."""
_HALF_ORDER = 0x7FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF5D576E7357A4501DDFE92F46681B20A0
"""Half the order of secp256k1: the contract refuses an `s` above it."""
_BEARER = re.compile(r"tally-([1-9][0-9]{0,15})-([1-9][0-9]{0,15})-([A-Za-z0-9_-]{86})", re.ASCII)


def _word(number: int) -> bytes:
    return number.to_bytes(32, "big")


def _separator(name: str, version: str, chain_id: int, contract: Address) -> bytes:
    names = keccak(name.encode()) + keccak(version.encode())
    return keccak(_DOMAIN_TYPE + names + _word(chain_id) + bytes(12) + bytes.fromhex(contract[2:]))


@dataclass(frozen=True, slots=True)
class TokenDomain:
    """The EIP-712 domain of a token, in which its owners authorize payments (EIP-3009)."""

    name: str
    version: str
    chain_id: int
    token: Address

    @property
    def separator(self) -> bytes:
        """32 bytes, with which every digest begins."""
        return _separator(self.name, self.version, self.chain_id, self.token)


class Domain:
    """The EIP-712 domain of one marketplace: the digests of all that is signed for it, 32 bytes each."""

    def __init__(self, chain_id: int, contract: Address) -> None:
        self.chain_id = chain_id
        self.contract = contract
        self.separator = _separator(DOMAIN_NAME, DOMAIN_VERSION, chain_id, contract)
        self._prefix = b"\x19\x01" + self.separator

    def __repr__(self) -> str:
        return f"Domain({self.chain_id}, {self.contract!r})"

    def typed(self, struct_hash: bytes) -> bytes:
        """The digest of any struct that is signed in this domain."""
        return keccak(self._prefix + struct_hash)

    def receipt(self, job_id: JobId, totals: Totals, transcript: bytes) -> bytes:
        """What a signer signs to acknowledge totals, and a host to acknowledge the receipt."""
        words = _word(job_id) + _word(totals.prompt_tokens) + _word(totals.tokens)
        return keccak(self._prefix + keccak(RECEIPT_TYPE + words + transcript))

    def access(self, job_id: JobId, expires_at: int) -> bytes:
        """What a signer signs to let requests in until `expires_at`."""
        return keccak(self._prefix + keccak(ACCESS_TYPE + _word(job_id) + _word(expires_at)))

    def end(self, job_id: JobId) -> bytes:
        """What a signer signs to end a session without a last receipt."""
        return keccak(self._prefix + keccak(END_TYPE + _word(job_id)))


# Building a key costs more than a signature, as it computes the public half.
@lru_cache(maxsize=16)
def _key(private_key: bytes) -> coincurve.PrivateKey:
    if len(private_key) != 32:  # coincurve fills a shorter one up
        raise ValueError(f"a private key has 32 bytes, not {len(private_key)}")
    return coincurve.PrivateKey(private_key)


# The checksum costs a third of a recovery, and a signer comes back with every receipt.
@lru_cache(maxsize=4096)
def _checksummed(raw: bytes) -> Address:
    return Address(to_checksum_address(raw))


def _address_of(public_key: coincurve.PublicKey) -> Address:
    return _checksummed(keccak(public_key.format(compressed=False)[1:])[-20:])


def new_key() -> bytes:
    """A fresh private key of 32 bytes, from the system's randomness."""
    return coincurve.PrivateKey().secret


def address(private_key: bytes) -> Address:
    """The address of a private key. ValueError if it is not 32 bytes within the curve's order."""
    return _address_of(_key(private_key).public_key)


def sign(digest: bytes, private_key: bytes) -> bytes:
    """65 bytes `r ‖ s ‖ v`, low s, v = 27 or 28, deterministic (RFC 6979)."""
    signature = _key(private_key).sign_recoverable(digest, hasher=None)
    return signature[:64] + bytes([27 + signature[64]])


def recover(digest: bytes, signature: bytes) -> Address:
    """Who signed a digest, from 65 or 64 (EIP-2098) bytes.

    ReceiptError for what the contract would not take: another length, a high s, another v, no key behind it.
    """
    rs, v = _expand(signature)
    if int.from_bytes(rs[32:], "big") > _HALF_ORDER:
        raise ReceiptError("the signature's s is in the upper half of the order")
    if v not in (27, 28):
        raise ReceiptError(f"the signature's v is {v}, not 27 or 28")
    try:
        public_key = coincurve.PublicKey.from_signature_and_message(rs + bytes([v - 27]), digest, hasher=None)
    except ValueError as error:
        raise ReceiptError("the signature has no signer") from error
    return _address_of(public_key)


def _expand(signature: bytes) -> tuple[bytes, int]:
    """`r ‖ s` and v of either form."""
    if len(signature) == 65:
        return signature[:64], signature[64]
    if len(signature) == 64:
        return signature[:32] + bytes([signature[32] & 0x7F]) + signature[33:], 27 + (signature[32] >> 7)
    raise ReceiptError(f"a signature has 65 or 64 bytes, not {len(signature)}")


def compact(signature: bytes) -> bytes:
    """The 64-byte EIP-2098 form of a signature of 65 bytes with a low s."""
    rs, v = _expand(signature)
    return rs[:32] + bytes([rs[32] | (v - 27) << 7]) + rs[33:]


@dataclass(frozen=True, slots=True)
class Bearer:
    """Access to a job, as it comes with a request. `signature`, 64 bytes, is as good as a password."""

    job_id: JobId
    expires_at: int
    signature: bytes = field(repr=False)


def make_bearer(domain: Domain, job_id: JobId, expires_at: int, private_key: bytes) -> str:
    """`tally-<job id>-<expires at>-<signature>`, signed by the job's session key."""
    return _bearer_text(job_id, expires_at, compact(sign(domain.access(job_id, expires_at), private_key)))


def _bearer_text(job_id: int, expires_at: int, signature: bytes) -> str:
    return f"tally-{job_id}-{expires_at}-{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"


def read_bearer(text: str) -> Bearer:
    """What a bearer says; who signed it is for `recover` to tell. ReceiptError if it is written otherwise."""
    match = _BEARER.fullmatch(text)
    if match is None:
        raise ReceiptError("the bearer is not of the form tally-<job id>-<expires at>-<signature>")
    job_id, expires_at, signature = int(match[1]), int(match[2]), _unpadded(match[3])
    if job_id > MAX_JOB_ID or _bearer_text(job_id, expires_at, signature) != text:
        raise ReceiptError("the bearer is not in its canonical form")
    return Bearer(JobId(job_id), expires_at, signature)


def _unpadded(text: str) -> bytes:
    try:
        return base64.urlsafe_b64decode(text + "==")
    except binascii.Error as error:
        raise ReceiptError("the bearer's signature is not base64url") from error


def checkpoint_proof(claimed_prompt_tokens: int, receipt: Receipt) -> bytes:
    """The `proof` of `submitCheckpoint` for a receipted job: 121 bytes, or 120 with a 64-byte signature."""
    return (
        claimed_prompt_tokens.to_bytes(8, "big")
        + receipt.totals.prompt_tokens.to_bytes(8, "big")
        + receipt.totals.tokens.to_bytes(8, "big")
        + receipt.transcript
        + receipt.signature
    )


def attested_proof(prompt_tokens: int) -> bytes:
    """The `proof` of `submitCheckpoint` for a host-attested job: 8 bytes."""
    return prompt_tokens.to_bytes(8, "big")


def model_id(name: str) -> bytes:
    """A model's name as the chain knows it, 32 bytes."""
    return keccak(name.encode())
