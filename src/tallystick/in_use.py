"""A job that pays for requests: what is under way on it, and when its host is connected to.

Whose jobs there are, and what may be spent on them, is for `spending.py`.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple

from tallystick.caps import Purse
from tallystick.errors import SessionError
from tallystick.session import Session

SHORTEST = 0.5
"""Seconds until a host that ends one connection after the other is asked again, doubled each time."""
LONGEST = 15.0
"""Seconds that it is left alone at most."""


class Place(NamedTuple):
    """Where a job is used: all requests for a model at a host share one."""

    url: str
    model: str


@dataclass(slots=True, eq=False)
class InUse:
    """A job that pays for requests."""

    session: Session
    idle_since: float
    reserved: int = 0
    """The most that requests under way may cost, in base units."""
    requests: int = 0
    """Requests under way."""
    released: asyncio.Event = field(default_factory=asyncio.Event)
    retired: bool = False
    """It takes no more requests."""
    stops: int = 0
    """Connections that ended since the host last acknowledged a receipt."""
    abandoned: bool = False
    """Nobody reads any more what comes of its requests."""
    connecting: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def is_quiet(self) -> bool:
        """No request is under way that anybody waits for."""
        return self.abandoned or not self.requests

    async def connect(self) -> None:
        """Sees to it that the host is connected to, one at a time. Raises what `Session.connect` raises."""
        async with self.connecting:
            if not self.session.connected:
                await self.session.connect()

    @property
    def place(self) -> Place:
        """Where it is used."""
        return Place(self.session.host_url, self.session.model)

    @property
    def purse(self) -> Purse:
        """What is in it."""
        return Purse(self.session.job.deposit, self.session.owed, self.reserved)


def pause(stops: int, retry_after: float) -> float:
    """Seconds until a host is connected to again that ended so many connections in a row with no receipt
    acknowledged in between; `retry_after`: those that it names, 0 for none. At once the first time.
    """
    backoff = 0.0 if stops < 2 else SHORTEST * 2 ** min(stops - 2, 10)
    return min(max(backoff, retry_after), LONGEST)


async def abandon(used: InUse) -> None:
    """Ends what is under way on a job, at the host too: what came is signed for, the job can be completed."""
    used.abandoned = True
    used.released.set()
    if used.requests and used.session.connected:
        with suppress(SessionError):  # then the connection is gone, and nothing more comes of them either
            await used.session.leave()


async def quiet(used: InUse) -> None:
    """Waits until no request is under way on a job."""
    while not used.is_quiet:
        used.released.clear()
        await used.released.wait()
