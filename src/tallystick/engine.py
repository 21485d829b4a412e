"""Text in, counted tokens out: any OpenAI-compatible inference server, or llama.cpp in this process.

What servers differ in (how they tell the running count, how they count a prompt) is a `Dialect`; how one
reply is read is `Reply`, which does no I/O. Knows nothing of money, jobs or payers.
"""

from __future__ import annotations

import abc
import asyncio
import os
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, ClassVar, Self

import aiohttp
import msgspec
import orjson

from tallystick.errors import EngineError, EngineRefused, EngineTimeout, EngineUnavailable
from tallystick.transcript import delta_text
from tallystick.wire import SSEParser

CONNECT = 5.0
"""Seconds within which an engine's connection stands."""
FIRST_TOKEN = 120.0
"""Seconds within which a reply's first token comes: the engine's queue and the reading of the prompt."""
NEXT_TOKEN = 60.0
"""Seconds within which each further token comes."""
ANSWER = 30.0
"""Seconds within which anything else that an engine is asked is answered."""
CONTEXT = 4096
"""Tokens of context of a request to llama.cpp in the process, prompt and reply together."""
SLOTS = 4
"""Requests that llama.cpp in the process serves at a time; more wait."""

_OURS = frozenset({"job_id", "tally", "id", "access"})
_SETTLED = frozenset(
    # How long a reply may be and how many of them, under every name that an engine knows,
    "max_tokens max_completion_tokens n_predict n n_cmpl best_of use_beam_search echo "
    # how it is streamed and counted,
    "stream stream_options timings_per_token sse_ping_interval response_fields verbose return_progress "
    # and what of the host's it uses: none of it is a payer's to say.
    "id_slot lora priority".split()
)
_DETAIL = 500
_KEY_REFUSED = (401, 403)
# 4xx that the same request may get past later, or that no payer can mend.
_NOT_THE_PAYERS = (*_KEY_REFUSED, 404, 405, 408, 429)
_PROBE: dict[str, Any] = {"messages": [{"role": "user", "content": "Hello"}], "temperature": 0}
_PROBE_TOKENS = 8

Fetch = Callable[..., Awaitable[Any]]
"""`fetch(path, body=None)`: the JSON answer to GET, or to POST of a body. Raises EngineError."""


class Usage(msgspec.Struct):
    """OpenAI's `usage`, in tokens."""

    prompt_tokens: int = 0
    completion_tokens: int = 0


class Timings(msgspec.Struct):
    """llama.cpp's `timings`, in tokens; `prompt_n` leaves out what was in its cache."""

    predicted_n: int
    prompt_n: int
    cache_n: int = 0


class Choice(msgspec.Struct):
    """What the package reads of one of a chunk's choices."""

    delta: dict[str, Any] | None = None
    finish_reason: str | None = None
    token_ids: list[int] | None = None


class Chunk(msgspec.Struct):
    """What the package reads of one chunk of a stream."""

    choices: list[Choice] = []
    usage: Usage | None = None
    timings: Timings | None = None
    error: Any = None


class Piece(msgspec.Struct, frozen=True):
    """One chunk of a reply, with the running counts that it brings the request to."""

    choices: list[dict[str, Any]]
    """As the engine sent them; none in a chunk that brings the final usage."""
    text: str
    """The text of the deltas (protocol §4), choice by choice."""
    prompt_tokens: int
    """Tokens of the prompt; 0 before the first token, as nothing is served until then."""
    tokens: int
    """Generated tokens of the request so far."""
    finish_reason: str | None
    ids: list[int] | None
    """Ids of this chunk's tokens, where the engine gives them."""
    usage: dict[str, Any] | None
    raw: dict[str, Any]
    """The whole chunk."""


class Dialect(abc.ABC):
    """How one family of servers counts. Without state, so that one instance serves all requests."""

    name: ClassVar[str]
    asks: ClassVar[Mapping[str, Any]]
    """Members of a request that make the server tell its running count."""

    @abc.abstractmethod
    def counts(self, chunk: Chunk) -> tuple[int, int] | None:
        """Prompt tokens and generated tokens so far, if this chunk tells them."""

    @abc.abstractmethod
    def spoken_in(self, chunk: Chunk) -> bool:
        """True for a chunk that only a server of this family sends."""

    @abc.abstractmethod
    async def count_prompt(self, fetch: Fetch, body: Mapping[str, Any]) -> int:
        """Tokens that the server will count as the prompt of `body`. Raises what `fetch` raises."""

    @abc.abstractmethod
    async def context(self, fetch: Fetch, model: Mapping[str, Any]) -> int | None:
        """Tokens that a request may fill; None: not told. `model` is its entry in `/v1/models`."""


class LlamaCpp(Dialect):
    """llama.cpp's server."""

    name = "llama.cpp"
    asks: ClassVar = {"timings_per_token": True, "stream_options": {"include_usage": True}}

    def counts(self, chunk: Chunk) -> tuple[int, int] | None:
        # Timings leave out what has no text at the end (a cut character, a stop string); the usage does not.
        if chunk.usage is not None:
            return chunk.usage.prompt_tokens, chunk.usage.completion_tokens
        if chunk.timings is not None:
            return chunk.timings.cache_n + chunk.timings.prompt_n, chunk.timings.predicted_n
        return None

    def spoken_in(self, chunk: Chunk) -> bool:
        return chunk.timings is not None

    async def count_prompt(self, fetch: Fetch, body: Mapping[str, Any]) -> int:
        try:
            return int((await fetch("/v1/chat/completions/input_tokens", body))["input_tokens"])
        except _NoRoute:
            prompt = (await fetch("/apply-template", body))["prompt"]
            # As the server does for a chat: with its own BOS, and special tokens in the text read as such.
            how = {"content": prompt, "add_special": True, "parse_special": True}
            return len((await fetch("/tokenize", how))["tokens"])

    async def context(self, fetch: Fetch, model: Mapping[str, Any]) -> int | None:
        props = await fetch("/props")
        return int(props["default_generation_settings"]["n_ctx"])


class ContinuousUsage(Dialect):
    """vLLM, and servers that follow it: a usage in every chunk."""

    name = "continuous usage"
    asks: ClassVar = {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}
    _TEMPLATE = frozenset(
        "model messages tools chat_template chat_template_kwargs "
        "add_generation_prompt continue_final_message".split()
    )

    def counts(self, chunk: Chunk) -> tuple[int, int] | None:
        return None if chunk.usage is None else (chunk.usage.prompt_tokens, chunk.usage.completion_tokens)

    def spoken_in(self, chunk: Chunk) -> bool:
        return chunk.usage is not None and bool(chunk.choices)

    async def count_prompt(self, fetch: Fetch, body: Mapping[str, Any]) -> int:
        chosen = {member: value for member, value in body.items() if member in self._TEMPLATE}
        return int((await fetch("/tokenize", chosen))["count"])

    async def context(self, fetch: Fetch, model: Mapping[str, Any]) -> int | None:
        length = model.get("max_model_len")
        return None if length is None else int(length)


DIALECTS: tuple[Dialect, ...] = (LlamaCpp(), ContinuousUsage())


class Reply:
    """One streamed reply as it is read: bytes in, pieces out."""

    def __init__(self, dialect: Dialect) -> None:
        self.prompt_tokens = 0
        self.tokens = 0
        self.done = False
        """The reply is whole."""
        self.failure: EngineError | None = None
        """Why there is no more; raised once the pieces before it are delivered."""
        self._dialect = dialect
        self._events = SSEParser()

    def feed(self, data: bytes) -> list[Piece]:
        """The pieces that `data` completes; afterwards `done` or `failure` may be set."""
        pieces: list[Piece] = []
        try:
            for payload in self._events.feed(data):
                if payload == b"[DONE]":
                    self._finish()
                    break
                pieces.append(self.piece(orjson.loads(payload)))
        except EngineError as error:
            self.failure = error
        except ValueError as error:  # also what orjson and msgspec raise
            self.failure = self.broken(f"what it sent cannot be read: {error}")
        return pieces

    def piece(self, raw: dict[str, Any]) -> Piece:
        """The piece that one chunk makes. Raises EngineError; msgspec.ValidationError for a strange chunk."""
        chunk = msgspec.convert(raw, Chunk)
        if chunk.error is not None:
            raise self._failed(chunk.error)
        counts = self._dialect.counts(chunk)
        if counts is not None:
            self._count(*counts)
        finish_reason = ids = None
        text = ""
        for choice in chunk.choices:
            text += delta_text(choice.delta or {})
            finish_reason = choice.finish_reason or finish_reason
            ids = choice.token_ids or ids
        return Piece(
            choices=raw.get("choices") or [],
            text=text,
            prompt_tokens=self.prompt_tokens,
            tokens=self.tokens,
            finish_reason=finish_reason,
            ids=ids,
            usage=raw.get("usage"),
            raw=raw,
        )

    def end(self) -> None:
        """The connection is at its end."""
        if not self.done and self.failure is None:
            self.failure = self.broken(f"its reply broke off after {self.tokens} tokens")

    def broken(self, why: str) -> EngineError:
        """The error for a reply that ends here: EngineUnavailable as long as no token has come."""
        kind = EngineError if self.tokens else EngineUnavailable
        return kind(f"The engine failed: {why}.")

    def _count(self, prompt_tokens: int, tokens: int) -> None:
        if tokens < self.tokens:
            raise self.broken(f"its count went back from {self.tokens} to {tokens}")
        self.tokens = tokens
        self.prompt_tokens = prompt_tokens if tokens else 0

    def _finish(self) -> None:
        if not self.tokens:
            raise self.broken("its reply has no counted token")
        self.done = True

    def _failed(self, error: Any) -> EngineError:
        status = error.get("code") if isinstance(error, dict) else None
        detail = _detail(error)
        if isinstance(status, int) and not self.tokens:
            return _turned_down(status, detail)
        return self.broken(detail)


class Engine(abc.ABC):
    """An inference engine. `async with engine:` starts and closes it."""

    models: list[str]
    """Names of the models that it serves; known once it is started."""
    context: int | None
    """Tokens that a request may fill, prompt and reply together; None: the engine does not say."""

    @abc.abstractmethod
    async def start(self) -> None:
        """Makes the engine ready. EngineError if it cannot be, or does not count as it has to."""

    @abc.abstractmethod
    async def close(self) -> None:
        """Stops it. What is still streaming breaks off. May be called twice."""

    @abc.abstractmethod
    async def count_prompt(self, body: Mapping[str, Any]) -> int:
        """Tokens of the templated prompt of a chat request, as the engine will count them.

        Raises EngineRefused, EngineUnavailable or EngineTimeout.
        """

    @abc.abstractmethod
    def stream(
        self, body: Mapping[str, Any], max_tokens: int
    ) -> AbstractAsyncContextManager[AsyncIterator[list[Piece]]]:
        """One reply to a chat request, of at most `max_tokens` (1 or more) tokens and one choice.

        Gives an iterator of lists: one list is what one read brought, and nothing is held back for the next.
        Leaving the context cancels the engine's request. The last piece's counts are the reply's, exactly.

        Raises EngineRefused for a request that the engine does not take; EngineUnavailable if it fails before
        its first token, or has none; EngineTimeout if it falls silent; EngineError if it fails later.
        """

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()


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
        reply = Reply(dialect)
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
                    f"{self.url}/v1/chat/completions", data=orjson.dumps(request), allow_redirects=False
                )
                if response.status == 200:
                    return response
                async with response:
                    raise _turned_down(response.status, _detail(await response.read()))
        except aiohttp.ClientError as error:
            raise self._unreachable(error) from error
        except TimeoutError as error:
            raise EngineTimeout(f"The engine made no token in {self._first_token:g} s.") from error

    async def _pieces(
        self, response: aiohttp.ClientResponse, reply: Reply, patience: float
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

    async def _read(self, response: aiohttp.ClientResponse, reply: Reply, patience: float) -> list[Piece]:
        try:
            async with asyncio.timeout(patience):
                data = await response.content.readany()
        # aiohttp raises RuntimeError where the connection was closed on this side.
        except (aiohttp.ClientError, RuntimeError) as error:
            raise reply.broken(f"its connection broke: {_reason(error)}") from error
        except TimeoutError as error:
            raise EngineTimeout(f"The engine fell silent after {reply.tokens} tokens.") from error
        if not data:
            reply.end()
        return reply.feed(data)

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
            raise _turned_down(response.status, _detail(answer))
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


class LlamaEngine(HttpEngine):
    """llama.cpp in this process, serving one GGUF file to it alone: on loopback, with a key made here.

    `name`: what the model is called (the file's, without `.gguf`, if not given); `context`: tokens that a
    request may fill; `slots`: requests at a time; `threads`: half of the processors if not given;
    `gpu_layers`: llama.cpp's choice if not given.
    """

    def __init__(
        self,
        model_path: str | Path,
        *,
        name: str | None = None,
        context: int = CONTEXT,
        slots: int = SLOTS,
        threads: int | None = None,
        gpu_layers: int | None = None,
        first_token: float = FIRST_TOKEN,
        next_token: float = NEXT_TOKEN,
    ) -> None:
        super().__init__(
            "",
            api_key=secrets.token_urlsafe(32),
            dialect=LlamaCpp(),
            first_token=first_token,
            next_token=next_token,
        )
        self.path = Path(model_path)
        self.name = name or self.path.stem
        self._context = context
        self._slots = slots
        # llama.cpp would take every core, and its threads spin until the slowest is done: where the node
        # needs one of the cores, each token then waits for the scheduler.
        self._threads = threads or max(1, (os.cpu_count() or 1) // 2)
        self._gpu_layers = gpu_layers
        self._server: Any = None

    async def start(self) -> None:
        """Loads the model. The event loop stands still: the library holds Python's lock while it loads."""
        _check_gguf(self.path)
        self._server = self._serve()
        self.url = self._server.listening_address
        await super().start()

    async def close(self) -> None:
        # The connections first: the library's own end waits for each stream that is still read.
        await super().close()
        self._server = None

    def _serve(self) -> Any:
        import xllamacpp

        try:
            return xllamacpp.Server(self._params(xllamacpp.CommonParams()))
        except RuntimeError as error:
            raise EngineError(
                f"llama.cpp cannot load the model {self.path} (MODEL_PATH); it says why on standard error."
            ) from error

    def _params(self, params: Any) -> Any:
        params.model.path = str(self.path)
        params.model_alias = {self.name}
        params.n_ctx = self._context * self._slots
        params.n_parallel = self._slots
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = self._threads
        if self._gpu_layers is not None:
            params.n_gpu_layers = self._gpu_layers
        params.hostnames = ["127.0.0.1"]
        params.port = 0  # one that is free
        params.api_keys = [self._api_key]
        params.ui = False
        params.verbosity = 1  # errors only
        # Seconds after which a stream that waits for its next token sees that it is to end.
        params.sse_ping_interval = 1
        return params


def _check_gguf(path: Path) -> None:
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise EngineError(f"The model {path} (MODEL_PATH) cannot be read: {error.strerror}.") from error
    if magic != b"GGUF":
        raise EngineError(f"{path} (MODEL_PATH) is not a GGUF file.")


class _NoRoute(EngineUnavailable):
    """404: no such route, or no such model."""


def _turned_down(status: int, detail: str) -> EngineError:
    """What an engine's status other than 200 means to the request."""
    if 400 <= status < 500 and status not in _NOT_THE_PAYERS:
        return EngineRefused(detail)
    if status in _KEY_REFUSED:
        return EngineUnavailable(f"The engine refused the node's key (ENGINE_API_KEY): {detail}")
    kind = _NoRoute if status == 404 else EngineUnavailable
    return kind(f"The engine answered {status}: {detail}")


def _detail(error: Any) -> str:
    """The engine's own words in an error: the body of a response, or the `error` of a chunk."""
    if isinstance(error, bytes):
        try:
            error = orjson.loads(error)
        except orjson.JSONDecodeError:
            error = error.decode(errors="replace")
    while isinstance(error, dict):
        error = error.get("error") or error.get("message") or error.get("detail") or "no reason given"
    return str(error)[:_DETAIL]


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__
