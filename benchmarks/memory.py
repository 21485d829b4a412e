#!/usr/bin/env python3
"""Measures what a node holds while 1 000 sessions are open, of which 256 stream, and whether it grows.

    python -m benchmarks.memory [--minutes 10] [--core 0]

Each session has a job of its own. Those that do not stream have had one reply, and wait on their WebSockets;
the others take one reply after the other over HTTP, and sign for every 100 tokens. The resident memory of the
node's processes is read every five seconds. Writes benchmarks/memory.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import aiohttp

from benchmarks import mock, serving
from benchmarks.payers import MESSAGES, Payer, open_jobs, registered
from benchmarks.run import when

RECORD = Path(__file__).parent / "memory.json"
SESSIONS = 1_000
STREAMS = 256
PACE = 5.0
"""Tokens a second of each stream."""
EVERY = 5.0
"""Seconds between two readings."""
MINUTE = 60.0
MEGABYTE = 1e6


async def measured(minutes: float, core: int) -> dict[str, Any]:
    """What benchmarks/memory.json holds."""
    async with AsyncExitStack() as stack:
        log = Path(stack.enter_context(TemporaryDirectory(prefix="tallystick-bench-")))
        engine = await stack.enter_async_context(serving.engine(log, pace=PACE))
        devnet, chain = await registered(stack)
        node = await stack.enter_async_context(serving.node(log, devnet, engine, core=core))
        payers = await open_jobs(devnet, chain, SESSIONS)
        started = node.memory() / MEGABYTE
        await stack.enter_async_context(waiting(node, payers[STREAMS:]))
        opened = node.memory() / MEGABYTE
        replies = max(1, int(minutes * MINUTE * PACE / mock.TOKENS))
        clients = [payer.client(replies, node.address) for payer in payers[:STREAMS]]
        streaming = asyncio.create_task(serving.load(node, clients))
        readings = [reading async for reading in memory(node, streaming)]
        seen = await streaming
        return {
            **when(),
            "sessions": SESSIONS,
            "streams": STREAMS,
            "tokens_a_second_each": PACE,
            "seconds": round(seen["seconds"], 1),
            "tokens": seen["tokens"],
            "receipts": seen["receipts"],
            "started_mb": round(started, 1),
            "opened_mb": round(opened, 1),
            "by_minute_mb": by_minute(readings),
        }


@asynccontextmanager
async def waiting(node: serving.Server, payers: list[Payer]) -> AsyncIterator[None]:
    """Sessions that have had one reply of one token, and wait."""
    async with AsyncExitStack() as stack:
        http = await stack.enter_async_context(
            aiohttp.ClientSession(f"http://{node.address}", connector=aiohttp.TCPConnector(limit=0))
        )
        for payer in payers:
            socket = await http.ws_connect("/v1/session", headers={"Authorization": f"Bearer {payer.bearer}"})
            stack.push_async_callback(socket.close)
            request = {"model": mock.MODEL, "messages": MESSAGES, "max_tokens": 1, "job_id": payer.job.id}
            await socket.send_json({"type": "inference", "request": request})
            while (frame := await socket.receive_json())["type"] != "done":
                if frame["type"] == "error":
                    raise RuntimeError(f"a session was refused: {frame}")
        yield


async def memory(node: serving.Server, until: asyncio.Task[Any]) -> AsyncIterator[float]:
    """What the node holds, in megabytes, every few seconds while a task runs."""
    while not until.done():
        await asyncio.wait([until], timeout=EVERY)
        if not until.done():
            yield node.memory() / MEGABYTE


def by_minute(readings: list[float]) -> list[float]:
    """The median of each minute's readings."""
    size = int(MINUTE / EVERY)
    minutes = [readings[at : at + size] for at in range(0, len(readings), size)]
    return [round(statistics.median(minute), 1) for minute in minutes]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--core", type=int, default=serving.MEASURED)
    asked = parser.parse_args()
    told = asyncio.run(measured(asked.minutes, asked.core))
    RECORD.write_text(json.dumps(told, indent=2) + "\n")
    print(json.dumps(told, indent=2))


if __name__ == "__main__":
    main()
