"""A payer without ETH: from its opening to its refund, by its host's hand or anybody's."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from eth_abi.abi import encode
from typer.testing import CliRunner

from tallystick import gasless, opening, proof, spending
from tallystick.authorization import VALID
from tallystick.caps import Caps
from tallystick.chain import Chain
from tallystick.cli import app
from tallystick.config import PayerConfig, Secret
from tallystick.devnet import Devnet
from tallystick.errors import ERC20InsufficientBalance, HostRefused, SessionError
from tallystick.keccak import keccak
from tallystick.opening import Wishes
from tallystick.store import Store
from tallystick.testing.engine import Script, say
from tallystick.types import Address, JobStatus
from tallystick.wallet import Wallet
from tests.buying import Bench, open_staked
from tests.paying import register

FEE = 50_000
DEPOSIT = 2_000_000
REPLY = Script(say(*"x" * 150))


class Poor(Bench):
    """Whose payer has dollars, and not a wei."""

    key = proof.new_key()

    @property
    def payer(self) -> Address:
        return proof.address(self.key)

    def wallet(self, **settings: Any) -> Wallet:
        store = Store(self.directory / "payer")
        self.parts.callback(store.close)
        config = PayerConfig(payer_private_key=Secret(self.key), rpc_url=self.devnet.rpc_url, **settings)
        return Wallet(config, self.chain, store)

    async def wei(self) -> int:
        return await self.chain.eth_balance(self.payer)

    async def dollars(self) -> int:
        return await self.chain.token_balance(self.devnet.dollar, self.payer)


@pytest.fixture
async def poor(devnet: Devnet, chain: Chain, tmp_path: Path) -> AsyncIterator[Poor]:
    await register(devnet, chain)
    async with AsyncExitStack() as parts:
        bench = Poor(devnet, chain, tmp_path, parts)
        bench.key = proof.new_key()
        mint = chain.mint(devnet.dollar, bench.payer, 2 * DEPOSIT)
        await chain.transact(mint, devnet.accounts.stranger.private_key)
        yield bench


async def test_without_a_wei_from_opening_to_refund(poor: Poor) -> None:
    """Open, talk, complete: what was not used comes back, less the fee, and no gas was ever the payer's."""
    url = await poor.serve(REPLY, relay_fee="0.05")
    wallet, said = poor.wallet(), list[str]()
    session = await wallet.open(url, Wishes(DEPOSIT), said.append)
    assert (await poor.wei(), await poor.dollars()) == (0, DEPOSIT)
    assert session.job.deposit == DEPOSIT - FEE
    async with session:
        text = "".join([part.text async for part in session.stream("Tell me.", max_tokens=150)])
        completion = await session.complete()
    assert text == "x" * 150
    assert completion.owed > 0
    assert await poor.dollars() == 2 * DEPOSIT - FEE - completion.owed
    assert await poor.wei() == 0


async def test_the_terms_are_shown_beside_the_hash(poor: Poor) -> None:
    """Who gets what, for what, until when; the hashes that stand for it; and just that was signed."""
    url = await poor.serve(REPLY, relay_fee="0.05")
    wallet, said = poor.wallet(), list[str]()
    session = await wallet.open(url, Wishes(DEPOSIT), said.append)
    [told] = said
    job, deployment = session.job, wallet.deployment
    token = await poor.chain.token_domain(poor.devnet.dollar)
    shown: tuple[str, ...] = (
        "2 tUSD: 1.95 tUSD into escrow, 0.05 tUSD to who sends it",
        "0.9 tUSD a million tokens",
    )
    shown += (job.host, job.signer, poor.payer, deployment.marketplace, f"0x{token.separator.hex()}")
    assert [each for each in shown if each not in told] == []
    [nonce] = re.findall(r"nonce +(0x[0-9a-f]{64}) ", told)
    hashes = re.findall(r"(domain hash|message hash|digest) +(0x[0-9a-f]{64})$", told, re.MULTILINE)
    (_, domain), (_, message), (_, digest) = hashes
    assert digest == "0x" + keccak(bytes.fromhex("1901" + domain[2:] + message[2:])).hex()
    asking = (
        keccak(b"authorizationState(address,bytes32)")[:4].hex()
        + encode(["address", "bytes32"], [poor.payer, bytes.fromhex(nonce[2:])]).hex()
    )
    used = await poor.devnet.ask("eth_call", {"to": poor.devnet.dollar, "data": "0x" + asking}, "latest")
    assert int(used, 16) == 1


async def test_the_command_shows_what_it_signs(poor: Poor) -> None:
    """`tally job open` prints terms and digest before it signs; with `--gasless` also where there is ETH."""
    url = await poor.serve(REPLY, relay_fee="0.05")
    await poor.devnet.ask("anvil_setBalance", poor.payer, hex(10**18))
    env = {
        "RPC_URL": poor.devnet.rpc_url,
        "PAYER_PRIVATE_KEY": "0x" + poor.key.hex(),
        "PAYER_DATA_DIR": str(poor.directory / "payer"),
    }
    command = ["job", "open", "--gasless", "--host", url]
    ran = await asyncio.to_thread(CliRunner().invoke, app, command, env=env)
    assert ran.exit_code == 0, ran.output
    assert re.search(r"digest +0x[0-9a-f]{64}\n", ran.stderr)
    assert "1.95 tUSD in escrow" in ran.stdout
    assert await poor.wei() == 10**18


async def test_anybody_can_reclaim_for_it(poor: Poor) -> None:
    """Its host is gone for good: once the job has expired, a stranger sends the rest back to the payer."""
    parts = await poor.parts.enter_async_context(AsyncExitStack())
    url = await poor.serve(REPLY, relay_fee="0.05", parts=parts)
    session = await poor.wallet().open(url, Wishes(DEPOSIT), lambda _: None)
    await parts.aclose()
    closes_at = session.job.closes_at
    await poor.devnet.increase_time(closes_at - (await poor.chain.block()).timestamp)
    stranger = poor.devnet.accounts.stranger.private_key
    await poor.chain.transact(poor.chain.reclaim(session.job.id), stranger)
    assert (await poor.dollars(), await poor.wei()) == (2 * DEPOSIT - FEE, 0)


async def test_a_proxy_pays_without_eth(poor: Poor, monkeypatch: pytest.MonkeyPatch) -> None:
    """The proxy opens by its host as well; the fee counts against the day, the rest comes back at the end."""
    monkeypatch.setattr(spending, "COMPLETE", 30.0)
    url = await poor.serve(REPLY, relay_fee="0.05")
    proxy = await poor.proxy(url, Caps(DEPOSIT, DEPOSIT))
    await proxy.ask(150)
    assert await proxy.spender.stakes.room(await proxy.spender.stakes.today()) == 0
    await proxy.parts.aclose()
    [created] = await poor.chain.jobs(payer=poor.payer)
    completion = await poor.chain.completion(created.job_id)
    assert completion is not None
    assert await poor.dollars() == 2 * DEPOSIT - FEE - completion.owed


async def test_a_top_up_without_eth(poor: Poor) -> None:
    """Once the job has earned its host the fee, the host sends what its payer authorizes to be added."""
    url = await poor.serve(REPLY, relay_fee="0.05", price="1000")
    wallet = poor.wallet()
    session = await wallet.open(url, Wishes(DEPOSIT), lambda _: None)
    with pytest.raises(HostRefused, match="top_up_not_earned"):
        await wallet.top_up(session.job, 1_000_000)
    async with session:
        async for _ in session.stream("Tell me.", max_tokens=150):
            pass
        topped = await wallet.top_up(session.job, 1_000_000)
        await session.complete()
    assert (topped.amount, topped.deposit) == (1_000_000, DEPOSIT - FEE + 1_000_000)
    assert await poor.wei() == 0


async def test_who_has_eth_sends_for_itself(poor: Poor) -> None:
    """Gasless is for want of ETH, or because it was asked for; a fee is not paid without need."""
    url = await poor.serve(REPLY, relay_fee="0.05")
    wallet = poor.wallet()
    await poor.devnet.ask("anvil_setBalance", poor.payer, hex(10**18))
    own = await wallet.open(url, Wishes(DEPOSIT), lambda _: None)
    assert own.job.deposit == DEPOSIT
    nonce = await poor.chain.nonce(poor.payer)
    asked = await wallet.open(url, Wishes(DEPOSIT, gasless=True), lambda _: None)
    assert asked.job.deposit == DEPOSIT - FEE
    assert await poor.chain.nonce(poor.payer) == nonce


@pytest.mark.parametrize(
    ("fee", "wishes", "told"),
    [
        ("0", Wishes(DEPOSIT), "has no ETH for gas .* its quote has no relay_fee"),
        ("0", Wishes(DEPOSIT, gasless=True), "its quote has no relay_fee"),
        (
            "0.05",
            Wishes(40_000),
            "fee of 0.05 tUSD a deposit of 0.04 tUSD is too little; deposit 0.05009 tUSD",
        ),
        (
            "0.05",
            Wishes(DEPOSIT, max_relay_fee=FEE - 1),
            "asks 0.05 tUSD, above the 0.049999 tUSD of PAYER_RELAY_FEE_MAX",
        ),
    ],
)
async def test_what_stands_in_the_way_is_told(poor: Poor, fee: str, wishes: Wishes, told: str) -> None:
    """A host that sends nothing, or asks more than the payer allows: an error says so, and no money moves."""
    url = await poor.serve(REPLY, relay_fee=fee)
    with pytest.raises(SessionError, match=told):
        await poor.wallet().open(url, wishes, lambda _: None)
    assert await poor.dollars() == 2 * DEPOSIT


async def test_what_the_chain_would_not_take_is_not_given_away(poor: Poor) -> None:
    """The payer asks the chain before its host: an error, no authorization out, nothing staked."""
    url = await poor.serve(REPLY, relay_fee="0.05")
    wallet = poor.wallet()
    with pytest.raises(ERC20InsufficientBalance):
        await open_staked(wallet, url, Wishes(3 * DEPOSIT))
    deployment = wallet.deployment
    assert wallet.store.stakes(deployment.chain_id, deployment.marketplace) == []


async def test_what_was_refused_stays_staked_until_it_runs_out(poor: Poor) -> None:
    """A host that refuses holds an authorization all the same: the day's room comes back when it is void."""
    url = await poor.serve(REPLY, relay_fee="0.05", relay_budget="0.0000000001")
    wallet = poor.wallet()
    place = (wallet.deployment.chain_id, wallet.deployment.marketplace)
    with pytest.raises(HostRefused, match="relay_budget_spent"):
        await open_staked(wallet, url, Wishes(DEPOSIT))
    [stake] = wallet.store.stakes(*place)
    assert stake.at_most == DEPOSIT
    await opening.find_openings(poor.chain, wallet.store)
    assert wallet.store.stakes(*place) == [stake]
    await poor.devnet.increase_time(VALID)
    assert await opening.find_openings(poor.chain, wallet.store) == []
    assert (wallet.store.stakes(*place), wallet.store.openings(*place)) == ([], [])


async def test_a_host_that_says_sent_and_sends_nothing(poor: Poor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the chain tells that a job is there: the payer waits, and says what it waited for."""
    monkeypatch.setattr(gasless, "INCLUSION_TIMEOUT", 0.2)
    url = await poor.serve(REPLY, relay_fee="0.05")
    quote = await opening.fetch_quote(url)

    async def lie(_: web.Request) -> web.Response:
        return web.json_response({"tx": "0x" + "11" * 32, "state": "open", "job_id": None}, status=202)

    app = web.Application()
    app.router.add_post("/v1/jobs", lie)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    poor.parts.push_async_callback(runner.cleanup)
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    liar = f"http://127.0.0.1:{runner.addresses[0][1]}"
    with pytest.raises(SessionError, match="the chain does not have it"):
        await opening.open_job(poor.chain, poor.wallet().store, poor.key, liar, Wishes(DEPOSIT), quote)
    assert await poor.dollars() == 2 * DEPOSIT


async def test_a_lost_answer_is_asked_for_again(poor: Poor) -> None:
    """A connection that breaks after the host has sent it costs nothing: the same again is the same job."""
    url = await poor.serve(REPLY, relay_fee="0.05")
    answered = []

    async def pass_on(request: web.Request) -> web.StreamResponse:
        async with (
            aiohttp.ClientSession() as http,
            http.post(f"{url}/v1/jobs", data=await request.read()) as answer,
        ):
            answered.append(await answer.json())
        if len(answered) == 1:
            assert request.transport is not None
            request.transport.abort()
        return web.json_response(answered[-1], status=202)

    app = web.Application()
    app.router.add_post("/v1/jobs", pass_on)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    poor.parts.push_async_callback(runner.cleanup)
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    between = f"http://127.0.0.1:{runner.addresses[0][1]}"
    quote = await opening.fetch_quote(url)
    stored, job = await opening.open_job(
        poor.chain, poor.wallet().store, poor.key, between, Wishes(DEPOSIT), quote
    )
    assert [each["tx"] for each in answered] == [answered[0]["tx"]] * 2
    assert job.status is JobStatus.OPEN
    assert [each.job_id for each in await poor.chain.jobs(payer=poor.payer)] == [stored.job_id]
