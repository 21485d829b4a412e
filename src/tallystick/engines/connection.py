"""The way to a server at a URL: what is sent, what comes back, and what it means when nothing does."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import aiohttp
import orjson

from tallystick.engines.refusals import detail_of, turned_down
from tallystick.errors import EngineTimeout, EngineUnavailable

CONNECT = 5.0
"""Seconds within which an engine's connection stands."""
ANSWER = 30.0
"""Seconds within which an engine answers what makes no token."""


class Connection:
    """To a server, with or without `/v1` at the end of its URL. `open` it, and `close` it."""

    def __init__(self, url: str, api_key: str | None = None) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        self.api_key = api_key
        self._session: aiohttp.ClientSession | None = None

    def open(self) -> None:
        """Makes ready to ask. Must be called in an event loop, and may be called twice."""
        if self._session is not None:
            return
        headers = {"Content-Type": "application/json"}
        if self.api_key:
            headers["Authorization"] = f"Bearer {self.api_key}"
        self._session = aiohttp.ClientSession(
            headers=headers,
            # One request a connection: llama.cpp drops it after a stream unannounced, others when it is idle,
            # and a payer's request must not meet one that is being dropped.
            connector=aiohttp.TCPConnector(limit=0, force_close=True),
            timeout=aiohttp.ClientTimeout(total=None, connect=CONNECT),
        )

    async def close(self) -> None:
        """What is being read breaks off. May be called twice."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def fetch(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """The JSON answer to GET, or to POST of a body. Raises EngineError, or ValueError for no JSON."""
        method = "GET" if body is None else "POST"
        data = None if body is None else orjson.dumps(body)
        try:
            async with (
                asyncio.timeout(ANSWER),
                self._opened().request(method, self.url + path, data=data, allow_redirects=False) as response,
            ):
                answer = await response.read()
        except aiohttp.ClientError as error:
            raise self._unreachable(error) from error
        except TimeoutError as error:
            raise EngineTimeout(f"The engine did not answer {path} in {ANSWER:g} s.") from error
        if response.status != 200:
            raise turned_down(response.status, detail_of(answer))
        return orjson.loads(answer)

    async def stream(self, path: str, body: Mapping[str, Any]) -> aiohttp.ClientResponse:
        """The answer to POST, its head read and its body yet to come. Raises EngineError."""
        try:
            response = await self._opened().post(
                self.url + path, data=orjson.dumps(body), allow_redirects=False
            )
            if response.status == 200:
                return response
            async with response:
                raise turned_down(response.status, detail_of(await response.read()))
        except aiohttp.ClientError as error:
            raise self._unreachable(error) from error

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise EngineUnavailable("The engine is not started.")
        return self._session

    def _unreachable(self, error: aiohttp.ClientError) -> EngineUnavailable:
        return EngineUnavailable(
            f"The engine at {self.url} cannot be reached (ENGINE_URL): {reason_of(error)}."
        )


def reason_of(error: Exception) -> str:
    """What an exception says, or what it is called where it says nothing."""
    return str(error) or type(error).__name__
