"""JSON-RPC over HTTP: a request out, an answer in, or an error that says what went wrong.

Knows no contract. A URL may hold a key in its path or query, so nothing here logs it, or puts more of it
than its host into an error.
"""

from __future__ import annotations

from typing import Any, cast

import orjson
from aiohttp import ClientError, ClientSession, ClientTimeout, ServerDisconnectedError
from web3.providers.async_base import AsyncJSONBaseProvider
from web3.types import RPCEndpoint, RPCResponse
from yarl import URL

from tallystick.errors import ChainError, ConfigError, RpcError

CALL_TIMEOUT = 10.0
"""Seconds that one call may take."""

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
        answer = await self._answer(self.encode_rpc_request(method, params))
        if answer.get("error") is not None:
            raise _rpc_error(self.host, answer["error"])
        if answer.get("result") is None and method.startswith("eth_") and method not in NULL_IS_AN_ANSWER:
            raise ChainError(f"{self.host} answered null to {method}")
        return answer

    async def disconnect(self) -> None:
        """Closes the connections. The next request opens new ones."""
        if self._session is not None:
            session, self._session = self._session, None
            await session.close()

    async def _answer(self, request: bytes) -> RPCResponse:
        status, body = await self._post(request)
        try:
            answer = orjson.loads(body)
        except orjson.JSONDecodeError:
            answer = None
        if not isinstance(answer, dict) or not answer.keys() & {"result", "error"}:
            raise ChainError(f"{self.host} answered HTTP {status}, and no JSON-RPC")
        return cast(RPCResponse, answer)

    async def _post(self, request: bytes) -> tuple[int, bytes]:
        # No cause is chained: aiohttp's exceptions may quote the URL.
        try:
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
                timeout=ClientTimeout(total=self._timeout), headers={"Content-Type": "application/json"}
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


def _rpc_error(host: str, error: Any) -> RpcError:
    if not isinstance(error, dict):
        return RpcError(host, 0, str(error))
    return RpcError(host, error.get("code", 0), str(error.get("message", "no message")), error.get("data"))
