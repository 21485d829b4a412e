"""The parties of a story: the node in a real process with real llama.cpp, the payer on a real socket."""

import asyncio
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import openai
import pytest

from tallystick import opening
from tallystick.chain import Chain
from tallystick.devnet import Devnet
from tallystick.opening import Wishes
from tallystick.session import Done, Session, Text
from tallystick.store import Store
from tallystick.types import Job, JobStatus

MODEL = Path(opening.__file__).parent / "models" / "tally-demo.gguf"
DEPOSIT = 2_000_000
READY_SECONDS = 60.0


@dataclass
class HostProcess:
    """`tally host run` in a process of its own; what it logs is in a file."""

    environment: dict[str, str]
    log: Path
    url: str
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    async def start(self) -> None:
        command = [sys.executable, "-m", "tallystick.cli", "host", "run"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, env=self.environment, stdout=log, stderr=subprocess.STDOUT, cwd=self.log.parent
            )
        await until(self._answers, READY_SECONDS, self.logged)

    async def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.logged()
        try:
            async with aiohttp.ClientSession() as http, http.get(f"{self.url}/healthz") as answer:
                return answer.status == 200
        except aiohttp.ClientError:
            return False

    def end(self, number: int = signal.SIGTERM) -> int:
        """Ends the process with a signal and waits for it; its exit status."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(timeout=30)

    def logged(self) -> str:
        return self.log.read_text()

    def lines(self, event: str, **fields: object) -> list[str]:
        """The log's lines about an event, with these fields."""
        wanted = [f"{name}={value}" for name, value in fields.items()]
        return [
            line
            for line in self.logged().splitlines()
            if event in line.split() and all(each in line.split() for each in wanted)
        ]

    async def wait_for(self, event: str, **fields: object) -> str:
        """The first such line, once it is there."""

        async def there() -> bool:
            return bool(self.lines(event, **fields))

        await until(there, 30.0, lambda: f"no {event} {fields} in\n{self.logged()}")
        return self.lines(event, **fields)[0]


async def until(
    holds: Callable[[], Awaitable[bool]], seconds: float, told: Callable[[], str] = lambda: ""
) -> None:
    """Waits until something holds, looking often; fails after `seconds`."""
    async with asyncio.timeout(seconds) as limit:
        try:
            while not await holds():  # noqa: ASYNC110 - what is waited for is in another process
                await asyncio.sleep(0.05)
        except asyncio.CancelledError:
            if limit.expired():
                pytest.fail(f"not within {seconds} s: {told()}")
            raise


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


HostFactory = Callable[..., Awaitable[HostProcess]]


async def register(devnet: Devnet) -> None:
    """Registers the devnet's host, once."""
    host = devnet.accounts.host
    async with Chain(devnet.rpc_url, devnet.deployment) as chain:
        if not await chain.is_registered(host.address):
            await chain.transact(chain.register(host.address, '{"models": []}'), host.private_key)


@dataclass
class Payer:
    """The devnet's payer, with a store of its own."""

    chain: Chain
    store: Store
    devnet: Devnet
    stack: AsyncExitStack

    async def open(self, host: HostProcess, *, ahead: int = 0, **wishes: object) -> Session:
        """A session on a new job."""
        key = self.devnet.accounts.payer.private_key
        wanted = Wishes(**{"deposit": DEPOSIT, **wishes})  # type: ignore[arg-type]
        session = await Session.open(self.chain, self.store, key, host.url, wanted, ahead=ahead)
        return await self.stack.enter_async_context(session)

    async def balance(self) -> int:
        return await self.chain.token_balance(self.devnet.dollar, self.devnet.accounts.payer.address)

    async def job(self, session: Session) -> Job:
        job = await self.chain.job(session.job.id)
        assert job is not None
        return job

    async def closed(self, session: Session) -> Job:
        """The job, once it is closed on chain."""

        async def is_closed() -> bool:
            return (await self.job(session)).status is JobStatus.CLOSED

        await until(is_closed, 30.0)
        return await self.job(session)


async def ask(session: Session, tokens: int, prompt: str = "Tell me of the tide.") -> tuple[str, Done]:
    """Asks for a reply of `tokens` tokens; its text and its end."""
    text = ""
    async for part in session.stream(prompt, max_tokens=tokens, seed=7):
        if isinstance(part, Text):
            text += part.text
        else:
            return text, part
    raise AssertionError("a stream ends with Done")


@dataclass
class ProxyProcess:
    """`tally proxy` in a process of its own."""

    environment: dict[str, str]
    log: Path
    process: subprocess.Popen[bytes] = field(repr=False)

    def client(self) -> openai.AsyncOpenAI:
        """An unmodified client of it, to be closed."""
        url = f"http://{self.environment['PROXY_LISTEN']}/v1"
        return openai.AsyncOpenAI(base_url=url, api_key="-", max_retries=0)

    def end(self, number: int = signal.SIGTERM) -> int:
        """Ends the process with a signal and waits for it; its exit status."""
        self.process.send_signal(number)
        return self.process.wait(timeout=60)

    async def ready(self) -> None:
        async def listening() -> bool:
            assert self.process.poll() is None, self.log.read_text()
            return "base_url" in self.log.read_text()

        await until(listening, 60.0, self.log.read_text)


StartProxy = Callable[..., Awaitable[ProxyProcess]]
