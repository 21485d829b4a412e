"""Fixtures of the stories: the devnet's host as a process, and its payer."""

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tallystick.chain import Chain
from tallystick.devnet import Devnet
from tallystick.store import Store
from tests.stories.parties import (
    MODEL,
    HostFactory,
    HostProcess,
    Payer,
    ProxyProcess,
    StartProxy,
    free_port,
    register,
)


@pytest.fixture
async def start_host(devnet: Devnet, tmp_path: Path) -> AsyncIterator[HostFactory]:
    """Starts nodes: `await start_host(HOST_GRACE="1")`; the devnet's host by default, registered."""
    started: list[HostProcess] = []

    async def start(*, registered: bool = True, **settings: str | None) -> HostProcess:
        if registered:
            await register(devnet)
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        wanted: dict[str, str | None] = {
            "RPC_URL": devnet.rpc_url,
            "HOST_PRIVATE_KEY": devnet.accounts.host.private_key.hex(),
            "HOST_LISTEN": f"127.0.0.1:{free_port()}",
            "HOST_DATA_DIR": str(tmp_path / "host"),
            "MODEL_PATH": str(MODEL),
            **settings,
        }
        environment = {**kept, **{name: value for name, value in wanted.items() if value is not None}}
        log = tmp_path / f"host-{len(started)}.log"
        host = HostProcess(environment, log, f"http://{environment['HOST_LISTEN']}")
        started.append(host)
        await host.start()
        return host

    yield start
    for host in started:
        if host.process is not None and host.process.poll() is None:
            host.end()


@pytest.fixture
async def payer(devnet: Devnet, chain: Chain, tmp_path: Path) -> AsyncIterator[Payer]:
    store = Store(tmp_path / "payer")
    async with AsyncExitStack() as stack:
        yield Payer(chain, store, devnet, stack)
    store.close()


@pytest.fixture
async def start_proxy(devnet: Devnet, tmp_path: Path) -> AsyncIterator[StartProxy]:
    """Starts proxies of the devnet's payer: `await start_proxy(host.url, "--deposit", "0.5")`."""
    started: list[ProxyProcess] = []

    async def start(host_url: str, *options: str, **settings: str) -> ProxyProcess:
        environment = {
            **{name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ},
            "RPC_URL": devnet.rpc_url,
            "PAYER_PRIVATE_KEY": devnet.accounts.payer.private_key.hex(),
            "PAYER_DATA_DIR": str(tmp_path / "payer"),
            "PROXY_LISTEN": f"127.0.0.1:{free_port()}",
            **settings,
        }
        log = tmp_path / f"proxy-{len(started)}.log"
        command = [sys.executable, "-m", "tallystick.cli", "proxy", "--host", host_url, *options]
        with log.open("wb") as out:
            process = subprocess.Popen(command, env=environment, stdout=out, stderr=out, cwd=tmp_path)
        started.append(ProxyProcess(environment, log, process))
        await started[-1].ready()
        return started[-1]

    yield start
    for proxy in started:
        if proxy.process.poll() is None:
            proxy.end(signal.SIGKILL)
