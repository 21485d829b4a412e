"""The vocabulary: ids, money and the facts that travel between modules. Knows nothing of the rest of the
package.

Units are in the names or beside them: tokens; base units of an asset (the smallest one: 1 USDC is 1 000 000);
value, in micro base units (base units times a million, exact before rounding); seconds of the chain's clock;
wei.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import NewType

import msgspec

JobId = NewType("JobId", int)
RequestId = NewType("RequestId", str)
"""32 lower-case hexadecimal digits: 128 random bits, made by the payer."""
Address = NewType("Address", str)
"""An EIP-55 checksummed address. `0x000…0` as an asset is ETH."""
BaseUnits = NewType("BaseUnits", int)
Value = NewType("Value", int)
"""Micro base units: tokens times price per million. Dividing by a million gives base units."""
Tokens = NewType("Tokens", int)

ETH = Address("0x" + "00" * 20)
ZERO_HASH = bytes(32)


class Standing(enum.Enum):
    """How claimed totals stand to known ones (law 1)."""

    AHEAD = "ahead"
    EQUAL = "equal"
    STALE = "stale"


class JobStatus(enum.IntEnum):
    """As the contract's `Status`, in its order."""

    NONE = 0
    OPEN = 1
    COMPLETING = 2
    CLOSED = 3


# Not a dataclass: several are made for every token, and these take a tenth of the time.
class Totals(msgspec.Struct, frozen=True, gc=False):
    """The two totals of a job, in tokens."""

    prompt_tokens: int = 0
    tokens: int = 0

    def __str__(self) -> str:
        return f"{self.prompt_tokens} prompt and {self.tokens} generated tokens"

    def __add__(self, other: Totals) -> Totals:
        return Totals(self.prompt_tokens + other.prompt_tokens, self.tokens + other.tokens)

    def __sub__(self, other: Totals) -> Totals:
        return Totals(self.prompt_tokens - other.prompt_tokens, self.tokens - other.tokens)

    def covers(self, other: Totals) -> bool:
        """True if neither total is below the other's."""
        return self.prompt_tokens >= other.prompt_tokens and self.tokens >= other.tokens

    def against(self, known: Totals) -> Standing:
        """Law 1: ahead, equal or stale against known totals."""
        if self == known:
            return Standing.EQUAL
        return Standing.AHEAD if self.covers(known) else Standing.STALE

    def lower(self, other: Totals) -> Totals:
        """The smaller of each total."""
        if other.covers(self):
            return self
        return Totals(min(self.prompt_tokens, other.prompt_tokens), min(self.tokens, other.tokens))

    def higher(self, other: Totals) -> Totals:
        """The larger of each total."""
        if self.covers(other):
            return self
        return Totals(max(self.prompt_tokens, other.prompt_tokens), max(self.tokens, other.tokens))


@dataclass(frozen=True, slots=True)
class Prices:
    """Base units per million tokens."""

    per_million: int
    prompt_per_million: int


@dataclass(frozen=True, slots=True)
class Terms:
    """What a job is opened with; fixed for its life. Field order is the contract's."""

    host: Address
    asset: Address
    deposit: int
    """Base units."""
    prices: Prices
    signer: Address
    max_tokens_per_second: int
    """0: a receipted job. Above 0: host-attested, at most this rate."""
    claim_window: int
    """Seconds."""
    expires_at: int
    checkpoint_interval: int
    """Tokens."""
    model_id: bytes
    """keccak256 of the model's name; 32 zero bytes: any model of the host."""


@dataclass(frozen=True, slots=True)
class Authorization:
    """A payer's EIP-3009 authorization, for whoever brings it to the chain. Times of the chain's clock."""

    payer: Address
    valid_after: int
    valid_before: int
    signature: bytes
    """65 bytes of a key, or whatever a payer that is a contract takes (ERC-1271)."""


@dataclass(frozen=True, slots=True)
class Job:
    """A job as the chain tells it, with `interval` and `model_id` from its `JobCreated` event."""

    id: JobId
    payer: Address
    host: Address
    asset: Address
    signer: Address
    deposit: int
    prices: Prices
    max_tokens_per_second: int
    claim_window: int
    created_at: int
    expires_at: int
    asked_at: int
    """When payer or signer asked to complete; 0: not yet."""
    closes_at: int
    settled: Totals
    owed: int
    """Base units paid out so far, host's and treasury's together."""
    fee: int
    """Base units of `owed` that are the treasury's."""
    status: JobStatus
    interval: int = 0
    model_id: bytes = ZERO_HASH

    @property
    def receipted(self) -> bool:
        """True for a receipted job, false for a host-attested one."""
        return self.max_tokens_per_second == 0

    def is_same_as(self, other: Job) -> bool:
        """False if a reorganised chain has given the id to another job: receipts are good for one of them.

        What was opened by the same transaction in another block is the same job, a little younger.
        """
        return (self.id, self.payer, self.signer, self.host, self.asset) == (
            *(other.id, other.payer, other.signer),
            *(other.host, other.asset),
        )


@dataclass(frozen=True, slots=True)
class Position:
    """How far one request has been received (protocol §4). Hashes are 32 bytes."""

    request: RequestId
    prompt_tokens: int
    tokens: int
    prompt_hash: bytes
    text_hash: bytes

    @property
    def totals(self) -> Totals:
        return Totals(self.prompt_tokens, self.tokens)


@dataclass(frozen=True, slots=True)
class Receipt:
    """Signed totals of a job: the most that the host may claim (protocol §5)."""

    job_id: JobId
    totals: Totals
    previous: bytes
    transcript: bytes
    signature: bytes
    """65 bytes `r ‖ s ‖ v`, or 64 (EIP-2098)."""
    positions: tuple[Position, ...] = ()


@dataclass(frozen=True, slots=True)
class Ack:
    """The host's word that a receipt is on its disk: its signature over the same digest, none from a host
    without a key.
    """

    job_id: JobId
    totals: Totals
    transcript: bytes
    signature: bytes | None


@dataclass(frozen=True, slots=True)
class Settlement:
    """One `CheckpointSettled` event: what one row paid, in base units."""

    job_id: JobId
    totals: Totals
    host_amount: int
    fee: int
    transcript: bytes
    tx: str
    block: int


@dataclass(frozen=True, slots=True)
class Completion:
    """One `SessionCompleted` event, in base units."""

    job_id: JobId
    owed: int
    fee: int
    refund: int
    tx: str
    block: int


@dataclass(frozen=True, slots=True)
class Model:
    """A model that a host sells."""

    name: str
    prices: dict[Address, Prices] = field(default_factory=dict)
    """By asset: a host may sell in more than one."""


@dataclass(frozen=True, slots=True)
class Check:
    """One condition. `seen`: what it was judged by; `mend`: what makes it hold, empty where it does."""

    name: str
    passed: bool
    seen: str
    mend: str = ""
