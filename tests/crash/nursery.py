"""A process that has imported what a driver needs, and forks one for whoever connects to its socket.

To start Python and import web3 for each of thousands would take longer than the sweep. A driver begins once
strace has attached itself to it.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

# Imported once, for all that are forked.
import alembic.command
import alembic.config  # noqa: F401
import structlog

import tests.crash.node  # noqa: F401
from tests.crash.driver import Start

ROOT = Path(__file__).resolve().parents[2]
LENGTH = 4
"""Bytes that tell how long a message is."""
PATIENCE = 60.0
"""Seconds in which a driver has to do its work, or die."""

_PR_SET_PDEATHSIG, _PR_SET_PTRACER = 1, 0x59616D61  # linux/prctl.h
_ANYBODY = -1
_libc = ctypes.CDLL(None)


class Nursery:
    """`with` starts and ends it."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "nursery"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        command = (sys.executable, "-m", "tests.crash.nursery", str(self._path))
        self._process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        if not self._process.stdout.readline():
            raise RuntimeError("the nursery did not start")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process is not None
        self._process.terminate()
        self._process.communicate()

    def fork(self, start: Start) -> Driver:
        """A driver that waits for whoever traces it."""
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(PATIENCE)
        connection.connect(str(self._path))
        message = pickle.dumps(start)
        connection.sendall(len(message).to_bytes(LENGTH) + message)
        return Driver(connection)


class Driver:
    """A driver in its own process, as seen from the other end of its socket."""

    def __init__(self, connection: socket.socket) -> None:
        self._stream = connection.makefile("rb")
        self._connection = connection
        self.pid = int(self._stream.readline())

    def line(self) -> str:
        """The next thing that it told; once it is dead, what it died of."""
        return self._stream.readline().decode()

    def story(self, before: str = "") -> tuple[list[str], int]:
        """All that it told until it died, after what was read before, and its status as of `waitpid`."""
        with self._connection, self._stream:
            *lines, status = (before + self._stream.read().decode()).splitlines()
        return lines, int(status)


# In the nursery


def main(path: str) -> None:
    """Serves until its standard input ends: until whoever started it is gone."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        print("ready", flush=True)
        while sys.stdin not in select.select([listener, sys.stdin], [], [])[0]:
            connection, _ = listener.accept()
            with connection:
                _raise(connection)


def _raise(connection: socket.socket) -> None:
    """One driver, from its birth to its death, which is told."""
    stream = connection.makefile("rb")
    start: Start = pickle.loads(stream.read(int.from_bytes(stream.read(LENGTH))))
    pid = os.fork()
    if pid == 0:
        _live(start, connection)
    connection.sendall(f"{pid}\n".encode())
    _, status = os.waitpid(pid, 0)
    connection.sendall(f"{status}\n".encode())


def _live(start: Start, connection: socket.socket) -> None:
    code = 1
    try:
        structlog.configure(processors=[_drop])
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        _wait_to_be_traced()
        asyncio.run(start.work(connection.fileno()))
        code = 0
    finally:
        os._exit(code)


def _wait_to_be_traced() -> None:
    # Where only a parent may trace, it has to be allowed.
    _libc.prctl(_PR_SET_PTRACER, ctypes.c_long(_ANYBODY), 0, 0, 0)
    give_up = time.monotonic() + PATIENCE
    while "TracerPid:\t0\n" in Path("/proc/self/status").read_text():
        if time.monotonic() > give_up:
            os._exit(1)
        time.sleep(0.001)


def _drop(_: object, __: str, ___: object) -> str:
    raise structlog.DropEvent


if __name__ == "__main__":
    main(sys.argv[1])
