"""The honest host: a node and its engine, in a process of their own.

Its first line says where it listens, its last one, after it has settled all that it could, what the engine
made. A fault can be planted in it, for the campaign to find.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import structlog

from tallystick.account import Account
from tallystick.config import Amounts, HostConfig, Secret
from tallystick.meter import JobMeter
from tallystick.node import Node
from tallystick.pricing import credit
from tallystick.server import running
from tallystick.types import Value
from tests.adversaries.child import say, told
from tests.adversaries.engine import WordEngine

PLENTY = Amounts("1000000")


def lends_twice() -> None:
    """The node takes the credit to be twice what it is, and writes as much off."""
    update = JobMeter._update

    def generous(meter: JobMeter) -> None:
        meter.credit = Value(2 * credit(meter.interval, meter.risk))
        update(meter)

    JobMeter._update = generous  # type: ignore[assignment,method-assign]


def takes_any_signature() -> None:
    """The node does not look at who signed a receipt."""
    Account.check_signer = lambda *_: None  # type: ignore[method-assign]


FAULTS = {fault.__name__: fault for fault in (lends_twice, takes_any_signature)}


async def main() -> None:
    lines = told()
    start = await anext(lines)
    for fault in start["faults"]:
        FAULTS[fault]()
    engine = WordEngine()
    async with running(Node(_config(start), engine=engine)) as url:
        say({"url": url})
        async for _ in lines:
            raise ValueError("the host is told nothing but to end")
    say({"made": engine.record()})


def _config(start: dict[str, Any]) -> HostConfig:
    """What bounds a host's losses over many jobs is out of the way: the campaign is about each job's."""
    return HostConfig(
        host_private_key=Secret(bytes.fromhex(start["key"])),
        rpc_url=start["rpc_url"],
        data_dir=Path(start["directory"]),
        receipt_timeout=start["receipt_timeout"],
        grace=start["grace"],
        exposure_per_payer=PLENTY,
        exposure_max=PLENTY,
    )


if __name__ == "__main__":
    # Standard output is the campaign's.
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    asyncio.run(main())
