"""Asking others: nobody leads this program elsewhere, and a stranger's name leads nowhere inside."""

from __future__ import annotations

import ast
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from aiohttp import ClientTimeout, web

import tallystick
from tallystick.networks import DEVNET
from tallystick.outgoing import LedElsewhere, Resolver, client

MAINNET = 8453
SOON = ClientTimeout(total=5)


class Inside:
    """What listens on this machine for this machine alone; and a host that would have it asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.location = ""

    async def answer(self, request: web.Request) -> web.Response:
        self.asked.append(request.path)
        return web.Response(text="secret")

    async def lead(self, request: web.Request) -> web.Response:
        headers = {"location": self.location} if self.location else {}
        return web.Response(status=int(request.match_info["status"]), headers=headers)


@asynccontextmanager
async def served(inside: Inside) -> AsyncIterator[str]:
    """Where both answer: the base URL."""
    app = web.Application()
    app.router.add_route("*", "/lead/{status}", inside.lead)
    app.router.add_route("*", "/{path:.*}", inside.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


@pytest.fixture
async def inside() -> AsyncIterator[tuple[Inside, str]]:
    async with AsyncExitStack() as parts:
        inside = Inside()
        yield inside, await parts.enter_async_context(served(inside))


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_no_redirect_is_followed(inside: tuple[Inside, str], status: int) -> None:
    """Whatever is asked, by whatever method: who is led elsewhere is told, and nobody there is asked."""
    service, url = inside
    service.location = f"{url}/admin"
    async with client(SOON) as http:
        for method in ("GET", "POST"):
            with pytest.raises(LedElsewhere, match=f"HTTP {status}, to lead to 'http://127.0.0.1:"):
                await http.request(method, f"{url}/lead/{status}", data=b"a prompt")
        with pytest.raises(LedElsewhere):
            await http.ws_connect(f"{url}/lead/{status}")
    assert service.asked == []


@pytest.mark.parametrize(
    ("location", "told"),
    [
        ("https://user:password@host.example/v1/key", "'https://host.example'"),
        ("/admin?key=secret", "'another path'"),
        ("http://[::1", "nowhere"),
        ("", "'another path'"),
        ("http://" + "a" * 200, "'http://" + "a" * 93 + "'"),
    ],
)
def test_where_it_leads_is_told_without_what_may_be_secret(location: str, told: str) -> None:
    """A place's name, and neither its path nor who may go there."""
    assert str(LedElsewhere(307, location)) == f"it answers HTTP 307, to lead to {told}, and is not followed"


async def test_a_name_that_leads_inside_leads_nowhere() -> None:
    """The addresses that a name has when it is used are what counts."""
    with pytest.raises(OSError, match="no public address"):
        await Resolver(local=False).resolve("localhost", 80)
    assert await Resolver(local=True).resolve("localhost", 80)


async def test_whom_the_registry_named_is_not_asked_inside(inside: tuple[Inside, str]) -> None:
    """A name that turned private is not asked, but on a devnet; whom the user named is, wherever it is."""
    service, url = inside
    named = url.replace("127.0.0.1", "localhost")
    async with client(SOON, found_on=MAINNET) as http:
        with pytest.raises(aiohttp.ClientConnectorError, match="no public address"):
            await http.post(f"{named}/admin")
    assert service.asked == []
    for found_on in (None, DEVNET):
        async with client(SOON, found_on=found_on) as http, http.post(f"{named}/here") as answer:
            assert answer.status == 200
    assert service.asked == ["/here", "/here"]


def test_no_client_is_made_elsewhere() -> None:
    """One home for how others are asked. The engine's client, which follows nobody either, has its own."""
    package = Path(tallystick.__file__).parent
    made = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] == "ClientSession"
    }
    assert {path for path in made if not path.startswith("testing/")} == {
        "outgoing.py",
        "engines/connection.py",
    }
