"""A PostgreSQL server for tests, from the machine's own binaries: as an operator has it, fsync and all."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import psycopg

START_LIMIT = 90.0
"""Seconds in which a server has to answer."""


def binaries() -> Path | None:
    """Where the server's programs are; None: nowhere. Debian keeps them out of PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    linked = shutil.which("initdb")
    newest = found[-1] if found else linked and Path(linked).resolve()
    return newest.parent if newest else None


@dataclass
class Server:
    """One server of its own on loopback. `start` before use, `stop` after."""

    programs: Path
    directory: Path
    """Its own, where the system's user `postgres` may go: below none of pytest's."""
    port: int = 0
    version: str = ""
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)
    _names: count[int] = field(default_factory=count, repr=False)

    @property
    def data(self) -> Path:
        return self.directory / "data"

    def start(self) -> None:
        """Makes the server's files the first time, and waits until it answers."""
        if not self.data.exists():
            self._make()
        self.port = self.port or _free_port()
        with (self.directory / "log").open("ab") as log:
            # No socket file: its path would be longer than one may be.
            where = ["-D", str(self.data), "-p", str(self.port), "-c", "unix_socket_directories="]
            command = self._as_nobody("postgres", *where)
            self._process = subprocess.Popen(command, stdout=log, stderr=log, cwd="/")
        self._wait()

    def stop(self, mode: str = "fast") -> None:
        """Ends it in one of pg_ctl's ways; `immediate` is a crash."""
        assert self._process is not None
        command = self._as_nobody("pg_ctl", "stop", "-D", self.data, "-m", mode)
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd="/")
        self._process.wait()

    def freeze(self) -> None:
        """Has it stand still as a machine does that is stopped: its kernel goes on to take what is sent."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        server = self._process.pid
        # It would take a child that stops for one that failed.
        os.kill(server, number)
        for child in Path(f"/proc/{server}/task/{server}/children").read_text().split():
            os.kill(int(child), number)

    def fresh(self) -> str:
        """The URL of a new, empty database."""
        name = f"ledger_{next(self._names)}"
        with self.connect() as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return self._url(name)

    def connect(self) -> psycopg.Connection:
        """A connection that runs each statement by itself."""
        return psycopg.connect(self._url("postgres"), autocommit=True)

    def _url(self, name: str) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/{name}"

    def _make(self) -> None:
        if os.geteuid() == 0:
            shutil.chown(self.directory, "postgres")
        wanted: list[str] = ["-U", "postgres", "--auth=trust", "--encoding=UTF8", "--no-sync"]
        command = self._as_nobody("initdb", "-D", self.data, *wanted)
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd="/")

    def _as_nobody(self, program: str, *arguments: str | Path) -> list[str | Path]:
        """The server refuses to be run by root. Where that can be had, it ends with who started it."""
        way: list[str | Path] = []
        if setpriv := shutil.which("setpriv"):
            nobody = ["--reuid=postgres", "--regid=postgres", "--clear-groups"]
            way = [setpriv, "--pdeathsig=INT", *(nobody if os.geteuid() == 0 else [])]
        return [*way, self.programs / program, *arguments]

    def _wait(self) -> None:
        give_up = time.monotonic() + START_LIMIT
        while True:
            try:
                with self.connect() as connection:
                    row = connection.execute("SHOW server_version").fetchone()
                    assert row is not None
                    self.version = row[0]
                    return
            except psycopg.OperationalError:
                assert self._process is not None
                if self._process.poll() is not None or time.monotonic() > give_up:
                    sys.stderr.write((self.directory / "log").read_text())
                    raise
            time.sleep(0.05)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
