"""What /openapi.json says is what the server does: every route, every refusal, every body."""

from __future__ import annotations

import asyncio
import re
import sys
from asyncio.subprocess import PIPE, STDOUT
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.routing import Route

from tallystick import lookout, openapi
from tallystick.server import app
from tallystick.testing.engine import Script, ScriptedEngine, say
from tests.hosting import Host, Hosting

# A request that is as described may still be refused for money (402), for what was said before (410, 422), or
# for being no upgrade (426).
CONFIG = """
[checks.positive_data_acceptance]
expected-statuses = ["2xx", "401", "402", "403", "404", "410", "422", "426", "5xx"]
"""
EXAMPLES = 20
"""Of each operation, in each phase."""


def mounted(server: Starlette) -> Iterator[tuple[str, str]]:
    """Method and path of every HTTP route."""
    for route in server.routes:
        if isinstance(route, Route):
            path = route.path.replace(":path", "")
            yield from ((method.lower(), path) for method in (route.methods or {"GET"}) - {"HEAD"})


async def test_every_route_is_described(hosting: Hosting) -> None:
    """The operations of the document are the routes of the server, no more and no fewer."""
    host = await hosting.serve()
    described = [(operation.method, operation.path) for operation in openapi.OPERATIONS]
    assert sorted(described) == sorted(mounted(app(host.node)))
    async with host.http.get("/openapi.json") as answer:
        document = await answer.json()
    assert document["openapi"] == "3.1.0"
    assert sum(map(len, document["paths"].values())) == len(described)


@pytest.mark.timeout(600)
async def test_requests_made_from_the_description(
    hosting: Hosting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is sent, as described or not, is answered as described: all checks, no operation left out."""
    monkeypatch.setattr(lookout, "FRESH", 60.0)  # the chain stands still
    host = await hosting.serve(ScriptedEngine(Script((say(*"abc"),)), context=None))
    signer = await hosting.signer(max_tokens_per_second=1_000_000, deposit=100_000_000)
    await hosting.devnet.increase_time(60)
    told = await schemathesis(host, signer.bearer(), tmp_path)
    selected = re.search(r"Operations:\s+(\d+) selected / (\d+) total", told)
    assert selected is not None, told
    number = len(openapi.OPERATIONS)
    assert tuple(map(int, selected.groups())) == (number, number), told


async def schemathesis(host: Host, bearer: str, directory: Path) -> str:
    """What a run of all its checks prints; it has to find nothing."""
    (directory / "schemathesis.toml").write_text(CONFIG)
    (directory / "openapi.json").write_bytes(openapi.document())
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "schemathesis.cli", "run", "openapi.json", "--url", host.url),
        *("--checks", "all", "--max-examples", str(EXAMPLES), "--seed", "1", "--no-color"),
        *("--header", f"Authorization: Bearer {bearer}"),
        cwd=directory,
        stdout=PIPE,
        stderr=STDOUT,
    )
    out, _ = await process.communicate()
    told = out.decode()
    assert process.returncode == 0, told
    return told
