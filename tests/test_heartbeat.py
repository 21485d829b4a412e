"""The heartbeat: a process knows that its lease ran out before anyone else can, whatever keeps it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from structlog.testing import capture_logs

from tallystick.errors import LedgerError
from tallystick.heartbeat import Heartbeat
from tallystick.leases import LEASE, RENEW_EVERY

LONG = 3600.0


class Database:
    """Renews leases, or does what a test has it do instead."""

    def __init__(self) -> None:
        self.asked = 0
        self.answer: Callable[[], Awaitable[bool]] = self.renewed
        self.woken = asyncio.Event()

    async def __call__(self) -> bool:
        self.asked += 1
        self.woken.set()
        return await self.answer()

    async def renewed(self) -> bool:
        return True

    async def too_late(self) -> bool:
        return False

    async def fails(self) -> bool:
        raise LedgerError("database or disk is full")

    async def hangs(self) -> bool:
        await asyncio.Event().wait()
        raise AssertionError("for ever")

    async def times(self, number: int) -> None:
        """Waits until it was asked so often more."""
        async with asyncio.timeout(20):
            for _ in range(number):
                self.woken.clear()
                await self.woken.wait()


@asynccontextmanager
async def beating(
    database: Database, *, seconds: float = LONG, since: float = 0.0
) -> AsyncIterator[asyncio.Queue[None]]:
    """Each time that the lease runs out there is something in the queue. `since`: seconds from now."""
    heartbeat = Heartbeat(database, seconds=seconds, every=0.001)
    lapses: asyncio.Queue[None] = asyncio.Queue()
    heartbeat.listen(lambda: lapses.put_nowait(None))
    heartbeat.start(asyncio.get_running_loop().time() + since)
    yield lapses
    await heartbeat.stop()


async def test_a_lease_that_is_renewed_lasts() -> None:
    """As long as the database grants it in time, nobody hears of it."""
    database = Database()
    async with beating(database) as lapses:
        await database.times(20)
    assert lapses.empty()


async def test_a_lease_that_cannot_be_renewed_runs_out() -> None:
    """The ledger may fail or hang: what the process owns is given up in time, and once."""
    for answer in ("fails", "hangs"):
        database = Database()
        database.answer = getattr(database, answer)
        async with asyncio.timeout(20), beating(database, seconds=0.05) as lapses:
            await lapses.get()
        assert lapses.empty()


async def test_a_process_that_was_stopped_learns_that_it_was_too_late() -> None:
    """Where only the database's clock went on, its word counts: all is given up before it is held anew."""
    database = Database()
    database.answer = database.too_late
    async with asyncio.timeout(20), beating(database) as lapses:
        await lapses.get()
        await lapses.get()


async def test_the_time_that_a_renewal_takes_is_not_granted() -> None:
    """A lease counts from before it was asked for: one that is granted too late has run out already."""
    async with asyncio.timeout(20), beating(Database(), seconds=LONG, since=-2 * LONG) as lapses:
        await lapses.get()


async def test_a_renewal_that_came_too_late_is_no_renewal() -> None:
    """It ran out once, and nothing says otherwise before one is granted in time."""
    database = Database()
    answered = asyncio.Event()

    async def late() -> bool:
        await answered.wait()
        database.answer = database.hangs
        return True

    database.answer = late
    with capture_logs() as lines:
        async with asyncio.timeout(20), beating(database, seconds=0.05) as lapses:
            await lapses.get()
            await asyncio.sleep(0.1)
            answered.set()
            await database.times(1)
    assert [line["event"] for line in lines] == ["lease.expired"]
    assert lapses.empty()


async def test_renewals_that_fail_are_told_once() -> None:
    """However often it is tried again; and anew once one was granted in between."""
    database = Database()
    with capture_logs() as lines:
        async with beating(database):
            for answer in (database.fails, database.renewed, database.fails):
                database.answer = answer
                await database.times(3)
    assert [line["event"] for line in lines] == ["lease.not_renewed"] * 2


async def test_it_goes_on_once_the_ledger_does() -> None:
    """A failure is no end: the next renewal is tried, and a lease that was lost is held again."""
    database = Database()
    database.answer = database.fails
    async with beating(database, seconds=0.05) as lapses:
        async with asyncio.timeout(20):
            await lapses.get()
        database.answer = database.renewed
        await database.times(2)
        database.answer = database.hangs
        async with asyncio.timeout(20):
            await lapses.get()


def test_several_renewals_may_fail() -> None:
    """One that is lost costs no process its jobs."""
    assert 3 * RENEW_EVERY < LEASE
