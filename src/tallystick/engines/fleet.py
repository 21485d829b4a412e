"""Several engines as one: the least busy is asked, and one that fails is set aside and tried again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing, asynccontextmanager
from operator import attrgetter
from typing import Any, NamedTuple, TypeVar

import structlog

from tallystick.engine import Engine, Health, Pieces
from tallystick.engines.http import HttpEngine
from tallystick.engines.tokenizer import Tokenizer
from tallystick.errors import (
    EngineEmpty,
    EngineError,
    EngineFalseStart,
    EngineRefused,
    EngineUnavailable,
    EngineUncounted,
)

FIRST_PAUSE = 1.0
"""Seconds until an engine that failed is tried again; twice as long each time that it fails anew."""
LAST_PAUSE = 60.0
"""Seconds: the longest pause. An engine that worked for as long is forgiven what was before."""

T = TypeVar("T")
log = structlog.get_logger(__name__)


class Member:
    """One engine, and how it did."""

    def __init__(self, engine: HttpEngine) -> None:
        self.engine = engine
        self.failure: EngineError | None = None
        """Why it is set aside; None: it is not."""
        self.asked = 0
        """When it was asked for a reply last, as a number that grows."""
        self.pause = FIRST_PAUSE
        self.mended_at = float("-inf")
        self.mending: asyncio.Task[None] | None = None

    @property
    def rank(self) -> tuple[bool, int, int]:
        """Lowest first: one that works, is not busy, and was not asked for longest."""
        return self.failure is not None, self.engine.streams, self.asked

    @property
    def why(self) -> str | None:
        """The code of what keeps it from being asked."""
        lack = self.engine.health()[0].why
        return lack if self.failure is None else self.failure.code


class Begun(NamedTuple):
    """A reply of which something has come."""

    member: Member
    first: Pieces
    rest: AsyncIterator[Pieces]


class Fleet(Engine):
    """Engines that may come and go; it starts with the first of them. `pause`: FIRST_PAUSE, in seconds.

    `tokenizer`: theirs, which is started and closed with them.
    """

    def __init__(
        self,
        engines: Sequence[HttpEngine],
        *,
        tokenizer: Tokenizer | None = None,
        pause: float = FIRST_PAUSE,
    ) -> None:
        self._members = [Member(engine) for engine in engines]
        self._tokenizer = tokenizer
        self._pause = pause
        self._asked = 0

    @property
    def models(self) -> list[str]:  # type: ignore[override] # they change as engines come and go
        """Of all engines that have been met, each once."""
        return list(dict.fromkeys(name for member in self._members for name in member.engine.models))

    @property
    def context(self) -> int | None:  # type: ignore[override]
        """The smallest, as any of them may be asked."""
        told = [member.engine.context for member in self._members]
        return min((context for context in told if context is not None), default=None)

    async def start(self) -> None:
        """Meets the engines. Raises the first one's EngineError if none can be used."""
        async with AsyncExitStack() as undo:
            undo.push_async_callback(self.close)
            if self._tokenizer is not None:
                await self._tokenizer.start()
            met = await asyncio.gather(*map(self._meet, self._members))
            if not any(met):
                failure = self._members[0].failure
                assert failure is not None
                raise failure
            undo.pop_all()

    async def close(self) -> None:
        for member in self._members:
            if member.mending is not None:
                member.mending.cancel()
                await asyncio.wait([member.mending])
            await member.engine.close()
        if self._tokenizer is not None:
            await self._tokenizer.close()

    def health(self) -> list[Health]:
        return [Health(member.engine.streams, member.why) for member in self._members]

    async def count_prompt(self, body: Mapping[str, Any]) -> int:
        return await self._first(body, lambda member: member.engine.count_prompt(body))

    def most_prompt(self, body: Mapping[str, Any]) -> int | None:
        most: list[int] = []
        for member in self._ranked(body.get("model")):
            if (told := member.engine.most_prompt(body)) is None:
                return None
            most.append(told)
        return max(most, default=None)

    def stream(
        self, body: Mapping[str, Any], max_tokens: int
    ) -> AbstractAsyncContextManager[AsyncIterator[Pieces]]:
        return self._stream(body, max_tokens)

    @asynccontextmanager
    async def _stream(self, body: Mapping[str, Any], max_tokens: int) -> AsyncIterator[AsyncIterator[Pieces]]:
        async with AsyncExitStack() as stack:
            begun = await self._first(body, lambda member: self._begin(stack, member, body, max_tokens))
            async with aclosing(self._watched(begun)) as pieces:
                yield pieces

    async def _begin(
        self, stack: AsyncExitStack, member: Member, body: Mapping[str, Any], max_tokens: int
    ) -> Begun:
        """A reply up to its first read: what fails until then has cost nothing, so another engine may try."""
        self._asked = member.asked = self._asked + 1
        async with AsyncExitStack() as attempt:
            reads = await attempt.enter_async_context(member.engine.stream(body, max_tokens))
            first: Pieces = await anext(reads, [])
            stack.push_async_exit(attempt.pop_all())
        return Begun(member, first, reads)

    async def _watched(self, begun: Begun) -> AsyncGenerator[Pieces, None]:
        yield begun.first
        try:
            async for pieces in begun.rest:
                yield pieces
        except EngineError as error:
            self._set_aside(begun.member, error)
            raise

    # Who is asked

    async def _first(self, body: Mapping[str, Any], ask: Callable[[Member], Awaitable[T]]) -> T:
        """The answer of the first engine that gives one; those that fail are set aside."""
        failure: EngineError = EngineUnavailable("No engine serves the model.")
        for member in self._ranked(body.get("model")):
            try:
                answer = await ask(member)
            except (EngineRefused, EngineUncounted):
                raise
            except EngineError as error:
                self._set_aside(member, error)
                failure = error
                if not isinstance(error, EngineUnavailable):
                    break  # whoever asked has waited for long enough
            else:
                self._take_back(member)
                return answer
        raise failure

    def _ranked(self, model: str | None) -> list[Member]:
        """Those that serve a model, best first."""
        serving = [each for each in self._members if model is None or model in each.engine.models]
        counted = [each for each in serving if each.engine.lacks() is None]
        return sorted(counted or serving, key=attrgetter("rank"))

    # Who is not

    async def _meet(self, member: Member) -> bool:
        try:
            await member.engine.start()
        except EngineError as error:
            self._set_aside(member, error)
            return False
        return True

    def _set_aside(self, member: Member, error: EngineError) -> None:
        member.failure = error
        if member.mending is not None and not member.mending.done():
            return
        member.pause = self._pause_after(member, error)
        log.warning("engine.set_aside", url=member.engine.url, code=error.code, error=str(error))
        member.mending = asyncio.create_task(self._mend(member), name="trying an engine again")

    def _pause_after(self, member: Member, error: EngineError) -> float:
        if _is_the_request_s(error):
            return 0
        now = asyncio.get_running_loop().time()
        return max(member.pause * 2, self._pause) if now - member.mended_at < LAST_PAUSE else self._pause

    async def _mend(self, member: Member) -> None:
        """Tries an engine until it works again."""
        while member.failure is not None:
            await asyncio.sleep(min(member.pause, LAST_PAUSE))
            try:
                await member.engine.start()
            except EngineError as error:
                log.debug("engine.still_failing", url=member.engine.url, error=str(error))
                member.pause = min(max(member.pause * 2, self._pause), LAST_PAUSE)
            else:
                self._take_back(member)

    def _take_back(self, member: Member) -> None:
        if member.failure is not None:
            log.info("engine.back", url=member.engine.url)
            member.failure = None
            member.mended_at = asyncio.get_running_loop().time()


def _is_the_request_s(error: EngineError) -> bool:
    """True for what a request may have brought about: no payer is to keep an engine from the others."""
    return isinstance(error, (EngineFalseStart, EngineEmpty)) or type(error) is EngineError
