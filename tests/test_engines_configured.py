"""The engine of a host is the one that its settings name, with the options that they give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import tallystick
from tallystick.config import HostConfig
from tallystick.engines.configured import engine_of, models_of
from tallystick.engines.llama import LlamaEngine
from tallystick.errors import ConfigError
from tallystick.testing.engine import ScriptedEngine, oai_server
from tests.asking import BODY, read

DEMO = Path(tallystick.__file__).parent / "models" / "tally-demo.gguf"


class Watched(LlamaEngine):
    """llama.cpp that keeps what it was started with."""

    def _params(self, api_key: str) -> Any:
        self.params = super()._params(api_key)
        return self.params


async def test_a_model_s_options_reach_llama(monkeypatch: pytest.MonkeyPatch) -> None:
    """Name, context, slots, threads and GPU layers are what llama.cpp starts with."""
    monkeypatch.setattr("tallystick.engines.configured.LlamaEngine", Watched)
    config = HostConfig(
        model_path=DEMO,
        model_name="tally",
        model_context=512,
        model_slots=3,
        model_threads=1,
        model_gpu_layers=0,
    )
    engine = engine_of(config)
    assert isinstance(engine, Watched)
    async with engine:
        assert (engine.models, engine.context) == (["tally"], 512)
        params = engine.params
        assert (params.n_parallel, params.n_ctx) == (3, 3 * 512)
        assert (params.cpuparams.n_threads, params.n_gpu_layers) == (1, 0)
        assert (await read(engine, BODY, 3))[-1].raw["model"] == "tally"


async def test_models_are_named_without_loading_them() -> None:
    """A file is called by its name or MODEL_NAME; a server at a URL is asked what it has."""
    assert await models_of(HostConfig(model_path=Path("/nowhere/tally-8b.gguf"))) == ["tally-8b"]
    assert await models_of(HostConfig(model_path=Path("/nowhere/x.gguf"), model_name="y")) == ["y"]
    async with oai_server(ScriptedEngine(models=["a", "b"])) as url:
        assert await models_of(HostConfig(engine_urls=(url,))) == ["a", "b"]


def test_without_an_engine_there_is_nothing_to_sell() -> None:
    """Settings that name neither a model nor a server are refused."""
    with pytest.raises(ConfigError, match="MODEL_PATH nor ENGINE_URL"):
        engine_of(HostConfig())
