"""An inference engine that follows a script, to test a host, or a program that talks to one, without a model.

`ScriptedEngine` stands wherever an `Engine` does; `oai_server` puts one behind a real socket. It behaves as
llama.cpp does: its pieces are read from the same chunks. Knows nothing of money, jobs or payers.

    engine = ScriptedEngine(Script(say("Two halves", " of", " one stick.")))
    async with engine.stream({"messages": [{"role": "user", "content": "What is a tally?"}]}, 100) as reads:
        async for pieces in reads: ...
    assert engine.asked[0].tokens == 3
"""

from __future__ import annotations

import asyncio
import hmac
import random
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from aiohttp import web

from tallystick import sse
from tallystick.engine import Engine, Pieces
from tallystick.engines.dialect import LlamaCpp, is_chat
from tallystick.engines.reading import Reading
from tallystick.errors import EngineError, EngineFalseStart, EngineRefused
from tallystick.transcript import prompt_hash
from tallystick.wire import MAX_BODY

# What a word costs in tokens is made up, but fixed; more than one: a character was cut on the way.
_WORDS = (
    ("The ", 1),
    ("tally ", 2),
    ("stick ", 1),
    ("is ", 1),
    ("split ", 1),
    ("— ", 2),
    ("é ", 2),
    ("🦊 ", 4),
)


@dataclass(frozen=True, slots=True)
class Step:
    """One chunk of a reply: its text, and the tokens by which the running count moves with it.

    `tokens` above 1: several in one chunk, or a character that was cut. `text` empty: the count moves alone.
    `delta` stands in place of `{"content": text}`: reasoning, tool calls. `logprobs` goes beside it.
    """

    text: str = ""
    tokens: int = 1
    delta: Mapping[str, Any] | None = None
    logprobs: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Hang:
    """Silence from here on, until the request is cancelled."""


Read = Step | tuple[Step, ...] | asyncio.Event | Hang | EngineError
"""What one read brings: a chunk, or several; an event is waited for, an error raised.

An error that comes first refuses the request; one that comes later breaks the reply off.
"""


@dataclass(frozen=True, slots=True)
class Script:
    """One reply, read by read. Without any step it is empty: the status is 200 and there is no token."""

    reads: tuple[Read, ...] = ()
    finish_reason: str = "stop"
    """Unless `max_tokens` is reached, which makes it `length`."""
    unseen: int = 0
    """Tokens that the final usage counts and no chunk does: an end token, a last character that was cut."""


Scripts = Script | Callable[[Mapping[str, Any]], Script]
"""A reply, or what makes one from a request's body."""


def say(*texts: str) -> tuple[Step, ...]:
    """Steps of one token each. `Script(say("a", "b"))` is two reads, `Script((say("a", "b"),))` is one."""
    return tuple(Step(text) for text in texts)


def babble(tokens: int, seed: object = 0) -> Script:
    """A reply of exactly `tokens` tokens, the same for the same seed, with cut characters in it."""
    dice = random.Random(repr(seed))
    steps: list[Step] = []
    while tokens > 0:
        text, cost = dice.choice([word for word in _WORDS if word[1] <= tokens])
        steps.append(Step(text, cost))
        tokens -= cost
    return Script(tuple(steps))


@dataclass(slots=True, eq=False)
class Asked:
    """One request that a ScriptedEngine was asked for, and how far it came."""

    number: int
    """Its place in `ScriptedEngine.asked`."""
    body: Mapping[str, Any]
    max_tokens: int
    prompt_tokens: int
    tokens: int = 0
    """Tokens made so far."""
    cancelled: bool = False
    """Whoever asked has left before the end."""
    over: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when nothing more is made: the reply is whole, has failed, or was cancelled."""


class ScriptedEngine(Engine):
    """An engine whose replies are written beforehand.

    Each request takes the next of `scripts`, and the last one serves all further requests; without any,
    replies are babble of `max_tokens` tokens, the same for the same `seed` and prompt. With a `gate`, each
    read of steps waits for a release of it: `gate = asyncio.Semaphore(0)`, then `gate.release()`.
    """

    def __init__(
        self,
        *scripts: Scripts,
        seed: int = 0,
        models: Sequence[str] = ("scripted",),
        context: int | None = 4096,
        gate: asyncio.Semaphore | None = None,
    ) -> None:
        self.models = list(models)
        self.context = context
        self.asked: list[Asked] = []
        """Every request so far, in order."""
        self._scripts = scripts
        self._seed = seed
        self._gate = gate

    @property
    def tokens(self) -> int:
        """Tokens made for all requests together."""
        return sum(asked.tokens for asked in self.asked)

    async def start(self) -> None:
        """Nothing is needed."""

    async def close(self) -> None:
        """Nothing is held."""

    async def count_prompt(self, body: Mapping[str, Any]) -> int:
        """A word is a token, and a message costs three more. EngineRefused beyond the context."""
        count = _count_chat(body) if is_chat(body) else _count_text(body)
        if self.context is not None and count > self.context:
            raise EngineRefused(
                f"request ({count} tokens) exceeds the available context size ({self.context} tokens)"
            )
        return count

    @asynccontextmanager
    async def stream(self, body: Mapping[str, Any], max_tokens: int) -> AsyncIterator[AsyncIterator[Pieces]]:
        if max_tokens < 1:
            raise ValueError(f"max_tokens is {max_tokens}; an engine is asked for at least one token")
        async with self.play(body, max_tokens) as reads:
            pieces = _pieces(reads)
            try:
                yield pieces
            finally:
                await pieces.aclose()

    @asynccontextmanager
    async def play(
        self, body: Mapping[str, Any], max_tokens: int
    ) -> AsyncIterator[AsyncIterator[list[dict[str, Any]]]]:
        """The next reply as chunks in llama.cpp's form, a list for each read. Raises the script's errors."""
        prompt_tokens = await self.count_prompt(body)
        asked = Asked(len(self.asked), body, max_tokens, prompt_tokens)
        self.asked.append(asked)
        script = self._script(asked)
        reads = self._reads(asked, script)
        try:
            if script.reads and isinstance(script.reads[0], EngineError):
                await anext(reads)
            yield reads
        finally:
            await reads.aclose()
            asked.cancelled = not asked.over.is_set()
            asked.over.set()

    def _script(self, asked: Asked) -> Script:
        if not self._scripts:
            return babble(asked.max_tokens, (self._seed, prompt_hash(asked.body)))
        script = self._scripts[min(asked.number, len(self._scripts) - 1)]
        return script if isinstance(script, Script) else script(asked.body)

    async def _reads(self, asked: Asked, script: Script) -> AsyncGenerator[list[dict[str, Any]], None]:
        head = [self._chunk(asked, {"role": "assistant", "content": None})] if is_chat(asked.body) else []
        for read in script.reads:
            if isinstance(read, (asyncio.Event, Hang)):
                await (read if isinstance(read, asyncio.Event) else asyncio.Event()).wait()
                continue
            if self._gate is not None:
                await self._gate.acquire()
            if isinstance(read, EngineError):
                asked.over.set()
                raise read
            steps = (read,) if isinstance(read, Step) else read
            yield head + [self._step(asked, step) for step in steps if asked.tokens < asked.max_tokens]
            head = []
            if asked.tokens == asked.max_tokens:
                break
        asked.tokens += min(script.unseen, asked.max_tokens - asked.tokens)
        asked.over.set()
        if asked.tokens:
            yield head + self._last(asked, script)

    def _step(self, asked: Asked, step: Step) -> dict[str, Any]:
        room = asked.max_tokens - asked.tokens
        asked.tokens += min(step.tokens, room)
        # A reply that ends inside of a character does not show it.
        delta = {} if step.tokens > room else step.delta or {"content": step.text}
        chunk = self._chunk(asked, delta, logprobs=step.logprobs)
        chunk["timings"] = _timings(asked)
        return chunk

    def _last(self, asked: Asked, script: Script) -> list[dict[str, Any]]:
        reason = "length" if asked.tokens == asked.max_tokens else script.finish_reason
        counted = self._chunk(asked, {}) | {"choices": [], "usage": _usage(asked), "timings": _timings(asked)}
        return [self._chunk(asked, {}, finish_reason=reason), counted]

    def _chunk(
        self,
        asked: Asked,
        delta: Mapping[str, Any],
        *,
        finish_reason: str | None = None,
        logprobs: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        chat = is_chat(asked.body)
        said = {"delta": dict(delta)} if chat else {"text": delta.get("content") or ""}
        choice: dict[str, Any] = {"index": 0, **said, "finish_reason": finish_reason}
        if logprobs is not None:
            choice["logprobs"] = logprobs
        return {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{asked.number}",
            "object": "chat.completion.chunk" if chat else "text_completion",
            "created": 0,
            "model": asked.body.get("model") or self.models[0],
            "choices": [choice],
        }


def _count_chat(body: Mapping[str, Any]) -> int:
    messages = body["messages"]
    if not isinstance(messages, list):
        raise EngineRefused("'messages' has to be an array")
    return 3 + sum(3 + len(str(message.get("content") or "").split()) for message in messages)


def _count_text(body: Mapping[str, Any]) -> int:
    """One for the beginning, as many models have it; of token ids as many as there are."""
    prompt = body.get("prompt")
    if not isinstance(prompt, (str, list)):
        raise EngineRefused("'prompt' has to be a text or token ids")
    return len(prompt) if isinstance(prompt, list) else 1 + len(prompt.split())


async def _pieces(reads: AsyncIterator[list[dict[str, Any]]]) -> AsyncGenerator[Pieces, None]:
    reply = Reading(LlamaCpp())
    async for chunks in reads:
        yield [reply.piece(chunk) for chunk in chunks]
    reply.feed(sse.DONE)
    if reply.failure is not None:
        raise reply.failure


def _usage(asked: Asked) -> dict[str, int]:
    return {
        "prompt_tokens": asked.prompt_tokens,
        "completion_tokens": asked.tokens,
        "total_tokens": asked.prompt_tokens + asked.tokens,
    }


def _timings(asked: Asked) -> dict[str, int]:
    # As after a prompt of which all but the last token was in the cache.
    return {"cache_n": asked.prompt_tokens - 1, "prompt_n": 1, "predicted_n": asked.tokens}


Form = Literal["llama.cpp", "continuous usage", "final usage", "no usage"]
"""How a server tells its count, to whom asks for it (docs/engines.md names the sources).

`llama.cpp`: `timings` in every chunk, and routes that count prompts. `continuous usage`: vLLM's and SGLang's
`usage` in every chunk, and a `/tokenize` that counts prompts. `final usage`: Ollama's and LM Studio's, in a
chunk of its own at the end; nothing counts prompts. `no usage`: who knows no `stream_options`.
"""


@asynccontextmanager
async def oai_server(
    engine: ScriptedEngine, *, form: Form = "llama.cpp", api_key: str | None = None
) -> AsyncIterator[str]:
    """Serves a scripted engine as an OpenAI-compatible server on a free port of loopback, and gives its URL.

    It always streams. An HttpEngine that starts there has a few tokens made, and so takes the first script.

    Errors of the script become what they are on a wire: EngineRefused a 400, EngineFalseStart a 500, any
    other first one a 503, a later one a connection that breaks. With `api_key`, who does not bring it gets a
    401.
    """
    server = _Server(engine, form, api_key)
    app = web.Application(client_max_size=MAX_BODY, middlewares=[server.guard])
    app.add_routes(
        [
            web.get("/v1/models", server.models),
            web.post("/v1/chat/completions", server.reply),
            web.post("/v1/completions", server.reply),
            *server.counting(),
        ]
    )
    # A request whose client has left is cancelled, as engines do.
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        yield f"http://{host}:{port}"
    finally:
        await runner.cleanup()


_MAX_TOKENS = 16  # of a reply whose request does not say
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class _Server:
    def __init__(self, engine: ScriptedEngine, form: Form, api_key: str | None) -> None:
        self._engine = engine
        self._form = form
        self._api_key = api_key

    def counting(self) -> list[web.RouteDef]:
        if self._form == "llama.cpp":
            return [
                web.get("/props", self.props),
                web.post("/v1/chat/completions/input_tokens", self.input_tokens),
                web.post("/tokenize", self.tokens),
            ]
        return [web.post("/tokenize", self.tokenize)] if self._form == "continuous usage" else []

    @web.middleware
    async def guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        given = request.headers.get("Authorization", "")
        if self._api_key is not None and not hmac.compare_digest(given, f"Bearer {self._api_key}"):
            return _error(401, "Invalid API Key")
        try:
            return await handler(request)
        except EngineRefused as error:
            return _error(400, error.detail)
        except EngineError as error:
            return _error(500 if isinstance(error, EngineFalseStart) else 503, str(error))

    async def models(self, request: web.Request) -> web.Response:
        # `max_model_len` is vLLM's; llama.cpp tells its context in `/props`, Ollama nowhere.
        vllm = {"max_model_len": self._engine.context} if self._form == "continuous usage" else {}
        entries = [{"id": name, "object": "model", **vllm} for name in self._engine.models]
        return web.json_response({"object": "list", "data": entries})

    async def props(self, request: web.Request) -> web.Response:
        return web.json_response({"default_generation_settings": {"n_ctx": self._engine.context}})

    async def input_tokens(self, request: web.Request) -> web.Response:
        return web.json_response({"input_tokens": await self._engine.count_prompt(await request.json())})

    async def tokens(self, request: web.Request) -> web.Response:
        body = await request.json()
        return web.json_response({"tokens": [0] * _count_text({"prompt": body["content"]})})

    async def tokenize(self, request: web.Request) -> web.Response:
        return web.json_response({"count": await self._engine.count_prompt(await request.json())})

    async def reply(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        telling = _Telling(self._form, body)
        async with self._engine.play(body, body.get("max_tokens") or _MAX_TOKENS) as reads:
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
            await response.prepare(request)
            try:
                async for chunks in reads:
                    told = map(telling.tell, chunks)
                    await response.write(b"".join(sse.event(chunk) for chunk in told if chunk is not None))
            except EngineError:
                if request.transport is not None:
                    request.transport.abort()
                return response
            await response.write(sse.DONE)
            return response


class _Telling:
    """What of a reply's counts a server of this form tells a client that sent `body`."""

    def __init__(self, form: Form, body: Mapping[str, Any]) -> None:
        self._form = form
        options = body.get("stream_options") or {}
        self._timed = form == "llama.cpp" and bool(body.get("timings_per_token"))
        self._summed = form != "no usage" and bool(options.get("include_usage"))
        self._running = form == "continuous usage" and bool(options.get("continuous_usage_stats"))
        self._usage = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}

    def tell(self, chunk: dict[str, Any]) -> dict[str, Any] | None:
        """A chunk that has llama.cpp's counts, with those that are told; None: the chunk is not sent."""
        rest = {member: value for member, value in chunk.items() if member not in ("timings", "usage")}
        if timings := chunk.get("timings"):
            prompt, tokens = timings["cache_n"] + timings["prompt_n"], timings["predicted_n"]
            self._usage = {
                "prompt_tokens": prompt,
                "completion_tokens": tokens,
                "total_tokens": prompt + tokens,
            }
        if not chunk["choices"]:
            rest = {**rest, "usage": chunk["usage"]}
            return (chunk if self._form == "llama.cpp" else rest) if self._summed else None
        if self._timed:
            return chunk
        return {**rest, "usage": self._usage} if self._running and self._summed else rest


def _error(status: int, message: str) -> web.Response:
    return web.json_response({"error": {"code": status, "message": message}}, status=status)
