"""The engine that a host's settings name."""

from __future__ import annotations

from pathlib import Path

from tallystick.config import HostConfig
from tallystick.engine import Engine
from tallystick.engines.fleet import Fleet
from tallystick.engines.http import HttpEngine
from tallystick.engines.llama import LlamaEngine
from tallystick.engines.tokenizer import Tokenizer
from tallystick.errors import ConfigError


def engine_of(config: HostConfig) -> Engine:
    """Not started yet. ConfigError where the settings name none."""
    if config.model_path is not None:
        return _llama(config, config.model_path)
    if not config.engine_urls:
        raise ConfigError("neither MODEL_PATH nor ENGINE_URL is set: there is no engine to sell tokens of")
    tokenizer = None
    if config.engine_tokenizer is not None:
        tokenizer = Tokenizer(config.engine_tokenizer, config.engine_tokenizer_hash)
    servers = [_server(config, url, tokenizer) for url in config.engine_urls]
    return Fleet(servers, tokenizer=tokenizer)


async def models_of(config: HostConfig) -> list[str]:
    """The names of what it serves; a server at a URL is asked. Raises ConfigError and EngineError."""
    if config.model_path is not None:
        return [_llama(config, config.model_path).name]
    async with engine_of(config) as engine:
        return engine.models


def _llama(config: HostConfig, path: Path) -> LlamaEngine:
    return LlamaEngine(
        path,
        name=config.model_name,
        context=config.model_context,
        slots=config.model_slots,
        threads=config.model_threads,
        gpu_layers=config.model_gpu_layers,
        first_token=config.engine_first_token,
        next_token=config.engine_next_token,
    )


def _server(config: HostConfig, url: str, tokenizer: Tokenizer | None) -> HttpEngine:
    return HttpEngine(
        url,
        api_key=config.engine_api_key.reveal() if config.engine_api_key else None,
        tokenizer=tokenizer,
        first_token=config.engine_first_token,
        next_token=config.engine_next_token,
    )
