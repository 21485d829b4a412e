"""Settlement on anvil: a checkpoint from the row of its receipt to its confirmation; transactions of one key.

    python -m benchmarks.settling checkpoint | transactions

anvil mines a block with each transaction, and one block confirms: what is measured is the host's own part.
Prints one object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.payers import Payer, open_jobs, registered
from tallystick.chain import Chain
from tallystick.commands.output import keep_logs
from tallystick.devnet import Devnet
from tallystick.ledger import Ledger
from tallystick.sender import Outcome, Report, Sender
from tallystick.settlement import Settlement
from tallystick.types import ZERO_HASH, Completion, Receipt, Totals
from tallystick.types import Settlement as Settled

CHECKPOINTS = 20
"""Of one job, one after the other."""
TRANSACTIONS = 100
INTERVAL = 1_000


@dataclass(frozen=True)
class Host:
    """A registered host with one job, and what settles for it."""

    devnet: Devnet
    chain: Chain
    ledger: Ledger
    sender: Sender
    payer: Payer


@asynccontextmanager
async def hosting() -> AsyncIterator[Host]:
    """A host on a devnet of its own."""
    async with AsyncExitStack() as stack:
        directory = stack.enter_context(TemporaryDirectory(prefix="tallystick-settling-"))
        devnet, chain = await registered(stack)
        ledger = await stack.enter_async_context(Ledger(Path(directory)))
        [payer] = await open_jobs(devnet, chain, 1, interval=INTERVAL)
        await ledger.adopt(payer.job)
        yield Host(devnet, chain, ledger, Sender(chain, ledger, devnet.accounts.host.private_key), payer)


async def checkpoint() -> dict[str, float]:
    """Seconds from a receipt's row in the ledger to the confirmation of what it lets the host claim."""
    async with hosting() as host:
        heard: asyncio.Queue[Settled | Completion] = asyncio.Queue()
        settlement = Settlement(host.ledger, host.chain, host.sender)
        settlement.listen(heard.put_nowait)
        running = [asyncio.create_task(settlement.run()), asyncio.create_task(host.sender.run())]
        await settlement.idle()
        took = []
        for number in range(1, CHECKPOINTS + 1):
            receipt = _receipt(host, Totals(0, number * INTERVAL))
            began = time.perf_counter()
            await host.ledger.store_receipt(
                receipt, acknowledged=receipt.totals, gross=receipt.totals, due=True
            )
            settlement.poke()
            await heard.get()
            took.append(time.perf_counter() - began)
        await _end(running)
        return {"seconds": statistics.median(took)}


def _receipt(host: Host, totals: Totals) -> Receipt:
    job = host.payer.job
    signature = host.payer.sign(totals)
    return Receipt(job.id, totals, ZERO_HASH, ZERO_HASH, signature)


async def transactions() -> dict[str, float]:
    """Transactions a second that one key gets confirmed, each of them journalled before it is sent."""
    async with hosting() as host:
        confirmed = asyncio.Semaphore(0)

        def hear(report: Report) -> None:
            if report.outcome is Outcome.CONFIRMED:
                confirmed.release()

        host.sender.listen(hear)
        running = [asyncio.create_task(host.sender.run())]
        call = host.chain.approve(host.devnet.dollar, 1)
        began = time.perf_counter()
        for _ in range(TRANSACTIONS):
            await host.sender.submit(call, "measured")
        for _ in range(TRANSACTIONS):
            await confirmed.acquire()
        seconds = time.perf_counter() - began
        await _end(running)
        return {"a_second": TRANSACTIONS / seconds}


async def _end(running: list[asyncio.Task[None]]) -> None:
    for task in running:
        task.cancel()
    await asyncio.wait(running)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["checkpoint", "transactions"])
    asked = parser.parse_args()
    keep_logs(level="error")
    measured = checkpoint() if asked.what == "checkpoint" else transactions()
    print(json.dumps(asyncio.run(measured)))


if __name__ == "__main__":
    main()
