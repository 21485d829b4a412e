"""llama.cpp in this process."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

from tallystick.config import FIRST_TOKEN, NEXT_TOKEN
from tallystick.engines.connection import Connection
from tallystick.engines.dialect import LlamaCpp
from tallystick.engines.gguf import Gguf
from tallystick.engines.http import HttpEngine


class LlamaEngine(HttpEngine):
    """llama.cpp in this process, serving one GGUF file to it alone: on loopback, with a key made here.

    `options` are those of a `Gguf`.
    """

    def __init__(
        self,
        model_path: str | Path,
        *,
        first_token: float = FIRST_TOKEN,
        next_token: float = NEXT_TOKEN,
        **options: Any,
    ) -> None:
        super().__init__("", dialect=LlamaCpp(), first_token=first_token, next_token=next_token)
        self.file = Gguf(Path(model_path), **options)
        self._server: Any = None

    @property
    def name(self) -> str:
        """What the model is called."""
        return self.file.alias

    async def start(self) -> None:
        """Loads the model; the event loop stands still meanwhile."""
        key = secrets.token_urlsafe(32)
        self._server = self.file.serve(self._params(key))
        self.connection = Connection(self._server.listening_address, key)
        await super().start()

    async def close(self) -> None:
        # The connections first: the library's own end waits for each stream that is still read.
        await super().close()
        self._server = None

    def _params(self, api_key: str) -> Any:
        return self.file.params(api_key)
