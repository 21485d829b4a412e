"""What the storms of one worker stand on: a chain, jobs on it, and drivers; the same again for each seed."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tallystick import proof
from tallystick.chain import Chain
from tallystick.devnet import Devnet
from tallystick.fees import GWEI
from tallystick.ledger import Ledger
from tallystick.types import Job, JobId, Receipt, Totals
from tests import postgresql
from tests.faults.nursery import Nursery
from tests.paying import open_job, register

JOBS = 3
CEILING = 25 * GWEI
"""The most that the sender may offer for a unit of gas, in wei."""
HOUR = 3_600
CLAIM_WINDOW = HOUR
"""Of the job that its payer may reclaim within the storm."""
DEPTH = 20
"""Blocks on top of the jobs: more than one rollback, and a reorganisation after it, take away."""


@dataclass(frozen=True)
class Opened:
    """A job, and the key that signs its receipts."""

    job: Job
    key: bytes

    def receipt(self, domain: proof.Domain, totals: Totals) -> Receipt:
        transcript = totals.tokens.to_bytes(32, "big")
        digest = domain.receipt(JobId(self.job.id), totals, transcript)
        return Receipt(JobId(self.job.id), totals, bytes(32), transcript, proof.sign(digest, self.key))


class Ground:
    """`async with` before use. `postgres`: a server that runs, for two processes with one key."""

    def __init__(self, directory: Path, postgres: postgresql.Server | None = None) -> None:
        self.directory = directory
        self.postgres = postgres
        self.devnet = Devnet()
        self.nursery = Nursery(directory)
        self.jobs: Sequence[Opened] = ()
        """All but the last stay open for a week; the payer may reclaim that one within the storm."""
        self._stack = AsyncExitStack()
        self._snapshot = ""
        self._made = 0

    async def __aenter__(self) -> Self:
        await self._stack.enter_async_context(self.devnet)
        await self._stack.enter_async_context(self.nursery)
        async with Chain(self.devnet.rpc_url, self.devnet.deployment) as chain:
            await register(self.devnet, chain)
            self.jobs = [await self._open(chain) for _ in range(JOBS)]
            expiry = (await chain.block()).timestamp + 2 * HOUR
            self.jobs = [
                *self.jobs,
                await self._open(chain, expires_at=expiry, claim_window=CLAIM_WINDOW),
            ]
        async with Ledger(self._template) as ledger:
            for opened in self.jobs:
                await ledger.adopt(opened.job)
        self._snapshot = await self.devnet.snapshot()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    @property
    def _template(self) -> Path:
        return self.directory / "template"

    async def renew(self) -> None:
        """The chain as it was at first; what a snapshot does not bring back as well."""
        await self.devnet.revert(self._snapshot)
        self._snapshot = await self.devnet.snapshot()
        await self.devnet.set_chain_id(self.devnet.deployment.chain_id)
        await self.devnet.set_base_fee(GWEI)
        # Above the snapshot, which a reorganisation would take away as well.
        await self.devnet.mine(DEPTH)

    def ledger(self, *, shared: bool) -> tuple[Path, str | None]:
        """Directory and URL of a ledger of its own, which has the jobs already unless it is shared."""
        self._made += 1
        directory = self.directory / f"storm-{self._made}"
        if shared:
            assert self.postgres is not None
            return directory, self.postgres.fresh()
        shutil.copytree(self._template, directory)
        return directory, None

    async def _open(self, chain: Chain, **terms: Any) -> Opened:
        signer = await open_job(self.devnet, chain, **terms)
        return Opened(signer.job, signer.key)
