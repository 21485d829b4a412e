"""OpenAI's own client over a payer's jobs: its `http_client` is this, so nothing of its API is copied.

What the client sends goes to a Gateway in the process instead of a socket. Needs the package `openai`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from http import HTTPStatus
from typing import Any, TypeVar

try:
    import httpx2
    import openai
except ImportError as error:
    from tallystick.errors import ConfigError

    raise ConfigError("session.openai() needs OpenAI's client: pip install 'tallystick[openai]'") from error

from tallystick.gateway import Gateway

BASE_URL = "http://tallystick.invalid/v1"
"""Nothing is resolved or asked there."""
T = TypeVar("T")
Each = Callable[[AsyncGenerator[T, None]], Iterator[T]]
"""Iterates in this thread over what another one's event loop brings."""
Wait = Callable[[Any], Any]
"""Waits in this thread for a coroutine of another one's event loop."""
Entered = Callable[[], Gateway]
"""The gateway of a session. SessionError once that was left, so that none of its clients pays any more."""


@asynccontextmanager
async def _reading(seconds: float | None) -> AsyncIterator[None]:
    """ReadTimeout if it takes longer: what is waited for is given up. None: as long as it takes."""
    patience = asyncio.timeout(seconds)
    try:
        async with patience:
            yield
    except TimeoutError as error:
        if not patience.expired():
            raise
        raise httpx2.ReadTimeout(f"nothing came for {seconds:g} s (`timeout`)") from error


class _Body(httpx2.AsyncByteStream):
    def __init__(
        self, body: AsyncGenerator[bytes, None], parts: AsyncExitStack, patience: float | None
    ) -> None:
        self._body = body
        self._parts = parts
        self._patience = patience

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while (event := await self._next()) is not None:
            yield event

    async def _next(self) -> bytes | None:
        async with _reading(self._patience):
            return await anext(self._body, None)

    async def aclose(self) -> None:
        await self._body.aclose()
        await self._parts.aclose()


class Transport(httpx2.AsyncBaseTransport):
    """Answers requests from a gateway. SessionError if there is none."""

    def __init__(self, entered: Entered) -> None:
        entered()
        self._entered = entered

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """The answer; its body has to be closed, as the client does.

        ReadTimeout if it does not begin in time, SessionError if the session was left. There is nothing to
        connect to, so the request's other timeouts have no meaning.
        """
        parts, patience = AsyncExitStack(), request.extensions.get("timeout", {}).get("read")
        async with _reading(patience):
            asked = self._entered().answer(request.method, request.url.path, await request.aread())
            answer = await parts.enter_async_context(asked)
        if isinstance(answer.body, bytes):
            await parts.aclose()
            if answer.status != HTTPStatus.OK:
                self._entered()  # who was refused because the session was left is told so
            return httpx2.Response(answer.status, headers=answer.headers, content=answer.body)
        body = _Body(answer.body, parts, patience)
        return httpx2.Response(answer.status, headers=answer.headers, stream=body)


class _SyncBody(httpx2.SyncByteStream):
    def __init__(self, body: _Body, wait: Wait, each: Each[bytes]) -> None:
        self._body = body
        self._wait = wait
        self._each = each

    def __iter__(self) -> Iterator[bytes]:
        return self._each(self._events())

    async def _events(self) -> AsyncGenerator[bytes, None]:
        async for event in self._body:
            yield event

    def close(self) -> None:
        self._wait(self._body.aclose())


class SyncTransport(httpx2.BaseTransport):
    """The same for threads that have no event loop."""

    def __init__(self, entered: Entered, wait: Wait, each: Each[bytes]) -> None:
        self._transport = Transport(entered)
        self._wait = wait
        self._each = each

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """As `Transport.handle_async_request`."""
        how: Any = {"content": request.read(), "extensions": request.extensions}
        asked = httpx2.Request(request.method, request.url, **how)
        answer: httpx2.Response = self._wait(self._transport.handle_async_request(asked))
        if not isinstance(answer.stream, _Body):
            return answer
        body = _SyncBody(answer.stream, self._wait, self._each)
        return httpx2.Response(answer.status_code, headers=answer.headers, stream=body)


def async_client(entered: Entered, **options: Any) -> openai.AsyncOpenAI:
    """OpenAI's asynchronous client, which pays."""
    http = openai.DefaultAsyncHttpxClient(transport=Transport(entered))
    return openai.AsyncOpenAI(**{"base_url": BASE_URL, "api_key": "-", "http_client": http, **options})


def client(entered: Entered, wait: Wait, each: Each[bytes], **options: Any) -> openai.OpenAI:
    """OpenAI's synchronous client, which pays."""
    http = openai.DefaultHttpxClient(transport=SyncTransport(entered, wait, each))
    return openai.OpenAI(**{"base_url": BASE_URL, "api_key": "-", "http_client": http, **options})
