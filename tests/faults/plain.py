"""What the storm does to a sender as one writes it in an afternoon with web3.py, for comparison.

For each job that is owed something: estimate, take the pending nonce, sign, `send_raw_transaction`, wait for
the receipt, and after two minutes without one, or an error, begin again. It is given what such a program has:
receipts and what was paid are on the disk.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eth_account import Account
from requests import RequestException
from web3 import HTTPProvider, Web3
from web3.exceptions import TransactionNotFound, Web3Exception
from web3.providers.rpc.utils import ExceptionRetryConfiguration

from tallystick import proof
from tallystick.artifacts import artifact
from tallystick.types import Job, JobId, Receipt, Totals
from tests.faults.driver import Fuse, Start, Told

WAIT = 120.0
"""Seconds that web3's `wait_for_transaction_receipt` waits by default."""
TIMEOUT = 1.0
"""Seconds that a call may take."""


@dataclass
class Sent:
    """A transaction whose receipt is awaited."""

    hash: Any
    totals: Totals
    at: float


class Plain:
    """The plain sender, turn by turn."""

    def __init__(self, start: Start) -> None:
        retries = ExceptionRetryConfiguration(errors=(RequestException,), retries=2, backoff_factor=0.01)
        url = start.rpc_url.partition(",")[0]
        provider = HTTPProvider(url, {"timeout": TIMEOUT}, exception_retry_configuration=retries)
        self._w3 = Web3(provider)
        self._account = Account.from_key(start.key)
        self._marketplace = self._w3.eth.contract(
            address=Web3.to_checksum_address(start.deployment.marketplace), abi=artifact("JobMarketplace").abi
        )
        self._fuse = Fuse()
        self._file = start.directory / "plain.pickle"
        self._owed: dict[JobId, Receipt] = {}
        self._paid: dict[JobId, Totals] = {}
        self._sent: dict[JobId, Sent] = {}

    async def open(self, _: str) -> str:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        if self._file.exists():
            self._owed, self._paid = pickle.loads(self._file.read_bytes())
        return "plain"

    async def adopt(self, _: Sequence[Job]) -> None:
        """It asks the chain for nothing but what it sends."""

    async def store(self, receipt: Receipt) -> None:
        self._owed[receipt.job_id] = receipt
        self._save()

    async def end(self, _: JobId) -> None:
        """It leaves completing to the payer."""

    async def die_at(self, write: int, after: bool) -> None:
        self._fuse.light(write, after=after)

    async def turn(self, now: float, _: float) -> Told:
        troubles = []
        for receipt in list(self._owed.values()):
            try:
                self._serve(receipt, now)
            except (Web3Exception, RequestException, ValueError, TypeError, KeyError) as error:
                troubles.append(f"{type(error).__name__}: {error}")
        left = sum(self._paid.get(receipt.job_id) != receipt.totals for receipt in self._owed.values())
        return Told(left, True, troubles)

    async def confirmed(self, _: Sequence[JobId]) -> Mapping[JobId, Totals]:
        return dict(self._paid)

    async def close(self) -> None:
        """Nothing is open."""

    def _serve(self, receipt: Receipt, now: float) -> None:
        sent = self._sent.get(receipt.job_id)
        if sent is not None:
            self._wait(receipt.job_id, sent, now)
        elif self._paid.get(receipt.job_id) != receipt.totals:
            self._send(receipt, now)

    def _wait(self, job_id: JobId, sent: Sent, now: float) -> None:
        try:
            receipt = self._w3.eth.get_transaction_receipt(sent.hash)
        except TransactionNotFound:
            if now - sent.at >= WAIT:
                del self._sent[job_id]
            return
        del self._sent[job_id]
        if receipt["status"] == 1:
            self._paid[job_id] = sent.totals
            self._save()

    def _send(self, receipt: Receipt, now: float) -> None:
        signed_for = proof.checkpoint_proof(receipt.totals.prompt_tokens, receipt)
        call = self._marketplace.functions.submitCheckpoint(receipt.job_id, receipt.totals.tokens, signed_for)
        nonce = self._w3.eth.get_transaction_count(self._account.address, "pending")
        transaction = call.build_transaction({"from": self._account.address, "nonce": nonce})
        signed = self._account.sign_transaction(transaction)
        sent = self._w3.eth.send_raw_transaction(signed.raw_transaction)
        self._sent[receipt.job_id] = Sent(sent, receipt.totals, now)

    def _save(self) -> None:
        with self._fuse.write():
            self._file.write_bytes(pickle.dumps((self._owed, self._paid)))
