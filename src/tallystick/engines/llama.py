"""llama.cpp in this process."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Any

from tallystick.config import CONTEXT, FIRST_TOKEN, NEXT_TOKEN, SLOTS
from tallystick.engines.dialect import LlamaCpp
from tallystick.engines.http import HttpEngine
from tallystick.errors import EngineError


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
