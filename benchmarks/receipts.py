"""Receipts a second on one core: judged, verified and durable, against what signatures alone cost.

    python -m benchmarks.receipts node | acks | recovery | eth-account [--url postgresql://…]

`node` is what the node does with a receipt from where it is parsed to where it is acknowledged: order,
positions, transcript, signature, one transaction for many; `acks` signs each answer as well. `recovery` is
libsecp256k1's recovery through coincurve and nothing else; `eth-account` checks the same signatures by
`encode_typed_data` and `recover_message`. Prints one object; times are of the wall clock, so pin it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import coincurve
import uvloop
from eth_account import Account as EthAccount
from eth_account.messages import encode_typed_data

from tallystick import proof
from tallystick.accounts import Accounts
from tallystick.admission import Offer
from tallystick.chain import Chain
from tallystick.commands.host import favour_streams
from tallystick.commands.output import keep_logs
from tallystick.config import HostConfig, Secret
from tallystick.counter import Counter
from tallystick.ledger import Ledger
from tallystick.lookout import Lookout
from tallystick.networks import Deployment
from tallystick.stream import Order, Stream
from tallystick.testing.engine import ScriptedEngine
from tallystick.transcript import Delivery, transcript
from tallystick.types import (
    ETH,
    ZERO_HASH,
    Address,
    Job,
    JobId,
    JobStatus,
    Prices,
    Receipt,
    RequestId,
    Totals,
)

JOBS = 128
"""Whose receipts come at the same time, one of each, again and again."""
INTERVAL = 100
"""Tokens between two receipts, each of them a chunk of its own."""
ROUNDS = 24
WARM_UP = 4
"""Rounds that are not measured."""
SIGNATURES = 4_000
CHAIN_ID = 31337
MARKETPLACE = Address("0x5FbDB2315678afecb367f032d93F642f64180aa3")
HOST_KEY = bytes.fromhex("11" * 32)
REQUEST = RequestId("0f" * 16)
PROMPT = 0
DOMAIN = proof.Domain(CHAIN_ID, MARKETPLACE)


@dataclass(frozen=True)
class Rate:
    """How much was done in a second."""

    a_core: float
    """Of the processor's time, all threads together: nothing else that runs on the machine counts."""
    on_the_clock: float


class Watch:
    """Adds up what is measured in its `with` blocks."""

    def __init__(self) -> None:
        self._clock = self._processor = 0.0

    def __enter__(self) -> None:
        self._clock -= time.perf_counter()
        self._processor -= time.process_time()

    def __exit__(self, *_: object) -> None:
        self._clock += time.perf_counter()
        self._processor += time.process_time()

    def rate(self, done: int) -> Rate:
        return Rate(done / self._processor, done / self._clock)


@dataclass(frozen=True)
class Payer:
    """One job with what its payer will send."""

    job: Job
    delivered: list[tuple[int, str]]
    """By chunk: the running count, and the text."""
    receipts: list[Receipt]


def payer(number: int) -> Payer:
    """A job whose payer signs for each interval of one long reply."""
    key = number.to_bytes(32, "big")
    delivered = [(n + 1, f" word{n % 1000}") for n in range(ROUNDS * INTERVAL)]
    return Payer(_job(number, proof.address(key)), delivered, _signed(JobId(number), delivered, key))


def _job(number: int, signer: Address) -> Job:
    return Job(
        id=JobId(number),
        payer=signer,
        host=proof.address(HOST_KEY),
        asset=ETH,
        signer=signer,
        deposit=10**18,
        prices=Prices(900_000, 200_000),
        max_tokens_per_second=0,
        claim_window=3600,
        created_at=1,
        expires_at=2**40,
        asked_at=0,
        closes_at=0,
        settled=Totals(),
        owed=0,
        fee=0,
        status=JobStatus.OPEN,
        interval=INTERVAL,
        model_id=ZERO_HASH,
    )


def _signed(job_id: JobId, delivered: list[tuple[int, str]], key: bytes) -> list[Receipt]:
    delivery, previous, receipts = Delivery(REQUEST, ZERO_HASH), ZERO_HASH, []
    for tokens, text in delivered:
        delivery.add(PROMPT, tokens, text)
        if tokens % INTERVAL == 0:
            position = delivery.position()
            delivery.settle(position)
            link = transcript(previous, job_id, position.totals, (position,))
            signature = proof.sign(DOMAIN.receipt(job_id, position.totals, link), key)
            receipts.append(Receipt(job_id, position.totals, previous, link, signature, (position,)))
            previous = link
    return receipts


# The node


async def node(directory: Path, url: str | None, *, acks: bool) -> Rate:
    """Receipts a second through the accounts of a node."""
    payers = [payer(number + 1) for number in range(JOBS)]
    watch = Watch()
    with Counter(directory / "counter") as counter:
        async with Ledger(directory, url) as ledger:
            accounts = _accounts(directory, ledger, counter, acks=acks)
            serving = [await _serve(accounts, each) for each in payers]
            favour_streams()
            for interval in range(ROUNDS):
                for stream, each in zip(serving, payers, strict=True):
                    _deliver(stream, each.delivered[interval * INTERVAL :][:INTERVAL])
                with watch if interval >= WARM_UP else nullcontext():
                    await asyncio.gather(
                        *(
                            accounts.receive(stream.account, each.receipts[interval])
                            for stream, each in zip(serving, payers, strict=True)
                        )
                    )
    return watch.rate(JOBS * (ROUNDS - WARM_UP))


def _accounts(directory: Path, ledger: Ledger, counter: Counter, *, acks: bool) -> Accounts:
    config = HostConfig(host_private_key=Secret(HOST_KEY) if acks else None, data_dir=directory)
    offer = Offer(DOMAIN, proof.address(HOST_KEY), (), {}, interval_max=1000, claim_window_min=3600)
    nowhere = Deployment(CHAIN_ID, "nowhere", MARKETPLACE, MARKETPLACE, MARKETPLACE, 1, {}, 0)
    lookout = Lookout(Chain("http://127.0.0.1:1", nowhere), 0)
    return Accounts(config, offer, lookout, ledger, counter, lambda: None)


async def _serve(accounts: Accounts, payer: Payer) -> Stream:
    """A reply to the payer of a job, of which nothing is delivered yet."""
    account = await accounts.open(payer.job)
    order = Order(REQUEST, ZERO_HASH, ({},), "model", PROMPT, PROMPT, len(payer.delivered))
    stream = Stream(order, account, ScriptedEngine(), accounts, 10)
    account.begin(stream)
    return stream


def _deliver(stream: Stream, chunks: list[tuple[int, str]]) -> None:
    stream.account.count(0, len(chunks))
    for tokens, text in chunks:
        stream.delivery.add(PROMPT, tokens, text)


# Signatures alone


def recovery() -> Rate:
    """Recoveries a second."""
    receipts = payer(1).receipts
    signed = [(_digest(each), each.signature[:64] + bytes([each.signature[64] - 27])) for each in receipts]
    watch = Watch()
    with watch:
        for n in range(SIGNATURES):
            digest, signature = signed[n % len(signed)]
            coincurve.PublicKey.from_signature_and_message(signature, digest, hasher=None)
    return watch.rate(SIGNATURES)


def _digest(receipt: Receipt) -> bytes:
    return DOMAIN.receipt(receipt.job_id, receipt.totals, receipt.transcript)


TYPES = {
    "Receipt": [
        {"name": "jobId", "type": "uint256"},
        {"name": "promptTokens", "type": "uint64"},
        {"name": "tokens", "type": "uint64"},
        {"name": "transcript", "type": "bytes32"},
    ]
}


def eth_account() -> Rate:
    """Receipts a second whose signer eth-account finds."""
    signs_for = {
        "name": proof.DOMAIN_NAME,
        "version": proof.DOMAIN_VERSION,
        "chainId": CHAIN_ID,
        "verifyingContract": MARKETPLACE,
    }
    them, watch = payer(1), Watch()
    with watch:
        for n in range(SIGNATURES // 4):
            receipt = them.receipts[n % ROUNDS]
            message = encode_typed_data(
                signs_for,
                TYPES,
                {
                    "jobId": receipt.job_id,
                    "promptTokens": receipt.totals.prompt_tokens,
                    "tokens": receipt.totals.tokens,
                    "transcript": receipt.transcript,
                },
            )
            assert EthAccount.recover_message(message, signature=receipt.signature) == them.job.signer
    return watch.rate(SIGNATURES // 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["node", "acks", "recovery", "eth-account"])
    parser.add_argument("--url")
    asked = parser.parse_args()
    keep_logs(level="warning")
    if asked.what in ("recovery", "eth-account"):
        rate = recovery() if asked.what == "recovery" else eth_account()
    else:
        with TemporaryDirectory(prefix="tallystick-receipts-") as directory:
            rate = uvloop.run(node(Path(directory), asked.url, acks=asked.what == "acks"))
    print(json.dumps(asdict(rate)))


if __name__ == "__main__":
    main()
