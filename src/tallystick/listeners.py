"""Whoever wants to be told what happens: a fault of theirs is logged, and is nobody else's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, ParamSpec

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
                log.exception("listener.failed", listener=getattr(listener, "__qualname__", repr(listener)))
