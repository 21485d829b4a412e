"""JSON-RPC over HTTP: a request out, an answer in, or an error that says what went wrong.

Knows no contract. A URL may hold a key in its path or query, so nothing here logs it, or puts more of it
than its host into an error.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from typing import Any, cast

import orjson
from aiohttp import ClientError, ClientSession, ClientTimeout, ServerDisconnectedError
from web3.providers.async_base import AsyncJSONBaseProvider
from web3.types import RPCEndpoint, RPCResponse
from yarl import URL

from tallystick import outgoing
from tallystick.errors import ChainError, ConfigError, RpcError

CALL_TIMEOUT = 10.0
"""Seconds that one call may take."""

LARGEST_ARRAY = 100
"""Calls in one request: few endpoints take more."""
AT_ONCE = 8
"""Requests under way at a time, of those that belong together."""

# With these a gateway speaks in the node's place, be it in JSON-RPC: it does not know the key, there is no
# credit, there are too many calls, nobody is behind it.
NOT_THE_NODE = {401, 402, 403, 408, 429, 502, 503, 504}

CHAIN_ID = RPCEndpoint("eth_chainId")
HEAD = RPCEndpoint("eth_blockNumber")

# Of these, null says "there is no such thing"; of any other it is no answer: a replica that lags gives it.
NULL_IS_AN_ANSWER = {"eth_getBlockByNumber", "eth_getTransactionReceipt"}


Asked = tuple[RPCEndpoint, Any]
"""A call: its method and its parameters."""


class ArrayRefused(ChainError):
    """The endpoint answered, and not as one answers so many calls in one request."""


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
        self._array = LARGEST_ARRAY
        """Calls that it takes in one request, as far as is known."""
        self.host = f"{self._url.host}:{self._url.port}"

    async def make_request(self, method: RPCEndpoint, params: Any) -> RPCResponse:
        """The whole answer. RpcError: the node says no. ChainError: nobody answered, or not the node."""
        status, answer = await self._answer(self.encode_rpc_request(method, params))
        return self._checked(method, answer, status)

    async def ask_all(self, calls: Sequence[Asked]) -> list[Any | RpcError]:
        """Many calls in few requests: to each its result, or the error that it met.

        An endpoint that refuses an array of calls is asked in shorter ones, in the end one by one. ChainError
        as of `make_request`.
        """
        size = self._array
        while size > 1:
            try:
                answers = await self._in_turns([calls[at : at + size] for at in range(0, len(calls), size)])
            except ArrayRefused:
                size //= 2
            else:
                self._array = size
                return answers
        answers = await self._in_turns([[call] for call in calls])
        self._array = size
        return answers

    async def number(self, method: RPCEndpoint) -> int:
        """The result of a call that takes nothing and answers a number."""
        result = (await self.make_request(method, []))["result"]
        if not isinstance(result, str) or not re.fullmatch("0x[0-9a-fA-F]+", result):
            raise ChainError(f"{self.host} answered no number to {method}")
        return int(result, 16)

    async def disconnect(self) -> None:
        """Closes the connections. The next request opens new ones."""
        if self._session is not None:
            session, self._session = self._session, None
            await session.close()

    async def _in_turns(self, parts: Sequence[Sequence[Asked]]) -> list[Any | RpcError]:
        turns = asyncio.Semaphore(AT_ONCE)

        async def ask(part: Sequence[Asked]) -> list[Any | RpcError]:
            async with turns:
                return [await self._ask_one(*part[0])] if len(part) == 1 else await self._ask_array(part)

        asking = [asyncio.create_task(ask(part)) for part in parts]
        try:
            return [answer for answers in await asyncio.gather(*asking) for answer in answers]
        finally:
            for task in asking:
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)

    async def _ask_one(self, method: RPCEndpoint, params: Any) -> Any | RpcError:
        try:
            return (await self.make_request(method, params))["result"]
        except RpcError as error:
            return error

    async def _ask_array(self, calls: Sequence[Asked]) -> list[Any | RpcError]:
        asked = [
            {"jsonrpc": "2.0", "id": number, "method": method, "params": params}
            for number, (method, params) in enumerate(calls)
        ]
        status, body = await self._post(orjson.dumps(asked))
        found = _loaded(body)
        if not isinstance(found, list):
            kind = ChainError if status in NOT_THE_NODE else ArrayRefused
            raise kind(f"{self.host} answered HTTP {status}, and no array, to {len(calls)} calls in one")
        answers = {answer["id"]: answer for answer in found if _is_answer(answer) and "id" in answer}
        if len(answers) < len(calls):
            raise ArrayRefused(f"{self.host} answered {len(answers)} of {len(calls)} calls in one")
        return [self._told(method, answers[number], status) for number, (method, _) in enumerate(calls)]

    def _told(self, method: RPCEndpoint, answer: Any, status: int) -> Any | RpcError:
        try:
            return self._checked(method, answer, status)["result"]
        except RpcError as error:
            return error

    def _checked(self, method: RPCEndpoint, answer: Any, status: int) -> RPCResponse:
        if answer.get("error") is not None:
            raise _error(self.host, answer["error"], status)
        if answer.get("result") is None and method.startswith("eth_") and method not in NULL_IS_AN_ANSWER:
            raise ChainError(f"{self.host} answered null to {method}")
        return cast(RPCResponse, answer)

    async def _answer(self, request: bytes) -> tuple[int, RPCResponse]:
        status, body = await self._post(request)
        answer = _loaded(body)
        if not _is_answer(answer):
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
            headers = {"Content-Type": "application/json"}
            self._session = outgoing.client(ClientTimeout(total=None), headers=headers)
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


def _loaded(body: bytes) -> Any:
    """What a body says; None if it is no JSON."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        return None


def _is_answer(answer: Any) -> bool:
    return isinstance(answer, dict) and bool(answer.keys() & {"result", "error"})


def _error(host: str, error: Any, status: int) -> ChainError:
    """What an answer's `error` comes to: the node's own, or a gateway's in its place."""
    told: dict[str, Any] = error if isinstance(error, dict) else {"message": str(error)}
    message, code = str(told.get("message", "no message")), told.get("code", 0)
    if status in NOT_THE_NODE:
        return ChainError(f"{host} answered HTTP {status}: {message} ({code})")
    return RpcError(host, code, message, told.get("data"))
