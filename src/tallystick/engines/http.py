"""An OpenAI-compatible server at a URL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from typing import Any

import aiohttp
import msgspec
import orjson

from tallystick.config import FIRST_TOKEN, NEXT_TOKEN
from tallystick.engine import Engine, Piece
from tallystick.engines.dialect import DIALECTS, Chunk, Dialect, is_chat
from tallystick.engines.reading import Reading
from tallystick.engines.refusals import detail_of, turned_down
from tallystick.errors import EngineError, EngineRefused, EngineStalled, EngineTimeout, EngineUnavailable

CONNECT = 5.0
"""Seconds within which an engine's connection stands."""
ANSWER = 30.0
"""Seconds within which anything else that an engine is asked is answered."""

_OURS = frozenset({"job_id", "tally", "id", "access"})
_SETTLED = frozenset(
    # How long a reply may be and how many of them, under every name that an engine knows,
    "max_tokens max_completion_tokens n_predict n n_cmpl best_of use_beam_search echo "
    # how it is streamed and counted,
    "stream stream_options timings_per_token sse_ping_interval response_fields verbose return_progress "
    # and what of the host's it uses: none of it is a payer's to say.
    "id_slot lora priority".split()
)
_PROBE: dict[str, Any] = {"messages": [{"role": "user", "content": "Hello"}], "temperature": 0}
_PROBE_TOKENS = 8


class HttpEngine(Engine):
    """An OpenAI-compatible server at a URL, with or without `/v1` at its end.

    `dialect`: how it counts; found out at start if not given. Times are in seconds.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        dialect: Dialect | None = None,
        first_token: float = FIRST_TOKEN,
        next_token: float = NEXT_TOKEN,
    ) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        self.models = []
        self.context = None
        self._api_key = api_key
        self._dialect = dialect
        self._first_token = first_token
        self._next_token = next_token
        self._session: aiohttp.ClientSession | None = None

    async def start(self) -> None:
        """Connects, lists the models, and has a few tokens made to see how the server counts."""
        async with AsyncExitStack() as undo:
            self._session = self._connect()
            undo.push_async_callback(self.close)
            with self._understood():
                await self._meet()
            undo.pop_all()

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def count_prompt(self, body: Mapping[str, Any]) -> int:
        dialect, request = self._spoken(), self._request(body)
        with self._understood():
            return await dialect.count_prompt(self._fetch, request)

    def stream(
        self, body: Mapping[str, Any], max_tokens: int
    ) -> AbstractAsyncContextManager[AsyncIterator[list[Piece]]]:
        return self._stream(body, max_tokens, self._spoken())

    @asynccontextmanager
    async def _stream(
        self, body: Mapping[str, Any], max_tokens: int, dialect: Dialect
    ) -> AsyncIterator[AsyncIterator[list[Piece]]]:
        if max_tokens < 1:
            raise ValueError(f"max_tokens is {max_tokens}; an engine is asked for at least one token")
        request = {**self._request(body), **dialect.asks, "stream": True, "max_tokens": max_tokens}
        clock = asyncio.get_running_loop().time
        asked = clock()
        response = await self._ask(request)
        reply = Reading(dialect)
        pieces = self._pieces(response, reply, self._first_token - (clock() - asked))
        try:
            yield pieces
        finally:
            await pieces.aclose()
            response.close()  # which is how an engine is told to stop

    async def _ask(self, request: dict[str, Any]) -> aiohttp.ClientResponse:
        """The engine's response, its head read and its body yet to come."""
        try:
            async with asyncio.timeout(self._first_token):
                response = await self._open().post(
                    self.url + _route(request), data=orjson.dumps(request), allow_redirects=False
                )
                if response.status == 200:
                    return response
                async with response:
                    raise turned_down(response.status, detail_of(await response.read()))
        except aiohttp.ClientError as error:
            raise self._unreachable(error) from error
        except TimeoutError as error:
            raise EngineTimeout(f"The engine made no token in {self._first_token:g} s.") from error

    async def _pieces(
        self, response: aiohttp.ClientResponse, reply: Reading, patience: float
    ) -> AsyncGenerator[list[Piece], None]:
        clock = asyncio.get_running_loop().time
        while not reply.done:
            before, since = reply.tokens, clock()
            pieces = await self._read(response, reply, patience)
            # Silence is time without a token: who only sends comments or empty chunks is silent too.
            patience = self._next_token if reply.tokens > before else patience - (clock() - since)
            if pieces:
                yield pieces
            if reply.failure is not None:
                raise reply.failure

    async def _read(self, response: aiohttp.ClientResponse, reply: Reading, patience: float) -> list[Piece]:
        try:
            async with asyncio.timeout(patience):
                data = await response.content.readany()
        # aiohttp raises RuntimeError where the connection was closed on this side.
        except (aiohttp.ClientError, RuntimeError) as error:
            raise reply.broken(f"its connection broke: {_reason(error)}") from error
        except TimeoutError as error:
            raise self._silent(reply) from error
        if not data:
            reply.end()
        return reply.feed(data)

    def _silent(self, reply: Reading) -> EngineTimeout:
        if reply.tokens:
            return EngineStalled(f"The engine fell silent after {reply.tokens} tokens.")
        return EngineTimeout(f"The engine made no token in {self._first_token:g} s.")

    async def _meet(self) -> None:
        listed = (await self._fetch("/v1/models"))["data"]
        if not listed:
            raise EngineError(f"The engine at {self.url} serves no model.")
        self.models = [str(model["id"]) for model in listed]
        self._dialect = await self._find_dialect()
        self.context = await self._dialect.context(self._fetch, listed[0])

    async def _find_dialect(self) -> Dialect:
        """The dialect that the server counts in. EngineError if none, or if prompts are counted otherwise."""
        for dialect in DIALECTS if self._dialect is None else (self._dialect,):
            prompt_tokens = await self._probe(dialect)
            if prompt_tokens is None:
                continue
            counted = await dialect.count_prompt(self._fetch, self._request(_PROBE))
            if counted != prompt_tokens:
                raise EngineError(
                    f"The engine at {self.url} counts a prompt as {counted} tokens and bills {prompt_tokens}."
                )
            return dialect
        raise EngineError(
            f"The engine at {self.url} tells no running count of its tokens, only a final usage or none. "
            "It takes llama.cpp's `timings_per_token` or vLLM's `stream_options.continuous_usage_stats`."
        )

    async def _probe(self, dialect: Dialect) -> int | None:
        """Has a few tokens made. The prompt's tokens if the server speaks the dialect, None if not."""
        spoken = False
        last: Piece | None = None
        try:
            async with self._stream(_PROBE, _PROBE_TOKENS, dialect) as reads:
                async for pieces in reads:
                    spoken |= any(dialect.spoken_in(msgspec.convert(piece.raw, Chunk)) for piece in pieces)
                    last = pieces[-1]
        except EngineRefused:  # by a server that takes no member that it does not know
            return None
        return last.prompt_tokens if spoken and last is not None else None

    def _request(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The payer's body as the engine gets it: less what is ours and what is settled here."""
        if body.get("n") not in (None, 1):
            raise EngineRefused("n has to be 1.")
        request = {member: value for member, value in body.items() if member not in _OURS | _SETTLED}
        if request.get("model") is None and self.models:
            request["model"] = self.models[0]
        return request

    async def _fetch(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        method = "GET" if body is None else "POST"
        data = None if body is None else orjson.dumps(body)
        try:
            async with (
                asyncio.timeout(ANSWER),
                self._open().request(method, self.url + path, data=data, allow_redirects=False) as response,
            ):
                answer = await response.read()
        except aiohttp.ClientError as error:
            raise self._unreachable(error) from error
        except TimeoutError as error:
            raise EngineTimeout(f"The engine did not answer {path} in {ANSWER:g} s.") from error
        if response.status != 200:
            raise turned_down(response.status, detail_of(answer))
        return orjson.loads(answer)

    @contextmanager
    def _understood(self) -> Iterator[None]:
        try:
            yield
        except (LookupError, TypeError, ValueError) as error:
            raise EngineError(f"{self.url} does not answer as an OpenAI-compatible server does.") from error

    def _connect(self) -> aiohttp.ClientSession:
        headers = {"Content-Type": "application/json"}
        if self._api_key:
            headers["Authorization"] = f"Bearer {self._api_key}"
        return aiohttp.ClientSession(
            headers=headers,
            # One request a connection: llama.cpp drops it after a stream unannounced, others when it is idle,
            # and a payer's request must not meet one that is being dropped.
            connector=aiohttp.TCPConnector(limit=0, force_close=True),
            timeout=aiohttp.ClientTimeout(total=None, connect=CONNECT),
        )

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise EngineUnavailable("The engine is not started.")
        return self._session

    def _spoken(self) -> Dialect:
        if self._dialect is None:
            raise EngineUnavailable("The engine is not started.")
        return self._dialect

    def _unreachable(self, error: aiohttp.ClientError) -> EngineUnavailable:
        return EngineUnavailable(
            f"The engine at {self.url} cannot be reached (ENGINE_URL): {_reason(error)}."
        )


def _route(request: Mapping[str, Any]) -> str:
    return "/v1/chat/completions" if is_chat(request) else "/v1/completions"


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__
