"""A client's second try: it is answered with what its first one brought, which is paid for once.

    repeats = Repeats(gateway)
    async with repeats.answer("POST", "/v1/chat/completions", body, headers) as answer: ...

A client that waits no longer, or loses its connection, may ask the same again. OpenAI's own libraries do so
twice by themselves, and count their tries in a header; others send an `Idempotency-Key`. For both, an answer
that is not streamed is finished though nobody waits for it, and kept for whoever comes back. A stream is
ended with its connection, and asked for anew. Knows no socket and no money.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from http import HTTPStatus

import structlog

from tallystick.errors import Refusal
from tallystick.gateway import ROUTES, Answer, Gateway, refused
from tallystick.keccak import keccak
from tallystick.wire import KEY_PATTERN

log = structlog.get_logger(__name__)

KEPT = 120.0
"""Seconds for which an answer is kept. OpenAI's libraries come back within 8 (`MAX_RETRY_DELAY` there)."""
MOST = 100
"""Answers that are kept at a time; the oldest is the first to go."""
RETRY_COUNT = "x-stainless-retry-count"
"""What OpenAI's libraries count their tries in, from 0."""
REPLAYED = ("idempotent-replayed", "true")


@dataclass(frozen=True, slots=True)
class Try:
    """One try of a request: what it asks, under which key, and whether it is the first one."""

    asked: bytes
    """A hash of path and body."""
    key: str | None
    first: bool


@dataclass(slots=True, eq=False)
class _Kept:
    """An answer that is on its way, or there."""

    asked: bytes
    key: str | None
    answering: asyncio.Task[Answer] = field(repr=False)
    waiting: int = 0
    """Clients that wait for it."""

    def answers(self, again: Try) -> bool:
        """It is what that try comes back for."""
        if again.key is not None:
            return self.key == again.key
        return self.key is None and self.asked == again.asked and not again.first


class Repeats:
    """A gateway that knows who comes back."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._kept: list[_Kept] = []

    async def close(self) -> None:
        """Ends what is on its way."""
        answering = [kept.answering for kept in self._kept]
        for task in answering:
            task.cancel()
        await asyncio.gather(*answering, return_exceptions=True)
        self._kept.clear()

    @asynccontextmanager
    async def answer(
        self, method: str, path: str, body: bytes, headers: Mapping[str, str]
    ) -> AsyncIterator[Answer]:
        """As `Gateway.answer`; `headers` by their names in small letters."""
        try:
            one = _try(method, path, body, headers)
            kept = self._find(one) if one is not None else None
        except Refusal as refusal:
            yield refused(refusal)
            return
        if one is None:
            async with self._gateway.answer(method, path, body) as answer:
                yield answer
        elif kept is not None:
            answer = await _wait(kept)
            yield replace(answer, headers={**answer.headers, **dict([REPLAYED])})
        else:
            yield await _wait(self._begin(one, method, path, body))

    def _find(self, one: Try) -> _Kept | None:
        """What is kept for a try. Refusal `idempotency_mismatch` if its key was used for something else."""
        # Of equal ones the newest that nobody waits for: an older one has been handed out.
        fitting = [kept for kept in reversed(self._kept) if kept.answers(one)]
        found = min(fitting, key=lambda kept: kept.waiting, default=None)
        if found is not None and found.asked != one.asked:
            raise Refusal("idempotency_mismatch")
        return found

    def _begin(self, one: Try, method: str, path: str, body: bytes) -> _Kept:
        answering = asyncio.create_task(self._whole(method, path, body))
        kept = _Kept(one.asked, one.key, answering)
        self._kept.append(kept)
        answering.add_done_callback(lambda _: self._done(kept))
        return kept

    async def _whole(self, method: str, path: str, body: bytes) -> Answer:
        async with self._gateway.answer(method, path, body) as answer:
            return answer

    def _done(self, kept: _Kept) -> None:
        """What went wrong is not kept: it may go well the next time."""
        if kept.answering.cancelled():
            return
        error = kept.answering.exception()
        if error is not None and not kept.waiting:
            log.error("answer.failed", error=str(error), exc_info=error)
        if error is not None or kept.answering.result().status != HTTPStatus.OK:
            self._forget(kept)
        else:
            asyncio.get_running_loop().call_later(KEPT, self._forget, kept)
            self._make_room()

    def _make_room(self) -> None:
        done = [kept for kept in self._kept if kept.answering.done()]
        for kept in done[: max(0, len(done) - MOST)]:
            self._forget(kept)

    def _forget(self, kept: _Kept) -> None:
        if kept in self._kept:
            self._kept.remove(kept)


async def _wait(kept: _Kept) -> Answer:
    """Who stops waiting does not stop the answer."""
    kept.waiting += 1
    try:
        return await asyncio.shield(kept.answering)
    finally:
        kept.waiting -= 1


def _try(method: str, path: str, body: bytes, headers: Mapping[str, str]) -> Try | None:
    """Which try a request is; None for one that nobody comes back for. Refusal `invalid_request`."""
    key, count = headers.get("idempotency-key"), headers.get(RETRY_COUNT)
    asks = method == "POST" and path in ROUTES and (key is not None or count is not None)
    if not asks or ROUTES[path].read(body).stream:
        return None
    if key is not None and re.fullmatch(KEY_PATTERN, key) is None:
        raise Refusal("invalid_request", "`Idempotency-Key` has 1 to 255 visible characters of ASCII.")
    return Try(keccak(path.encode() + b"\n" + body), key, first=count in (None, "0"))
