"""A process of the campaign's own: told and heard in lines of JSON, on its standard input and output."""

from __future__ import annotations

import asyncio
import json
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

ROOT = Path(__file__).resolve().parents[2]
LINE = 64_000_000
"""Bytes of one line, at most."""


class Child:
    """`async with` starts it and tells it `start`; leaving closes its standard input, at which it ends."""

    def __init__(self, module: str, start: Mapping[str, Any]) -> None:
        self._module = module
        self._start = start
        self._process: Process | None = None

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", self._module), cwd=ROOT, stdin=PIPE, stdout=PIPE, limit=LINE
        )
        self.tell(self._start)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process is not None
        self.no_more()
        await self._process.wait()

    def tell(self, what: Mapping[str, Any]) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(what).encode() + b"\n")

    def no_more(self) -> None:
        """It ends in order, and may still say something."""
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.close()

    async def hear(self) -> dict[str, Any]:
        """The next line. RuntimeError if the process has ended."""
        assert self._process is not None
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._module} ended unasked")
        heard: dict[str, Any] = json.loads(line)
        return heard


# In the process


def say(what: Mapping[str, Any]) -> None:
    print(json.dumps(what), flush=True)


async def told() -> AsyncIterator[dict[str, Any]]:
    """Line by line, until whoever tells is done or gone."""
    reader = asyncio.StreamReader(limit=LINE)
    protocol = asyncio.StreamReaderProtocol(reader)
    await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, sys.stdin)
    while line := await reader.readline():
        yield json.loads(line)
