"""The way to a server at a URL: what is sent, what comes back, and what it means when nothing does."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import aiohttp
import orjson

from tallystick.engines.refusals import detail_of, turned_down
from tallystick.errors import EngineTimeout, EngineUnavailable

CONNECT = 5.0
"""Seconds within which an engine's connection stands."""
ANSWER = 30.0
"""Seconds within which an engine answers what makes no token."""
IDLE = 4.0
"""Seconds for which an unused connection is kept: vLLM's server, uvicorn, drops it after 5."""
LINGER = 1.0
"""Seconds within which the body of a whole reply has to end for its connection to be kept."""


class _Way:
    """Which connection one request took."""

    used = False
    """Another request had it before."""


class Connection:
    """To a server, with or without `/v1` at the end of its URL. `open` it, and `close` it.

    `keeps`: connections are used again. To a server that has a thread for each, an idle one would hold up
    whoever waits; llama.cpp is one, and drops them after a stream unannounced.
    """

    def __init__(self, url: str, api_key: str | None = None) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        self.api_key = api_key
        self.keeps = False
        self._once: aiohttp.ClientSession | None = None
        """One request a connection."""
        self._kept: aiohttp.ClientSession | None = None

    def open(self) -> None:
        """Makes ready to ask. Must be called in an event loop, and may be called twice."""
        if self._once is None:
            self._once = self._session(aiohttp.TCPConnector(limit=0, force_close=True))
            kept = aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE)
            self._kept = self._session(kept, _telling_ways())

    def _session(
        self, connector: aiohttp.TCPConnector, *traces: aiohttp.TraceConfig
    ) -> aiohttp.ClientSession:
        headers = {"Content-Type": "application/json"}
        if self.api_key:
            headers["Authorization"] = f"Bearer {self.api_key}"
        return aiohttp.ClientSession(
            headers=headers,
            connector=connector,
            timeout=aiohttp.ClientTimeout(total=None, connect=CONNECT),
            trace_configs=list(traces),
        )

    async def close(self) -> None:
        """What is being read breaks off. May be called twice."""
        once, kept = self._once, self._kept
        self._once = self._kept = None
        for session in (once, kept):
            if session is not None:
                await session.close()

    async def fetch(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """The JSON answer to GET, or to POST of a body. Raises EngineError, or ValueError for no JSON."""
        method = "GET" if body is None else "POST"
        data = None if body is None else orjson.dumps(body)
        try:
            async with (
                asyncio.timeout(ANSWER),
                await self._request(method, path, data) as response,
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
            response = await self._request("POST", path, orjson.dumps(body))
            if response.status == 200:
                return response
            async with response:
                raise turned_down(response.status, detail_of(await response.read()))
        except aiohttp.ClientError as error:
            raise self._unreachable(error) from error

    def leave(self, response: aiohttp.ClientResponse, *, whole: bool) -> None:
        """Ends a stream: a closed connection tells the engine to stop, and a whole reply leaves it open."""
        if not (whole and self.keeps):
            response.close()
        elif not response.closed:
            # Servers send the end of a body apart from the end of the reply, a moment later.
            late = asyncio.get_running_loop().call_later(LINGER, response.close)
            response.content.on_eof(late.cancel)

    async def _request(self, method: str, path: str, data: bytes | None) -> aiohttp.ClientResponse:
        """The head of the answer. Raises aiohttp.ClientError."""
        if not self.keeps:
            return await self._send(self._once, method, path, data)
        way = _Way()
        try:
            return await self._send(self._kept, method, path, data, way)
        except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError):
            if not way.used:
                raise
        # The server was dropping the connection, as it may when it is idle; no answer came of it.
        return await self._send(self._once, method, path, data)

    async def _send(
        self,
        session: aiohttp.ClientSession | None,
        method: str,
        path: str,
        data: bytes | None,
        way: _Way | None = None,
    ) -> aiohttp.ClientResponse:
        if session is None:
            raise EngineUnavailable("The engine is not started.")
        return await session.request(
            method, self.url + path, data=data, allow_redirects=False, trace_request_ctx=way
        )

    def _unreachable(self, error: aiohttp.ClientError) -> EngineUnavailable:
        return EngineUnavailable(
            f"The engine at {self.url} cannot be reached (ENGINE_URL): {reason_of(error)}."
        )


def _telling_ways() -> aiohttp.TraceConfig:
    """Has each request's `_Way` told whether its connection was used before."""

    async def tell(_: object, context: SimpleNamespace, __: object) -> None:
        context.trace_request_ctx.used = True

    telling = aiohttp.TraceConfig()
    telling.on_connection_reuseconn.append(tell)
    return telling


def reason_of(error: Exception) -> str:
    """What an exception says, or what it is called where it says nothing."""
    return str(error) or type(error).__name__
