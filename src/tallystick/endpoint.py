"""JSON-RPC over HTTP: a request out, an answer in, or an error that says what went wrong.

Knows no contract. A URL may hold a key in its path or query, so nothing here logs it, or puts more of it
than its host into an error.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import orjson
from aiohttp import ClientError, ClientSession, ClientTimeout, ServerDisconnectedError
from web3.providers.async_base import AsyncJSONBaseProvider
from web3.types import RPCEndpoint, RPCResponse
from yarl import URL

from tallystick.errors import ChainError, ConfigError, RpcError
from tallystick.roster import Status

CALL_TIMEOUT = 10.0
"""Seconds that one call may take."""

CHAIN_ID = RPCEndpoint("eth_chainId")
HEAD = RPCEndpoint("eth_blockNumber")

# Of these, null says "there is no such thing"; of any other it is no answer: a replica that lags gives it.
NULL_IS_AN_ANSWER = {"eth_getBlockByNumber", "eth_getTransactionReceipt"}


class Endpoint(AsyncJSONBaseProvider):
    """One JSON-RPC endpoint, as a provider for web3.

    web3's own provider logs the URL, leaves the kind of failure to be guessed, and connects anew for each
    call.
    """

    global_ccip_read_enabled = False

    def __init__(self, url: str, timeout: float = CALL_TIMEOUT) -> None:
        super().__init__()
        self._url = _http_url(url)
        self._timeout = timeout
        self._session: ClientSession | None = None
        self.host = f"{self._url.host}:{self._url.port}"

    async def make_request(self, method: RPCEndpoint, params: Any) -> RPCResponse:
        """The whole answer. RpcError: it is an error. ChainError: it came too late, or makes no sense."""
        status, answer = await self._answer(self.encode_rpc_request(method, params))
        if answer.get("error") is not None:
            raise _rpc_error(self.host, answer["error"], status)
        if answer.get("result") is None and method.startswith("eth_") and method not in NULL_IS_AN_ANSWER:
            raise ChainError(f"{self.host} answered null to {method}")
        return answer

    async def number(self, method: RPCEndpoint) -> int:
        """The result of a call that takes nothing and answers a number."""
        result = (await self.make_request(method, []))["result"]
        if not isinstance(result, str) or not re.fullmatch("0x[0-9a-fA-F]+", result):
            raise ChainError(f"{self.host} answered no number to {method}")
        return int(result, 16)

    async def statuses(self) -> list[Status]:
        """As of several endpoints."""
        return [Status(True, f"{self.host} is at block {await self.number(HEAD)}")]

    @asynccontextmanager
    async def view(self, at_least: int = 0) -> AsyncIterator[None]:
        """As of several endpoints (endpoints.py): of one alone, all answers are from the same."""
        yield

    async def disconnect(self) -> None:
        """Closes the connections. The next request opens new ones."""
        if self._session is not None:
            session, self._session = self._session, None
            await session.close()

    async def _answer(self, request: bytes) -> tuple[int, RPCResponse]:
        status, body = await self._post(request)
        try:
            answer = orjson.loads(body)
        except orjson.JSONDecodeError:
            answer = None
        if not isinstance(answer, dict) or not answer.keys() & {"result", "error"}:
            raise ChainError(f"{self.host} answered HTTP {status}, and no JSON-RPC")
        return status, cast(RPCResponse, answer)

    async def _post(self, request: bytes) -> tuple[int, bytes]:
        # No cause is chained: aiohttp's exceptions may quote the URL.
        try:
            async with asyncio.timeout(self._timeout):
                try:
                    return await self._post_once(request)
                except ServerDisconnectedError:
                    # It has just closed an idle connection. A request of ours may arrive twice without harm.
                    return await self._post_once(request)
        except TimeoutError:
            raise ChainError(f"{self.host} did not answer within {self._timeout:g} s") from None
        except (ClientError, OSError) as error:
            reason = getattr(error, "strerror", None) or type(error).__name__
            raise ChainError(f"{self.host} cannot be reached: {reason}") from None

    async def _post_once(self, request: bytes) -> tuple[int, bytes]:
        if self._session is None:
            self._session = ClientSession(
                timeout=ClientTimeout(total=None), headers={"Content-Type": "application/json"}
            )
        async with self._session.post(self._url, data=request) as response:
            return response.status, await response.read()


def _http_url(url: str) -> URL:
    try:
        parsed = URL(url)
    except ValueError:
        parsed = URL()
    if parsed.scheme not in {"http", "https"} or not parsed.host:
        raise ConfigError("the chain's endpoint has to be an http:// or https:// URL")
    return parsed


def _rpc_error(host: str, error: Any, status: int) -> RpcError:
    if not isinstance(error, dict):
        return RpcError(host, 0, str(error), status=status)
    message = str(error.get("message", "no message"))
    return RpcError(host, error.get("code", 0), message, error.get("data"), status=status)
