"""What the chain itself says, over a connection of its own: raw web3.py on anvil's port, around every fault.

Shares no code with what it judges: neither the package's chain, nor its arithmetic.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from web3 import HTTPProvider, Web3
from web3.logs import DISCARD

from tallystick.artifacts import artifact

MILLION = 10**6
CLOSED = 3

Pair = tuple[int, int]
"""Prompt and generated tokens."""


@dataclass(frozen=True)
class Wired:
    """A transaction that was handed to an endpoint, as decoded from its bytes."""

    hash: str
    nonce: int
    max_fee: int
    tip: int
    to: str
    data: bytes
    value: int

    def fills(self, host: str) -> bool:
        """It does nothing but use its nonce."""
        return self.to.lower() == host.lower() and not self.data and not self.value


@dataclass(frozen=True)
class Mined:
    """A transaction of the host's in a block."""

    hash: str
    nonce: int
    price: int
    """Wei paid for a unit of gas."""
    gas: int
    succeeded: bool
    events: int
    """Settlements and completions in it."""


class Oracle:
    """Reads before and after, and compares."""

    def __init__(self, url: str, marketplace: str, asset: str, host: str, *, deepest: int = 0) -> None:
        """From now on; a reorganisation may bring what comes as many as `deepest` blocks before now."""
        self._w3 = Web3(HTTPProvider(url, exception_retry_configuration=None), middleware=[])
        self._marketplace: Any = self._w3.eth.contract(
            address=Web3.to_checksum_address(marketplace),
            abi=artifact("JobMarketplace").abi,
            decode_tuples=True,
        )
        self._asset, self._host = asset, host
        self._first = self._w3.eth.block_number + 1 - deepest
        self._nonce = self._w3.eth.get_transaction_count(Web3.to_checksum_address(host))
        self._before = self._credited()

    def head(self) -> int:
        return self._w3.eth.block_number

    def is_closed(self, job_id: int) -> bool:
        return bool(self._jobs([job_id])[job_id]["status"] == CLOSED)

    def behind(self, receipted: Mapping[int, Pair]) -> dict[int, Pair]:
        """The jobs whose settled totals are not the receipted ones, and what is settled of them."""
        settled = {
            job_id: (job["promptTokens"], job["tokens"]) for job_id, job in self._jobs(receipted).items()
        }
        return {job_id: found for job_id, found in settled.items() if found != receipted[job_id]}

    def mined(self, foreign: Collection[str]) -> list[Mined]:
        """The host's transactions since the beginning, but for those that are not the program's."""
        return [self._mined(tx) for tx in self._ours() if _hex(tx) not in foreign]

    def complaints(self, jobs: Iterable[int]) -> list[str]:
        """What was not paid exactly once, to the unit."""
        told, owed, fees = [], 0, 0
        for job_id, job in self._jobs(jobs).items():
            due = job["tokens"] * job["pricePerMillion"] + job["promptTokens"] * job["promptPricePerMillion"]
            if job["owed"] != due // MILLION:
                told.append(f"job {job_id} owes {job['owed']} for totals that are worth {due // MILLION}")
            owed += due // MILLION
            fees += due // MILLION // 10
            told += self._miscounted(job_id, due // MILLION)
        earnings, treasury = (
            after - before for after, before in zip(self._credited(), self._before, strict=True)
        )
        if earnings + treasury != owed:
            told.append(f"host and treasury were paid {earnings} + {treasury} for what is worth {owed}")
        if treasury != fees:
            told.append(f"the treasury was paid {treasury}, and a tenth of each job is {fees}")
        return told

    def gaps(self, wired: Iterable[Wired], foreign: Collection[str]) -> list[str]:
        """A nonce that was handed out and is in no block."""
        count = self._w3.eth.get_transaction_count(Web3.to_checksum_address(self._host))
        return [
            f"nonce {tx.nonce} was sent, and the chain is at {count}"
            for tx in wired
            if tx.nonce >= count and tx.hash not in foreign
        ]

    def _ours(self) -> list[Any]:
        """The transactions of the host's key in blocks."""
        numbers = range(self._first, self.head() + 1)
        blocks = self._at_once(self._w3.eth.get_block(number, full_transactions=True) for number in numbers)
        return [tx for block in blocks for tx in block["transactions"] if tx["from"] == self._host]

    def _miscounted(self, job_id: int, owed: int) -> list[str]:
        logs = self._marketplace.events.CheckpointSettled.get_logs(
            from_block=self._first, argument_filters={"jobId": job_id}
        )
        paid = sum(log["args"]["hostAmount"] + log["args"]["fee"] for log in logs)
        return [] if paid == owed else [f"job {job_id} was paid {paid} by its events, and owes {owed}"]

    def _mined(self, tx: Any) -> Mined:
        receipt = self._w3.eth.get_transaction_receipt(tx["hash"])
        events = self._marketplace.events
        told = [
            log
            for event in (events.CheckpointSettled(), events.SessionCompleted())
            for log in event.process_receipt(receipt, errors=DISCARD)
        ]
        return Mined(
            _hex(tx),
            tx["nonce"],
            receipt["effectiveGasPrice"],
            receipt["gasUsed"],
            receipt["status"] == 1,
            len(told),
        )

    def _jobs(self, job_ids: Iterable[int]) -> dict[int, Mapping[str, Any]]:
        asked = list(job_ids)
        found = self._at_once(self._marketplace.functions.getJob(job_id) for job_id in asked)
        return {job_id: job._asdict() for job_id, job in zip(asked, found, strict=True)}

    def _at_once(self, calls: Iterable[Any]) -> list[Any]:
        """Many answers in one request. The calls are made in here: outside, web3 would ask each at once."""
        with self._w3.batch_requests() as batch:
            asked = list(calls)
            for call in asked:
                batch.add(call)
            return batch.execute() if asked else []

    def _credited(self) -> Pair:
        host = Web3.to_checksum_address(self._host)
        balance = self._marketplace.functions.balanceOf(host, self._asset).call()
        return balance.earnings, self._marketplace.functions.treasuryBalance(self._asset).call()


def _hex(tx: Any) -> str:
    return f"0x{tx['hash'].hex()}"


def misused(wired: Iterable[Wired], host: str, ceiling: int) -> list[str]:
    """Nonces with more than one transaction, and fees above the ceiling, among all that was ever sent."""
    told, by_nonce = [], dict[int, set[tuple[str, bytes, int]]]()
    for tx in wired:
        if max(tx.max_fee, tx.tip) > ceiling or tx.tip > tx.max_fee:
            told.append(f"{tx.hash} offers {tx.max_fee} and a tip of {tx.tip}; the ceiling is {ceiling}")
        if not tx.fills(host):
            by_nonce.setdefault(tx.nonce, set()).add((tx.to, tx.data, tx.value))
    told += [
        f"nonce {nonce} was used for {len(each)} things" for nonce, each in by_nonce.items() if len(each) > 1
    ]
    return told


def wasted(mined: Iterable[Mined]) -> Counter[str]:
    """Transactions that cost gas and settled nothing, by whether they failed."""
    return Counter("reverted" if not tx.succeeded else "empty" for tx in mined if not tx.events)
