"""A model's tokenizer, read from a file that is known by its hash: a GGUF's, or a `tokenizers` JSON.

What a payer counts with in its own right. A GGUF also has the model's chat template, so that prompts are
counted as an engine with that file does; a JSON has none, and what a template adds is allowed for.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import orjson

from tallystick.allowance import PERCENT, SHARE
from tallystick.config import TokenizerFile
from tallystick.errors import ConfigError, EngineError

TEMPLATE = 128
"""Tokens that a chat template adds to a prompt by itself, where it is not known. The longest preamble of the
models in use is Harmony's: a name, two dates and three channels, some 70 tokens.
"""
MESSAGE = 16
"""Tokens of the marks around one message: Llama 3's are 5, with the role; Harmony's of a tool's answer 12."""
SLACK = 16
"""Tokens by which two versions of one template differ: a date, a second BOS, a switched-off reasoning."""

INSTALL = "pip install 'tallystick[tokenizers]'"


class Vocabulary(Protocol):
    """Counts as a model's tokenizer does."""

    async def count_text(self, text: str) -> int:
        """Tokens of a text that a model made. Raises EngineError."""

    async def most_prompt(self, body: Mapping[str, Any]) -> int:
        """The most tokens that the prompt of a request can be. Raises EngineError."""

    async def close(self) -> None:
        """Lets the file go."""


async def opened(file: TokenizerFile) -> Vocabulary:
    """The tokenizer in a file. ConfigError if it is another file, none of either kind, or cannot be read."""
    content = await asyncio.to_thread(_checked, file)
    if content.startswith(b"GGUF"):
        return await _gguf(file)
    return JsonVocabulary(content, file.path)


def _checked(file: TokenizerFile) -> bytes:
    """A JSON's content, or the first bytes of a GGUF. ConfigError for another file than the one meant."""
    named = f"The tokenizer {file.path} of {file.model} (PAYER_TOKENIZERS or --tokenizer)"
    try:
        with file.path.open("rb") as opened:
            found = hashlib.file_digest(opened, "sha256").hexdigest()
            opened.seek(0)
            content = opened.read(4)
            if content != b"GGUF":
                content += opened.read()
    except OSError as error:
        raise ConfigError(f"{named} cannot be read: {error.strerror}.") from error
    if found != file.sha256:
        raise ConfigError(f"{named} has the SHA-256 {found}, and not {file.sha256}: it is another file.")
    return content


async def _gguf(file: TokenizerFile) -> Vocabulary:
    from tallystick.engines.tokenizer import Tokenizer

    vocabulary = GgufVocabulary(Tokenizer(file.path, setting="PAYER_TOKENIZERS"))
    try:
        await vocabulary.start()
    except EngineError as error:
        raise ConfigError(str(error)) from error
    return vocabulary


class GgufVocabulary:
    """Counts with a GGUF's vocabulary and chat template, in llama.cpp."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    async def start(self) -> None:
        """Raises EngineError."""
        await self._tokenizer.start()

    async def count_text(self, text: str) -> int:
        tokens: int = await self._tokenizer.count_text(text)
        return tokens

    async def most_prompt(self, body: Mapping[str, Any]) -> int:
        each = [{**body, "prompt": text} for text in _texts(body.get("prompt"))] or [dict(body)]
        tokens = sum([await self._tokenizer.count_prompt(one) for one in each])
        return _with_share(tokens) + SLACK

    async def close(self) -> None:
        await self._tokenizer.close()


class JsonVocabulary:
    """Counts with what the library `tokenizers` makes of its JSON."""

    def __init__(self, content: bytes, path: Path) -> None:
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise ConfigError(f"{path} is read by the library `tokenizers`: {INSTALL}") from error
        try:
            self._tokenizer = Tokenizer.from_buffer(content)
        except Exception as error:
            # What the library raises has no class of its own.
            raise ConfigError(f"{path} is neither a GGUF nor a tokenizer's JSON: {error}") from error

    async def count_text(self, text: str) -> int:
        return self._count(text)

    async def most_prompt(self, body: Mapping[str, Any]) -> int:
        messages = body.get("messages")
        said = messages if isinstance(messages, list) else _texts(body.get("prompt"))
        tokens = sum(map(self._count, _strings(said))) + _ids(body.get("prompt"))
        # Tools are put into words by the template: not even their spaces are known.
        tools = len(orjson.dumps(body["tools"])) if body.get("tools") else 0
        return _with_share(tokens) + tools + TEMPLATE + MESSAGE * len(said)

    def _count(self, text: str) -> int:
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids)

    async def close(self) -> None:
        """There is nothing to let go."""


def _with_share(tokens: int) -> int:
    return tokens + -(-SHARE * tokens // PERCENT)


def _texts(prompt: Any) -> list[str]:
    """The texts that are to be completed."""
    prompts = [prompt] if isinstance(prompt, str) else prompt if isinstance(prompt, list) else []
    return [text for text in prompts if isinstance(text, str)]


def _ids(prompt: Any) -> int:
    """Token ids among what is to be completed."""
    if not isinstance(prompt, list):
        return 0
    return sum(1 if isinstance(each, int) else _ids(each) for each in prompt)


def _strings(said: Any) -> Iterator[str]:
    """All texts in it, without the names of its members."""
    if isinstance(said, str):
        yield said
    elif isinstance(said, dict | list):
        for each in said.values() if isinstance(said, dict) else said:
            yield from _strings(each)
