"""How a job is opened."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from structlog.testing import capture_logs

from tallystick import proof, spending
from tallystick.caps import Stake
from tallystick.chain import Chain
from tallystick.devnet import Devnet
from tallystick.errors import ChainError, SessionError
from tallystick.networks import DEVNET, deployment
from tallystick.opening import (
    MAX_QUOTE,
    Quote,
    Wishes,
    awaited,
    check_endpoint,
    fetch_quote,
    find_openings,
    quote_in,
    send_again,
    terms_for,
)
from tallystick.opening import open_job as opened
from tallystick.quote import digest
from tallystick.store import Store, StoredJob
from tallystick.testing.engine import Script, say
from tallystick.testing.faults import Status
from tallystick.testing.geth import Upstream
from tallystick.testing.rpc import FaultyRpc
from tallystick.types import ETH, Address, Job, JobId, Prices
from tallystick.wallet import Wallet
from tests.buying import Bench, open_staked
from tests.paying import open_job, register

HERE = deployment(DEVNET)
DOLLAR = HERE.asset("tUSD")
SIGNER = proof.address(b"\x01" * 32)
QUOTE = Quote(
    host=Address("0x" + "11" * 20),
    chain_id=DEVNET,
    contract=HERE.marketplace,
    models={"tally": {DOLLAR: Prices(900_000, 200_000)}},
    interval_min=4,
    interval_max=1_000,
    claim_window_min=3_600,
    endpoint="https://host.example",
    valid_until=1_800_000_000,
)
NOW = 1_800_000_000
Lie = Callable[[dict[str, Any]], dict[str, Any]]


def test_terms_are_the_quotes_prices_and_the_payers_wishes() -> None:
    """Terms name the quote's host and prices, the payer's deposit, the dollar and a week unless told
    otherwise.
    """
    model, terms = terms_for(QUOTE, Wishes(deposit=2_000_000), HERE, SIGNER, NOW)
    assert (model, terms.host, terms.prices) == ("tally", QUOTE.host, Prices(900_000, 200_000))
    assert (terms.asset, terms.deposit, terms.signer) == (DOLLAR, 2_000_000, SIGNER)
    assert (terms.max_tokens_per_second, terms.checkpoint_interval) == (0, 100)
    assert terms.expires_at == NOW + 7 * 24 * 3600


def test_no_money_goes_to_a_host_that_serves_nothing() -> None:
    """A host that says so itself is refused before anything is signed."""
    with pytest.raises(SessionError, match="serves nothing now"):
        terms_for(replace(QUOTE, ready=False), Wishes(deposit=2_000_000), HERE, SIGNER, NOW)


def test_an_attested_job_is_opened_for_an_hour() -> None:
    """A host-attested job is worth rate times time to its host, so its time is short."""
    _, terms = terms_for(QUOTE, Wishes(deposit=1, max_tokens_per_second=50), HERE, SIGNER, NOW)
    assert (terms.max_tokens_per_second, terms.expires_at) == (50, NOW + 3600)


@pytest.mark.parametrize(
    ("quote", "wishes", "told"),
    [
        ({"chain_id": 8453}, {}, "chain 8453"),
        ({"contract": Address("0x" + "99" * 20)}, {}, "this package's contract"),
        ({"valid_until": NOW - 3_600}, {}, "3600 s ago by the clock of the chain at RPC_URL"),
        ({}, {"model": "another"}, "it has tally"),
        ({}, {"asset": ETH}, "does not sell 'tally' for ETH"),
        ({}, {"interval": 2_000}, "4 to 1000"),
        ({}, {"max_price": 899_999}, "asks 0.9 tUSD a million tokens, above your 0.899999 tUSD"),
    ],
)
def test_what_does_not_meet_is_refused_before_money_moves(
    quote: dict[str, object], wishes: dict[str, object], told: str
) -> None:
    """Another chain or contract, a time that is over, an unknown model, asset or interval, a price above the
    payer's: an error each.
    """
    with pytest.raises(SessionError, match=told):
        terms_for(
            replace(QUOTE, **quote),  # type: ignore[arg-type]
            Wishes(**{"deposit": 1, **wishes}),  # type: ignore[arg-type]
            HERE,
            SIGNER,
            NOW,
        )


@pytest.mark.parametrize("body", [{}, {"host": "0x"}, {"host": "0x", "chain_id": "many"}, []])
def test_what_is_no_quote_is_refused(body: object) -> None:
    """A quote of another form is an error, and not a guess."""
    with pytest.raises(SessionError, match="not a host's base URL"):
        quote_in(body)


def test_a_node_that_serves_no_host_is_told_before_money_moves() -> None:
    """A quote without a host is of a node that was not set up: nobody could settle a job there."""
    body: dict[str, object] = {
        "host": None,
        "chain_id": DEVNET,
        "contract": HERE.marketplace,
        "models": [],
        "interval": {"min": 4, "max": 1_000},
        "claim_window_min": 3_600,
        "endpoint": "http://127.0.0.1:8402",
        "valid_until": NOW,
        "signature": None,
    }
    with pytest.raises(SessionError, match="HOST_PRIVATE_KEY"):
        quote_in(body)


async def test_a_host_that_does_not_answer_is_named() -> None:
    """The error names the URL, and what to look for."""
    with pytest.raises(SessionError, match=r"http://127\.0\.0\.1:9;.*tally host run"):
        await fetch_quote("http://127.0.0.1:9")


async def test_a_quote_is_read_to_a_limit_and_from_its_own_place() -> None:
    """What answers in a host's place can neither fill the memory nor lead elsewhere."""
    asked = list[str]()

    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(1_000):
            await response.write(b" " * MAX_QUOTE)
        return response

    async def elsewhere(request: web.Request) -> web.Response:
        asked.append(request.path)
        raise web.HTTPFound("/other")

    async with served(endless) as url:
        with pytest.raises(SessionError, match=f"longer than {MAX_QUOTE} bytes"):
            await fetch_quote(url)
    async with served(elsewhere) as url:
        with pytest.raises(SessionError, match="base URL: it answers HTTP 302"):
            await fetch_quote(url)
    assert asked == ["/v1/host"]


@asynccontextmanager
async def served(answer: Any) -> AsyncIterator[str]:
    """Something that answers like this, whatever it is asked: its URL."""
    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


@pytest.mark.parametrize(
    ("named", "asked"),
    [
        ("https://host.example", "https://HOST.example:443/"),
        ("https://host.example", "http://127.0.0.1:8402"),
        ("https://host.example", "http://192.168.1.5:8402"),
        ("http://0.0.0.0:8402", "https://host.example"),
        ("http://[::1]:8402", "http://localhost:8402"),
    ],
)
def test_a_host_is_asked_where_it_says_that_it_is(named: str, asked: str) -> None:
    """The same place however it is written; a tunnel's end; or where the node listens, which is no name."""
    check_endpoint(replace(QUOTE, endpoint=named), asked)


@pytest.mark.parametrize(
    "asked",
    [
        "https://other.example",
        "http://host.example",
        "https://host.example:8402",
        "https://host.example/a",
        "https://8.8.8.8",
    ],
)
def test_another_hosts_quote_is_not_shown_as_ones_own(asked: str) -> None:
    """Who answers with the quote of a host that is elsewhere is named, and so is where that host is."""
    with pytest.raises(SessionError, match=r"at 'https://host\.example'\. The move is yours: use that URL"):
        check_endpoint(QUOTE, asked)


# Against a host that lies


@pytest.fixture
async def bench(devnet: Devnet, chain: Chain, tmp_path: Path) -> AsyncIterator[Bench]:
    async with AsyncExitStack() as parts:
        yield Bench(devnet, chain, tmp_path, parts)


async def between(bench: Bench, lie: Lie) -> str:
    """Something that stands between payer and a real node, and shows another quote: its URL."""
    host = await bench.serve(Script(say("a")))

    async def show(_: web.Request) -> web.Response:
        async with aiohttp.ClientSession() as http, http.get(f"{host}/v1/host") as answer:
            return web.json_response(lie(await answer.json()))

    app = web.Application()
    app.router.add_get("/v1/host", show)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    bench.parts.push_async_callback(runner.cleanup)
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    return f"http://127.0.0.1:{runner.addresses[0][1]}"


def cheaper(body: dict[str, Any]) -> dict[str, Any]:
    """The first model for next to nothing."""
    [first, *others] = body["models"]
    prices = {asset: {**each, "per_million": "1"} for asset, each in first["prices"].items()}
    return {**body, "models": [{**first, "prices": prices}, *others]}


def resigned(devnet: Devnet, body: dict[str, Any]) -> dict[str, Any]:
    """Signed by the devnet's host itself, whatever it says."""
    signature = proof.sign(digest(body), devnet.accounts.host.private_key)
    return {**body, "signature": "0x" + signature.hex()}


async def opening_at(bench: Bench, url: str) -> tuple[StoredJob, Job]:
    """The devnet's payer opens a job with whatever answers there."""
    wallet = bench.wallet()
    return await opened(bench.chain, wallet.store, wallet.key(), url, Wishes(deposit=1_000_000))


@pytest.mark.parametrize(
    ("lie", "told"),
    [
        (cheaper, "was changed"),
        (lambda body: {**body, "endpoint": "https://other.example"}, "was changed"),
        (lambda body: {**body, "valid_until": body["valid_until"] + 1}, "was changed"),
        (lambda body: {**body, "chain_id": 8453}, "was changed"),
        (lambda body: {**body, "contract": ETH}, "was changed"),
        (lambda body: {**body, "host": SIGNER}, f"names {SIGNER}, and is signed by"),
        (lambda body: {**body, "signature": None}, "not signed"),
        (lambda body: {**body, "paid": False}, "the other way round"),
        (lambda body: {**body, "signature": "0x11"}, "signature of the host's quote cannot be read"),
        (lambda body: {**body, "signature": "signed"}, "signature of the host's quote cannot be read"),
        (lambda body: {**body, "grace": -1}, "signature of the host's quote cannot be read"),
        (lambda body: {**body, "relay_fee": "7"}, "was changed"),
    ],
)
async def test_a_quote_that_was_changed_moves_no_money(bench: Bench, lie: Lie, told: str) -> None:
    """A price, endpoint, time, chain, contract or host that the host did not sign; or none that it signed."""
    url = await between(bench, lie)
    with pytest.raises(SessionError, match=f"{told}.* The move is the host's: choose another host"):
        await opening_at(bench, url)
    assert await bench.chain.jobs(payer=bench.devnet.accounts.payer.address) == []


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"chain_id": 8453}, "settles on chain 8453"),
        ({"contract": ETH}, f"settles on chain {DEVNET} at {ETH}"),
        ({"valid_until": 1}, "has run out, .* The move is the host's"),
    ],
)
async def test_a_quote_of_elsewhere_or_before_moves_no_money(
    bench: Bench, changed: dict[str, Any], told: str
) -> None:
    """Though its host signed it: another chain, another contract, a time that is over."""
    url = await between(bench, lambda body: resigned(bench.devnet, {**body, **changed}))
    with pytest.raises(SessionError, match=told):
        await opening_at(bench, url)
    assert await bench.chain.jobs(payer=bench.devnet.accounts.payer.address) == []


async def test_what_passes_a_quote_on_unchanged_is_believed(bench: Bench) -> None:
    """What is signed holds whoever brings it; the job has the host's own prices."""
    await register(bench.devnet, bench.chain)
    _, job = await opening_at(bench, await between(bench, lambda body: body))
    assert job.prices == Prices(900_000, 200_000)


async def test_a_host_without_a_key_binds_itself_to_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its quote is unsigned and says so: a job can be opened, and who pays is warned that nobody is paid."""
    monkeypatch.setattr(spending, "COMPLETE", 0.5)
    host = bench.devnet.accounts.host.address
    await register(bench.devnet, bench.chain)
    url = await bench.serve(Script(say("a")), host_private_key=None, host_address=host)
    quote = await fetch_quote(url)
    assert (quote.host, quote.paid) == (host, False)
    proxy = await bench.proxy(url)
    with capture_logs() as logged:
        await proxy.spender.open("scripted", 1_000_000)
    await proxy.parts.aclose()
    [warning] = [each for each in logged if each["event"] == "host.not_paid"]
    assert "its quote is unsigned and binds nobody" in warning["cause"]


async def test_a_job_is_opened_on_a_fresh_quote(bench: Bench) -> None:
    """What a host said a while ago may have run out since: it is asked again before money moves."""
    await register(bench.devnet, bench.chain)
    old = [{"valid_until": 1}]
    url = await between(bench, lambda body: resigned(bench.devnet, {**body, **(old.pop() if old else {})}))
    spender = (await bench.proxy(url)).spender
    [ran_out] = await spender.hosts.listings()
    assert "run out" in ran_out.trouble
    await spender.open("scripted", 1_000_000)
    [renewed] = await spender.hosts.listings()
    assert renewed.quote is not None
    assert renewed.quote.valid_until > 1


async def test_an_interrupted_opening_is_found_again(devnet: Devnet, chain: Chain, tmp_path: Path) -> None:
    """Law 7: a payer stopped between sending and learning the id finds its job by the key in its store."""
    await register(devnet, chain)
    store = Store(tmp_path)
    key = proof.new_key()
    payer = devnet.accounts.payer.address
    opening = StoredJob(
        proof.address(key), key, DEVNET, HERE.marketplace, payer, "http://host", "tally", None, False
    )
    store.opening(opening)
    never_signed = replace(opening, signer=proof.address(b"\x07" * 32), key=b"\x07" * 32)
    store.opening(never_signed, Stake(never_signed.signer, DOLLAR, "2027-01-15", 0, 5))
    under_way = replace(opening, signer=proof.address(b"\x08" * 32), key=b"\x08" * 32)
    store.opening(under_way)
    signer = await open_job(devnet, chain, key=key)
    with Store(tmp_path).claiming(under_way.signer):
        assert [job.id for job in await find_openings(chain, store)] == [signer.job.id]
    known = store.job(DEVNET, HERE.marketplace, JobId(signer.job.id))
    assert known is not None
    assert known.key == key
    assert store.openings(DEVNET, HERE.marketplace) == [under_way]
    assert store.stakes(DEVNET, HERE.marketplace) == []
    store.close()


@asynccontextmanager
async def failing(bench: Bench) -> AsyncIterator[tuple[Wallet, FaultyRpc]]:
    """The payer's wallet over an endpoint that fails on purpose."""
    async with (
        Upstream(bench.devnet.rpc_url) as node,
        FaultyRpc(node) as rpc,
        Chain(rpc.url, bench.chain.deployment) as chain,
    ):
        yield replace(bench.wallet(), chain=chain), rpc


async def test_what_failed_before_it_was_signed_stakes_nothing(bench: Bench) -> None:
    """An endpoint that fails before anything is signed costs an error, and nothing of the day."""
    await register(bench.devnet, bench.chain)
    url = await bench.serve(Script(say("a")))
    async with failing(bench) as (wallet, rpc):
        with rpc.failing(Status(503), "eth_getTransactionCount"), pytest.raises(ChainError):
            await open_staked(wallet, url, Wishes(1_000_000))
        assert wallet.store.stakes(DEVNET, HERE.marketplace) == []
        assert wallet.store.openings(DEVNET, HERE.marketplace) == []
        await open_staked(wallet, url, Wishes(1_000_000))


async def test_what_was_signed_and_never_arrived_is_sent_again(bench: Bench) -> None:
    """Law 7: the bytes are in the store, and staked, before they are sent; nothing else is signed for it."""
    await register(bench.devnet, bench.chain)
    url = await bench.serve(Script(say("a")))
    async with failing(bench) as (wallet, rpc):
        await wallet.transact(wallet.chain.approve(DOLLAR, 1_000_000))
        with (
            rpc.failing(Status(503), "eth_sendRawTransaction"),
            pytest.raises(ChainError, match="may or may"),
        ):
            await open_staked(wallet, url, Wishes(1_000_000))
        assert await find_openings(wallet.chain, wallet.store) == []
        [pending] = wallet.store.openings(DEVNET, HERE.marketplace)
        assert f"number {pending.nonce} of {pending.payer}" in awaited(pending)
        [stake] = wallet.store.stakes(DEVNET, HERE.marketplace)
        [job] = await send_again(wallet.chain, wallet.store)
    assert (job.signer, job.deposit, stake.at_most) == (pending.signer, 1_000_000, 1_000_000)


async def test_an_opening_whose_nonce_another_used_is_over(bench: Bench) -> None:
    """What can never be mined any more is staked no longer, and what is only late stays staked."""
    await register(bench.devnet, bench.chain)
    url = await bench.serve(Script(say("a")))
    async with failing(bench) as (wallet, rpc):
        await wallet.transact(wallet.chain.approve(DOLLAR, 1_000_000))
        with rpc.failing(Status(503), "eth_sendRawTransaction"), pytest.raises(ChainError):
            await open_staked(wallet, url, Wishes(1_000_000))
        await wallet.transact(wallet.chain.approve(DOLLAR, 0))
        assert await send_again(wallet.chain, wallet.store) == []
        assert wallet.store.openings(DEVNET, HERE.marketplace) == []
        assert wallet.store.stakes(DEVNET, HERE.marketplace) == []
