"""What a client notices of the host's troubles: the chain down, the disk slow, while 64 streams are paced.

Also what the node manages when each token is a write of its own, as paced ones are.
"""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks import serving
from benchmarks.payers import Payer, open_jobs, registered
from tallystick.testing.geth import Upstream
from tallystick.testing.rpc import FaultyRpc

STREAMS = 64
PACE = 20.0
"""Tokens a second of each stream."""
SLOW = 20_000
"""Microseconds that each flush to the disk takes longer."""
FLUSHES = "fsync,fdatasync,msync"
MILLISECOND = 0.001


@asynccontextmanager
async def probes() -> AsyncIterator[list[Callable[[], Awaitable[dict[str, float]]]]]:
    """The same streams from the engine itself, through a node, and through one in trouble."""
    if shutil.which("strace") is None:
        raise RuntimeError("strace makes the disk slow: install it")
    async with AsyncExitStack() as stack:
        log = Path(stack.enter_context(TemporaryDirectory(prefix="tallystick-bench-")))
        engine = await stack.enter_async_context(serving.engine(log, pace=PACE))
        devnet, chain = await registered(stack)
        node = await stack.enter_async_context(serving.node(log, devnet, engine))
        payers = await open_jobs(devnet, chain, STREAMS)
        devnet, chain = await registered(stack)
        upstream = await stack.enter_async_context(Upstream(devnet.rpc_url))
        rpc = await stack.enter_async_context(FaultyRpc(upstream))
        troubled = await stack.enter_async_context(
            serving.node(log, devnet, engine, name="troubled", before=slowing(), RPC_URL=rpc.url)
        )
        unlucky = await open_jobs(devnet, chain, STREAMS)
        await _seen(troubled, unlucky)  # what the chain says of a job has to have been heard once

        async def probe() -> dict[str, float]:
            direct = await serving.load(engine, serving.plain(engine, STREAMS, 1))
            calm = await _seen(node, payers)
            async with rpc.down():
                stormy = await _seen(troubled, unlucky)
            return {
                "paced-bare.a_core": serving.a_core(direct),
                "paced-node.a_core": serving.a_core(calm),
                "calm.added_gap_p99": calm["gap_p99"] - direct["gap_p99"],
                "troubled.added_gap_p99": stormy["gap_p99"] - direct["gap_p99"],
                "one.millisecond": MILLISECOND,
            }

        yield [probe]


async def _seen(node: serving.Server, payers: list[Payer]) -> dict[str, float]:
    return await serving.load(node, [payer.client(1, node.address) for payer in payers])


def slowing() -> list[str]:
    """Has every flush of the process take longer; nothing else of it is looked at."""
    slow = f"inject={FLUSHES}:delay_exit={SLOW}"
    return ["strace", "-f", "--seccomp-bpf", "-qq", "-o", "/dev/null", "-e", f"trace={FLUSHES}", "-e", slow]
