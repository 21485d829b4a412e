"""Signatures: the vectors, eth-account's word on any message, and all that is refused."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from eth_account import Account
from eth_account.messages import encode_typed_data
from eth_hash.backends import pycryptodome
from eth_utils.crypto import keccak as reference_keccak
from hypothesis import given, settings
from hypothesis import strategies as st

from tallystick import proof
from tallystick.errors import ReceiptError
from tallystick.keccak import keccak, running
from tallystick.proof import Bearer, Domain
from tallystick.types import ZERO_HASH, Address, JobId, Receipt, Totals

VECTORS = json.loads(Path(__file__).with_name("vectors.json").read_text())
DOMAIN = Domain(int(VECTORS["domain"]["chainId"]), Address(VECTORS["domain"]["verifyingContract"]))
ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
"""Of secp256k1 (SEC 2)."""
KEY = keccak(b"tallystick tests: a key")

COUNTS = st.integers(0, 2**48 - 1)
JOBS = st.integers(1, 2**53 - 1)
HASHES = st.binary(min_size=32, max_size=32)
KEYS = st.integers(1, ORDER - 1).map(lambda number: number.to_bytes(32, "big"))


def unhex(text: str) -> bytes:
    return bytes.fromhex(text.removeprefix("0x"))


def digest_of(kind: str, row: dict[str, str]) -> bytes:
    job_id = JobId(int(row["jobId"]))
    if kind == "receipts":
        return DOMAIN.receipt(
            job_id, Totals(int(row["promptTokens"]), int(row["tokens"])), unhex(row["transcript"])
        )
    return DOMAIN.access(job_id, int(row["expiresAt"])) if kind == "access" else DOMAIN.end(job_id)


SIGNED = [
    pytest.param(kind, row, id=f"{kind}: {row['name']}")
    for kind in ("receipts", "access", "end")
    for row in VECTORS[kind]
]


# Vectors


def test_the_domain_in_vectors() -> None:
    """The domain separator is eth-account's."""
    assert DOMAIN.separator == unhex(VECTORS["domain"]["separator"])
    assert VECTORS["domain"]["name"] == proof.DOMAIN_NAME
    assert VECTORS["domain"]["version"] == proof.DOMAIN_VERSION


def test_the_type_hashes_in_vectors() -> None:
    """The type hashes are those of the protocol's three messages."""
    ours = {"Receipt": proof.RECEIPT_TYPE, "Access": proof.ACCESS_TYPE, "End": proof.END_TYPE}
    assert {kind: unhex(hash_) for kind, hash_ in VECTORS["typehashes"].items()} == ours


@pytest.mark.parametrize(("kind", "row"), SIGNED)
def test_signatures_in_vectors(kind: str, row: dict[str, str]) -> None:
    """Digest, signature, its short form and its signer are eth-account's, for every signed message."""
    digest, key = digest_of(kind, row), unhex(row["privateKey"])
    signature = proof.sign(digest, key)
    assert digest == unhex(row["digest"])
    assert signature == unhex(row["signature"])
    assert proof.compact(signature) == unhex(row["compact"])
    assert proof.address(key) == row["signer"]
    assert proof.recover(digest, signature) == row["signer"]
    assert proof.recover(digest, proof.compact(signature)) == row["signer"]


@pytest.mark.parametrize("row", VECTORS["access"], ids=lambda row: row["name"])
def test_bearers_in_vectors(row: dict[str, str]) -> None:
    """A bearer is written as the outside witness writes it, and reads back."""
    job_id, expires_at = JobId(int(row["jobId"])), int(row["expiresAt"])
    assert proof.make_bearer(DOMAIN, job_id, expires_at, unhex(row["privateKey"])) == row["bearer"]
    assert proof.read_bearer(row["bearer"]) == Bearer(job_id, expires_at, unhex(row["compact"]))


@pytest.mark.parametrize("row", VECTORS["refused"], ids=lambda row: row["name"])
def test_refused_signatures_in_vectors(row: dict[str, str]) -> None:
    """What is no receipt of the signer's is refused, or somebody else's."""
    try:
        signer = proof.recover(digest_of("receipts", row), unhex(row["signature"]))
    except ReceiptError:
        signer = None
    assert signer != row["signer"]


# Against eth-account


@settings(deadline=None, max_examples=30)
@given(KEYS, JOBS, COUNTS, COUNTS, HASHES, st.integers(1, 2**64 - 1), HASHES)
def test_any_receipt_is_signed_as_eth_account_signs_it(
    key: bytes, job_id: int, prompt_tokens: int, tokens: int, transcript: bytes, chain_id: int, salt: bytes
) -> None:
    """The fast path and the reference agree on any domain, message and key."""
    contract = Account.from_key(keccak(salt)).address
    reference = encode_typed_data(
        {"name": "Tallystick", "version": "1", "chainId": chain_id, "verifyingContract": contract},
        {
            "Receipt": [
                {"name": "jobId", "type": "uint256"},
                {"name": "promptTokens", "type": "uint64"},
                {"name": "tokens", "type": "uint64"},
                {"name": "transcript", "type": "bytes32"},
            ]
        },
        {"jobId": job_id, "promptTokens": prompt_tokens, "tokens": tokens, "transcript": transcript},
    )
    signed = Account.sign_message(reference, key)
    digest = Domain(chain_id, Address(contract)).receipt(
        JobId(job_id), Totals(prompt_tokens, tokens), transcript
    )
    assert digest == bytes(signed.message_hash)
    assert proof.sign(digest, key) == bytes(signed.signature)
    assert proof.recover(digest, bytes(signed.signature)) == Account.from_key(key).address


@settings(deadline=None)
@given(st.binary(max_size=500), st.binary(max_size=500))
def test_every_keccak_is_the_same(one: bytes, other: bytes) -> None:
    """Whichever library is installed, and in however many parts, the hash is Keccak-256."""
    whole = running()
    whole.update(one)
    half = whole.copy()
    whole.update(other)
    assert keccak(one + other) == reference_keccak(one + other) == pycryptodome.keccak256(one + other)
    assert whole.digest() == keccak(one + other)
    assert half.digest() == keccak(one)


# What is refused


def test_a_high_s_is_refused() -> None:
    """The second signature that anyone can make of a first one is refused, as the contract refuses it."""
    digest = DOMAIN.end(JobId(121))
    signature = proof.sign(digest, KEY)
    s = ORDER - int.from_bytes(signature[32:64], "big")
    mirrored = signature[:32] + s.to_bytes(32, "big") + bytes([27 + 28 - signature[64]])
    with pytest.raises(ReceiptError, match="upper half"):
        proof.recover(digest, mirrored)


@pytest.mark.parametrize("v", [0, 1, 26, 29, 30, 255])
def test_another_v_is_refused(v: int) -> None:
    """v is 27 or 28, as the contract has it."""
    digest = DOMAIN.end(JobId(121))
    with pytest.raises(ReceiptError, match=f"v is {v}"):
        proof.recover(digest, proof.sign(digest, KEY)[:64] + bytes([v]))


@pytest.mark.parametrize("length", [0, 1, 63, 66, 130])
def test_another_length_is_refused(length: int) -> None:
    """A signature has 65 or 64 bytes."""
    with pytest.raises(ReceiptError, match=f"not {length}"):
        proof.recover(ZERO_HASH, bytes(length))


@pytest.mark.parametrize(
    "rs",
    [bytes(64), b"\xff" * 32 + b"\x01" * 32, b"\x01" * 32 + bytes(32)],
    ids=["zero", "r too large", "no s"],
)
def test_a_signature_without_a_signer_is_refused(rs: bytes) -> None:
    """Numbers that no key can have signed with are refused."""
    with pytest.raises(ReceiptError, match="no signer"):
        proof.recover(DOMAIN.end(JobId(121)), rs + b"\x1b")


@pytest.mark.parametrize("byte", range(0, 65, 8))
def test_a_changed_signature_is_not_the_signers(byte: int) -> None:
    """A signature with one bit changed is refused, or somebody else's."""
    digest = DOMAIN.end(JobId(121))
    changed = bytearray(proof.sign(digest, KEY))
    changed[byte] ^= 1
    try:
        signer = proof.recover(digest, bytes(changed))
    except ReceiptError:
        signer = None
    assert signer != proof.address(KEY)


def test_a_signature_is_for_one_message() -> None:
    """What was signed for one job, total, transcript, chain or contract is no signature for another."""
    totals = Totals(12, 100)
    signature = proof.sign(DOMAIN.receipt(JobId(121), totals, ZERO_HASH), KEY)
    contract = Address(proof.address(keccak(b"another")))
    others = [
        DOMAIN.receipt(JobId(122), totals, ZERO_HASH),
        DOMAIN.receipt(JobId(121), Totals(100, 12), ZERO_HASH),
        DOMAIN.receipt(JobId(121), totals, b"\x01" * 32),
        Domain(DOMAIN.chain_id + 1, DOMAIN.contract).receipt(JobId(121), totals, ZERO_HASH),
        Domain(DOMAIN.chain_id, contract).receipt(JobId(121), totals, ZERO_HASH),
        DOMAIN.access(JobId(121), 100),
        DOMAIN.end(JobId(121)),
    ]
    assert proof.address(KEY) not in [proof.recover(digest, signature) for digest in others]


BEARER = proof.make_bearer(DOMAIN, JobId(121), 1_760_003_600, KEY)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "tally",
        BEARER[:-1],
        BEARER + "A",
        BEARER + "\n",
        BEARER + "==",
        BEARER.replace("tally", "Tally"),
        BEARER.replace("-121-", "-0121-"),
        BEARER.replace("-121-", "-0-"),
        BEARER.replace("-121-", "--121-"),
        BEARER.replace("-121-", f"-{2**53}-"),
        BEARER.replace("-121-", "-\u0661-"),
        BEARER[:-1] + "_",
        "sk-proj-something-else",
    ],
)
def test_a_bearer_that_is_written_otherwise_is_refused(text: str) -> None:
    """A bearer has one spelling: leading zeros, padding and spare bits are refused."""
    with pytest.raises(ReceiptError, match="bearer"):
        proof.read_bearer(text)


def test_spare_bits_of_a_bearer_are_refused() -> None:
    """86 characters hold four bits more than 64 bytes; a bearer that sets them is another spelling."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    other = BEARER[:-1] + alphabet[alphabet.index(BEARER[-1]) + 1]
    assert base64.urlsafe_b64decode(other[-86:] + "==") == base64.urlsafe_b64decode(BEARER[-86:] + "==")
    with pytest.raises(ReceiptError, match="canonical"):
        proof.read_bearer(other)


def test_a_bearer_does_not_show_its_signature() -> None:
    """A bearer is as good as a password, so its repr leaves out what makes it one."""
    assert "signature" not in repr(proof.read_bearer(BEARER))


# Keys and proofs


def test_new_keys_differ_and_sign() -> None:
    """Every new key is another one, and has an address."""
    keys = {proof.new_key() for _ in range(8)}
    assert len(keys) == 8
    assert {len(key) for key in keys} == {32}
    assert len({proof.address(key) for key in keys}) == 8


@pytest.mark.parametrize("key", [bytes(32), ORDER.to_bytes(32, "big"), b"", KEY[:31], KEY + b"\0"])
def test_what_is_no_key_is_refused(key: bytes) -> None:
    """A private key lies within the order of the curve."""
    with pytest.raises(ValueError, match=r"."):
        proof.address(key)


@pytest.mark.parametrize("compact", [False, True])
def test_a_checkpoints_proof_is_packed_as_the_contract_reads_it(compact: bool) -> None:
    """claimed prompts, signed prompts, signed tokens, transcript, signature: 121 bytes, or 120."""
    row = VECTORS["receipts"][0]
    signature = unhex(row["compact" if compact else "signature"])
    totals = Totals(int(row["promptTokens"]), int(row["tokens"]))
    receipt = Receipt(JobId(int(row["jobId"])), totals, ZERO_HASH, unhex(row["transcript"]), signature)
    packed = proof.checkpoint_proof(7, receipt)
    assert len(packed) == (120 if compact else 121)
    assert packed[:24].hex() == "0000000000000007" + "000000000000000c" + "0000000000000064"
    assert packed[24:] == unhex(row["transcript"]) + signature


def test_an_attested_proof_is_the_claimed_prompts() -> None:
    """A host-attested claim carries eight bytes and no signature."""
    assert proof.attested_proof(12).hex() == "000000000000000c"


def test_a_model_is_known_by_the_hash_of_its_name() -> None:
    """modelId = keccak256(name), and never the zero that means any model."""
    assert proof.model_id("tally-demo") == reference_keccak(text="tally-demo")
    assert proof.model_id("") != ZERO_HASH
