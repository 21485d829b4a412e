"""One thread that writes, with group commit.

What is queued while one commit runs is committed together in the next, so a slow disk costs each caller two
flushes at most and not a queue of them. Who waits is woken once a commit, not once a caller. Knows nothing of
what is written.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import msgspec
import structlog
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from tallystick import database
from tallystick.errors import DatabaseFailed, LedgerError

S = TypeVar("S")
T = TypeVar("T")

LARGEST_GROUP = 512
"""Operations in one commit: what a group loses is made again in parts, so it stays small."""
TRIES = 5
"""Times that an operation is run that meets others' transactions."""

Together = Callable[[Connection, Sequence[S]], Sequence[T]]
"""An operation on several items in one go: what it comes to for each."""


log = structlog.get_logger(__name__)


class Work(msgspec.Struct, frozen=True, eq=False):
    """One item for an operation, and who waits for what it comes to."""

    operation: Together[Any, Any]
    item: Any
    check: Callable[[], None] | None
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Any]

    @property
    def is_wanted(self) -> bool:
        """False if whoever waited has stopped."""
        return not self.future.cancelled()


class Outcome(msgspec.Struct, frozen=True):
    """What became of one piece of work."""

    work: Work
    result: Any = None
    error: Exception | None = None

    def tell(self) -> None:
        """Wakes who waits. In the event loop's thread."""
        future = self.work.future
        if future.done():
            return
        if self.error is None:
            future.set_result(self.result)
        else:
            future.set_exception(self.error)


class Writer:
    """The only connection that writes. `start`, `submit` and `join` from any event loop, `close`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._place = engine.url.render_as_string()
        self._queue: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="tallystick-writer", daemon=True)
        self.is_open = False
        self.failure: str | None = None
        """Why the last transaction failed, if it was the database or its disk; None since one succeeded."""
        self.is_away = False
        """No server answered the last transaction."""

    def start(self) -> None:
        """Starts the thread."""
        self.is_open = True
        self._thread.start()

    def close(self) -> None:
        """Commits what is queued and ends the thread. Blocks until then; harmless when repeated."""
        if self.is_open:
            self.is_open = False
            self._queue.put(None)
            self._thread.join()

    async def submit(self, operation: Callable[[Connection], T]) -> T:
        """Runs an operation in a transaction and returns what it returned, once that is on disk.

        The operation may be run twice, the first time in vain: it must do nothing but use its connection.
        Its own exceptions come back as they are, and undo nothing but itself; a database that fails is
        DatabaseFailed. Where its connection broke, whether the operation was committed is not known.
        """
        return await self.join(lambda connection, _: [operation(connection)], None)

    async def join(self, operation: Together[S, T], item: S, check: Callable[[], None] | None = None) -> T:
        """As `submit`, of an operation that takes at once what all who wait for the same commit bring it.

        `check` is run before, in the writer's thread and in no transaction: whoever it raises for is left
        out and told.
        """
        if not self.is_open:
            raise LedgerError("the ledger is closed")
        loop = asyncio.get_running_loop()
        work = Work(operation, item, check, loop, loop.create_future())
        self._queue.put(work)
        result: T = await work.future
        return result

    def _run(self) -> None:
        going = True
        while going:
            group, going = self._next_group()
            passed = self._checked(group)
            if passed:
                self._commit(passed)

    def _next_group(self) -> tuple[list[Work], bool]:
        group: list[Work] = []
        work = self._queue.get()
        while work is not None:
            group.append(work)
            if len(group) == LARGEST_GROUP or self._queue.empty():
                return group, True
            work = self._queue.get()
        return group, False

    def _checked(self, group: list[Work]) -> list[Work]:
        """Those whose check passes; the others are told."""
        refused = {work: error for work in group if (error := _refusal(work)) is not None}
        _tell([Outcome(work, error=error) for work, error in refused.items()])
        return [work for work in group if work not in refused]

    def _commit(self, group: list[Work], tries: int = TRIES) -> None:
        """All in one transaction; if one of them fails, in parts, so that the others go through."""
        try:
            with self._engine.begin() as connection:
                done = [outcome for each in _together(group) for outcome in _outcomes(connection, each)]
        except Exception as error:  # noqa: BLE001 (whatever it is, the one who waits is told)
            failure = error
        else:
            self._goes_on()
            _tell(done)
            return
        self._mend(group, failure, tries)

    def _mend(self, group: list[Work], error: Exception, tries: int) -> None:
        if database.is_away(error):
            # Some of it may be committed, and what is run again has to have been run in vain.
            self._fail(group, error)
        elif len(group) > 1:
            half = len(group) // 2
            self._commit(group[:half])
            self._commit(group[half:])
        elif database.has_collided(error) and tries > 1:
            self._commit(group, tries - 1)
        else:
            self._fail(group, error)

    def _fail(self, group: list[Work], error: Exception) -> None:
        if database.has_failed(error):
            self._stands_still(error)
            database.connect_anew(self._engine)
        _tell([Outcome(work, error=_told(error)) for work in group])

    def _stands_still(self, error: Exception) -> None:
        if self.failure is None:
            log.error(
                "ledger.failing", place=self._place, error=_cause(error), meaning="no new work is taken"
            )
        self.failure, self.is_away = _cause(error), database.is_away(error)

    def _goes_on(self) -> None:
        if self.failure is not None:
            log.info("ledger.mended", place=self._place)
        self.failure, self.is_away = None, False


def _refusal(work: Work) -> Exception | None:
    if work.check is not None:
        try:
            work.check()
        except Exception as error:  # noqa: BLE001 (whatever it is, the one who waits is told)
            return error
    return None


def _together(group: list[Work]) -> Iterator[list[Work]]:
    """The group's work by operation, in the order in which each was first asked for."""
    by_operation: dict[Together[Any, Any], list[Work]] = {}
    for work in group:
        by_operation.setdefault(work.operation, []).append(work)
    yield from by_operation.values()


def _outcomes(connection: Connection, works: list[Work]) -> list[Outcome]:
    # Asked at their turn: whoever stops waiting until then is left out.
    wanted = [work for work in works if work.is_wanted]
    if not wanted:
        return []
    results = wanted[0].operation(connection, [work.item for work in wanted])
    return [Outcome(work, result) for work, result in zip(wanted, results, strict=True)]


def _tell(outcomes: list[Outcome]) -> None:
    """Wakes each event loop once."""
    by_loop: dict[asyncio.AbstractEventLoop, list[Outcome]] = {}
    for outcome in outcomes:
        by_loop.setdefault(outcome.work.loop, []).append(outcome)
    for loop, its in by_loop.items():
        with suppress(RuntimeError):  # the loop is closed: nobody waits
            loop.call_soon_threadsafe(_tell_each, its)


def _tell_each(outcomes: list[Outcome]) -> None:
    for outcome in outcomes:
        outcome.tell()


def _told(error: Exception) -> Exception:
    if not isinstance(error, SQLAlchemyError):
        return error
    kind = DatabaseFailed if database.has_failed(error) else LedgerError
    unknown = isinstance(error, DBAPIError) and error.connection_invalidated
    what = "whether the ledger was written is not known" if unknown else "the ledger could not be written"
    told = kind(f"{what}: {_cause(error)}")
    told.__cause__ = error
    return told


def _cause(error: Exception) -> str:
    """The database's own words."""
    return str(getattr(error, "orig", None) or error)
