"""Discovery: hosts from the registry, with quotes that they signed; no stranger's word is trusted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest
from aiohttp import web

from tallystick import discovery, proof, quote
from tallystick.chain import Chain
from tallystick.devnet import Devnet
from tallystick.discovery import MAX_QUOTE, checked, endpoint_of, listings, offers
from tallystick.errors import SessionError
from tallystick.opening import fetch_quote
from tallystick.testing.engine import Script, say
from tests.buying import Bench

Answer = Callable[[web.Request], Any]


@pytest.fixture
async def bench(devnet: Devnet, chain: Chain, tmp_path: Path) -> AsyncIterator[Bench]:
    async with AsyncExitStack() as parts:
        yield Bench(devnet, chain, tmp_path, parts)


async def register(bench: Bench, endpoint: str) -> None:
    """The devnet's host says that it is there."""
    host = bench.devnet.accounts.host
    metadata = orjson.dumps({"endpoint": endpoint}).decode()
    registered = await bench.chain.is_registered(host.address)
    call = bench.chain.update(metadata) if registered else bench.chain.register(host.address, metadata)
    await bench.chain.transact(call, host.private_key)


@asynccontextmanager
async def answering(answer: Answer) -> AsyncIterator[str]:
    """Something that answers like this where a host should: its URL."""
    app = web.Application()
    app.router.add_get("/v1/host", answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


async def signed_quote(bench: Bench) -> dict[str, Any]:
    """The quote of a real node."""
    url = await bench.serve(Script(say("a")))
    async with aiohttp.ClientSession() as http, http.get(f"{url}/v1/host") as answer:
        body: dict[str, Any] = await answer.json()
        return body


def signed(bench: Bench, body: dict[str, Any]) -> dict[str, Any]:
    """Signed by the devnet's host, whatever it says."""
    signature = proof.sign(quote.digest(body), bench.devnet.accounts.host.private_key)
    return {**body, "signature": "0x" + signature.hex()}


async def test_a_registered_host_is_listed_with_what_it_sells(bench: Bench) -> None:
    """Its quote is read from where it says that it is, and is the one that it signed."""
    url = await bench.serve(Script(say("a")), models=("one", "two"))
    await register(bench, url)
    found = await listings(bench.chain)
    assert [(each.host, each.endpoint, each.trouble) for each in found] == [
        (bench.devnet.accounts.host.address, url, "")
    ]
    assert found[0].quote == await fetch_quote(url)
    sold = offers(found, bench.devnet.dollar)
    assert [(each.model, each.prices.per_million) for each in sold] == [("one", 900_000), ("two", 900_000)]
    assert [each.model for each in offers(found, bench.devnet.dollar, "two")] == ["two"]


async def test_who_has_left_is_not_listed(bench: Bench) -> None:
    """A host that is registered no more is not asked."""
    await register(bench, "http://127.0.0.1:1")
    host = bench.devnet.accounts.host
    await bench.chain.transact(bench.chain.unregister(), host.private_key)
    assert await listings(bench.chain) == []


@pytest.mark.parametrize(
    ("changed", "trouble"),
    [({"chain_id": 8453}, "settles on chain 8453"), ({"valid_until": 1}, "run out")],
)
async def test_a_quote_of_elsewhere_or_before_is_not_used(
    bench: Bench, changed: dict[str, Any], trouble: str
) -> None:
    """It is good for one contract, until it runs out, though its host signed it."""
    good = await signed_quote(bench)
    host, now = bench.devnet.accounts.host.address, (await bench.chain.block()).timestamp
    assert checked(orjson.dumps(good), host, bench.chain.deployment, now).host == host
    with pytest.raises(SessionError, match=trouble):
        checked(orjson.dumps(signed(bench, {**good, **changed})), host, bench.chain.deployment, now)


@pytest.mark.parametrize(
    ("changed", "trouble"),
    [
        ({"signature": None, "paid": False}, "no key"),
        ({"signature": None}, "not signed"),
        ({"paid": False}, "the other way round"),
        ({"signature": "0x11"}, "signature"),
        ({"signature": "none"}, "cannot be read"),
        ({"valid_until": "soon"}, "another version"),
        ({"models": []}, "signed by"),
        ({"endpoint": "https://other.example"}, "signed by"),
    ],
)
async def test_a_quote_that_was_changed_is_not_used(
    bench: Bench, changed: dict[str, Any], trouble: str
) -> None:
    """Unsigned, forged, or changed after it was signed."""
    body = {**await signed_quote(bench), **changed}
    host, now = bench.devnet.accounts.host.address, (await bench.chain.block()).timestamp
    with pytest.raises(SessionError, match=trouble):
        checked(orjson.dumps(body), host, bench.chain.deployment, now)


async def test_anothers_quote_is_not_the_hosts(bench: Bench) -> None:
    """A quote is its signer's: whoever shows another host's is found out."""
    good = await signed_quote(bench)
    now = (await bench.chain.block()).timestamp
    with pytest.raises(SessionError, match="signed by"):
        checked(orjson.dumps(good), bench.devnet.accounts.payer.address, bench.chain.deployment, now)


async def test_what_answers_in_a_hosts_place_is_bounded(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too long, too slow, or leading elsewhere: each is a line of trouble, and the others are listed."""
    monkeypatch.setattr(discovery, "PATIENCE", 0.5)

    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(1_000):
            await response.write(b" " * MAX_QUOTE)
        return response

    async def slow(request: web.Request) -> web.Response:
        await asyncio.sleep(30)
        return web.Response()

    async def elsewhere(request: web.Request) -> web.Response:
        raise web.HTTPFound("http://127.0.0.1:1/v1/host")

    for answer, trouble in ((endless, "longer"), (slow, "does not answer"), (elsewhere, "HTTP 302")):
        async with answering(answer) as url:
            await register(bench, url)
            [found] = await listings(bench.chain)
            assert trouble in found.trouble
            assert found.quote is None


@pytest.mark.parametrize(
    "metadata",
    [
        "",
        "{}",
        "[]",
        '{"endpoint": 1}',
        '{"endpoint": "ftp://host.example"}',
        '{"endpoint": "http://host.example"}',
        '{"endpoint": "http://127.0.0.1:8402"}',
        '{"endpoint": "https://127.0.0.1"}',
        '{"endpoint": "https://10.0.0.7"}',
        '{"endpoint": "https://169.254.169.254"}',
        '{"endpoint": "https://[::1]"}',
        '{"endpoint": "https://[::ffff:10.0.0.7]"}',
        '{"endpoint": "https://user:password@host.example"}',
    ],
)
def test_only_https_at_public_addresses_is_fetched(metadata: str) -> None:
    """What a stranger wrote into the registry leads nowhere inside."""
    with pytest.raises(SessionError):
        endpoint_of(metadata, local=False)


def test_a_devnets_host_may_be_on_this_machine() -> None:
    """There, and nowhere else: other private addresses stay closed."""
    assert endpoint_of('{"endpoint": "http://localhost:8402/"}', local=True) == "http://localhost:8402"
    assert endpoint_of('{"endpoint": "https://host.example"}', local=True) == "https://host.example"
    with pytest.raises(SessionError):
        endpoint_of('{"endpoint": "http://10.0.0.7:8402"}', local=True)
