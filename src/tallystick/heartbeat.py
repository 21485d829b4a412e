"""This process's lease on all that it owns: renewed while it lives, and held to run out when it is not.

By its own clock a process counts from before it asks for a renewal, the database from when it grants it: so a
process knows first that its lease has run out, and has stopped before another one takes over. Knows no table.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from tallystick.errors import LedgerError
from tallystick.leases import LEASE, RENEW_EVERY

log = structlog.get_logger(__name__)


class Heartbeat:
    """Renews a lease: `start` once it is held, `stop` before it is given up."""

    def __init__(
        self, renew: Callable[[], Awaitable[bool]], *, seconds: float = LEASE, every: float = RENEW_EVERY
    ) -> None:
        """`renew` returns False if the lease had run out. It may raise LedgerError, and may hang."""
        self._renew = renew
        self._seconds = seconds
        self._every = every
        self._listeners: list[Callable[[], None]] = []
        self._running_out: asyncio.TimerHandle | None = None
        self._beating: asyncio.Task[None] | None = None
        self._held = True

    def listen(self, listener: Callable[[], None]) -> None:
        """Tells `listener` each time that the lease has run out. It must not raise."""
        self._listeners.append(listener)

    def start(self, since: float) -> None:
        """`since`: when the lease was asked for, on the event loop's clock."""
        self._hold(since)
        self._beating = asyncio.create_task(self._beat(), name="the lease")

    async def stop(self) -> None:
        """Harmless when repeated."""
        if self._running_out is not None:
            self._running_out.cancel()
        if self._beating is not None:
            self._beating.cancel()
            await asyncio.wait([self._beating])

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self._every)
            since = asyncio.get_running_loop().time()
            try:
                if not await self._renew():
                    self._run_out()
                self._hold(since)
            except LedgerError as error:
                log.warning("lease.not_renewed", error=str(error))

    def _hold(self, since: float) -> None:
        if not self._held:
            log.info("lease.renewed")
        self._held = True
        if self._running_out is not None:
            self._running_out.cancel()
        self._running_out = asyncio.get_running_loop().call_at(since + self._seconds, self._run_out)

    def _run_out(self) -> None:
        if not self._held:
            return
        self._held = False
        log.error(
            "lease.expired", seconds=self._seconds, meaning="another process may take over what it owned"
        )
        for listener in self._listeners:
            listener()
