"""One request of OpenAI's API over a job: passed to the host as it is, counted and signed for as it comes.

    async with Exchange(session, "/v1/chat/completions", body, max_tokens=500) as exchange:
        async for parts in exchange: ...
    exchange.tab.totals

The host is always asked for a stream, since only a stream can be signed for on the way. What comes is taken
in at once, read or not: a slow reader holds up nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from http import HTTPStatus
from types import TracebackType
from typing import Any, Self

import aiohttp
import msgspec
import orjson

from tallystick import frames, sse, wire
from tallystick.errors import HostRefused, ReceiptError, SessionError, TallystickError
from tallystick.session import LEAVING, Session, fault
from tallystick.transcript import delta_text

MAX_REPLY = 64_000_000
"""Bytes of a reply that may wait for its reader; a host that sends more is cut off."""
_DONE = b"[DONE]"


class _Choice(msgspec.Struct, gc=False):
    index: int = 0
    delta: dict[str, Any] | None = None
    text: str | None = None
    finish_reason: str | None = None

    @property
    def said(self) -> tuple[str, str]:
        """Its text as the transcript has it, of a chat or of a text that is completed; and for the reader."""
        if self.text is not None:
            return self.text, self.text
        delta = self.delta or {}
        said, content = delta_text(delta), delta.get("content")
        return said, content if isinstance(content, str) else ""

    @property
    def members(self) -> dict[str, Any]:
        """What it brings, as OpenAI's deltas have it."""
        return self.delta or {} if self.text is None else {"content": self.text}


class _Event(msgspec.Struct, gc=False):
    """What the package reads of one event of a stream."""

    choices: list[_Choice] = []
    usage: dict[str, Any] | None = None
    tally: frames.Running | None = None
    error: dict[str, Any] | None = None


_EVENT = msgspec.json.Decoder(_Event)


# Not a dataclass: there is one for every token.
class Part(msgspec.Struct, frozen=True, gc=False):
    """One event of a reply, as the host sent it."""

    raw: bytes
    """JSON."""
    tally: frames.Running | None
    said: bool
    """It has choices: without any it only counts."""
    content: str
    """What it says for the reader: no reasoning, no tool calls."""
    finished: bool
    """A choice of it says why it ended."""
    usage: dict[str, Any] | None
    error: dict[str, Any] | None
    """The host's, in OpenAI's shape: the reply ends with it."""


class Exchange:
    """A request and its answer. Entering asks, iterating gives what came, leaving ends it at the host too."""

    def __init__(
        self,
        session: Session,
        path: str,
        body: Mapping[str, Any],
        *,
        max_tokens: int,
        choices: int = 1,
    ) -> None:
        """`max_tokens` of all `choices` together. Refusal `invalid_request`: no canonical form."""
        self._session = session
        self._path = path
        self._body = {**body, "stream": True, "stream_options": {"include_usage": True}}
        self.tab = session.counting(self._body, max_tokens, choices)
        self._waiting: asyncio.Queue[list[Part]] = asyncio.Queue()
        """What came and was not read; an empty list: there is no more."""
        self._held = 0
        """Bytes of it."""
        self.failure: TallystickError | None = None
        """Why the reply broke off, at the host or on the way; known once what came was read."""
        self.first_token: float | None = None
        """Seconds from asking to the first token."""
        self._began = asyncio.get_running_loop().time()
        self._first: list[Part] = []
        """What came until the first token, and was not read."""
        self._answer: aiohttp.ClientResponse | None = None
        self._taking: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """HostRefused, or SessionError if the host cannot be asked. Nothing was delivered then."""
        try:
            self._answer = await self._ask()
        except BaseException:
            await self.tab.close()
            raise
        self._taking = self._session.keep(self._take(self._answer))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.end()

    async def end(self, why: TallystickError | None = None) -> None:
        """Has the host end the reply, and takes in what is on its way.

        `why`: what its reader is told if the host does not. SessionError if the host cannot be asked.
        """
        assert self._taking is not None
        if self._taking.done():
            return
        try:
            await self._session.cancel(self.tab.request)
            await asyncio.wait([self._taking], timeout=LEAVING)
        finally:
            if not self._taking.done():
                self.failure = self.failure or why
            self._taking.cancel()
            await asyncio.wait([self._taking])  # then its tab is closed, and what it overcounted is known

    async def begun(self) -> None:
        """Waits for the first token, or the end. Raises why there is none, if the reply broke off before."""
        while self.first_token is None:
            try:
                parts = await self._next()
            except StopAsyncIteration:
                self._waiting.put_nowait([])
                return
            if failed := next((part.error for part in parts if part.error is not None), None):
                self.failure = HostRefused(frames.problem(failed))
                raise self.failure
            self._first += parts
            if any(part.tally is not None and part.tally.totals.tokens for part in parts):
                self.first_token = asyncio.get_running_loop().time() - self._began

    def __aiter__(self) -> AsyncIterator[list[Part]]:
        return self

    async def __anext__(self) -> list[Part]:
        """What came since the last time. ReceiptError or SessionError if the reply broke off."""
        if self._first:
            first, self._first = self._first, []
            return first
        return await self._next()

    async def _next(self) -> list[Part]:
        parts = await self._waiting.get()
        self._held -= sum(len(part.raw) for part in parts)
        if parts:
            return parts
        if self.failure is not None:
            raise self.failure
        raise StopAsyncIteration

    async def _ask(self) -> aiohttp.ClientResponse:
        """The answer, once it has begun; signs for the prompt where the host wants that first."""
        body = orjson.dumps({**self._body, "tally": {"request": self.tab.request}})
        while (answer := await self._session.post(self._path, body)).status != HTTPStatus.OK:
            await self._session.mend(self.tab, await _problem(answer))
        return answer

    async def _take(self, answer: aiohttp.ClientResponse) -> None:
        parser = sse.SSEParser()
        try:
            async for data in answer.content.iter_any():
                payloads = parser.feed(data)
                self._hear(payload for payload in payloads if payload != _DONE)
                if _DONE in payloads:
                    return
            raise SessionError("connection_lost: the host broke the reply off; what came is signed for")
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            told = str(error) or type(error).__name__
            self.failure = SessionError(f"connection_lost: the reply broke off: {told}")
        except Exception as error:  # noqa: BLE001 - whoever reads would take what came for all of it
            self.failure = error if isinstance(error, TallystickError) else fault(error)
        finally:
            answer.close()
            await self._over()

    def _hear(self, payloads: Iterable[bytes]) -> None:
        """Takes the events of one read, also those that came before one that nobody can sign for."""
        parts: list[Part] = []
        try:
            parts.extend(map(self._part, payloads))
        finally:
            if parts:
                self._hold(parts)

    async def _over(self) -> None:
        """All of it came, or no more will: what can be signed for is due, and whoever reads learns it."""
        try:
            await self.tab.close()
        except TallystickError as error:
            self.failure = self.failure or error
        finally:
            self._waiting.put_nowait([])

    def _part(self, payload: bytes) -> Part:
        """Counts one event. ReceiptError for counts that nobody can sign, SessionError for no event."""
        try:
            event = _EVENT.decode(payload)
        except msgspec.DecodeError as error:
            raise SessionError(f"the host sent an event that cannot be read: {error}") from error
        said = content = ""
        reason: str | None = None
        for choice in event.choices:
            more, shown = choice.said
            said, content, reason = said + more, content + shown, choice.finish_reason or reason
        if event.tally is not None:
            self._count(event.tally, event.choices, said, reason)
        finished = reason is not None
        return Part(payload, event.tally, bool(event.choices), content, finished, event.usage, event.error)

    def _count(self, told: frames.Running, choices: list[_Choice], said: str, reason: str | None) -> None:
        """Takes in what one event brought. ReceiptError, SessionError."""
        if told.request != self.tab.request:
            raise ReceiptError(f"the host counts for request {told.request}, which was not asked")
        if self.tab.recounts:
            for choice in choices:
                self.tab.hear(choice.index, choice.members)
        self.tab.take(told.totals, said, reason, due=told.due or told.waiting)
        if told.low:
            self._session.run_low(frames.left(told.left))

    def _hold(self, parts: list[Part]) -> None:
        self._held += sum(len(part.raw) for part in parts)
        if self._held > MAX_REPLY:
            raise TallystickError(f"{MAX_REPLY} bytes of the reply were not read by whoever asked")
        self._waiting.put_nowait(parts)


async def _problem(answer: aiohttp.ClientResponse) -> frames.Problem:
    """What the host says is wrong: the member `error` of the answer, or the answer itself."""
    async with answer:
        raw = await answer.content.read(wire.MAX_BODY)
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError:
        body = {"detail": f"the answer has status {answer.status} and is no JSON"}
    problem = frames.problem(body.get("error", body) if isinstance(body, dict) else None)
    return msgspec.structs.replace(problem, status=answer.status)
