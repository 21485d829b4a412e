"""Registering: the registry hears nothing that is no use to a payer."""

from __future__ import annotations

from pathlib import Path

import pytest

from tallystick.chain import Chain
from tallystick.devnet import Devnet
from tallystick.errors import ConfigError
from tallystick.registration import register

MODELS = ["scripted"]


@pytest.fixture
def host(devnet: Devnet, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """The environment of a host that says of itself no more than it has to."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RPC_URL", devnet.rpc_url)
    monkeypatch.setenv("HOST_PRIVATE_KEY", "0x" + devnet.accounts.host.private_key.hex())
    return monkeypatch


async def test_a_node_that_listens_anywhere_has_to_say_where(
    host: pytest.MonkeyPatch, chain: Chain, devnet: Devnet
) -> None:
    """Port 0 is no address: it is refused before anything is sent, and what to name is named."""
    host.setenv("HOST_LISTEN", "127.0.0.1:0")
    with pytest.raises(ConfigError, match=r"HOST_PUBLIC_URL.*--endpoint"):
        await register(None, MODELS)
    assert not await chain.is_registered(devnet.accounts.host.address)
    told = await register("https://host.example", MODELS)
    assert told.told()["metadata"]["endpoint"] == "https://host.example"


async def test_a_node_is_registered_where_payers_reach_it(host: pytest.MonkeyPatch) -> None:
    """HOST_PUBLIC_URL goes before where it listens, which is the proxy's business."""
    assert (await register(None, MODELS)).told()["metadata"]["endpoint"] == "http://127.0.0.1:8402"
    host.setenv("HOST_PUBLIC_URL", "https://host.example")
    assert (await register(None, MODELS)).told()["metadata"]["endpoint"] == "https://host.example"
