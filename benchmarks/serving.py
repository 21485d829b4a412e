"""What serves in a streaming benchmark: the node, the peers it is compared with, the engine behind them all.

The server that is measured has core 0 to itself; the engine and the clients share core 1.
"""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import aiohttp
import psutil

from benchmarks import mock
from benchmarks.load import Client
from benchmarks.payers import asking, post
from tallystick.devnet import Devnet

ROOT = Path(__file__).parents[1]
PEERS = ROOT / ".venv-bench" / "bin"
MEASURED, OTHERS = 0, 1
"""Cores."""
START = 120.0
"""Seconds in which a server has to answer."""


@dataclass(frozen=True)
class Server:
    """A server in a process of its own."""

    name: str
    address: str
    process: psutil.Process
    bearer: str = "none"

    def seconds(self) -> float:
        """Of the processor's time that it has had, its children's included."""
        times = [each.cpu_times() for each in (self.process, *self.process.children(recursive=True))]
        return sum(each.user + each.system for each in times)

    def memory(self) -> int:
        """Bytes that it holds, its children's included."""
        held = [each.memory_info().rss for each in (self.process, *self.process.children(recursive=True))]
        return sum(held)


@asynccontextmanager
async def running(
    name: str, command: Sequence[str], port: int, core: int, log: Path, **environment: str
) -> AsyncIterator[Server]:
    """Starts a server and waits until it answers; ends it after."""
    pinned = ["taskset", "-c", str(core), *command]
    kept = {each: os.environ[each] for each in ("PATH", "HOME", "LANG") if each in os.environ}
    with (log / f"{name}.log").open("wb") as out:
        process = subprocess.Popen(  # noqa: ASYNC220 - before anything is measured
            pinned, env={**kept, **environment}, stdout=out, stderr=out, cwd=log, start_new_session=True
        )
    try:
        await _answers(f"http://127.0.0.1:{port}/", process, log / f"{name}.log")
        yield Server(name, f"127.0.0.1:{port}", psutil.Process(process.pid))
    finally:
        # All of its group: what traces a server does not take it along.
        with suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(timeout=20)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


async def _answers(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    async with asyncio.timeout(START), aiohttp.ClientSession() as http:
        while True:
            if process.poll() is not None:
                raise RuntimeError(f"{process.args!r} ended: {_end_of(log)}")
            try:
                async with http.get(url):
                    return
            except aiohttp.ClientError:
                await asyncio.sleep(0.2)


def _end_of(log: Path) -> str:
    return log.read_text(errors="replace")[-2_000:]


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@asynccontextmanager
async def engine(
    log: Path, *, pace: float = 0.0, core: int = OTHERS, name: str = "engine"
) -> AsyncIterator[Server]:
    """The mock engine; `pace`: tokens a second of each stream, 0: as fast as it can."""
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.mock", str(port), "--pace", str(pace)]
    async with running(name, command, port, core, log, PYTHONPATH=_path()) as server:
        yield server


@asynccontextmanager
async def node(
    log: Path,
    devnet: Devnet,
    engine: Server,
    *,
    name: str = "node",
    core: int = MEASURED,
    before: Sequence[str] = (),
    script: Sequence[str] = ("-m", "tallystick.cli"),
    **settings: str,
) -> AsyncIterator[Server]:
    """`tally host run`: bearers, job checks, durable metering, receipts, settlement on a devnet.

    `before`: what its command line begins with, if another program is to start it.
    """
    port = free_port()
    with TemporaryDirectory(prefix="tallystick-bench-") as data:
        environment = {
            "HOST_PRIVATE_KEY": devnet.accounts.host.private_key.hex(),
            "HOST_LISTEN": f"127.0.0.1:{port}",
            "HOST_DATA_DIR": data,
            "RPC_URL": devnet.rpc_url,
            "ENGINE_URL": f"http://{engine.address}",
            "HOST_EXPOSURE_PER_PAYER": "1000",
            "HOST_EXPOSURE_MAX": "1000",
            **settings,
        }
        command = [*before, sys.executable, *script, "host", "run", "--level", "warning"]
        async with running(name, command, port, core, log, PYTHONPATH=_path(), **environment) as server:
            yield server


def _path() -> str:
    return os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])


@asynccontextmanager
async def litellm(log: Path, engine: Server) -> AsyncIterator[Server]:
    """LiteLLM's proxy with one worker and no database: it checks one key, without which it does not start."""
    key = f"sk-{secrets.token_hex(32)}"
    port, config = free_port(), log / "litellm.json"
    params = {"model": f"openai/{mock.MODEL}", "api_base": f"http://{engine.address}/v1", "api_key": "none"}
    config.write_text(json.dumps({"model_list": [{"model_name": mock.MODEL, "litellm_params": params}]}))
    command = [str(PEERS / "litellm"), "--config", str(config), "--port", str(port), "--host", "127.0.0.1"]
    # Its price list comes with it: no look-up over the network at start.
    environment = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR", "LITELLM_MASTER_KEY": key}
    environment["PATH"] = _peers_first()
    async with running("litellm", command, port, MEASURED, log, **environment) as server:
        yield replace(server, bearer=key)


@asynccontextmanager
async def vllm_router(log: Path, engine: Server) -> AsyncIterator[Server]:
    """vllm-router before the one engine."""
    port = free_port()
    command = [
        *(str(PEERS / "vllm-router"), "--worker-urls", f"http://{engine.address}"),
        *("--host", "127.0.0.1", "--port", str(port), "--policy", "round_robin", "--log-level", "warning"),
        *("--prometheus-port", str(free_port())),
    ]
    async with running("vllm-router", command, port, MEASURED, log, PATH=_peers_first()) as server:
        yield server


def _peers_first() -> str:
    return os.pathsep.join([str(PEERS), os.environ["PATH"]])


# Load


def plain(server: Server, clients: int, requests: int, tokens: int = mock.TOKENS) -> list[Client]:
    """Clients that ask and sign nothing."""
    asked = post("/v1/chat/completions", server.address, asking(tokens), server.bearer)
    return [Client([asked] * requests, tokens) for _ in range(clients)]


async def load(server: Server, clients: list[Client]) -> dict[str, float]:
    """What the clients saw, and how much of the processor's time the server took for it."""
    before = server.seconds()
    process = await asyncio.create_subprocess_exec(
        *("taskset", "-c", str(OTHERS), sys.executable, "-m", "benchmarks.load", server.address),
        cwd=ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    told, _ = await process.communicate(pickle.dumps(clients))
    if process.returncode:
        raise RuntimeError(f"the clients of {server.name} ended with status {process.returncode}")
    seen: dict[str, Any] = json.loads(told)
    return {**seen, "cpu_seconds": server.seconds() - before}


def a_core(seen: dict[str, float]) -> float:
    """Tokens for each second of the processor's time."""
    return seen["tokens"] / seen["cpu_seconds"]
