"""`tally host register`, `unregister`, `payout`: what the registry says of a host, where its earnings go."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from tallystick import proof
from tallystick.chain import Chain, deployment_at
from tallystick.config import HostConfig, checked_address
from tallystick.contracts import Call
from tallystick.doctor import node_url
from tallystick.engines.configured import models_of
from tallystick.errors import ConfigError
from tallystick.networks import Deployment
from tallystick.node import offer_of
from tallystick.types import Address


@dataclass(frozen=True, slots=True)
class Registration:
    """What was told to the registry, and by which transaction."""

    host: Address
    registry: Address
    new: bool
    """It was not registered before."""
    metadata: str
    tx: str
    gas: int

    def told(self) -> dict[str, Any]:
        """For programs."""
        return {"host": self.host, "metadata": json.loads(self.metadata), "tx": self.tx, "gas": self.gas}


@dataclass(frozen=True, slots=True)
class Payout:
    """Where a host's earnings go. `tx`: what changed it just now, if anything did."""

    host: Address
    to: Address
    tx: str | None = None

    def told(self) -> dict[str, Any]:
        """For programs."""
        return {"host": self.host, "payout": self.to, "tx": self.tx}


async def register(endpoint: str | None, models: list[str] | None) -> Registration:
    """Registers the host of HOST_PRIVATE_KEY, or replaces its metadata. ConfigError; ChainError."""
    config = HostConfig.from_env()
    _key(config)
    if not (models or config.model_path or config.engine_urls):
        raise ConfigError("set MODEL_PATH or ENGINE_URL, or name the models that are served with --model")
    async with _chain(config) as chain:
        host = _host(config)
        metadata = _metadata(config, chain.deployment, endpoint, models or await models_of(config))
        known = await chain.is_registered(host)
        call = chain.update(metadata) if known else chain.register(host, metadata)
        result = await chain.transact(call, _key(config))
    return Registration(host, chain.deployment.registry, not known, metadata, result.hash, result.gas_used)


async def unregister() -> tuple[Address, str]:
    """Takes the host off the registry: no new job can be opened with it. The host, and the transaction."""
    config = HostConfig.from_env()
    async with _chain(config) as chain:
        return _host(config), await _send(chain, chain.unregister(), config)


async def payout(to: str | None, host: str | None, agree: Callable[[Payout], None]) -> Payout:
    """Where a host's earnings go, by default this one's; changed if there is a `to` and `agree` returns.

    Only the present payout address can change it: HOST_PRIVATE_KEY is then that one's key.
    """
    config = HostConfig.from_env()
    whose = _host(config) if host is None else _address(host, "--host")
    async with _chain(config) as chain:
        if to is None:
            return Payout(whose, await chain.payout(whose))
        receiver = _address(to, "TO")
        call = chain.set_payout(whose, receiver)
        await chain.simulate(call, proof.address(_key(config)))
        agree(Payout(whose, receiver))
        return Payout(whose, receiver, await _send(chain, call, config))


@asynccontextmanager
async def _chain(config: HostConfig) -> AsyncIterator[Chain]:
    async with Chain(config.rpc_url, await deployment_at(config.rpc_url)) as chain:
        yield chain


async def _send(chain: Chain, call: Call, config: HostConfig) -> str:
    return (await chain.transact(call, _key(config))).hash


def _key(config: HostConfig) -> bytes:
    if config.host_private_key is None:
        raise ConfigError("HOST_PRIVATE_KEY is not set: the registry hears of a host from its key alone")
    return config.host_private_key.reveal()


def _host(config: HostConfig) -> Address:
    if config.host is None:
        raise ConfigError("neither HOST_PRIVATE_KEY nor HOST_ADDRESS is set: there is no host")
    return config.host


def _address(text: str, option: str) -> Address:
    try:
        return checked_address(text)
    except ValueError as error:
        raise ConfigError(f"{option}: {error}") from None


def _metadata(config: HostConfig, deployment: Deployment, endpoint: str | None, models: list[str]) -> str:
    """Where it is, what it serves, and for how much. ConfigError if nobody can tell where."""
    terms = offer_of(config, deployment, models).terms()
    told = {"endpoint": endpoint or _endpoint(config), "models": terms["models"], "assets": terms["assets"]}
    return json.dumps(told, separators=(",", ":"))


def _endpoint(config: HostConfig) -> str:
    """Where payers reach the node, as it is set."""
    if config.public_url is None and config.listen[1] == 0:
        raise ConfigError(
            "HOST_LISTEN names no port, so nobody knows where the node will be: "
            "set HOST_PUBLIC_URL, or say it with --endpoint"
        )
    return config.public_url or node_url(config)
