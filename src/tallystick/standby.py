"""What a process does for the jobs that it serves, beside the one that settles: ends those that the chain is
closing, and passes on what became of the others.

The settling process tells by the ledger; this one reads there what is news, and on the chain what happened.
Settles nothing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import structlog

from tallystick.chain import Block, Chain
from tallystick.errors import ChainError
from tallystick.ledger import Ledger
from tallystick.tables import JobRow
from tallystick.types import Completion, JobId, Settlement, Totals

log = structlog.get_logger(__name__)


class Standby:
    """`step` now and then, while another process settles."""

    def __init__(
        self,
        ledger: Ledger,
        chain: Chain,
        end: Callable[[JobId], Awaitable[None]],
        tell: Callable[[Settlement | Completion], None],
    ) -> None:
        """`end` brings a job that is over to its end; `tell` is told of each settlement and completion."""
        self._ledger = ledger
        self._chain = chain
        self._end = end
        self._tell = tell
        self._told: dict[JobId, Totals] = {}
        """Of each job: the confirmed totals that were told."""
        self._since: int | None = None
        """The block from which on things are news."""

    async def step(self, head: Block) -> None:
        """Looks once. Raises LedgerError."""
        self._since = head.number if self._since is None else self._since
        for due in await self._ledger.outstanding(head.timestamp):
            if due.complete and not due.ending and due.owner == self._ledger.process:
                await self._end(due.job_id)
        for row in await self._ledger.served():
            try:
                await self._pass_on(row)
            except ChainError as error:
                log.warning("settlement.job_unread", job=row.job.id, error=str(error))

    def told(self, settlement: Settlement) -> None:
        """This process has told of it already."""
        self._told[settlement.job_id] = settlement.totals

    async def _pass_on(self, row: JobRow) -> None:
        job_id = row.job.id
        if row.confirmed != self._told.get(job_id, Totals()):
            for settlement in await self._chain.settlements(job_id):
                if self._is_news(settlement, row):
                    self._tell(settlement)
            self._told[job_id] = row.confirmed
        if row.closed and (completion := await self._chain.completion(job_id)) is not None:
            self._told.pop(job_id, None)
            await self._ledger.release(job_id)
            self._tell(completion)

    def _is_news(self, settlement: Settlement, row: JobRow) -> bool:
        assert self._since is not None
        told = self._told.get(row.job.id, Totals())
        return (
            settlement.block > self._since
            and row.confirmed.covers(settlement.totals)
            and not told.covers(settlement.totals)
        )
