"""What servers differ in: how they tell the running count, and how they count a prompt."""

from __future__ import annotations

import abc
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, ClassVar

import msgspec

from tallystick.engines.refusals import NoRoute
from tallystick.plain import Counts, Running

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
    text: str | None = None
    """In place of `delta`, where a text was to be completed."""
    finish_reason: str | None = None
    token_ids: list[int] | None = None


class Chunk(msgspec.Struct):
    """What the package reads of one chunk of a stream."""

    choices: list[Choice] = []
    usage: Usage | None = None
    timings: Timings | None = None
    error: Any = None


def _of_usage(usage: Usage) -> Counts:
    return usage.prompt_tokens, usage.completion_tokens


def _of_timings(timings: Timings) -> Counts:
    return timings.cache_n + timings.prompt_n, timings.predicted_n


class Dialect(abc.ABC):
    """How one family of servers counts. Without state, so that one instance serves all requests."""

    name: ClassVar[str]
    asks: ClassVar[Mapping[str, Any]]
    """Members of a request that make the server tell its count."""
    provisional: ClassVar[bool] = False
    """There is no running count: until the reply is over, each chunk that has a text is a token."""
    running: ClassVar[Running | None] = None
    """How a chunk tells the running count that is neither the first nor the last; None: not at all."""
    keeps: ClassVar[bool] = False
    """Servers of this family wait on many idle connections at no cost, so that they may be used again."""

    @abc.abstractmethod
    def counts(self, chunk: Chunk) -> Counts | None:
        """Prompt tokens and generated tokens so far, if this chunk tells them."""

    @abc.abstractmethod
    def spoken_in(self, chunk: Chunk) -> bool:
        """True for a chunk that only a server of this family sends."""

    async def count_prompt(self, fetch: Fetch, body: Mapping[str, Any]) -> int:
        """Tokens that the server will count as the prompt of `body`. Raises what `fetch` raises."""
        if is_chat(body):
            return await self.count_chat(fetch, body)
        prompt = body["prompt"]
        return len(prompt) if isinstance(prompt, list) else await self.count_text(fetch, body)

    @abc.abstractmethod
    async def count_chat(self, fetch: Fetch, body: Mapping[str, Any]) -> int:
        """Tokens of the templated messages of `body`. Raises what `fetch` raises."""

    @abc.abstractmethod
    async def count_text(self, fetch: Fetch, body: Mapping[str, Any]) -> int:
        """Tokens of the text that `body` asks to be completed. Raises what `fetch` raises."""

    @abc.abstractmethod
    async def context(self, fetch: Fetch, model: Mapping[str, Any]) -> int | None:
        """Tokens that a request may fill; None: not told. `model` is its entry in `/v1/models`."""


def is_chat(body: Mapping[str, Any]) -> bool:
    """True for the request of a chat, false for one that completes a text."""
    return "messages" in body


class LlamaCpp(Dialect):
    """llama.cpp's server."""

    name = "llama.cpp"
    asks: ClassVar = {"timings_per_token": True, "stream_options": {"include_usage": True}}
    running: ClassVar[Running | None] = Running(
        "timings", lambda told: _of_timings(msgspec.convert(told, Timings))
    )

    def counts(self, chunk: Chunk) -> Counts | None:
        # Timings leave out what has no text at the end (a cut character, a stop string); the usage does not.
        if chunk.usage is not None:
            return _of_usage(chunk.usage)
        if chunk.timings is not None:
            return _of_timings(chunk.timings)
        return None

    def spoken_in(self, chunk: Chunk) -> bool:
        return chunk.timings is not None

    async def count_chat(self, fetch: Fetch, body: Mapping[str, Any]) -> int:
        try:
            return int((await fetch("/v1/chat/completions/input_tokens", body))["input_tokens"])
        except NoRoute:
            return await self.count_text(fetch, await fetch("/apply-template", body))

    async def count_text(self, fetch: Fetch, body: Mapping[str, Any]) -> int:
        # As the server does with every prompt: with its own BOS, and special tokens in the text read as such.
        how = {"content": body["prompt"], "add_special": True, "parse_special": True}
        return len((await fetch("/tokenize", how))["tokens"])

    async def context(self, fetch: Fetch, model: Mapping[str, Any]) -> int | None:
        props = await fetch("/props")
        return int(props["default_generation_settings"]["n_ctx"])


class ContinuousUsage(Dialect):
    """vLLM, and servers that follow it: a usage in every chunk."""

    name = "continuous usage"
    keeps = True
    asks: ClassVar = {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}
    running: ClassVar[Running | None] = Running("usage", lambda told: _of_usage(msgspec.convert(told, Usage)))
    _TEMPLATE = frozenset(
        "model messages tools chat_template chat_template_kwargs "
        "add_generation_prompt continue_final_message".split()
    )

    def counts(self, chunk: Chunk) -> Counts | None:
        return None if chunk.usage is None else _of_usage(chunk.usage)

    def spoken_in(self, chunk: Chunk) -> bool:
        # Some tell the final usage together with the reason why the reply ended.
        if chunk.usage is None or not chunk.usage.completion_tokens:
            return False
        return any(choice.finish_reason is None for choice in chunk.choices)

    async def count_chat(self, fetch: Fetch, body: Mapping[str, Any]) -> int:
        chosen = {member: value for member, value in body.items() if member in self._TEMPLATE}
        return int((await fetch("/tokenize", chosen))["count"])

    async def count_text(self, fetch: Fetch, body: Mapping[str, Any]) -> int:
        chosen = {member: value for member, value in body.items() if member in ("model", "prompt")}
        return int((await fetch("/tokenize", chosen))["count"])

    async def context(self, fetch: Fetch, model: Mapping[str, Any]) -> int | None:
        length = model.get("max_model_len")
        return None if length is None else int(length)


class Uncounting(Dialect):
    """A server that tells no running count, and has no route that counts a prompt."""

    provisional = True

    def counts(self, chunk: Chunk) -> Counts | None:
        return None

    async def count_chat(self, fetch: Fetch, body: Mapping[str, Any]) -> int:
        raise NoRoute("The engine has no route that counts a prompt.")

    async def count_text(self, fetch: Fetch, body: Mapping[str, Any]) -> int:
        raise NoRoute("The engine has no route that counts a text.")

    async def context(self, fetch: Fetch, model: Mapping[str, Any]) -> int | None:
        return None


class FinalUsage(Uncounting):
    """Ollama, LM Studio, and whoever keeps to OpenAI's reference: a usage when the reply is over."""

    name = "final usage"
    asks: ClassVar = {"stream_options": {"include_usage": True}}

    def spoken_in(self, chunk: Chunk) -> bool:
        return chunk.usage is not None and chunk.usage.completion_tokens > 0


class NoUsage(Uncounting):
    """A server that says nothing of its counts."""

    name = "no usage"
    asks: ClassVar = {}

    def spoken_in(self, chunk: Chunk) -> bool:
        return bool(chunk.choices)


DIALECTS: tuple[Dialect, ...] = (LlamaCpp(), ContinuousUsage(), FinalUsage(), NoUsage())
"""The one that says most first."""
