"""One thread that writes, with group commit.

What is queued while one commit runs is committed together in the next, so a slow disk costs each caller two
flushes at most and not a queue of them. Knows nothing of what is written.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

from tallystick import database
from tallystick.errors import LedgerError

T = TypeVar("T")

LARGEST_GROUP = 512
"""Operations in one commit: what a group loses is made again one by one, so it stays small."""
TRIES = 5
"""Times that an operation is run that meets others' transactions."""


@dataclass(frozen=True, slots=True)
class Work:
    """One operation, and who waits for it."""

    operation: Callable[[Connection], Any]
    future: Future[Any] = field(default_factory=Future)

    def is_wanted(self) -> bool:
        """False if whoever waited has stopped; once it is True, it stays so."""
        if self.future.running():
            return True
        return not self.future.cancelled() and self.future.set_running_or_notify_cancel()


class Writer:
    """The only connection that writes. `start`, `submit` from any event loop, `close`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._queue: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="tallystick-writer", daemon=True)
        self.is_open = False
        self.failure: str | None = None
        """Why the last transaction failed, if it was the database or its disk; None since one succeeded."""

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
        Its own exceptions come back as they are, and undo nothing but itself; a database that fails is a
        LedgerError.
        """
        if not self.is_open:
            raise LedgerError("the ledger is closed")
        work = Work(operation)
        self._queue.put(work)
        result: T = await asyncio.wrap_future(work.future)
        return result

    def _run(self) -> None:
        going = True
        while going:
            group, going = self._next_group()
            if group:
                self._commit(group)

    def _next_group(self) -> tuple[list[Work], bool]:
        group: list[Work] = []
        work = self._queue.get()
        while work is not None:
            group.append(work)
            if len(group) == LARGEST_GROUP or self._queue.empty():
                return group, True
            work = self._queue.get()
        return group, False

    def _commit(self, group: list[Work], tries: int = TRIES) -> None:
        """All in one transaction; if one of them fails, each in its own, so that the others go through."""
        done: list[tuple[Work, Any]] = []
        try:
            with self._engine.begin() as connection:
                # Asked one by one, at its turn: whoever stops waiting until then is left out.
                done += ((work, work.operation(connection)) for work in group if work.is_wanted())
        except Exception as error:  # noqa: BLE001 (whatever it is, the one who waits is told)
            self._mend(group, error, tries)
        else:
            self.failure = None
            for work, result in done:
                work.future.set_result(result)

    def _mend(self, group: list[Work], error: Exception, tries: int) -> None:
        if len(group) > 1:
            for work in group:
                self._commit([work])
        elif database.has_collided(error) and tries > 1:
            self._commit(group, tries - 1)
        else:
            self._fail(group[0], error)

    def _fail(self, work: Work, error: Exception) -> None:
        if database.has_failed(error):
            self.failure = _cause(error)
            database.connect_anew(self._engine)
        if work.is_wanted():
            work.future.set_exception(_told(error))


def _told(error: Exception) -> Exception:
    if not isinstance(error, SQLAlchemyError):
        return error
    told = LedgerError(f"the ledger could not be written: {_cause(error)}")
    told.__cause__ = error
    return told


def _cause(error: Exception) -> str:
    """The database's own words."""
    return str(getattr(error, "orig", None) or error)
