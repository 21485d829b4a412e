"""A payer process that is killed with -9 by its own hand once so many tokens have come: `killed_payer.py RPC
STORE JOB TOKENS`.
"""

import asyncio
import os
import signal
import sys
from pathlib import Path

from tallystick.chain import Chain
from tallystick.networks import DEVNET, deployment
from tallystick.session import Session
from tallystick.store import Store
from tallystick.types import JobId


async def main(rpc_url: str, directory: str, job_id: str, tokens: str) -> None:
    async with Chain(rpc_url, deployment(DEVNET)) as chain:
        session = await Session.resume(chain, Store(Path(directory)), JobId(int(job_id)))
        await session.connect()
        async for part in session.stream("Tell me of the tide.", max_tokens=150, seed=7):
            if part.totals.tokens >= int(tokens):
                os.kill(os.getpid(), signal.SIGKILL)


asyncio.run(main(*sys.argv[1:]))
