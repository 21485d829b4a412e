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
        self._failing = False

    @property
    def held(self) -> bool:
        """False from when the lease has run out until it is granted anew, in time."""
        return self._held

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
                self._failing = False
            except LedgerError as error:
                self._tell_failing(error)

    def _tell_failing(self, error: LedgerError) -> None:
        """Once, however often it is tried again."""
        if not self._failing:
            log.warning("lease.not_renewed", error=str(error))
        self._failing = True

    def _hold(self, since: float) -> None:
        loop = asyncio.get_running_loop()
        until = since + self._seconds
        if self._running_out is not None:
            self._running_out.cancel()
        if until <= loop.time():
            self._run_out()  # what was granted so late has run out by this process's clock
            return
        if not self._held:
            log.info("lease.renewed")
        self._held = True
        self._running_out = loop.call_at(until, self._run_out)

    def _run_out(self) -> None:
        if not self._held:
            return
        self._held = False
        log.error(
            "lease.expired", seconds=self._seconds, meaning="another process may take over what it owned"
        )
        for listener in self._listeners:
            listener()
