"""A GGUF file, and llama.cpp serving it in this process."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tallystick.config import CONTEXT, SLOTS
from tallystick.errors import EngineError


@dataclass(frozen=True, slots=True)
class Gguf:
    """A file, and how it is to be served.

    `name`: what the model is called (the file's, without `.gguf`, if not given); `context`: tokens that a
    request may fill; `slots`: requests at a time; `threads`: half of the processors if not given;
    `gpu_layers`: llama.cpp's choice if not given; `setting`: the variable that named the file.
    """

    path: Path
    name: str | None = None
    context: int = CONTEXT
    slots: int = SLOTS
    threads: int | None = None
    gpu_layers: int | None = None
    setting: str = "MODEL_PATH"

    @property
    def alias(self) -> str:
        """What the model is called."""
        return self.name or self.path.stem

    def params(self, api_key: str) -> Any:
        """llama.cpp's, for a server on a free port of loopback, for who has the key. EngineError: no GGUF."""
        self._check()
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = str(self.path)
        params.model_alias = {self.alias}
        params.n_ctx = self.context * self.slots
        params.n_parallel = self.slots
        # llama.cpp would take every core, and its threads spin until the slowest is done: where the node
        # needs one of the cores, each token then waits for the scheduler.
        threads = self.threads or max(1, (os.cpu_count() or 1) // 2)
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
        if self.gpu_layers is not None:
            params.n_gpu_layers = self.gpu_layers
        params.hostnames = ["127.0.0.1"]
        params.port = 0
        params.api_keys = [api_key]
        params.ui = False
        params.verbosity = 1  # errors only
        # Seconds after which a stream that waits for its next token sees that it is to end.
        params.sse_ping_interval = 1
        return params

    def serve(self, params: Any) -> Any:
        """The server, which ends when nobody refers to it any more. EngineError if it cannot load the file.

        The event loop stands still: the library holds Python's lock while it loads.
        """
        import xllamacpp

        try:
            return xllamacpp.Server(params)
        except RuntimeError as error:
            raise EngineError(
                f"llama.cpp cannot load the model {self.path} ({self.setting}): see standard error for why."
            ) from error

    def _check(self) -> None:
        try:
            with self.path.open("rb") as file:
                magic = file.read(4)
        except OSError as error:
            raise EngineError(
                f"The model {self.path} ({self.setting}) cannot be read: {error.strerror}."
            ) from error
        if magic != b"GGUF":
            raise EngineError(f"{self.path} ({self.setting}) is not a GGUF file.")
