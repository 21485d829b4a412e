"""`make bench`: every figure, five rounds, one after the other in each; writes results.json and RESULTS.md.

    python -m benchmarks.run [--rounds 5] [--only receipts settling streaming trouble sdk]

What is measured runs alone: on two cores, the server that is measured has one, and what asks it the other.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import subprocess
import sys
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks import figures, serving, trouble
from benchmarks.payers import Payer, open_jobs, registered

Probe = Callable[[], Awaitable[dict[str, float]]]
"""One measurement: numbers by name."""

STREAMS = 16
REPLIES = 10
"""Of each stream, one after the other."""
FEW_REPLIES = 1
"""Of a server that needs a second for what others do in ten milliseconds."""
ALONE = 10
"""Replies to a single client, by which the time to the first token is told."""
LIBRARIES = ("coincurve", "eth-account", "sqlalchemy", "uvloop", "uvicorn", "aiohttp", "orjson", "msgspec")


# What is measured in a process of its own, and tells numbers


def script(module: str, what: str, **named: str) -> Probe:
    """A module that measures; `named`: what its numbers are called here."""

    async def probe() -> dict[str, float]:
        process = await asyncio.create_subprocess_exec(
            *("taskset", "-c", str(serving.MEASURED), sys.executable, "-m", module, what),
            cwd=serving.ROOT,
            stdout=asyncio.subprocess.PIPE,
        )
        told, _ = await process.communicate()
        if process.returncode:
            raise RuntimeError(f"{module} {what} ended with status {process.returncode}")
        measured = json.loads(told)
        return {here: measured[there] for here, there in named.items()}

    return probe


@asynccontextmanager
async def receipts() -> AsyncIterator[list[Probe]]:
    """Receipts, and signatures alone."""
    yield [
        script("benchmarks.receipts", what, **{f"receipts.{what}": "a_core"})
        for what in ("recovery", "eth-account", "node", "acks")
    ]


@asynccontextmanager
async def settling() -> AsyncIterator[list[Probe]]:
    """What it takes to bring a claim to the chain."""
    yield [
        script("benchmarks.settling", "checkpoint", **{"settling.checkpoint": "seconds"}),
        script("benchmarks.settling", "transactions", **{"settling.transactions": "a_second"}),
    ]


@asynccontextmanager
async def sdk() -> AsyncIterator[list[Probe]]:
    """What a token costs its payer, in the SDK and in the official client."""
    yield [
        script("benchmarks.sdk", "session", **{"sdk.own": "microseconds"}),
        script("benchmarks.sdk", "openai", **{"openai.own": "microseconds"}),
    ]


# Streaming


@asynccontextmanager
async def streaming() -> AsyncIterator[list[Probe]]:
    """The node and its peers before one engine, all of them up all the time, asked one at a time."""
    async with AsyncExitStack() as stack:
        log = Path(stack.enter_context(TemporaryDirectory(prefix="tallystick-bench-")))
        engine = await stack.enter_async_context(serving.engine(log))
        bare = await stack.enter_async_context(serving.engine(log, core=serving.MEASURED, name="bare"))
        node, paid = await hosting(stack, log, engine)
        forgetful, unpaid = await hosting(
            stack, log, engine, name="unmetered", script=("-m", "benchmarks.unmetered")
        )
        peers = [
            (await stack.enter_async_context(serving.litellm(log, engine)), FEW_REPLIES),
            (await stack.enter_async_context(serving.vllm_router(log, engine)), REPLIES),
        ]
        yield [
            *(plain(server, replies) for server, replies in [(bare, REPLIES), *peers]),
            paying(node, paid),
            paying(forgetful, unpaid),
            first_tokens(engine, node, paid[0], [server for server, _ in peers]),
        ]


async def hosting(
    stack: AsyncExitStack, log: Path, engine: serving.Server, **how: Any
) -> tuple[serving.Server, list[Payer]]:
    """A node on a chain of its own, and its payers."""
    devnet, chain = await registered(stack)
    node = await stack.enter_async_context(serving.node(log, devnet, engine, **how))
    return node, await open_jobs(devnet, chain, STREAMS)


def plain(server: serving.Server, replies: int) -> Probe:
    """Streams through a server that wants no receipts."""

    async def probe() -> dict[str, float]:
        seen = await serving.load(server, serving.plain(server, STREAMS, replies))
        return _named(server.name, seen)

    return probe


def paying(server: serving.Server, payers: list[Payer], replies: int = REPLIES) -> Probe:
    """Streams through a node, a job each, signed for every 100 tokens."""

    async def probe() -> dict[str, float]:
        seen = await serving.load(server, [payer.client(replies, server.address) for payer in payers])
        return _named(server.name, seen)

    return probe


def first_tokens(
    engine: serving.Server, node: serving.Server, payer: Payer, peers: list[serving.Server]
) -> Probe:
    """The time to the first token of a single client, less the engine's own."""

    async def probe() -> dict[str, float]:
        own = await serving.load(engine, serving.plain(engine, 1, ALONE))
        through = {"node": await serving.load(node, [payer.client(ALONE, node.address)])}
        for peer in peers:
            through[peer.name] = await serving.load(peer, serving.plain(peer, 1, ALONE))
        first = "first_token_p50"
        return {f"{name}.added_first": seen[first] - own[first] for name, seen in through.items()}

    return probe


def _named(name: str, seen: dict[str, float]) -> dict[str, float]:
    told = {**seen, "a_core": serving.a_core(seen)}
    return {f"{name}.{what}": number for what, number in told.items()}


GROUPS = {
    "receipts": receipts,
    "settling": settling,
    "streaming": streaming,
    "trouble": trouble.probes,
    "sdk": sdk,
}


async def measure(rounds: int, groups: list[str]) -> None:
    """All measures, by round; what is known is written down after each group."""
    runs: dict[str, list[float]] = defaultdict(list)
    for group in groups:
        async with GROUPS[group]() as probes:
            for number in range(rounds):
                for probe in probes:
                    for name, value in (await probe()).items():
                        runs[name].append(value)
                print(f"{group}: round {number + 1} of {rounds}", file=sys.stderr)
        figures.write(figures.results(runs, when(), facts(rounds), figures.known()))


def when() -> dict[str, str]:
    """When a figure was measured, and of what; and how busy the machine was."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=serving.ROOT, capture_output=True, text=True, check=True
    )
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit.stdout.strip(),
        "load": ", ".join(f"{load:.1f}" for load in os.getloadavg()),
    }


def facts(rounds: int) -> dict[str, Any]:
    """Where and with what all of it was measured."""
    return {
        "machine": f"{_processor()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}",
        "rounds": rounds,
        "versions": {"Python": platform.python_version()}
        | {name: version(name) for name in LIBRARIES}
        | _peers(),
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _versions() -> dict[str, str]:
    own = {name: version(name) for name in LIBRARIES}
    return {"Python": platform.python_version(), **own, **_peers()}


def _peers() -> dict[str, str]:
    code = "from importlib.metadata import version; print(version('litellm'), version('vllm-router'))"
    python = serving.PEERS / "python"
    told = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    return dict(zip(("litellm", "vllm-router"), told, strict=True))


def main() -> None:
    """Measures, and writes what was measured; with `--only`, the other figures stay as they were."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=GROUPS, default=list(GROUPS))
    asked = parser.parse_args()
    asyncio.run(measure(asked.rounds, asked.only))


if __name__ == "__main__":
    main()
