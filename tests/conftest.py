"""What tests of several modules start from: a devnet and a PostgreSQL for each worker, clean each time."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NoReturn

import pytest
import pytest_asyncio
import structlog

from tallystick import lookout
from tallystick.chain import Chain
from tallystick.devnet import Devnet
from tests import disk, postgresql
from tests.hosting import Hosting
from tests.paying import register


@pytest.fixture(autouse=True)
def log() -> Iterator[None]:
    """What a command does to the log of the process is undone."""
    yield
    structlog.reset_defaults()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def anvil() -> AsyncIterator[Devnet]:
    """The worker's devnet, as the last test left it. `devnet` is what a test wants."""
    async with Devnet() as devnet:
        yield devnet


@pytest_asyncio.fixture
async def devnet(anvil: Devnet) -> AsyncIterator[Devnet]:
    """A devnet with nothing on it but the contracts and test dollars; each transaction makes a block."""
    snapshot = await anvil.snapshot()
    yield anvil
    await anvil.revert(snapshot)
    await anvil.set_automine(True)


@pytest_asyncio.fixture
async def chain(devnet: Devnet) -> AsyncIterator[Chain]:
    """The devnet's contracts."""
    async with Chain(devnet.rpc_url, devnet.deployment) as chain:
        yield chain


@pytest_asyncio.fixture
async def hosting(
    devnet: Devnet, chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Hosting]:
    """Serves nodes of the registered host, which sees every block at once."""
    monkeypatch.setattr(lookout, "FRESH", 0.0)
    await register(devnet, chain)
    hosting = Hosting(devnet, chain, tmp_path)
    async with hosting.parts:
        yield hosting


def missing(tool: str) -> NoReturn:
    """Skips the test for want of a tool; where all of them have to be there, fails it."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"{tool} is missing")
    pytest.skip(f"{tool} is missing")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[disk.SmallDisk]:
    """A disk that a test may fill."""
    with disk.mounted(tmp_path / "disk") as mounted:
        if mounted is None:
            missing("the right to mount a file system")
        yield mounted


@pytest.fixture
def strace() -> str:
    """The program that has a system call fail."""
    return shutil.which("strace") or missing("strace")


@pytest.fixture(scope="session")
def postgres() -> Iterator[postgresql.Server]:
    """The worker's PostgreSQL server. `postgres_url` is what a test wants."""
    programs = postgresql.binaries()
    if programs is None:
        missing("PostgreSQL (Debian's postgresql)")
    with TemporaryDirectory(prefix="tallystick-postgresql-") as directory:
        server = postgresql.Server(programs, Path(directory))
        server.start()
        yield server
        server.stop()


@pytest.fixture
def postgres_url(postgres: postgresql.Server, record_property: Callable[[str, object], None]) -> str:
    """A database with nothing in it. The run tells at its end which server it was."""
    record_property(POSTGRESQL, postgres.version)
    return postgres.fresh()


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger_url(request: pytest.FixtureRequest) -> str | None:
    """Each of the databases that a ledger may be in, in turn."""
    if request.param == "sqlite":
        return None
    url: str = request.getfixturevalue("postgres_url")
    return url


POSTGRESQL = "PostgreSQL"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says which PostgreSQL was tested against, whichever worker it ran beside."""
    reports = [report for kind in ("passed", "failed") for report in terminalreporter.stats.get(kind, ())]
    told = (dict(report.user_properties) for report in reports if hasattr(report, "user_properties"))
    for version in sorted({properties[POSTGRESQL] for properties in told if POSTGRESQL in properties}):
        terminalreporter.write_line(f"{POSTGRESQL} {version}")
