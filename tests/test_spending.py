"""The jobs that requests are paid from, on a real chain with a real node: opened, topped up, completed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from eth_utils.conversions import to_hex
from structlog.testing import capture_logs

from tallystick import lookout, opening, pricing, proof, spending
from tallystick.caps import Caps
from tallystick.chain import Chain
from tallystick.config import DAY
from tallystick.devnet import Devnet
from tallystick.errors import ChainError, ContractError, NotYetReclaimable, Refusal, SessionError
from tallystick.exchange import Exchange
from tallystick.gateway import problem_of
from tallystick.keccak import keccak
from tallystick.opening import Wishes
from tallystick.session import Session
from tallystick.spending import Spender
from tallystick.testing.engine import Script, say
from tallystick.testing.faults import Status
from tallystick.testing.geth import Upstream
from tallystick.testing.rpc import FaultyRpc
from tallystick.types import Completion, Job, JobId, JobStatus, Totals
from tallystick.wallet import Wallet
from tests.buying import DEPOSIT, MESSAGES, Bench, open_staked
from tests.paying import register, until

MODEL = "scripted"


@pytest.fixture
async def bench(devnet: Devnet, chain: Chain, tmp_path: Path) -> AsyncIterator[Bench]:
    await register(devnet, chain)
    async with AsyncExitStack() as parts:
        yield Bench(devnet, chain, tmp_path, parts)


def spender(bench: Bench, url: str, caps: Caps | None = None, **how: Any) -> Spender:
    return Spender(bench.wallet(), caps or Caps(DEPOSIT, DEPOSIT), [url], **how)


@asynccontextmanager
async def paying(spender: Spender, model: str, cost: int) -> AsyncIterator[Session]:
    """The session that pays for a request of that model."""
    chosen = await spender.choose(model)
    assert chosen is not None
    async with spender.paying(chosen.candidate, cost) as session:
        yield session


async def spend(spender: Spender, cost: int = 1000, max_tokens: int = 500, model: str = MODEL) -> Totals:
    """One request, paid: what it brought."""
    body = {"messages": MESSAGES, "model": model, "max_tokens": max_tokens}
    async with (
        paying(spender, model, cost) as session,
        Exchange(session, "/v1/chat/completions", body, max_tokens=max_tokens) as exchange,
    ):
        async for _ in exchange:
            pass
    return exchange.tab.totals


async def test_one_job_serves_many_requests_and_is_completed_at_the_end(bench: Bench) -> None:
    """The first request opens a job, the others share it; leaving has the rest come back, to the unit."""
    heard: list[tuple[Job, Any]] = []
    url = await bench.serve(Script(say(*["a "] * 30)))
    before, _ = await bench.money()
    async with spender(bench, url, hear=lambda *each: heard.append(each)) as spends:
        totals = [await spend(spends) for _ in range(3)]
        [used] = spends.jobs
        job = used.session.job
    total = sum(totals, Totals())
    after, held = await bench.money()
    completion = heard[-1][1]
    assert isinstance(completion, Completion)
    assert before - after == completion.owed == pricing.owed(total, job.prices)
    host, treasury = await _earned(bench)
    assert host + treasury + completion.refund == DEPOSIT
    assert held == host + treasury


async def _earned(bench: Bench) -> tuple[int, int]:
    """What lies in the contract for host and treasury."""
    host, dollar = bench.devnet.accounts.host.address, bench.devnet.dollar
    return await bench.chain.earnings(host, dollar), await bench.chain.treasury_balance(dollar)


async def test_a_job_is_topped_up_when_it_runs_low(bench: Bench) -> None:
    """What a request may cost is there before it is asked; the unspent rest is never above the deposit."""
    url = await bench.serve(Script(say(*["a "] * 200)))
    async with spender(bench, url, Caps(400, 2_000)) as spends:
        await spend(spends, cost=300)
        [used] = spends.jobs
        deposits = [used.session.job.deposit]
        for _ in range(4):
            await spend(spends, cost=300)
            deposits.append(used.session.job.deposit)
            assert used.purse.rest <= 400
        await used.session.flush()
        assert used.session.receipted.tokens == 1000
    assert deposits == sorted(deposits)
    assert 400 < deposits[-1] <= 2_000
    closed = await bench.chain.job(used.session.job.id)
    assert closed is not None
    assert closed.owed == pricing.owed(closed.settled, closed.prices)


async def test_the_days_cap_is_never_exceeded(bench: Bench) -> None:
    """What was spent on the day and what still can be is within the cap, over models and restarts."""
    url = await bench.serve(Script(say(*["a "] * 300)), models=("one", "two"))
    caps = Caps(500, 900)
    async with spender(bench, url, caps) as spends:
        await spend(spends, cost=300, model="one")
        await spend(spends, cost=300, model="two")
        assert sum(used.purse.deposit for used in spends.jobs) == 900
        with pytest.raises(Refusal, match="max-per-day") as refused:
            async with paying(spends, "two", 450):
                pass
        assert refused.value.code == "cap_reached"
    async with spender(bench, url, caps) as again:
        with pytest.raises(Refusal, match="max-per-day"):
            async with paying(again, "one", 400):
                pass
        [*_, last] = await bench.chain.jobs()
    spent = [await bench.chain.job(JobId(number)) for number in range(1, last.job_id + 1)]
    assert sum(job.owed for job in spent if job) <= 900


async def test_two_programs_with_one_store_share_the_days_cap(bench: Bench) -> None:
    """Both look at the day's room at once; what one takes of it the other does not have."""
    url = await bench.serve(Script(say(*["a "] * 300)), models=("one", "two"))
    caps = Caps(500, 900)
    async with spender(bench, url, caps) as first, spender(bench, url, caps) as second:
        spent = await asyncio.gather(
            *(spend(each, cost=300, model=model) for each, model in ((first, "one"), (second, "two")))
        )
        deposits = [used.purse.deposit for each in (first, second) for used in each.jobs]
        with pytest.raises(Refusal, match="max-per-day"):
            async with paying(first, "one", 450):
                pass
    assert [totals.tokens for totals in spent] == [300, 300]
    assert sorted(deposits) == [400, 500]


async def test_a_stake_written_in_between_is_seen(bench: Bench) -> None:
    """Room is looked at and taken in one go: who finds other stakes than it saw decides anew."""
    url = await bench.serve(Script(say("a")))
    purse = bench.wallet()
    await open_staked(purse, url, Wishes(500))
    quote = await opening.fetch_quote(url)
    draft = await opening.drafted(bench.chain, proof.address(purse.key()), url, Wishes(500), quote)
    stale = opening.Staking(draft.stake("2027-01-15"), [])
    assert await opening.carry_out(bench.chain, purse.store, purse.key(), draft, stale) is None
    assert len(await bench.chain.jobs()) == 1


async def test_an_opening_that_never_arrived_pays_for_the_next_request(bench: Bench) -> None:
    """What was signed for it has the day's room: it is sent again rather than holding the payer up."""
    url = await bench.serve(Script(say("a")))
    async with failing(bench) as (purse, rpc), Spender(purse, Caps(DEPOSIT, DEPOSIT), [url]) as spends:
        with rpc.failing(Status(503), "eth_sendRawTransaction"):
            with pytest.raises(ChainError, match="may or may not"):
                await spend(spends)
            with pytest.raises(Refusal, match="signed and not on the chain: transaction 0x"):
                await spend(spends)
        await spend(spends)
        [used] = spends.jobs
        assert used.purse.deposit == DEPOSIT
    assert len(await bench.chain.jobs()) == 1


async def test_what_cannot_be_sent_is_the_endpoints_fault_and_not_the_caps(bench: Bench) -> None:
    """The caps leave nothing for as long as RPC_URL takes nothing; what they never leave is theirs still."""
    url = await bench.serve(Script(say("a")))
    async with failing(bench) as (purse, rpc), Spender(purse, Caps(DEPOSIT, DEPOSIT), [url]) as spends:
        with rpc.failing(Status(503), "eth_sendRawTransaction"):
            with pytest.raises(ChainError):
                await spend(spends)
            with pytest.raises(Refusal, match=r"It cannot be sent: .*503") as held_up:
                await spend(spends)
            with pytest.raises(Refusal) as beyond:
                await spend(spends, cost=DEPOSIT + 1)
        assert problem_of(held_up.value).items() >= {"status": 503, "move": "payer", "retry": True}.items()
        assert (held_up.value.code, beyond.value.code) == ("rpc_unavailable", "cap_reached")


async def test_an_opening_that_another_program_is_making_is_told_as_such(bench: Bench) -> None:
    """Its stake leaves nothing, and whoever claims it goes on with it: no command ends it."""
    url = await bench.serve(Script(say("a")))
    purse = bench.wallet()
    key, quote = purse.key(), await opening.fetch_quote(url)
    async with Spender(purse, Caps(DEPOSIT, DEPOSIT), [url]) as spends:
        draft = await opening.drafted(bench.chain, proof.address(key), url, Wishes(DEPOSIT), quote)
        with purse.store.claiming(draft.stored.signer):
            purse.store.opening(draft.stored, draft.stake(await spends.stakes.today()))
            with pytest.raises(Refusal, match=r"another program or session .* is making it") as refused:
                await spend(spends)
        assert refused.value.code == "cap_reached"
        await spend(spends)


@asynccontextmanager
async def failing(bench: Bench) -> AsyncIterator[tuple[Wallet, FaultyRpc]]:
    """The payer's wallet over an endpoint that fails on purpose; the dollar is approved."""
    async with (
        Upstream(bench.devnet.rpc_url) as node,
        FaultyRpc(node) as rpc,
        Chain(rpc.url, bench.chain.deployment) as chain,
    ):
        purse = replace(bench.wallet(), chain=chain)
        await purse.transact(chain.approve(bench.devnet.dollar, 2 * DEPOSIT))
        yield purse, rpc


async def _given_up(spends: Spender, rpc: FaultyRpc, cost: int = 1000) -> None:
    """A request whose client goes away once its money is sent, and before that is known to have arrived."""
    sent = rpc.reached["eth_sendRawTransaction"]
    asking = asyncio.create_task(spend(spends, cost))
    await until(lambda: _is_sent(rpc, sent + 1))
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking


async def _is_sent(rpc: FaultyRpc, number: int) -> bool:
    return rpc.reached["eth_sendRawTransaction"] >= number


async def test_an_opening_outlives_the_request_that_began_it(bench: Bench) -> None:
    """Whoever asked may go: the job is opened all the same, once, and pays for the next request."""
    url = await bench.serve(Script(say("a")))
    async with failing(bench) as (purse, rpc), Spender(purse, Caps(DEPOSIT, DEPOSIT), [url]) as spends:
        with rpc.failing(Status(503), "eth_getTransactionReceipt"):
            await _given_up(spends, rpc)
        await spend(spends)
        assert rpc.reached["eth_sendRawTransaction"] == 2
    [job] = await _all_jobs(bench)
    assert (job.status, job.settled.tokens) == (JobStatus.CLOSED, 1)


async def test_leaving_waits_for_what_is_being_paid_in(bench: Bench) -> None:
    """A deposit under way is seen to arrive, and comes back whole with those of the other jobs."""
    url = await bench.serve(Script(say("a")))
    before = await bench.money()
    async with failing(bench) as (purse, rpc):
        spends = await Spender(purse, Caps(DEPOSIT, DEPOSIT), [url]).__aenter__()
        with rpc.failing(Status(503), "eth_getTransactionReceipt"):
            await _given_up(spends, rpc)
            leaving = asyncio.create_task(spends.__aexit__(None, None, None))
            done, _ = await asyncio.wait([leaving], timeout=0.1)
            assert not done
        await leaving
        with pytest.raises(Refusal, match="proxy_stopping"):
            await spend(spends)
    [job] = await _all_jobs(bench)
    assert job.status is JobStatus.CLOSED
    assert await bench.money() == before


async def test_a_top_up_outlives_the_request_that_began_it(bench: Bench) -> None:
    """What is added to a job for a request that has gone is there for the next one, and added once."""
    url = await bench.serve(Script(say(*["a "] * 200)))
    async with failing(bench) as (purse, rpc), Spender(purse, Caps(400, 500), [url]) as spends:
        await spend(spends, cost=300)
        with rpc.failing(Status(503), "eth_getTransactionReceipt"):
            await _given_up(spends, rpc, cost=300)
        await spend(spends, cost=300)
        [used] = spends.jobs
        assert used.purse.deposit == 500
        assert rpc.reached["eth_sendRawTransaction"] == 3


async def test_an_opening_that_leaving_cannot_wait_for_is_named(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its transaction is in the log, with what brings the deposit back should it still be mined."""
    monkeypatch.setattr(spending, "COMPLETE", 0.1)
    url = await bench.serve(Script(say("a")))
    async with failing(bench) as (purse, rpc):
        with rpc.failing(Status(503), "eth_getTransactionReceipt"), capture_logs() as logs:
            async with Spender(purse, Caps(DEPOSIT, DEPOSIT), [url]) as spends:
                await _given_up(spends, rpc)
        [pending] = spends.stakes.pending()
    assert pending.raw is not None
    [told] = [each for each in logs if each["event"] == "opening.awaited"]
    assert to_hex(keccak(pending.raw)) in told["told"]
    assert "tally job complete JOB" in told["mend"]


async def _all_jobs(bench: Bench) -> list[Job]:
    found = [await bench.chain.job(JobId(each.job_id)) for each in await bench.chain.jobs()]
    return [job for job in found if job is not None]


async def test_a_top_up_that_failed_is_made_anew(bench: Bench) -> None:
    """What was staked for it and not signed is not the day's loss."""
    url = await bench.serve(Script(say(*["a "] * 200)))
    async with (
        Upstream(bench.devnet.rpc_url) as node,
        FaultyRpc(node) as rpc,
        Chain(rpc.url, bench.chain.deployment) as chain,
        Spender(replace(bench.wallet(), chain=chain), Caps(400, 500), [url]) as spends,
    ):
        await spend(spends, cost=300)
        with rpc.failing(Status(503), "eth_getTransactionCount"), pytest.raises(ChainError):
            await spend(spends, cost=300)
        await spend(spends, cost=300)
        [used] = spends.jobs
        assert used.purse.deposit == 500


async def test_the_next_day_has_its_own_cap(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A day later, of the chain's clock, what was spent the day before no longer counts."""
    monkeypatch.setattr(lookout, "FRESH", 0.0)  # the host sees every block at once
    url = await bench.serve(Script(say(*["a "] * 300)))
    caps = Caps(400, 400)
    async with spender(bench, url, caps) as spends:
        await spend(spends, cost=350)
        with pytest.raises(Refusal):
            await spend(spends, cost=350)
        await bench.devnet.increase_time(DAY)
        assert (await spend(spends, cost=350)).tokens == 300


async def test_a_request_beyond_the_deposit_opens_nothing(bench: Bench) -> None:
    """What would cost more than the cap is refused before any money moves."""
    url = await bench.serve(Script(say("a")))
    before = await bench.money()
    async with spender(bench, url, Caps(100, 1_000)) as spends:
        with pytest.raises(Refusal, match=r"--deposit leaves 100"):
            async with paying(spends, MODEL, 101):
                pass
        assert spends.jobs == []
    assert await bench.money() == before


async def test_requests_wait_for_each_other_rather_than_exceed_the_cap(bench: Bench) -> None:
    """Requests that together may cost more than the deposit take turns; none is refused that fits alone."""
    url = await bench.serve(Script(say(*["a "] * 100)))
    async with spender(bench, url, Caps(300, 3_000)) as spends:
        totals = await asyncio.gather(*(spend(spends, cost=200) for _ in range(5)))
    assert [each.tokens for each in totals] == [100] * 5


async def test_a_price_above_the_cap_is_refused(bench: Bench) -> None:
    """No job is opened at more than --max-price; a model's own price counts before the general one."""
    url = await bench.serve(Script(say("a")), models=("one", "two"))
    async with spender(bench, url, Caps(DEPOSIT, DEPOSIT, 899_999, {"two": 900_000})) as spends:
        with pytest.raises(Refusal) as refused:
            await spend(spends, model="one")
        assert refused.value.code == "price_above_cap"
        assert (await spend(spends, model="two")).tokens == 1


async def test_what_a_killed_payer_left_is_gone_on_with(bench: Bench) -> None:
    """Another run with the same store goes on with the job, opens no second one, and completes it."""
    url = await bench.serve(Script(say(*["a "] * 30)))
    killed = spender(bench, url)
    first = await spend(killed)
    [used] = killed.jobs
    await used.session.close()
    async with spender(bench, url) as spends:
        second = await spend(spends)
        assert [each.session.job.id for each in spends.jobs] == [used.session.job.id]
    closed = await bench.chain.job(used.session.job.id)
    assert closed is not None
    assert (closed.status, closed.settled) == (JobStatus.CLOSED, first + second)


async def test_a_job_that_is_in_use_is_left_alone(bench: Bench) -> None:
    """Two that sign for one job would be in each other's way: the second one opens its own."""
    url = await bench.serve(Script(say(*["a "] * 30)))
    caps = Caps(DEPOSIT, 2 * DEPOSIT)
    async with spender(bench, url, caps, idle=0.2) as spends:
        first = spender(bench, url, caps)
        await spend(first)
        [used] = first.jobs
        await spend(spends)
        [other] = spends.jobs
        assert other.session.job.id != used.session.job.id
        await until(lambda: _closed(bench, other.session))
        assert not await _closed(bench, used.session)
        await used.session.close()
        assert await spends.wallet.latest(url, MODEL) == used.session.job.id


async def test_an_idle_job_is_completed(bench: Bench) -> None:
    """A job that nobody asks of for a while is completed; the next request has a new one."""
    url = await bench.serve(Script(say(*["a "] * 30)))
    async with spender(bench, url, Caps(DEPOSIT, 2 * DEPOSIT), idle=0.2) as spends:
        await spend(spends)
        [used] = spends.jobs
        await until(lambda: _closed(bench, used.session))
        await spend(spends)
        [another] = spends.jobs
        assert another.session.job.id != used.session.job.id


async def _closed(bench: Bench, session: Session) -> bool:
    job = await bench.chain.job(session.job.id)
    return job is not None and job.status is JobStatus.CLOSED


async def test_a_job_that_an_earlier_run_left_is_completed_unasked(bench: Bench) -> None:
    """Nobody has to ask for money to come back: a run that starts looks after the jobs of the one before."""
    url = await bench.serve(Script(say(*["a "] * 30)))
    killed = spender(bench, url)
    await spend(killed)
    [used] = killed.jobs
    await used.session.close()
    async with spender(bench, url, idle=0.2):
        await until(lambda: _closed(bench, used.session))


async def test_an_expired_job_is_reclaimed(bench: Bench) -> None:
    """What a host never completed comes back by the payer's own transaction, once its time is over."""
    node = await bench.parts.enter_async_context(AsyncExitStack())
    url = await bench.serve(Script(say("a")), parts=node)
    killed = spender(bench, url)
    async with paying(killed, MODEL, 100) as session:
        pass
    await session.close()
    await node.aclose()
    await bench.devnet.increase_time(10 * DAY)
    async with spender(bench, url):
        await until(lambda: _closed(bench, session))
    assert (await bench.money())[1] == 0


async def test_a_host_that_is_gone_leaves_nothing_half_done(bench: Bench) -> None:
    """Without its host a job stays open and staked, and the error says so."""
    node = await bench.parts.enter_async_context(AsyncExitStack())
    url = await bench.serve(Script(say("a")), parts=node)
    spends = spender(bench, url)
    await spend(spends)
    [used] = spends.jobs
    await used.session.close()
    await node.aclose()
    with pytest.raises(SessionError, match=url):
        await spend(spends)
    stakes = spends.wallet.store.stakes(31337, bench.devnet.deployment.marketplace)
    assert [stake.most for stake in stakes] == [DEPOSIT]


async def test_an_opening_that_the_chain_refuses_stakes_nothing(bench: Bench) -> None:
    """A payer without the money is told so, and the day's cap is as it was."""
    url = await bench.serve(Script(say("a")))
    wallet = bench.wallet()
    async with Spender(wallet, Caps(10**15, 10**15), [url]) as spends:
        with pytest.raises(ContractError):
            await spend(spends)
    assert wallet.store.stakes(31337, bench.devnet.deployment.marketplace) == []


async def test_a_job_that_the_host_has_ended_is_followed_by_another(bench: Bench) -> None:
    """A retired job takes no more requests, is completed, and is not gone on with."""
    url = await bench.serve(Script(say(*["a "] * 30)))
    async with spender(bench, url, Caps(DEPOSIT, 2 * DEPOSIT)) as spends:
        await spend(spends)
        [used] = spends.jobs
        await spends.retire(used.session)
        await spend(spends)
        [another] = spends.jobs
        assert another.session.job.id != used.session.job.id
        await until(lambda: _closed(bench, used.session))


# By hand


async def test_a_job_opened_by_hand_pays_for_the_next_request(bench: Bench) -> None:
    """With the deposit that was named; a second one for the same model is refused."""
    url = await bench.serve(Script(say(*["a "] * 30)))
    async with spender(bench, url) as spends:
        job = await spends.open(MODEL, 500)
        assert job.deposit == 500
        await spend(spends, cost=400)
        assert [used.session.job.id for used in spends.jobs] == [job.id]
        with pytest.raises(Refusal) as refused:
            await spends.open(MODEL, 500)
        assert refused.value.code == "job_in_use"


async def test_by_hand_as_well_nothing_is_put_in_beyond_the_caps(bench: Bench) -> None:
    """A deposit above --deposit and one above what the day leaves are refused, before any money moves."""
    url = await bench.serve(Script(say(*["a "] * 30)), models=("one", "two"))
    async with spender(bench, url, Caps(500, 800)) as spends:
        with pytest.raises(Refusal, match="--deposit leaves 500"):
            await spends.open("one", 501)
        job = await spends.open("one", 450)
        with pytest.raises(Refusal, match="--deposit leaves 50"):
            await spends.top_up(job.id, 51)
        assert (await spends.top_up(job.id, 50)).deposit == 500
        with pytest.raises(Refusal, match="--max-per-day leaves 300"):
            await spends.open("two", 301)
        assert (await bench.money())[1] == 500


async def test_a_job_completed_by_hand_takes_no_more_requests(bench: Bench) -> None:
    """The rest comes back at once; completing it again says that it is closed."""
    url = await bench.serve(Script(say(*["a "] * 30)))
    async with spender(bench, url, Caps(DEPOSIT, 2 * DEPOSIT)) as spends:
        total = await spend(spends)
        [used] = spends.jobs
        job = used.session.job
        completion = await spends.complete(job.id)
        assert completion.refund == pricing.refund(DEPOSIT, total, job.prices)
        assert spends.jobs == []
        with pytest.raises(Refusal) as refused:
            await spends.complete(job.id)
        assert refused.value.code == "job_closed"


async def test_a_job_of_the_command_line_is_added_to_and_completed_by_hand(bench: Bench) -> None:
    """A job of the store that is not in use counts against the day once it is added to."""
    url = await bench.serve(Script(say("a")))
    async with spender(bench, url, Caps(500, 600)) as spends:
        wishes = spends.wallet.wishes("0.0004", MODEL)
        session = await spends.wallet.open(url, wishes, print)
        await session.close()
        topped = await spends.top_up(session.job.id, 100)
        assert topped.deposit == 500
        assert await spends.stakes.room(await spends.stakes.today()) == 100
        assert (await spends.complete(session.job.id)).refund == 500


async def test_money_comes_back_past_a_host_that_is_gone(bench: Bench) -> None:
    """Asked on chain, a job can be reclaimed once its host's time to claim is over, and not before."""
    node = await bench.parts.enter_async_context(AsyncExitStack())
    url = await bench.serve(Script(say("a")), parts=node)
    async with spender(bench, url) as spends:
        total = await spend(spends)
        [used] = spends.jobs
        await node.aclose()
        job_id = used.session.job.id
        with pytest.raises(SessionError):
            await spends.complete(job_id)
        closes_at = await spends.ask_on_chain(job_id)
        with pytest.raises(NotYetReclaimable):
            await spends.reclaim(job_id)
        now = (await bench.chain.block()).timestamp
        await bench.devnet.increase_time(closes_at - now)
        refund = (await spends.reclaim(job_id)).refund
        assert refund == pricing.refund(DEPOSIT, total, used.session.job.prices)
        assert (await bench.money())[1] == DEPOSIT - refund
