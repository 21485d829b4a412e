"""A process that has imported what a driver needs, and forks one for whoever connects to its socket.

A driver is a process of its own, so that it can be killed and stopped as one; to start Python and import web3
for each of thousands would take longer than the storm.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import select
import signal
import socket
import sys
import traceback
from asyncio import StreamReader, StreamWriter
from asyncio.subprocess import PIPE, Process
from pathlib import Path
from types import TracebackType
from typing import Any, Self

# Imported once, for all that are forked.
import alembic.command
import alembic.config  # noqa: F401
import structlog

from tests.faults.driver import Failed, LeapingLoop, Start, Tallystick, keep
from tests.faults.plain import Plain

ROOT = Path(__file__).resolve().parents[2]
LENGTH = 4
"""Bytes that tell how long a message is."""
LEAP = signal.SIGALRM
"""Has the clock of a driver's event loop leap."""
PATIENCE = 60.0
"""Seconds in which a driver has to answer that is neither killed nor stopped."""


class Died(Exception):
    """The driver is no more."""


class Wire:
    """Pickled messages on a stream, between two processes of one program."""

    def __init__(self, reader: StreamReader, writer: StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def send(self, message: object) -> None:
        data = pickle.dumps(message)
        self._writer.write(len(data).to_bytes(LENGTH) + data)
        await self._writer.drain()

    async def receive(self) -> Any:
        """Died: the other end is gone."""
        try:
            length = int.from_bytes(await self._reader.readexactly(LENGTH))
            return pickle.loads(await self._reader.readexactly(length))
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raise Died from error

    def close(self) -> None:
        self._writer.close()


class Driver:
    """A driver in its own process. Every call raises Died if the process is killed meanwhile."""

    def __init__(self, wire: Wire, pid: int) -> None:
        self._wire = wire
        self.pid = pid
        self.process = ""
        """As its ledger knows it."""

    async def ask(self, method: str, *arguments: Any) -> Any:
        """What the driver's method returns; Failed is raised as it was there."""
        try:
            await self._wire.send((method, arguments))
        except ConnectionError as error:
            raise Died from error
        async with asyncio.timeout(PATIENCE):
            answer = await self._wire.receive()
        if isinstance(answer, Failed):
            raise answer
        return answer

    def signal(self, number: signal.Signals) -> None:
        """Harmless if it is dead."""
        try:
            os.kill(self.pid, number)
        except ProcessLookupError:
            return

    def close(self) -> None:
        """Its end of the connection closed, the process ends by itself."""
        self._wire.close()


class Nursery:
    """`async with` starts and ends it, and with it all that it has forked."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "nursery"
        self._process: Process | None = None

    async def __aenter__(self) -> Self:
        command = (sys.executable, "-m", "tests.faults.nursery", str(self._path))
        self._process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdin=PIPE, stdout=PIPE)
        assert self._process.stdout is not None
        if not await self._process.stdout.readline():
            raise RuntimeError("the nursery did not start")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.close()
        await self._process.wait()

    async def fork(self, start: Start) -> Driver:
        """A driver that is not open yet."""
        wire = Wire(*await asyncio.open_unix_connection(str(self._path)))
        await wire.send(start)
        return Driver(wire, await wire.receive())


# In the nursery


def main(path: str) -> None:
    """Serves until its standard input ends: until whoever started it is gone."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        print("ready", flush=True)
        while sys.stdin not in select.select([listener, sys.stdin], [], [])[0]:
            connection, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                _be_a_driver(connection)
            connection.close()


def _be_a_driver(connection: socket.socket) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    # Whoever waits for the nursery to end waits for its pipes as well.
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    structlog.configure(processors=[keep])
    code = 1
    try:
        with asyncio.Runner(loop_factory=LeapingLoop) as runner:
            loop = runner.get_loop()
            assert isinstance(loop, LeapingLoop)
            loop.add_signal_handler(LEAP, loop.leap)
            runner.run(_drive(connection))
        code = 0
    except BaseException:  # noqa: BLE001 - nothing of the nursery's may run here after that
        traceback.print_exc()
    finally:
        os._exit(code)


async def _drive(connection: socket.socket) -> None:
    wire = Wire(*await asyncio.open_unix_connection(sock=connection))
    start: Start = await wire.receive()
    driver = Plain(start) if start.plain else Tallystick(start)
    await wire.send(os.getpid())
    while True:
        try:
            method, arguments = await wire.receive()
        except Died:
            return  # whoever drove it is done with it
        try:
            answer = await getattr(driver, method)(*arguments)
        except Failed as failed:
            answer = failed
        await wire.send(answer)


if __name__ == "__main__":
    main(sys.argv[1])
