"""What anybody can do: each step once as what is sent to the chain, once as what the model makes of it.

Steps are frozen and print as what makes them, so that a failing sequence can be pasted into a test as it is.
"""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from tallystick import proof
from tallystick.proof import Domain
from tallystick.types import ZERO_HASH, Address, JobId, Receipt, Terms, Totals
from tests.differential import authorization, codec
from tests.differential.authorization import Authorization
from tests.differential.model import Model, Row
from tests.differential.parties import CHAIN_ID, KEYS, MARKETPLACE, REGISTRY

DOMAIN = Domain(CHAIN_ID, MARKETPLACE)
TRANSCRIPT = (7).to_bytes(32, "big")


class Call(NamedTuple):
    """What a transaction is: its sender, its target, its bytes, and the wei that come along."""

    by: Address
    to: Address
    data: bytes
    value: int = 0


@dataclass(frozen=True, slots=True)
class Step(ABC):
    """One thing that happens."""

    @abstractmethod
    def expect(self, model: Model) -> None:
        """What has to come of it. Raises Refused."""

    def simpler(self) -> Iterator[Step]:
        """The step with a part of it left out, for each part that can be."""
        yield from ()


@dataclass(frozen=True, slots=True)
class Sent(Step):
    """A step that is a transaction."""

    by: Address

    @property
    @abstractmethod
    def call(self) -> Call: ...

    def _marketplace(self, function: str, *args: Any, value: int = 0) -> Call:
        return Call(self.by, MARKETPLACE, codec.calldata("JobMarketplace", function, *args), value)

    def _registry(self, function: str, *args: Any) -> Call:
        return Call(self.by, REGISTRY, codec.calldata("NodeRegistry", function, *args))


# Around the contracts


@dataclass(frozen=True, slots=True)
class Wait(Step):
    """Time passes."""

    seconds: int

    def expect(self, model: Model) -> None:
        model.now += self.seconds


@dataclass(frozen=True, slots=True)
class Refuse(Step):
    """`party` ceases to take `asset`, or takes it again."""

    party: Address
    asset: Address
    refuses: bool = True

    def expect(self, model: Model) -> None:
        model.refuse(self.party, self.asset, self.refuses)


# Opening and funding


@dataclass(frozen=True, slots=True)
class Authorized:
    """A payer's signature over an amount and a salt: those of the step, unless it was made for another."""

    payer: Address
    signed_by: Address
    amount: int
    salt: int
    valid_after: int
    valid_before: int
    cut: int = 0
    """Bytes that the signature lacks."""

    def sign(self, token: Address, nonce: bytes) -> Authorization:
        unsigned = Authorization(self.payer, self.valid_after, self.valid_before, b"")
        digest = authorization.digest(token, MARKETPLACE, self.amount, nonce, unsigned)
        signature = proof.sign(digest, KEYS[self.signed_by])
        return unsigned._replace(signature=signature[: len(signature) - self.cut])


def _salt(number: int) -> bytes:
    return number.to_bytes(32, "big")


@dataclass(frozen=True, slots=True)
class CreateJob(Sent):
    """`value` is the ETH that comes along."""

    terms: Terms
    value: int

    @property
    def call(self) -> Call:
        return self._marketplace("createJob", codec.terms(self.terms), value=self.value)

    def expect(self, model: Model) -> None:
        model.create_job(self.by, self.terms, self.value)


@dataclass(frozen=True, slots=True)
class CreateJobWithAuthorization(Sent):
    terms: Terms
    relay_fee: int
    salt: int
    auth: Authorized

    @property
    def call(self) -> Call:
        args = (codec.terms(self.terms), self.relay_fee, _salt(self.salt), self._signed)
        return self._marketplace("createJobWithAuthorization", *args)

    def expect(self, model: Model) -> None:
        salt = _salt(self.salt)
        model.create_job_with_authorization(self.by, self.terms, self.relay_fee, salt, self._signed)

    @property
    def _signed(self) -> Authorization:
        nonce = authorization.open_nonce(self.terms, self.relay_fee, _salt(self.auth.salt))
        return self.auth.sign(self.terms.asset, nonce)


@dataclass(frozen=True, slots=True)
class TopUp(Sent):
    """`value` is the ETH that comes along."""

    job_id: int
    amount: int
    value: int

    @property
    def call(self) -> Call:
        return self._marketplace("topUp", self.job_id, self.amount, value=self.value)

    def expect(self, model: Model) -> None:
        model.top_up(self.by, self.job_id, self.amount, self.value)


@dataclass(frozen=True, slots=True)
class TopUpWithAuthorization(Sent):
    """`token` is what the payer signs for: the job's asset, unless that is ETH."""

    job_id: int
    token: Address
    amount: int
    salt: int
    auth: Authorized

    @property
    def call(self) -> Call:
        return self._marketplace(
            "topUpWithAuthorization", self.job_id, self.amount, _salt(self.salt), self._signed
        )

    def expect(self, model: Model) -> None:
        model.top_up_with_authorization(self.job_id, self.amount, _salt(self.salt), self._signed)

    @property
    def _signed(self) -> Authorization:
        nonce = authorization.top_up_nonce(self.job_id, self.amount, _salt(self.auth.salt))
        return self.auth.sign(self.token, nonce)


# Claiming


class Flaw(enum.Enum):
    """What was done to a receipt after it was signed."""

    NONE = "none"
    COMPACT = "compact"
    """No flaw: the signature in its 64-byte form."""
    RAISED = "raised"
    """Its total of generated tokens is one higher than the signed one."""
    TRUNCATED = "truncated"
    """Two bytes of the signature are missing."""
    PADDED = "padded"
    HIGH_S = "high s"
    WRONG_V = "wrong v"

    def __repr__(self) -> str:
        return str(self)


_ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
"""How many points secp256k1 has: for each s, this minus s signs too."""


@dataclass(frozen=True, slots=True)
class Receipted:
    """The proof of a receipted job: a receipt, the ceiling of a claim."""

    signed: Totals
    by: Address
    job_id: int
    flaw: Flaw = Flaw.NONE

    def proof(self, prompt_tokens: int) -> bytes:
        signature = proof.sign(DOMAIN.receipt(JobId(self.job_id), self.signed, TRANSCRIPT), KEYS[self.by])
        totals = self.signed + Totals(0, 1) if self.flaw is Flaw.RAISED else self.signed
        receipt = Receipt(JobId(self.job_id), totals, ZERO_HASH, TRANSCRIPT, _flawed(signature, self.flaw))
        return proof.checkpoint_proof(prompt_tokens, receipt)


@dataclass(frozen=True, slots=True)
class Attested:
    """The proof of a host-attested job: nothing but the total, in as many bytes as it should be or not."""

    length: int = 8

    def proof(self, prompt_tokens: int) -> bytes:
        return proof.attested_proof(prompt_tokens).ljust(self.length, b"\0")[: self.length]


def _flawed(signature: bytes, flaw: Flaw) -> bytes:
    match flaw:
        case Flaw.COMPACT:
            return proof.compact(signature)
        case Flaw.TRUNCATED:
            return signature[:-2]
        case Flaw.PADDED:
            return signature + b"\0"
        case Flaw.HIGH_S:
            s = _ORDER - int.from_bytes(signature[32:64], "big")
            return signature[:32] + s.to_bytes(32, "big") + bytes([27 + 28 - signature[64]])
        case Flaw.WRONG_V:
            return signature[:64] + bytes([signature[64] - 27])
        case _:
            return signature


@dataclass(frozen=True, slots=True)
class Claim:
    """New totals of a job, and what supports them."""

    job_id: int
    totals: Totals
    support: Receipted | Attested
    complete: bool = False
    """In a batch only."""

    @property
    def row(self) -> Row:
        proof = self.support.proof(self.totals.prompt_tokens)
        return Row(self.job_id, self.totals.tokens, self.complete, proof)

    def completing(self) -> Claim:
        return replace(self, complete=True)


@dataclass(frozen=True, slots=True)
class SubmitCheckpoint(Sent):
    claim: Claim

    @property
    def call(self) -> Call:
        row = self.claim.row
        return self._marketplace("submitCheckpoint", row.job_id, row.tokens, row.proof)

    def expect(self, model: Model) -> None:
        row = self.claim.row
        model.submit_checkpoint(self.by, row.job_id, row.tokens, row.proof)


@dataclass(frozen=True, slots=True)
class SubmitCheckpoints(Sent):
    claims: tuple[Claim, ...]

    @property
    def call(self) -> Call:
        return self._marketplace("submitCheckpoints", [claim.row for claim in self.claims])

    def expect(self, model: Model) -> None:
        model.submit_checkpoints(self.by, [claim.row for claim in self.claims])

    def simpler(self) -> Iterator[Step]:
        for at in reversed(range(len(self.claims))):
            yield replace(self, claims=self.claims[:at] + self.claims[at + 1 :])


# Ending


@dataclass(frozen=True, slots=True)
class CompleteSession(Sent):
    job_id: int

    @property
    def call(self) -> Call:
        return self._marketplace("completeSession", self.job_id)

    def expect(self, model: Model) -> None:
        model.complete_session(self.by, self.job_id)


@dataclass(frozen=True, slots=True)
class Reclaim(Sent):
    job_id: int

    @property
    def call(self) -> Call:
        return self._marketplace("reclaim", self.job_id)

    def expect(self, model: Model) -> None:
        model.reclaim(self.job_id)


# Paying out


@dataclass(frozen=True, slots=True)
class Withdraw(Sent):
    asset: Address
    to: Address

    @property
    def call(self) -> Call:
        return self._marketplace("withdraw", self.asset, self.to)

    def expect(self, model: Model) -> None:
        model.withdraw(self.by, self.asset, self.to)


@dataclass(frozen=True, slots=True)
class WithdrawFor(Sent):
    owner: Address
    asset: Address

    @property
    def call(self) -> Call:
        return self._marketplace("withdrawFor", self.owner, self.asset)

    def expect(self, model: Model) -> None:
        model.withdraw_for(self.owner, self.asset)


@dataclass(frozen=True, slots=True)
class WithdrawTreasury(Sent):
    asset: Address
    to: Address

    @property
    def call(self) -> Call:
        return self._marketplace("withdrawTreasury", self.asset, self.to)

    def expect(self, model: Model) -> None:
        model.withdraw_treasury(self.by, self.asset, self.to)


# The registry


@dataclass(frozen=True, slots=True)
class RegisterNode(Sent):
    host: Address
    metadata: str = "https://host.example"

    @property
    def call(self) -> Call:
        return self._registry("registerNode", self.host, self.metadata)

    def expect(self, model: Model) -> None:
        model.register_node(self.by, self.host, self.metadata)


@dataclass(frozen=True, slots=True)
class UnregisterNode(Sent):
    @property
    def call(self) -> Call:
        return self._registry("unregisterNode")

    def expect(self, model: Model) -> None:
        model.unregister_node(self.by)


@dataclass(frozen=True, slots=True)
class SetPayout(Sent):
    host: Address
    to: Address

    @property
    def call(self) -> Call:
        return self._registry("setPayout", self.host, self.to)

    def expect(self, model: Model) -> None:
        model.set_payout(self.by, self.host, self.to)
