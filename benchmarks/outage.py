"""An outage: an hour of chain time without an endpoint, many jobs pending; then all of them are settled.

    python -m benchmarks.outage [--jobs 10000]

Writes benchmarks/outage.json and its table in docs/faults.md.
What settles is a process of its own, whose memory is told: anvil, the endpoint that is down, and the check of
what became of every job are in this one.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from platform import python_version
from tempfile import TemporaryDirectory

import structlog
from eth_utils.conversions import to_hex
from web3.types import RPCEndpoint

from benchmarks.gas import shown
from tallystick import gas, proof
from tallystick.chain import Chain, TxResult, deployment_at
from tallystick.claims import samples
from tallystick.devnet import Devnet, account, find_anvil
from tallystick.endpoint import Asked, Endpoint
from tallystick.fees import GWEI
from tallystick.keccak import keccak
from tallystick.ledger import Ledger
from tallystick.networks import networks
from tallystick.sender import Sender
from tallystick.settlement import Settlement
from tallystick.testing.geth import Upstream
from tallystick.testing.rpc import FaultyRpc
from tallystick.types import ZERO_HASH, Job, JobId, Prices, Receipt, Terms, Totals

RECORD = Path(__file__).with_name("outage.json")
PAGE = Path(__file__).parents[1] / "docs" / "faults.md"

HOST, PAYER = account(1), account(2)
HOUR = 3_600
DEPOSIT = 500_000
PRICES = Prices(904_000, 200_000)
TOTALS = Totals(12, 100)
OPENED_IN_A_BLOCK = 90
"""Jobs: less than half of a block's gas, so that the base fee does not rise."""
PART = 500
"""Jobs that are written at a time."""
SOME_TRIES = 3.0
"""Seconds in which what settles has failed more than once."""
BASE = 8453
"""The chain whose gas cap is kept to."""


@dataclass(frozen=True)
class Outage:
    """What it took to settle what had become due."""

    jobs: int
    transactions: int
    least: int
    """Transactions that so many claims need at least: by the gas cap, and by what pools take."""
    gas: int
    seconds: float
    """From the endpoint's return to the last confirmation."""
    requests: int
    """To the endpoint, over HTTP, in that time."""
    memory_before: float
    """MB at most, until the endpoint came back."""
    memory_peak: float
    """MB at most, until the end."""


@dataclass(frozen=True)
class Run:
    """What the process that settles was seen to do."""

    seconds: float
    requests: int
    memory_before: float
    memory_peak: float


async def measure(jobs: int, gas_cap: int) -> Outage:
    """One outage, on a devnet of its own. AssertionError if a job is not settled, or not once."""
    async with Devnet() as devnet, Chain(devnet.rpc_url, devnet.deployment) as chain:
        with TemporaryDirectory(prefix="tallystick-outage-") as directory:
            await prepare(devnet, chain, Path(directory), jobs)
            async with Upstream(devnet.rpc_url) as node, FaultyRpc(node) as rpc:
                run = await outage(rpc, devnet, Path(directory), gas_cap)
        sent = await check(chain, jobs)
    used = sum(each.gas_used for each in sent)
    return Outage(jobs=jobs, transactions=len(sent), least=least(jobs, gas_cap), gas=used, **asdict(run))


def least(jobs: int, gas_cap: int) -> int:
    """Transactions that so many claims need."""
    rows = min((gas_cap - gas.BASE) // gas.ROW, gas.MOST_BYTES // _row().size)
    return -(-jobs // rows)


def _row() -> gas.Row:
    [claim] = samples(1)
    return gas.Row(PAYER.address, len(claim.proof), complete=False)


# What is there before


async def prepare(devnet: Devnet, chain: Chain, directory: Path, jobs: int) -> None:
    """Opens the jobs, and has each payer sign for one interval."""
    await chain.transact(chain.register(HOST.address, "{}"), HOST.private_key)
    await chain.transact(chain.approve(devnet.dollar, 2**255), PAYER.private_key)
    await devnet.mint(PAYER.address, jobs * DEPOSIT)
    await open_jobs(devnet, chain, jobs)
    domain = proof.Domain(chain.deployment.chain_id, chain.deployment.marketplace)
    opened = await found(chain)
    assert len(opened) == jobs
    async with Ledger(directory) as ledger:
        for at in range(0, jobs, PART):
            await asyncio.gather(*(write(ledger, domain, job) for job in opened[at : at + PART]))


def key(number: int) -> bytes:
    """The session key of a job."""
    return keccak(b"outage" + number.to_bytes(8, "big"))


async def open_jobs(devnet: Devnet, chain: Chain, jobs: int) -> None:
    """Many transactions a block."""
    expires_at = (await chain.block()).timestamp + 7 * 24 * HOUR
    nonce = await chain.nonce(PAYER.address)
    endpoint = Endpoint(devnet.rpc_url)
    await devnet.set_automine(False)
    for first in range(1, jobs + 1, OPENED_IN_A_BLOCK):
        numbers = range(first, min(first + OPENED_IN_A_BLOCK, jobs + 1))
        sent = [_opening(chain, devnet, number, expires_at, nonce + number - 1) for number in numbers]
        for answer in await endpoint.ask_all(sent):
            assert isinstance(answer, str), answer
        await devnet.mine()
    await devnet.set_automine(True)
    await endpoint.disconnect()


def _opening(chain: Chain, devnet: Devnet, number: int, expires_at: int, nonce: int) -> Asked:
    terms = Terms(
        host=HOST.address,
        asset=devnet.dollar,
        deposit=DEPOSIT,
        prices=PRICES,
        signer=proof.address(key(number)),
        max_tokens_per_second=0,
        claim_window=HOUR,
        expires_at=expires_at,
        checkpoint_interval=100,
        model_id=ZERO_HASH,
    )
    fees = {"tip": GWEI, "max_fee": 20 * GWEI}
    signed = chain.sign(chain.create_job(terms), PAYER.private_key, nonce=nonce, gas=300_000, **fees)
    return RPCEndpoint("eth_sendRawTransaction"), [to_hex(signed.raw)]


async def found(chain: Chain) -> list[Job]:
    """The jobs, as they are now."""
    opened = await chain.opened(await chain.jobs(host=HOST.address))
    return [job for job in opened.values() if job is not None]


async def write(ledger: Ledger, domain: proof.Domain, job: Job) -> None:
    """What the host of a job has of its payer."""
    signature = proof.sign(domain.receipt(job.id, TOTALS, ZERO_HASH), key(job.id))
    receipt = Receipt(JobId(job.id), TOTALS, ZERO_HASH, ZERO_HASH, signature)
    await ledger.adopt(job)
    await ledger.store_receipt(receipt, acknowledged=TOTALS, gross=TOTALS, due=True)


# The outage


async def outage(rpc: FaultyRpc, devnet: Devnet, directory: Path, gas_cap: int) -> Run:
    """An hour of the chain's time without an endpoint, and what comes after it."""
    async with settling(rpc.url, directory, gas_cap) as process:
        await told(process)
        async with rpc.down():
            assert process.stdin is not None
            process.stdin.write(b"\n")
            before = await told(process)  # it has tried, and failed
            await devnet.increase_time(HOUR)
            rpc.requests, since = 0, time.perf_counter()
        peak = await told(process)
        return Run(time.perf_counter() - since, rpc.requests, before, peak)


@asynccontextmanager
async def settling(url: str, directory: Path, gas_cap: int) -> AsyncIterator[Process]:
    """A process that runs `settle`."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.outage", "--settle", url, str(directory), str(gas_cap)),
        cwd=Path(__file__).parents[1],
        stdin=PIPE,
        stdout=PIPE,
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            process.terminate()
        await process.wait()


async def told(process: Process) -> float:
    """The next thing that it tells: its memory."""
    assert process.stdout is not None
    return float(await process.stdout.readline())


async def settle(url: str, directory: Path, gas_cap: int) -> None:
    """Settles what is due there. Tells its memory when it is ready, when it has failed, and at the end."""
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    deployment = replace(await deployment_at(url), gas_cap=gas_cap)
    async with Chain(url, deployment) as chain, Ledger(directory) as ledger:
        sender = Sender(chain, ledger, HOST.private_key)
        settlement = Settlement(ledger, chain, sender, poll=1.0)
        tell_memory()
        await asyncio.to_thread(sys.stdin.readline)
        running = [asyncio.create_task(sender.run()), asyncio.create_task(settlement.run())]
        await asyncio.sleep(SOME_TRIES)
        tell_memory()
        await settlement.idle()
        tell_memory()
        for task in running:
            task.cancel()
        await asyncio.wait(running)


def tell_memory() -> None:
    """The most that this process ever had, in MB."""
    # Not getrusage: there a process inherits the peak of the one that started it.
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    print(f"{peak / 1024:.1f}", flush=True)  # Linux tells kB


async def check(chain: Chain, jobs: int) -> list[TxResult]:
    """The transactions that settled. Every job's totals are what was signed, and nobody was paid twice."""
    now = await found(chain)
    assert [job.settled for job in now] == [TOTALS] * jobs
    earned = await chain.earnings(HOST.address, now[0].asset)
    assert earned == sum(job.owed - job.fee for job in now)
    settlements = await chain.events(0, await chain.block_number(), ["CheckpointSettled"])
    assert len(settlements) == jobs
    sent = [await chain.result(tx) for tx in {each.tx for each in settlements}]
    return [each for each in sent if each is not None]


# On paper


def record(found: Outage) -> None:
    """The record, and the table of it."""
    recorded = {
        "measured": {
            "date": datetime.now(UTC).date().isoformat(),
            "commit": _said("git", "rev-parse", "HEAD"),
            "python": python_version(),
            "anvil": _said(find_anvil(), "--version").splitlines()[0],
        },
        **asdict(found),
    }
    RECORD.write_text(json.dumps(recorded, indent=2) + "\n")
    PAGE.write_text(shown(PAGE.read_text(), "outage", drawn(found)))


def drawn(found: Outage) -> str:
    """A table of what it took."""
    rows = {
        "jobs": f"{found.jobs:,}",
        "transactions": f"{found.transactions}, of which so many are needed at least: {found.least}",
        "gas": f"{found.gas:,}",
        "seconds from the endpoint's return to the last confirmation": f"{found.seconds:.1f}",
        "requests to the endpoint in that time": f"{found.requests:,}",
        "memory at most, before the endpoint came back": f"{found.memory_before:.1f} MB",
        "memory at most, until the end": f"{found.memory_peak:.1f} MB",
    }
    return "\n".join(["| | |", "|---|--:|", *(f"| {what} | {value} |" for what, value in rows.items())])


def _said(*command: str) -> str:
    where = Path(__file__).parents[1]
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=where).stdout.strip()


def main() -> None:
    """Measures, and writes what it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--gas-cap", type=int, default=networks()[BASE].gas_cap)
    parser.add_argument("--settle", nargs=3, metavar=("URL", "DIRECTORY", "GAS"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.settle:
        url, directory, gas_cap = asked.settle
        asyncio.run(settle(url, Path(directory), int(gas_cap)))
    else:
        found = asyncio.run(measure(asked.jobs, asked.gas_cap))
        record(found)
        print(drawn(found))


if __name__ == "__main__":
    main()
