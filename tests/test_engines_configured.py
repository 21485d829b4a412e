"""The engine of a host is the one that its settings name, with the options that they give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

import tallystick
from tallystick.config import HostConfig
from tallystick.engines.configured import engine_of, models_of
from tallystick.engines.llama import LlamaEngine
from tallystick.errors import ConfigError
from tallystick.testing.engine import Script, ScriptedEngine, oai_server, say
from tests.asking import BODY, read
from tests.hosting import Hosting

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


async def test_an_engine_with_a_final_usage_is_paid(hosting: Hosting) -> None:
    """Behind an engine that counts at the end alone, a payer is served, signs, and is billed what it saw."""
    scripted = ScriptedEngine(Script(say(*"x" * 60), unseen=1))
    url = await hosting.parts.enter_async_context(oai_server(scripted, form="final usage"))
    host = await hosting.serve(engine_of(HostConfig(engine_urls=(url,))))
    signer = await hosting.signer()
    *_, last, done = await host.ask(signer)
    assert done == {"done": True}
    assert last["tally"]["tokens"] == 60
    assert 0 < last["tally"]["prompt_tokens"] <= await ScriptedEngine().count_prompt(signer.body(1))
    await host.sign(signer)
    view = await host.node.desk.view(signer.job.id, signer.access())
    assert view["receipted"] == view["counted"]


async def test_an_engine_without_counts_serves_no_paid_job(hosting: Hosting) -> None:
    """The node runs and says so: at start, by /readyz, and to whoever asks for a reply."""
    url = await hosting.parts.enter_async_context(oai_server(ScriptedEngine(), form="no usage"))
    with capture_logs() as lines:
        host = await hosting.serve(engine_of(HostConfig(engine_urls=(url,))))
    assert [line["event"] for line in lines if line["event"].startswith("engine.")] == ["engine.uncounted"]
    async with host.http.get("/readyz") as answer:
        assert (answer.status, (await answer.json())["engines"]) == (
            503,
            [{"streams": 0, "why": "engine_uncounted"}],
        )
    status, error = await host.error(await hosting.signer())
    assert (status, error["code"]) == (403, "engine_uncounted")


async def test_a_tokenizer_makes_it_serve(hosting: Hosting) -> None:
    """With a tokenizer the same engine serves a paid job, and is billed by the text."""
    scripted = ScriptedEngine(Script(say(*["The tally stick. "] * 20)))
    url = await hosting.parts.enter_async_context(oai_server(scripted, form="no usage"))
    engine = engine_of(HostConfig(engine_urls=(url,), engine_tokenizer=DEMO))
    host = await hosting.serve(engine)
    *_, last, _ = await host.ask(await hosting.signer())
    assert last["tally"]["tokens"] > 20


def test_without_an_engine_there_is_nothing_to_sell() -> None:
    """Settings that name neither a model nor a server are refused."""
    with pytest.raises(ConfigError, match="MODEL_PATH nor ENGINE_URL"):
        engine_of(HostConfig())
