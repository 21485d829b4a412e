"""The contracts, in Python: what each call changes, pays, says and refuses, as their interfaces have it.

Money is `tallystick.pricing`'s, who signed is `tallystick.proof`'s. Nothing here reads a chain: what a test
compares with one was computed from the steps alone. Amounts are base units of the asset concerned, times
seconds of the chain's clock.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tallystick import pricing, proof
from tallystick.config import CLAIM_WINDOW_BOUNDS, EXPIRY_MAX
from tallystick.errors import ReceiptError
from tallystick.proof import Domain
from tallystick.types import Address, JobId, JobStatus, Prices, Standing, Terms, Totals
from tests.differential import authorization, codec
from tests.differential.authorization import Authorization
from tests.differential.parties import (
    ASSETS,
    CHAIN_ID,
    ETH,
    FIRST_PAYOUTS,
    FIRST_REFUSING,
    HOSTS,
    MARKETPLACE,
    NOBODY,
    OWNED,
    PARTIES,
    PAYERS,
    START,
    TREASURY,
    VAULT,
    told,
)

ONLY_HOST = "Only host can submit checkpoints"
ATTESTED_LENGTH = 8
RECEIPT_LENGTH = 121
COMPACT_LENGTH = 120
TOTAL_BITS = pricing.MAX_TOKENS.bit_length()
PRICE_BITS = pricing.MAX_PRICE.bit_length()
DEPOSIT_BITS = pricing.MAX_DEPOSIT.bit_length()
MAX_RATE = 2**32 - 1
MAX_METADATA = 4096

Name = tuple[Any, ...]
Books = dict[Name, int]
"""All that is known of everybody's money and of every job, by what it is and whose."""


class Refused(Exception):
    """A call that changes nothing: the contract's error, with its values by name."""

    def __init__(self, error: str, **values: Any) -> None:
        super().__init__(error, values)
        self.error = error
        self.values = values

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Refused) and self.args == other.args

    def __hash__(self) -> int:
        return hash(self.error)

    def __repr__(self) -> str:
        return f"{self.error}({', '.join(f'{name}={value!r}' for name, value in self.values.items())})"


class Event(NamedTuple):
    """What the marketplace says: an event's name and its words, indexed ones first."""

    name: str
    words: tuple[int, ...]

    def __repr__(self) -> str:
        return f"{self.name}({', '.join(codec.error_name(word) or told(word) for word in self.words)})"


class Row(NamedTuple):
    """One claim of a batch, as it reaches the contract."""

    job_id: int
    tokens: int
    complete: bool
    proof: bytes


@dataclass(slots=True)
class Job:
    """A job as it has been agreed on, and how far it has come."""

    id: JobId
    payer: Address
    terms: Terms
    deposit: int
    created_at: int
    asked_at: int = 0
    settled: Totals = field(default_factory=Totals)
    closed: bool = False

    @property
    def prices(self) -> Prices:
        return self.terms.prices

    @property
    def receipted(self) -> bool:
        return self.terms.max_tokens_per_second == 0

    @property
    def status(self) -> JobStatus:
        if self.closed:
            return JobStatus.CLOSED
        return JobStatus.COMPLETING if self.asked_at else JobStatus.OPEN

    @property
    def ends_at(self) -> int:
        """When tokens cease to count."""
        return min(self.asked_at or self.terms.expires_at, self.terms.expires_at)


class Model:
    """Everybody's money and all jobs, from START on. One method for each entry of the contracts.

    Each raises Refused before it has changed anything. `by` is who sends, `value` the wei that come along.
    """

    def __init__(self) -> None:
        self.now = START
        self.domain = Domain(CHAIN_ID, MARKETPLACE)
        self.jobs: dict[int, Job] = {}
        self.wallets = Counter({(party, asset): OWNED[party] for party in OWNED for asset in ASSETS})
        self.earnings: Counter[tuple[Address, Address]] = Counter()
        self.refunds: Counter[tuple[Address, Address]] = Counter()
        self.fees: Counter[Address] = Counter()
        self.registered = set(HOSTS)
        self.payouts = dict(FIRST_PAYOUTS)
        self.refusing = set(FIRST_REFUSING)
        self.used_nonces: set[tuple[Address, Address, bytes]] = set()
        self.said: list[Event] = []

    # What a test compares

    def books(self) -> Books:
        """What the chain has to hold by now."""
        books: Books = {("jobs",): len(self.jobs)}
        for asset in ASSETS:
            books["treasury", asset] = self.fees[asset]
            books["wallet", MARKETPLACE, asset] = self.wallets[MARKETPLACE, asset]
            for party in PARTIES:
                books["wallet", party, asset] = self.wallets[party, asset]
                books["refunds", party, asset] = self.refunds[party, asset]
                books["earnings", party, asset] = self.earnings[party, asset]
        for host in HOSTS:
            books["registered", host] = int(host in self.registered)
            books["payout", host] = codec.word(self.payout_of(host))
        for job in self.jobs.values():
            for member, word in zip(codec.job_members(), self._view(job), strict=True):
                books["job", job.id, member] = word
        return books

    def _view(self, job: Job) -> tuple[int, ...]:
        """A job as `getJob` has it."""
        owed = pricing.owed(job.settled, job.prices)
        return (
            *codec.words((job.payer, job.terms.host, job.terms.asset, job.terms.signer)),
            *(job.deposit, job.prices.per_million, job.prices.prompt_per_million),
            *(job.terms.max_tokens_per_second, job.terms.claim_window),
            *(job.created_at, job.terms.expires_at, job.asked_at, self.closes_at(job)),
            *(job.settled.tokens, job.settled.prompt_tokens, owed, pricing.fee(owed), job.status),
        )

    # Opening and funding

    def create_job(self, by: Address, terms: Terms, value: int) -> None:
        self._check_opening(terms, terms.deposit)
        self._pull(by, terms.asset, terms.deposit, value)
        self._open(by, terms, terms.deposit)

    def create_job_with_authorization(
        self, by: Address, terms: Terms, relay_fee: int, salt: bytes, auth: Authorization
    ) -> None:
        if relay_fee >= terms.deposit:
            raise Refused("RelayFeeTakesAll", relayFee=relay_fee, deposit=terms.deposit)
        self._check_opening(terms, terms.deposit - relay_fee)
        nonce = authorization.open_nonce(terms, relay_fee, salt)
        self._check_authorization(terms.asset, terms.deposit, nonce, auth)
        if relay_fee:
            self._check_taken(by, terms.asset)

        self._pull_authorized(terms.asset, terms.deposit, nonce, auth)
        job = self._open(auth.payer, terms, terms.deposit - relay_fee)
        if relay_fee:
            self._say("JobRelayed", job.id, by, relay_fee)
        self._move(MARKETPLACE, by, terms.asset, relay_fee)

    def top_up(self, by: Address, job_id: int, amount: int, value: int) -> None:
        job = self._check_top_up(by, job_id, amount)
        self._pull(by, job.terms.asset, amount, value)
        self._fund(job, amount)

    def top_up_with_authorization(self, job_id: int, amount: int, salt: bytes, auth: Authorization) -> None:
        job = self._check_top_up(auth.payer, job_id, amount)
        nonce = authorization.top_up_nonce(job_id, amount, salt)
        self._check_authorization(job.terms.asset, amount, nonce, auth)
        self._pull_authorized(job.terms.asset, amount, nonce, auth)
        self._fund(job, amount)

    def _check_opening(self, terms: Terms, deposit: int) -> None:
        self._check_terms(terms)
        if deposit == 0:
            raise Refused("ZeroAmount")
        _fit(deposit, DEPOSIT_BITS)
        _fit(terms.prices.per_million, PRICE_BITS)
        _fit(terms.prices.prompt_per_million, PRICE_BITS)
        _fit(terms.max_tokens_per_second, MAX_RATE.bit_length())

    def _check_terms(self, terms: Terms) -> None:
        if terms.host not in self.registered:
            raise Refused("HostNotRegistered", host=terms.host)
        if terms.signer in (NOBODY, terms.host):
            raise Refused("InvalidSigner", signer=terms.signer)
        least, most = CLAIM_WINDOW_BOUNDS
        if not least <= terms.claim_window <= most:
            raise Refused("ClaimWindowOutOfRange", claimWindow=terms.claim_window, least=least, most=most)
        latest = self.now + EXPIRY_MAX
        if not self.now < terms.expires_at <= latest:
            raise Refused("ExpiryOutOfRange", expiresAt=terms.expires_at, present=self.now, latest=latest)
        if terms.checkpoint_interval == 0:
            raise Refused("ZeroCheckpointInterval")

    def _open(self, payer: Address, terms: Terms, deposit: int) -> Job:
        job = Job(JobId(len(self.jobs) + 1), payer, terms, deposit, created_at=self.now)
        self.jobs[job.id] = job
        self._say(
            "JobCreated",
            *(job.id, payer, terms.host),
            *(terms.signer, terms.checkpoint_interval, int.from_bytes(terms.model_id, "big")),
        )
        return job

    def _check_top_up(self, payer: Address, job_id: int, amount: int) -> Job:
        job = self._not_closed(job_id)
        if payer != job.payer:
            raise Refused("NotThePayer", caller=payer, payer=job.payer)
        if job.asked_at:
            raise Refused("AlreadyCompleting", jobId=job_id, closesAt=self.closes_at(job))
        if self.is_expired(job):
            raise Refused("JobExpired", jobId=job_id, expiresAt=job.terms.expires_at)
        if amount == 0:
            raise Refused("ZeroAmount")
        _fit(amount, DEPOSIT_BITS)
        _fit(job.deposit + amount, DEPOSIT_BITS)
        return job

    def _fund(self, job: Job, amount: int) -> None:
        job.deposit += amount
        self._say("JobToppedUp", job.id, amount, job.deposit)

    def is_expired(self, job: Job) -> bool:
        return self.now >= job.terms.expires_at

    # Claiming

    def submit_checkpoint(self, by: Address, job_id: int, tokens: int, proof: bytes) -> None:
        job = self._existing(job_id)
        if job.terms.host != by:
            raise Refused("Reverted", reason=ONLY_HOST)
        self._not_closed(job_id)
        self._settle(by, job_id, tokens, proof)

    def submit_checkpoints(self, by: Address, rows: Iterable[Row]) -> None:
        closed = []
        for row in rows:
            try:
                job = self._settle(by, row.job_id, row.tokens, row.proof)
            except Refused as refusal:
                self._skip(row.job_id, refusal)
                continue
            if row.complete:
                job.closed = True
                closed.append(job)
        for job in closed:
            self._send_rest(job)

    def _settle(self, by: Address, job_id: int, tokens: int, proof: bytes) -> Job:
        if len(proof) < ATTESTED_LENGTH:
            raise Refused("ProofLength", length=len(proof), expected=ATTESTED_LENGTH)
        claimed = Totals(int.from_bytes(proof[:8], "big"), tokens)
        job = self._not_closed(job_id)
        self._check_totals(job, claimed)
        if claimed == job.settled:
            self._check_host(job, by)
            return job
        if job.receipted:
            self._check_receipt(job, claimed, proof)
        else:
            self._check_rate(job, claimed, proof)
        self._check_host(job, by)
        self._pay(job, claimed, proof)
        return job

    def _check_host(self, job: Job, by: Address) -> None:
        if job.terms.host != by:
            raise Refused("NotTheHost", caller=by, host=job.terms.host)

    def _check_totals(self, job: Job, claimed: Totals) -> None:
        if self.is_stale(job, claimed):
            raise Refused(
                "StaleCheckpoint",
                settledPromptTokens=job.settled.prompt_tokens,
                settledTokens=job.settled.tokens,
            )
        _fit(max(claimed.prompt_tokens, claimed.tokens), TOTAL_BITS)

    def is_stale(self, job: Job, claimed: Totals) -> bool:
        return claimed.against(job.settled) is Standing.STALE

    def _check_receipt(self, job: Job, claimed: Totals, proof: bytes) -> None:
        if len(proof) not in (COMPACT_LENGTH, RECEIPT_LENGTH):
            raise Refused("ProofLength", length=len(proof), expected=RECEIPT_LENGTH)
        signed = Totals(int.from_bytes(proof[8:16], "big"), int.from_bytes(proof[16:24], "big"))
        if claimed.prompt_tokens > signed.prompt_tokens:
            raise Refused("AboveReceipt", claimed=claimed.prompt_tokens, signed=signed.prompt_tokens)
        if claimed.tokens > signed.tokens:
            raise Refused("AboveReceipt", claimed=claimed.tokens, signed=signed.tokens)
        recovered = _who_signed(self.domain.receipt(job.id, signed, proof[24:56]), proof[56:])
        if recovered != job.terms.signer:
            raise Refused("WrongSigner", recovered=recovered, signer=job.terms.signer)

    def _check_rate(self, job: Job, claimed: Totals, proof: bytes) -> None:
        if len(proof) != ATTESTED_LENGTH:
            raise Refused("ProofLength", length=len(proof), expected=ATTESTED_LENGTH)
        total, most = self.attested(claimed), self.most(job)
        if total > most:
            raise Refused("AboveRate", total=total, most=most)

    def attested(self, claimed: Totals) -> int:
        """The tokens of a claim that a host-attested job's rate is for."""
        return claimed.prompt_tokens + claimed.tokens

    def most(self, job: Job) -> int:
        """The tokens that a host-attested job can have come to by now."""
        return job.terms.max_tokens_per_second * (min(self.now, job.ends_at) - job.created_at)

    def _pay(self, job: Job, claimed: Totals, proof: bytes) -> None:
        owed = pricing.owed(claimed, job.prices)
        if owed > job.deposit:
            raise Refused("AboveDeposit", owed=owed, deposit=job.deposit)
        payment = self.split(job, claimed)
        job.settled = claimed
        self.earnings[job.terms.host, job.terms.asset] += payment.host
        self.fees[job.terms.asset] += payment.fee
        transcript = proof[24:56] if job.receipted else bytes(32)
        self._say(
            "CheckpointSettled",
            *(job.id, claimed.tokens, claimed.prompt_tokens),
            *(payment.host, payment.fee, int.from_bytes(transcript, "big")),
        )

    def split(self, job: Job, claimed: Totals) -> pricing.Payment:
        return pricing.split(job.settled, claimed, job.prices)

    def _skip(self, job_id: int, refusal: Refused) -> None:
        first, second, *_ = (*refusal.values.values(), 0)
        self._say("CheckpointSkipped", job_id, codec.error_word(refusal.error), first, second)

    # Ending

    def complete_session(self, by: Address, job_id: int) -> None:
        job = self._not_closed(job_id)
        if by == job.terms.host:
            self._close(job)
        elif by in (job.payer, job.terms.signer):
            self._ask_to_complete(by, job)
        else:
            raise Refused("NotAParty", jobId=job_id, caller=by)

    def reclaim(self, job_id: int) -> None:
        job = self._not_closed(job_id)
        closes_at = self.closes_at(job)
        if self.now < closes_at:
            raise Refused("NotYetReclaimable", jobId=job_id, closesAt=closes_at)
        self._close(job)

    def _ask_to_complete(self, by: Address, job: Job) -> None:
        if job.asked_at:
            raise Refused("AlreadyCompleting", jobId=job.id, closesAt=self.closes_at(job))
        job.asked_at = self.now
        self._say("CompletionRequested", job.id, by, self.closes_at(job))

    def closes_at(self, job: Job) -> int:
        return job.ends_at + job.terms.claim_window

    def _close(self, job: Job) -> None:
        job.closed = True
        self._send_rest(job)

    def _send_rest(self, job: Job) -> None:
        owed = pricing.owed(job.settled, job.prices)
        rest, asset = self.rest(job), job.terms.asset
        self._say("SessionCompleted", job.id, owed, pricing.fee(owed), rest)
        if rest == 0:
            return
        if (job.payer, asset) in self.refusing:
            self.refunds[job.payer, asset] += rest
            self._say("RefundCredited", job.id, job.payer, asset, rest)
        else:
            self._move(MARKETPLACE, job.payer, asset, rest)

    def rest(self, job: Job) -> int:
        return pricing.refund(job.deposit, job.settled, job.prices)

    # Paying out

    def withdraw(self, by: Address, asset: Address, to: Address) -> None:
        payout = self.payout_of(by)
        refunds, earnings = self.refunds[by, asset], self.earnings[by, asset]
        if payout != by and refunds == 0 and earnings != 0:
            raise Refused("PayoutElsewhere", payout=payout)
        self._pay_out(by, asset, to, refunds, earnings if payout == by else 0)

    def withdraw_for(self, owner: Address, asset: Address) -> None:
        payout = self.payout_of(owner)
        refunds = self.refunds[owner, asset] if self.pays_refunds(owner, payout) else 0
        self._pay_out(owner, asset, payout, refunds, self.earnings[owner, asset])

    def pays_refunds(self, owner: Address, payout: Address) -> bool:
        return payout == owner

    def withdraw_treasury(self, by: Address, asset: Address, to: Address) -> None:
        if by != TREASURY:
            raise Refused("NotTheTreasury", caller=by, treasury=TREASURY)
        amount = self.fees[asset]
        _check_receiver(to)
        if amount == 0:
            raise Refused("NothingToWithdraw", owner=by, asset=asset)
        self._check_taken(to, asset)
        self.fees[asset] = 0
        self._say("TreasuryWithdrawn", asset, to, amount)
        self._move(MARKETPLACE, to, asset, amount)

    def _pay_out(self, owner: Address, asset: Address, to: Address, refunds: int, earnings: int) -> None:
        _check_receiver(to)
        if refunds == 0 and earnings == 0:
            raise Refused("NothingToWithdraw", owner=owner, asset=asset)
        self._check_taken(to, asset)
        self.refunds[owner, asset] -= refunds
        self.earnings[owner, asset] -= earnings
        self._say("Withdrawn", owner, asset, to, refunds, earnings)
        self._move(MARKETPLACE, to, asset, refunds + earnings)

    # The registry

    def register_node(self, by: Address, host: Address, metadata: str) -> None:
        if by != host:
            raise Refused("NotTheHost", caller=by, host=host)
        if host in self.registered:
            raise Refused("AlreadyRegistered", host=host)
        if not 0 < len(metadata) <= MAX_METADATA:
            raise Refused("MetadataLength", length=len(metadata), most=MAX_METADATA)
        self.registered.add(host)

    def unregister_node(self, by: Address) -> None:
        if by not in self.registered:
            raise Refused("NotRegistered", host=by)
        self.registered.remove(by)

    def set_payout(self, by: Address, host: Address, to: Address) -> None:
        payout = self.payout_of(host)
        if by != payout:
            raise Refused("NotThePayout", caller=by, payout=payout)
        if to == NOBODY:
            raise Refused("ZeroPayout")
        self.payouts[host] = to

    def payout_of(self, host: Address) -> Address:
        return self.payouts.get(host, host)

    # What moves

    def refuse(self, party: Address, asset: Address, refuses: bool) -> None:
        """From now on `party` cannot be sent `asset`, or can again."""
        (self.refusing.add if refuses else self.refusing.discard)((party, asset))

    def _pull(self, by: Address, asset: Address, amount: int, value: int) -> None:
        needed = amount if asset == ETH else 0
        if value != needed:
            raise Refused("WrongValue", expected=needed, sent=value)
        if asset != ETH:
            if by not in PAYERS:
                raise Refused("ERC20InsufficientAllowance", spender=MARKETPLACE, allowance=0, needed=amount)
            self._check_balance(by, asset, amount)
        self._move(by, MARKETPLACE, asset, amount)

    def _check_authorization(self, asset: Address, amount: int, nonce: bytes, auth: Authorization) -> None:
        if asset == ETH:
            raise Refused("AuthorizationInETH")
        digest = authorization.digest(asset, MARKETPLACE, amount, nonce, auth)
        if not _is_payers(auth, digest):
            raise Refused("ERC3009InvalidSignature")
        if not auth.valid_after < self.now < auth.valid_before:
            raise Refused(
                "ERC3009InvalidAuthorizationTime", validAfter=auth.valid_after, validBefore=auth.valid_before
            )
        if (asset, auth.payer, nonce) in self.used_nonces:
            raise Refused("ERC3009UsedAuthorization", authorizer=auth.payer, nonce=nonce)
        self._check_balance(auth.payer, asset, amount)

    def _pull_authorized(self, asset: Address, amount: int, nonce: bytes, auth: Authorization) -> None:
        self.used_nonces.add((asset, auth.payer, nonce))
        self._move(auth.payer, MARKETPLACE, asset, amount)

    def _check_balance(self, owner: Address, asset: Address, amount: int) -> None:
        balance = self.wallets[owner, asset]
        if balance < amount:
            raise Refused("ERC20InsufficientBalance", sender=owner, balance=balance, needed=amount)

    def _check_taken(self, to: Address, asset: Address) -> None:
        if (to, asset) not in self.refusing:
            return
        raise Refused("FailedCall") if asset == ETH else Refused("UnknownRevert", data="0x")

    def _move(self, source: Address, to: Address, asset: Address, amount: int) -> None:
        self.wallets[source, asset] -= amount
        self.wallets[to, asset] += amount

    # Jobs

    def _existing(self, job_id: int) -> Job:
        if job_id not in self.jobs:
            raise Refused("NoSuchJob", jobId=job_id)
        return self.jobs[job_id]

    def _not_closed(self, job_id: int) -> Job:
        job = self._existing(job_id)
        if job.closed:
            raise Refused("JobClosed", jobId=job_id)
        return job

    def _say(self, name: str, *values: int | Address) -> None:
        self.said.append(Event(name, tuple(codec.words(values))))


def _fit(value: int, bits: int) -> None:
    if value >> bits:
        raise Refused("DoesNotFit", value=value, bits=bits)


def _who_signed(digest: bytes, signature: bytes) -> Address:
    try:
        return proof.recover(digest, signature)
    except ReceiptError:
        return NOBODY


def _is_payers(auth: Authorization, digest: bytes) -> bool:
    # The token asks a payer that is a contract itself, and VAULT knows no answer.
    if auth.payer == VAULT or len(auth.signature) != 65:
        return False
    return _who_signed(digest, auth.signature) == auth.payer


def _check_receiver(to: Address) -> None:
    if to in (NOBODY, MARKETPLACE):
        raise Refused("InvalidReceiver", to=to)
