"""An OpenAI-compatible server at a URL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from typing import Any

import aiohttp
import msgspec
import structlog

from tallystick.config import FIRST_TOKEN, NEXT_TOKEN
from tallystick.engine import Engine, Health, Piece, Pieces
from tallystick.engines.connection import Connection, reason_of
from tallystick.engines.dialect import DIALECTS, Chunk, Dialect, NoUsage, is_chat
from tallystick.engines.prompts import Estimated, Prompts, Tokenized, Told
from tallystick.engines.provisional import Provisional, TextCount
from tallystick.engines.reading import Reading
from tallystick.engines.refusals import NoRoute
from tallystick.engines.tokenizer import Tokenizer
from tallystick.errors import (
    EngineEmpty,
    EngineError,
    EngineRefused,
    EngineStalled,
    EngineTimeout,
    EngineUnavailable,
    EngineUncounted,
)

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

log = structlog.get_logger(__name__)


class HttpEngine(Engine):
    """An OpenAI-compatible server at a URL, with or without `/v1` at its end.

    `dialect`: how it counts; found out at start if not given. `tokenizer`: a started one, to count what the
    server does not. Times are in seconds.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        dialect: Dialect | None = None,
        tokenizer: Tokenizer | None = None,
        first_token: float = FIRST_TOKEN,
        next_token: float = NEXT_TOKEN,
    ) -> None:
        self.connection = Connection(url, api_key)
        self.models = []
        self.context = None
        self.streams = 0
        """Replies under way."""
        self._given = dialect
        self._dialect = dialect
        self._prompts: Prompts | None = None
        self._tokenizer = tokenizer
        self._first_token = first_token
        self._next_token = next_token

    @property
    def url(self) -> str:
        """Where it is asked, without `/v1`."""
        return self.connection.url

    async def start(self) -> None:
        """Connects, lists the models, and has a few tokens made to see how the server counts.

        Started again, it does all that anew, and what streams meanwhile goes on.
        """
        self.connection.open()
        try:
            with self._understood():
                await self._meet()
        except BaseException:
            if self._prompts is None:
                self.models = []
                await self.close()
            raise

    async def close(self) -> None:
        await self.connection.close()

    def health(self) -> list[Health]:
        return [Health(self.streams, None if self.lacks() is None else EngineUncounted.code)]

    def lacks(self) -> str | None:
        """Why it cannot serve paid jobs; None: it can."""
        if isinstance(self._dialect, NoUsage) and self._tokenizer is None:
            return f"the engine at {self.url} says nothing of its counts (ENGINE_TOKENIZER is not set)"
        return None

    async def count_prompt(self, body: Mapping[str, Any]) -> int:
        request, prompts = self._request(body), self._counting()
        with self._understood():
            return await prompts.count(request)

    def most_prompt(self, body: Mapping[str, Any]) -> int | None:
        return self._counting().most(self._request(body))

    def stream(
        self, body: Mapping[str, Any], max_tokens: int
    ) -> AbstractAsyncContextManager[AsyncIterator[Pieces]]:
        prompts, dialect = self._counting(), self._dialect
        assert dialect is not None
        return self._counted(self._stream(body, max_tokens, dialect, prompts))

    @asynccontextmanager
    async def _counted(
        self, stream: AbstractAsyncContextManager[AsyncIterator[Pieces]]
    ) -> AsyncIterator[AsyncIterator[Pieces]]:
        self.streams += 1
        try:
            async with stream as reads:
                yield reads
        finally:
            self.streams -= 1

    @asynccontextmanager
    async def _stream(
        self, body: Mapping[str, Any], max_tokens: int, dialect: Dialect, prompts: Prompts | None = None
    ) -> AsyncIterator[AsyncIterator[Pieces]]:
        if max_tokens < 1:
            raise ValueError(f"max_tokens is {max_tokens}; an engine is asked for at least one token")
        request = self._request(body)
        clock = asyncio.get_running_loop().time
        asked = clock()
        response = await self._ask({**request, **dialect.asks, "stream": True, "max_tokens": max_tokens})
        reply = Reading(dialect)
        pieces = self._pieces(response, reply, self._first_token - (clock() - asked))
        if dialect.provisional:
            text = TextCount(self._tokenizer) if self._tokenizer is not None else None
            pieces = Provisional(prompts.sure(request) if prompts else 0, text).told(pieces)
        try:
            yield pieces
        finally:
            await pieces.aclose()
            self.connection.leave(response, whole=reply.done)

    async def _ask(self, request: dict[str, Any]) -> aiohttp.ClientResponse:
        """The engine's response, its head read and its body yet to come."""
        try:
            async with asyncio.timeout(self._first_token):
                return await self.connection.stream(_route(request), request)
        except TimeoutError as error:
            raise self._late() from error

    async def _pieces(
        self, response: aiohttp.ClientResponse, reply: Reading, patience: float
    ) -> AsyncGenerator[Pieces, None]:
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

    async def _read(self, response: aiohttp.ClientResponse, reply: Reading, patience: float) -> Pieces:
        try:
            async with asyncio.timeout(patience):
                data = await response.content.readany()
        # aiohttp raises RuntimeError where the connection was closed on this side.
        except (aiohttp.ClientError, RuntimeError) as error:
            raise reply.broken(f"its connection broke: {reason_of(error)}") from error
        except TimeoutError as error:
            raise self._silent(reply) from error
        if not data:
            reply.end()
        return reply.feed(data)

    def _silent(self, reply: Reading) -> EngineTimeout:
        if reply.tokens:
            return EngineStalled(f"The engine fell silent after {reply.tokens} tokens.")
        return self._late()

    def _late(self) -> EngineTimeout:
        return EngineTimeout(f"The engine made no token in {self._first_token:g} s.")

    # Meeting

    async def _meet(self) -> None:
        listed = (await self.connection.fetch("/v1/models"))["data"]
        if not listed:
            raise EngineError(f"The engine at {self.url} serves no model.")
        self.models = [str(model["id"]) for model in listed]
        self._dialect, billed = await self._find_dialect()
        self.connection.keeps = self._dialect.keeps
        prompts = await self._find_prompts(self._dialect, billed)
        self.context = await self._dialect.context(self.connection.fetch, listed[0])
        self._prompts = prompts
        self._say_how_it_counts(self._dialect, prompts)

    async def _find_dialect(self) -> tuple[Dialect, int]:
        """The dialect that the server counts in, and as how many tokens it counts the prompt of the probe."""
        for dialect in DIALECTS if self._given is None else (self._given,):
            billed = await self._probe(dialect)
            if billed is not None:
                return dialect, billed
        raise EngineError(f"The engine at {self.url} makes no reply that can be read.")

    async def _probe(self, dialect: Dialect) -> int | None:
        """Has a few tokens made. The prompt's tokens if the server speaks the dialect, None if not."""
        spoken = False
        pieces: list[Piece] = []
        try:
            async with self._stream(_PROBE, _PROBE_TOKENS, dialect) as reads:
                async for read in reads:
                    brought = [piece.whole() for piece in read]
                    pieces += brought
                    spoken |= any(dialect.spoken_in(msgspec.convert(piece.raw, Chunk)) for piece in brought)
        except EngineRefused:  # by a server that takes no member that it does not know
            return None
        except EngineEmpty:
            if any(piece.text for piece in pieces):
                return None  # there were tokens, which it did not count
            raise
        return pieces[-1].prompt_tokens if spoken else None

    async def _find_prompts(self, dialect: Dialect, billed: int) -> Prompts:
        """What counts the server's prompts. EngineError if the server counts them otherwise than it bills."""
        told = Told(dialect, self.connection.fetch, billed)
        try:
            counted = await told.count(self._request(_PROBE))
        except (NoRoute, EngineRefused):
            return await self._count_ourselves(billed)
        if counted != billed:
            raise EngineError(
                f"The engine at {self.url} counts a prompt as {counted} tokens and bills {billed}."
            )
        return told

    async def _count_ourselves(self, billed: int) -> Prompts:
        probe = self._request(_PROBE)
        if self._tokenizer is None:
            return Estimated(probe, billed)
        counted = await self._tokenizer.count_prompt(probe)
        return Tokenized(self._tokenizer, apart=counted - billed if billed else 0)

    def _say_how_it_counts(self, dialect: Dialect, prompts: Prompts) -> None:
        if self.lacks() is not None:
            log.error(
                "engine.uncounted",
                url=self.url,
                meaning="the engine says nothing of its counts, so no paid job is served with it",
                mend="set ENGINE_TOKENIZER to a GGUF file with its vocabulary and restart",
            )
            return
        tell = log.warning if dialect.provisional or isinstance(prompts, Estimated) else log.info
        tell("engine.counts", url=self.url, tokens=dialect.name, prompts=prompts.name, models=self.models)

    def _counting(self) -> Prompts:
        if self._prompts is None:
            raise EngineUnavailable("The engine is not started.")
        if (lack := self.lacks()) is not None:
            raise EngineUncounted(f"It serves no paid job: {lack}.")
        return self._prompts

    def _request(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The payer's body as the engine gets it: less what is ours and what is settled here."""
        if body.get("n") not in (None, 1):
            raise EngineRefused("n has to be 1.")
        request = {member: value for member, value in body.items() if member not in _OURS | _SETTLED}
        if request.get("model") is None and self.models:
            request["model"] = self.models[0]
        return request

    @contextmanager
    def _understood(self) -> Iterator[None]:
        try:
            yield
        except (LookupError, TypeError, ValueError) as error:
            raise EngineError(f"{self.url} does not answer as an OpenAI-compatible server does.") from error


def _route(request: Mapping[str, Any]) -> str:
    return "/v1/chat/completions" if is_chat(request) else "/v1/completions"
