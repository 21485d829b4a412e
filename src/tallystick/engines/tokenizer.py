"""Counting in an engine's place: with the vocabulary and the chat template of a GGUF file."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tallystick.engines.connection import Connection
from tallystick.engines.dialect import LlamaCpp
from tallystick.engines.gguf import Gguf
from tallystick.errors import EngineError

CONTEXT = 64
"""Tokens: nothing is ever made, and a context costs memory."""


class Tokenizer:
    """A GGUF file that llama.cpp has mapped and never computes with. `start` it, and `close` it.

    `sha256`: of the file, in hexadecimal digits, if it is to be no other; `setting`: what named it.
    """

    def __init__(self, path: Path, sha256: str | None = None, setting: str = "ENGINE_TOKENIZER") -> None:
        self._file = Gguf(path, context=CONTEXT, slots=1, threads=1, gpu_layers=0, setting=setting)
        self._sha256 = sha256
        self._dialect = LlamaCpp()
        self._server: Any = None
        self._connection = Connection("")

    async def start(self) -> None:
        """EngineError for a file that is another one, or cannot be loaded."""
        if self._sha256 is not None:
            await asyncio.to_thread(self._check)
        key = secrets.token_urlsafe(32)
        params = self._file.params(key)
        # Weights stay in the file, which is mapped: what of it is in memory the system may take back.
        params.warmup = False
        params.no_extra_bufts = True
        self._server = self._file.serve(params)
        self._connection = Connection(self._server.listening_address, key)
        self._connection.open()

    async def close(self) -> None:
        """May be called twice."""
        await self._connection.close()
        self._server = None

    async def count_prompt(self, body: Mapping[str, Any]) -> int:
        """Tokens of the templated messages, or of the text to complete. Raises EngineError."""
        return await self._dialect.count_prompt(self._connection.fetch, body)

    async def count_text(self, text: str) -> int:
        """Tokens of a text that a model made. Raises EngineError."""
        how = {"content": text, "add_special": False, "parse_special": False}
        return len((await self._connection.fetch("/tokenize", how))["tokens"])

    def _check(self) -> None:
        try:
            with self._file.path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise EngineError(
                f"The tokenizer {self._file.path} (ENGINE_TOKENIZER) cannot be read: {error.strerror}."
            ) from error
        if found != self._sha256:
            raise EngineError(
                f"The tokenizer {self._file.path} has the SHA-256 {found}, not that of ENGINE_TOKENIZER_HASH."
            )
