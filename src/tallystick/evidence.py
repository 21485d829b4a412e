"""What a session leaves behind: a file that anybody can check, without a network, trusting nobody.

It holds the job's terms, all receipts with their acknowledgements, what was settled and how it ended. The
job's own key seals the whole, so a changed byte anywhere is found. What host and payer signed proves how many
tokens were acknowledged; that the transactions happened is for the chain to say. Knows no chain, no file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any

import msgspec
import orjson

from tallystick import pricing, proof, transcript, wire
from tallystick.errors import ReceiptError, Refusal
from tallystick.keccak import keccak
from tallystick.store import StoredJob, StoredReceipt
from tallystick.types import (
    ZERO_HASH,
    Ack,
    Address,
    Check,
    Completion,
    Job,
    JobId,
    Position,
    Prices,
    Receipt,
    RequestId,
    Settlement,
    Totals,
)

FORMAT = "tallystick evidence 1"
_CHANGED = "the file is not what its author wrote: ask for it again"
_FALSE = "what it says is not so: do not rely on it"


# Writing


def document(
    stored: StoredJob,
    job: Job,
    receipts: Iterable[StoredReceipt],
    settlements: Iterable[Settlement],
    completion: Completion | None,
) -> bytes:
    """The file of one job, sealed with its session key."""
    body = {
        "format": FORMAT,
        "chain_id": stored.chain_id,
        "contract": stored.contract,
        "host_url": stored.host_url,
        "model": stored.model,
        "job": _job_out(job),
        "receipts": [_receipt_out(each) for each in receipts],
        "settlements": [_settlement_out(each) for each in settlements],
        "completion": completion and _completion_out(completion),
    }
    return _form({**body, "seal": "0x" + proof.sign(_seal(body), stored.key).hex()})


def _form(body: Mapping[str, Any]) -> bytes:
    """The one way in which a document is written."""
    return orjson.dumps(body, option=orjson.OPT_SORT_KEYS | orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def _seal(body: Mapping[str, Any]) -> bytes:
    """The 32 bytes that the seal signs; no signature of the protocol begins like this."""
    return keccak(FORMAT.encode() + b"\n" + _form({n: part for n, part in body.items() if n != "seal"}))


def _job_out(job: Job) -> dict[str, Any]:
    return {
        "job_id": job.id,
        "payer": job.payer,
        "host": job.host,
        "asset": job.asset,
        "signer": job.signer,
        "deposit": str(job.deposit),
        "per_million": str(job.prices.per_million),
        "prompt_per_million": str(job.prices.prompt_per_million),
        "max_tokens_per_second": job.max_tokens_per_second,
        "interval": job.interval,
        "model_id": "0x" + job.model_id.hex(),
        "claim_window": job.claim_window,
        "created_at": job.created_at,
        "expires_at": job.expires_at,
    }


def _receipt_out(stored: StoredReceipt) -> dict[str, Any]:
    ack = None if stored.ack is None else wire.ack_out(stored.ack)
    return {"receipt": wire.receipt_out(stored.receipt), "ack": ack}


def _totals_out(totals: Totals) -> dict[str, int]:
    return {"prompt_tokens": totals.prompt_tokens, "tokens": totals.tokens}


def _settlement_out(settlement: Settlement) -> dict[str, Any]:
    return {
        **_totals_out(settlement.totals),
        "host": str(settlement.host_amount),
        "treasury": str(settlement.fee),
        "transcript": "0x" + settlement.transcript.hex(),
        "tx": settlement.tx,
        "block": settlement.block,
    }


def _completion_out(completion: Completion) -> dict[str, Any]:
    return {
        "owed": str(completion.owed),
        "treasury": str(completion.fee),
        "refund": str(completion.refund),
        "tx": completion.tx,
        "block": completion.block,
    }


# Checking


# A number of bytes is written in one way, so that whatever the seal covers has one form; and so has the seal.
_Hash = Annotated[str, msgspec.Meta(pattern=r"\A0x[0-9a-f]{64}\Z")]
_Signature = Annotated[str, msgspec.Meta(pattern=r"\A0x[0-9a-f]{130}\Z")]


class _JobForm(msgspec.Struct, forbid_unknown_fields=True):
    job_id: int
    payer: str
    host: str
    asset: str
    signer: str
    deposit: str
    per_million: str
    prompt_per_million: str
    max_tokens_per_second: int
    interval: int
    model_id: str
    claim_window: int
    created_at: int
    expires_at: int

    @property
    def prices(self) -> Prices:
        return Prices(int(self.per_million), int(self.prompt_per_million))


class _ReceiptForm(msgspec.Struct, forbid_unknown_fields=True):
    receipt: dict[str, Any]
    ack: dict[str, Any] | None


class _SettlementForm(msgspec.Struct, forbid_unknown_fields=True):
    prompt_tokens: int
    tokens: int
    host: str
    treasury: str
    transcript: _Hash
    tx: str
    block: int

    @property
    def totals(self) -> Totals:
        return Totals(self.prompt_tokens, self.tokens)


class _CompletionForm(msgspec.Struct, forbid_unknown_fields=True):
    owed: str
    treasury: str
    refund: str
    tx: str
    block: int


class _Form(msgspec.Struct, forbid_unknown_fields=True):
    format: str
    chain_id: int
    contract: str
    host_url: str
    model: str
    job: _JobForm
    receipts: list[_ReceiptForm]
    settlements: list[_SettlementForm]
    completion: _CompletionForm | None
    seal: _Signature


class Evidence:
    """A file that was read. ReceiptError for one that is none."""

    def __init__(self, raw: bytes) -> None:
        try:
            self._raw = raw
            self._body: dict[str, Any] = orjson.loads(raw)
            self.form = msgspec.convert(self._body, _Form)
            if self.form.format != FORMAT:
                raise ReceiptError(f"it is not {FORMAT!r}, but {self.form.format!r}")
            self.domain = proof.Domain(self.form.chain_id, Address(self.form.contract))
            self.receipts = [
                (wire.receipt_in(each.receipt), None if each.ack is None else wire.ack_in(each.ack))
                for each in self.form.receipts
            ]
        except (orjson.JSONDecodeError, msgspec.ValidationError, ValueError, Refusal) as error:
            raise ReceiptError(f"it cannot be read: {error}") from error

    @property
    def job_id(self) -> JobId:
        """Whose evidence it is."""
        return JobId(self.form.job.job_id)

    def checks(self) -> list[Check]:
        """What can be said of it without a network."""
        conditions = {
            "seal": self._sealed,
            "terms": self._terms,
            "signatures": self._signatures,
            "links": self._links,
            "host": self._acknowledged,
            "settlements": self._settled,
            "amounts": self._amounts,
        }
        return [_judged(name, condition) for name, condition in conditions.items()]

    @property
    def signed(self) -> Totals:
        """What the payer signed for in all."""
        return self.receipts[-1][0].totals if self.receipts else Totals()

    def proves(self) -> str:
        """What follows from it if every check passes, and what does not."""
        acks = [ack.totals for _, ack in self.receipts if ack is not None and ack.signature is not None]
        return (
            f"Job {self.job_id}: the payer signed for {self.signed}, the host for having a receipt of "
            f"{acks[-1] if acks else 'nothing'}. Not proved: which model answered; nor, except by the chain, "
            "that the transactions happened."
        )

    # Each tells what it saw, and raises ReceiptError for what does not hold.

    def _sealed(self) -> str:
        if _form(self._body) != self._raw:
            raise ReceiptError("it is not written as evidence is written")
        if proof.recover(_seal(self._body), _bytes(self.form.seal)) != self.form.job.signer:
            raise ReceiptError("the seal is not the job's signer's")
        return f"every byte is sealed by {self.form.job.signer}"

    def _terms(self) -> str:
        job = self.form.job
        named = "0x" + proof.model_id(self.form.model).hex()
        if job.model_id not in (named, "0x" + ZERO_HASH.hex()):
            raise ReceiptError(f"the job is not for the model {self.form.model!r}")
        return f"job {job.job_id} of {job.payer} with {job.host}, on chain {self.form.chain_id}"

    def _signatures(self) -> str:
        for receipt, _ in self.receipts:
            digest = self.domain.receipt(self.job_id, receipt.totals, receipt.transcript)
            signer = proof.recover(digest, receipt.signature)
            if (receipt.job_id, signer) != (self.job_id, self.form.job.signer):
                raise ReceiptError(f"the receipt of {receipt.totals} was not signed by the job's signer")
        return f"receipts signed by the job's signer: {len(self.receipts)}"

    def _links(self) -> str:
        """Each receipt follows one that came before, and is made of the positions that it names."""
        known = {ZERO_HASH: 0}
        for number, (receipt, _) in enumerate(self.receipts, 1):
            if receipt.previous not in known:
                raise ReceiptError(f"the receipt of {receipt.totals} follows none that is here")
            made = transcript.transcript(receipt.previous, self.job_id, receipt.totals, receipt.positions)
            if made != receipt.transcript:
                raise ReceiptError(f"the transcript of {receipt.totals} is not that of its positions")
            known[receipt.transcript] = number
        counted = Counted()
        for receipt in self._line(known):
            counted.take(receipt)
        return f"requests linked from the first token to the last: {len(counted.requests)}"

    def _line(self, numbers: Mapping[bytes, int]) -> list[Receipt]:
        """The receipts that lead to the last one; a host may not have taken one that was sent."""
        line: list[Receipt] = []
        at = len(self.receipts)
        while at:
            line.append(self.receipts[at - 1][0])
            at = numbers[line[-1].previous]
        return line[::-1]

    def _acknowledged(self) -> str:
        acks = [(receipt, ack) for receipt, ack in self.receipts if ack is not None]
        for receipt, ack in acks:
            self._check_ack(receipt, ack)
        signed = sum(1 for _, ack in acks if ack.signature is not None)
        return f"receipts acknowledged: {len(acks)}, with the host's signature: {signed}"

    def _check_ack(self, receipt: Receipt, ack: Ack) -> None:
        if (ack.job_id, ack.totals, ack.transcript) != (self.job_id, receipt.totals, receipt.transcript):
            raise ReceiptError(f"the acknowledgement beside {receipt.totals} is of another receipt")
        digest = self.domain.receipt(self.job_id, ack.totals, ack.transcript)
        if ack.signature is not None and proof.recover(digest, ack.signature) != self.form.job.host:
            raise ReceiptError(f"the acknowledgement of {receipt.totals} was not signed by the host")

    def _settled(self) -> str:
        """No more was settled than was signed for."""
        signed = {receipt.transcript: receipt.totals for receipt, _ in self.receipts}
        receipted = self.form.job.max_tokens_per_second == 0
        for each in self.form.settlements:
            totals = signed.get(_bytes(each.transcript))
            if receipted and (totals is None or not totals.covers(each.totals)):
                raise ReceiptError(f"{each.totals} were settled in {each.tx}, and not signed for")
        return f"settlements within what was signed: {len(self.form.settlements)}"

    def _amounts(self) -> str:
        """Each settlement pays what its totals are worth, and all of them and the refund are the deposit."""
        job, before = self.form.job, Totals()
        for each in self.form.settlements:
            paid = _split(before, each.totals, job.prices)
            if (paid.host, paid.fee) != (int(each.host), int(each.treasury)):
                raise ReceiptError(f"the settlement of {each.totals} pays other amounts than it should")
            before = each.totals
        owed, end = pricing.owed(before, job.prices), self.form.completion
        if end is not None and (int(end.owed), int(end.treasury)) != (owed, pricing.fee(owed)):
            raise ReceiptError("the end pays other amounts than were settled")
        if end is not None and int(end.refund) != int(job.deposit) - owed:
            raise ReceiptError("what was paid and the refund do not add up to the deposit")
        refund = "not closed yet" if end is None else f"{end.refund} came back"
        return f"of a deposit of {job.deposit} base units {owed} were paid, {refund}"


class Counted:
    """How far each request has been acknowledged: no receipt goes back behind another."""

    def __init__(self) -> None:
        self.requests: dict[RequestId, Position] = {}

    def take(self, receipt: Receipt) -> None:
        """ReceiptError for a position below an earlier one, of another prompt, or more than was signed."""
        for position in receipt.positions:
            before = self.requests.get(position.request, position)
            if not position.totals.covers(before.totals) or position.prompt_hash != before.prompt_hash:
                raise ReceiptError(f"request {position.request} goes back in the receipt of {receipt.totals}")
            self.requests[position.request] = position
        acknowledged = sum((each.totals for each in self.requests.values()), Totals())
        if not receipt.totals.covers(acknowledged):
            raise ReceiptError(f"the receipt of {receipt.totals} signs for less than it acknowledges")


def _split(before: Totals, after: Totals, prices: Prices) -> pricing.Payment:
    try:
        return pricing.split(before, after, prices)
    except ValueError as error:
        raise ReceiptError(str(error)) from error


def _judged(name: str, condition: Callable[[], str]) -> Check:
    try:
        return Check(name, True, condition())
    except (ReceiptError, ValueError) as error:
        return Check(name, False, str(error), _CHANGED if name == "seal" else _FALSE)


def _bytes(text: str) -> bytes:
    return bytes.fromhex(text[2:])


def against(
    evidence: Evidence, job: Job | None, settlements: Sequence[Settlement], completion: Completion | None
) -> list[Check]:
    """What the chain says to it."""
    if job is None:
        return [Check("chain", False, f"the chain has no job {evidence.job_id}", _FALSE)]
    told = evidence.form
    facts = {
        "terms on chain": (msgspec.to_builtins(told.job), _job_out(job)),
        "settlements on chain": (
            msgspec.to_builtins(told.settlements),
            [_settlement_out(each) for each in settlements],
        ),
        "end on chain": (msgspec.to_builtins(told.completion), completion and _completion_out(completion)),
    }
    return [_compared(name, here, there) for name, (here, there) in facts.items()]


def _compared(name: str, here: Any, there: Any) -> Check:
    return Check(name, True, "the same") if here == there else Check(name, False, f"it is {there}", _FALSE)
