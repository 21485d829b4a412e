"""How many tokens a prompt has, before the engine is asked for its reply.

An engine that has a route for it is asked; else a tokenizer counts; else the count is an estimate, which the
engine's usage corrects once the reply is made, and never upwards.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import Any, ClassVar

from tallystick.engines.dialect import Dialect, Fetch
from tallystick.engines.tokenizer import Tokenizer

ESTIMATED = 4
"""Bytes of text that make a token in an estimate: what English has with the tokenizers in use."""
SURE = 8
"""Bytes of text that make a token in what is billed of an estimate before the engine has counted."""


_PLAIN = frozenset(
    "model messages prompt temperature top_p top_k min_p stop seed presence_penalty frequency_penalty "
    "repetition_penalty user logprobs top_logprobs".split()
)
"""Members of a request of which none but the first three says anything of its prompt."""


class Prompts(abc.ABC):
    """Counts prompts."""

    name: ClassVar[str]
    """Who counts."""

    @abc.abstractmethod
    async def count(self, body: Mapping[str, Any]) -> int:
        """The most tokens that the prompt of `body` is billed for. Raises EngineError."""

    def most(self, body: Mapping[str, Any]) -> int | None:
        """As many or more, told at once where that can be; the engine's usage then says how many it is."""
        return None

    def sure(self, body: Mapping[str, Any]) -> int:
        """What is billed of it until the engine tells its own count; 0: all that was counted."""
        return 0


class Told(Prompts):
    """By the engine itself. `around`: tokens that it counts for a short message and all it puts around it."""

    name = "the engine"

    def __init__(self, dialect: Dialect, fetch: Fetch, around: int | None = None) -> None:
        self._dialect = dialect
        self._fetch = fetch
        self._around = around

    async def count(self, body: Mapping[str, Any]) -> int:
        return await self._dialect.count_prompt(self._fetch, body)

    def most(self, body: Mapping[str, Any]) -> int | None:
        if self._around is None or self._dialect.running is None or not body.keys() <= _PLAIN:
            return None
        said = _texts(body)
        # No tokenizer makes more tokens of ASCII than it has characters; others may be spelt out first.
        if said is None or not all(text.isascii() for text in said):
            return None
        return sum(len(text) + self._around for text in said)


class Tokenized(Prompts):
    """By a tokenizer. `apart`: tokens by which it counts a prompt longer than the engine does."""

    name = "the tokenizer"

    def __init__(self, tokenizer: Tokenizer, apart: int = 0) -> None:
        self._tokenizer = tokenizer
        self._apart = apart

    async def count(self, body: Mapping[str, Any]) -> int:
        return max(1, await self._tokenizer.count_prompt(body) - self._apart)


class Estimated(Prompts):
    """By the length of its text. `probe` is a prompt that the engine has counted as `counted` tokens."""

    name = "an estimate"

    def __init__(self, probe: Mapping[str, Any], counted: int) -> None:
        self._around = counted - _tokens(probe, ESTIMATED)

    async def count(self, body: Mapping[str, Any]) -> int:
        return self._estimate(body, ESTIMATED)

    def sure(self, body: Mapping[str, Any]) -> int:
        return self._estimate(body, SURE)

    def _estimate(self, body: Mapping[str, Any], bytes_per_token: int) -> int:
        return max(1, self._around + _tokens(body, bytes_per_token))


def _texts(body: Mapping[str, Any]) -> list[str] | None:
    """What is said in a request, a text for each message; None where it is more than that."""
    if "prompt" in body:
        return [body["prompt"]] if isinstance(body["prompt"], str) else None
    texts = []
    for message in body["messages"]:
        role, content = message.get("role"), message.get("content")
        if message.keys() != {"role", "content"} or not isinstance(role, str) or not isinstance(content, str):
            return None
        texts.append(role + content)
    return texts


def _tokens(body: Mapping[str, Any], bytes_per_token: int) -> int:
    prompt = body.get("prompt")
    if isinstance(prompt, list):  # token ids
        return len(prompt)
    said = [body.get(member) for member in ("messages", "prompt", "tools")]
    return -(-_length(said) // bytes_per_token)


def _length(said: Any) -> int:
    """Bytes of all texts in it, without the names of its members."""
    if isinstance(said, str):
        return len(said.encode())
    if isinstance(said, dict):
        return sum(map(_length, said.values()))
    return sum(map(_length, said)) if isinstance(said, list) else 0
