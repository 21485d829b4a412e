"""Whoever wants to be told what happens: a fault of theirs is logged, and is nobody else's."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from functools import wraps
from types import TracebackType
from typing import Generic, ParamSpec, Self

import structlog

P = ParamSpec("P")

log = structlog.get_logger(__name__)


class Listeners(Generic[P]):
    """Each is called with each event, in the order that they were added in."""

    def __init__(self) -> None:
        self._all: list[Callable[P, object]] = []

    def add(self, listener: Callable[P, object]) -> None:
        """Has it called from now on."""
        self._all.append(listener)

    def tell(self, *told: P.args, **named: P.kwargs) -> None:
        """Calls all of them, also after one that raises: that is logged, with its traceback."""
        for listener in self._all:
            try:
                listener(*told, **named)
            except Exception:  # what is told of has happened, and money hangs on what follows
                log.exception("listener.failed", listener=_name(listener))


class Hearing:
    """Awaits what listeners give to be awaited: one after the other, beside what they are told of.

    `async with` it: leaving waits until all was heard.
    """

    def __init__(self) -> None:
        self._given: asyncio.Queue[tuple[Callable[..., object], Awaitable[object]] | None]
        self._awaiting: asyncio.Task[None]

    async def __aenter__(self) -> Self:
        self._given = asyncio.Queue()
        self._awaiting = asyncio.create_task(self._await_all())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._given.put_nowait(None)
        await self._awaiting

    def of(self, listener: Callable[P, object]) -> Callable[P, None]:
        """The listener, called at once; an `async def` goes on in its turn."""

        @wraps(listener)
        def called(*told: P.args, **named: P.kwargs) -> None:
            result = listener(*told, **named)
            if inspect.isawaitable(result):
                self._given.put_nowait((listener, result))

        return called

    async def _await_all(self) -> None:
        while (given := await self._given.get()) is not None:
            listener, result = given
            try:
                await result
            except Exception:  # what is told of has happened, and others wait for their turn
                log.exception("listener.failed", listener=_name(listener))


def _name(listener: Callable[..., object]) -> str:
    return getattr(listener, "__qualname__", repr(listener))
