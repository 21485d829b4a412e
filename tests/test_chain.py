"""Every call and event of the contracts once, on a real chain, and endpoints that misbehave on the way."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import orjson
import pytest
from aiohttp import ClientSession, web
from aiohttp.test_utils import TestServer, unused_port

from tallystick import contracts, errors, pricing, proof
from tallystick.chain import DATA_FEES, NONCE_TRIES, Chain, TxResult
from tallystick.contracts import Call, Claim
from tallystick.devnet import Account, Devnet
from tallystick.errors import ChainError, Reverted, RpcError, WrongChain
from tallystick.testing.faults import Erring, Status, nth
from tallystick.testing.geth import Upstream
from tallystick.testing.rpc import FaultyRpc
from tallystick.types import (
    ETH,
    ZERO_HASH,
    Completion,
    JobId,
    JobStatus,
    Prices,
    Receipt,
    Settlement,
    Terms,
    Totals,
)

TestServer.__test__ = False  # pytest would collect it by its name

DAY = 86_400
PRICES = Prices(per_million=904_000, prompt_per_million=100_000)
DEPOSIT = 500_000
MODEL = proof.model_id("tally-demo")
SIGNER, OTHER_SIGNER = 6, 7
COLD = 8
"""Indexes of accounts: session keys, and a payout address."""


E = TypeVar("E", bound=contracts.Event)


class Market:
    """The parties of a test, and what they do."""

    def __init__(self, chain: Chain, devnet: Devnet) -> None:
        self.chain = chain
        self.devnet = devnet
        self.host, self.payer = devnet.accounts.host, devnet.accounts.payer
        self.treasury, self.stranger = devnet.accounts.treasury, devnet.accounts.stranger
        self.signer, self.cold = devnet.accounts[SIGNER], devnet.accounts[COLD]
        self.dollar = devnet.dollar
        self.domain = proof.Domain(chain.deployment.chain_id, chain.deployment.marketplace)

    async def send(self, call: Call, by: Account) -> TxResult:
        return await self.chain.transact(call, by.private_key)

    async def terms(self, **changes: Any) -> Terms:
        now = (await self.chain.block()).timestamp
        usual = Terms(
            host=self.host.address,
            asset=self.dollar,
            deposit=DEPOSIT,
            prices=PRICES,
            signer=self.signer.address,
            max_tokens_per_second=0,
            claim_window=3600,
            expires_at=now + DAY,
            checkpoint_interval=100,
            model_id=MODEL,
        )
        return dataclasses.replace(usual, **changes)

    async def open(self, **changes: Any) -> JobId:
        terms = await self.terms(**changes)
        if terms.asset != ETH:
            await self.send(self.chain.approve(terms.asset, terms.deposit), self.payer)
        result = await self.send(self.chain.create_job(terms), self.payer)
        return only(result, contracts.Created).job_id

    def proof(self, job_id: JobId, totals: Totals, signed: Totals | None = None, by: int = SIGNER) -> bytes:
        signed = signed or totals
        transcript = b"\x07" * 32
        digest = self.domain.receipt(job_id, signed, transcript)
        signature = proof.sign(digest, self.devnet.accounts[by].private_key)
        receipt = Receipt(job_id, signed, ZERO_HASH, transcript, signature)
        return proof.checkpoint_proof(totals.prompt_tokens, receipt)

    async def settle(self, job_id: JobId, totals: Totals) -> TxResult:
        call = self.chain.submit_checkpoint(job_id, totals.tokens, self.proof(job_id, totals))
        return await self.send(call, self.host)


def only(result: TxResult, kind: type[E]) -> E:
    """The one event of a transaction that only has one."""
    (event,) = result.events
    assert isinstance(event, kind)
    return event


@pytest.fixture
async def market(chain: Chain, devnet: Devnet) -> Market:
    """A registered host, and nothing more."""
    market = Market(chain, devnet)
    await market.send(chain.register(market.host.address, '{"url":"http://localhost"}'), market.host)
    return market


# Jobs


async def test_a_job_reads_back_as_it_was_opened(market: Market) -> None:
    """Opening moves the deposit into escrow, and the job tells its terms, interval and model included."""
    before = await market.chain.token_balance(market.dollar, market.payer.address)
    terms = await market.terms()
    await market.send(market.chain.approve(market.dollar, DEPOSIT), market.payer)
    assert await market.chain.allowance(market.dollar, market.payer.address) == DEPOSIT
    created = only(await market.send(market.chain.create_job(terms), market.payer), contracts.Created)
    assert (created.payer, created.host, created.signer) == (market.payer.address, terms.host, terms.signer)
    assert (created.checkpoint_interval, created.model_id) == (terms.checkpoint_interval, terms.model_id)
    job = await market.chain.job(created.job_id)
    assert job is not None
    assert (job.payer, job.host, job.asset, job.signer) == (
        market.payer.address,
        terms.host,
        terms.asset,
        terms.signer,
    )
    assert (job.deposit, job.prices, job.claim_window) == (DEPOSIT, PRICES, 3600)
    assert (job.interval, job.model_id, job.receipted) == (100, MODEL, True)
    assert (job.status, job.settled, job.owed, job.fee, job.asked_at) == (JobStatus.OPEN, Totals(), 0, 0, 0)
    assert (job.expires_at, job.closes_at) == (terms.expires_at, terms.expires_at + 3600)
    assert await market.chain.token_balance(market.dollar, market.payer.address) == before - DEPOSIT
    assert await market.chain.token_balance(market.dollar, market.chain.deployment.marketplace) == DEPOSIT


async def test_a_deposit_in_eth_goes_along_with_the_call(market: Market) -> None:
    """A job in ETH takes its deposit and its top-ups from the value of the transaction."""
    job_id = await market.open(asset=ETH, deposit=10**15)
    topped = await market.send(market.chain.top_up(job_id, 10**14, ETH), market.payer)
    assert only(topped, contracts.ToppedUp).deposit == 11 * 10**14
    job = await market.chain.job(job_id)
    assert job is not None
    assert (job.asset, job.deposit) == (ETH, 11 * 10**14)
    assert await market.chain.token_balance(ETH, market.chain.deployment.marketplace) == 11 * 10**14


async def test_a_top_up_adds_to_the_deposit(market: Market) -> None:
    """A top-up in an ERC-20 is approved and taken, by the payer alone."""
    job_id = await market.open()
    with pytest.raises(errors.NotThePayer):
        await market.send(market.chain.top_up(job_id, 1, market.dollar), market.stranger)
    await market.send(market.chain.approve(market.dollar, 20), market.payer)
    topped = await market.send(market.chain.top_up(job_id, 20, market.dollar), market.payer)
    event = only(topped, contracts.ToppedUp)
    assert (event.job_id, event.amount, event.deposit) == (job_id, 20, DEPOSIT + 20)


async def test_a_job_that_is_not_there_is_none(market: Market) -> None:
    """No job, or none yet at the depth asked for, is None and no error."""
    assert await market.chain.job(JobId(1)) is None
    job_id = await market.open()
    assert await market.chain.job(job_id) is not None
    assert await market.chain.job(job_id, depth=1) is None
    assert await market.chain.job(job_id, depth=10_000) is None
    assert await market.chain.settlements(JobId(9)) == []
    assert await market.chain.completion(JobId(9)) is None
    await market.devnet.mine()
    assert await market.chain.job(job_id, depth=1) is not None


async def test_a_job_is_read_as_it_was_then(market: Market) -> None:
    """Depth reads the past: totals that were settled since do not show."""
    job_id = await market.open()
    await market.settle(job_id, Totals(10, 100))
    now, then = await market.chain.job(job_id), await market.chain.job(job_id, depth=1)
    assert now is not None
    assert then is not None
    assert (now.settled, then.settled) == (Totals(10, 100), Totals())


async def test_known_jobs_are_read_together(market: Market) -> None:
    """Each as a reading of its own would have it; None where the id is another job's by now, or no one's."""
    jobs = [await market.open(signer=market.devnet.accounts[index].address) for index in (SIGNER, 10, 11)]
    known = [await market.chain.job(job) for job in jobs]
    assert None not in known
    first, second, third = (job for job in known if job is not None)
    first = dataclasses.replace(first, created_at=first.created_at - 1)  # before a reorganisation
    await market.settle(first.id, Totals(5, 100))
    await market.send(market.chain.complete_session(second.id), market.payer)
    other = dataclasses.replace(third, signer=first.signer)
    gone = dataclasses.replace(third, id=JobId(third.id + 1))
    found = await market.chain.latest([first, second, other, gone])
    assert found == {
        first.id: await market.chain.job(first.id),
        second.id: await market.chain.job(second.id),
        third.id: None,
        gone.id: None,
    }


async def test_the_jobs_of_openings_are_read_together(market: Market) -> None:
    """Each as a reading of its own would have it; None where the id is another job's by now, or no one's."""
    ids = [await market.open(signer=market.devnet.accounts[index].address) for index in (SIGNER, 10)]
    first, second = await market.chain.jobs()
    await market.settle(first.job_id, Totals(5, 100))
    other = dataclasses.replace(second, signer=first.signer)
    gone = dataclasses.replace(second, job_id=JobId(second.job_id + 1))
    assert await market.chain.opened([first, second]) == {job: await market.chain.job(job) for job in ids}
    assert await market.chain.opened([first, other, gone]) == {
        first.job_id: await market.chain.job(first.job_id),
        other.job_id: None,
        gone.job_id: None,
    }


async def test_a_job_that_cannot_be_read_is_left_out(market: Market) -> None:
    """And holds up none of the others; an endpoint that gives no answer at all has said nothing."""
    jobs = [await market.open(signer=market.devnet.accounts[index].address) for index in (SIGNER, 10)]
    known = [job for each in jobs if (job := await market.chain.job(each)) is not None]
    deployment, url = market.chain.deployment, market.devnet.rpc_url
    async with Upstream(url) as node, FaultyRpc(node) as rpc, Chain(rpc.url, deployment) as chain:
        with rpc.failing(Erring(-32000, "header not found"), "eth_call", when=nth(1)):
            assert list(await chain.latest(known)) == jobs[1:]
        openings = await chain.jobs()
        with rpc.failing(Erring(-32000, "header not found"), "eth_call", when=nth(1)):
            assert list(await chain.opened(openings)) == jobs[1:]
        with rpc.failing(Status(503)), pytest.raises(ChainError):
            await chain.latest(known)


DATA_FEE = 1_000
"""Wei for each byte, by the oracle of the test."""
ORACLE = "0x6024356103e80260005260206000f3"


async def test_a_rollup_s_data_costs_what_its_oracle_says(market: Market) -> None:
    """And nothing where there is no oracle."""
    assert await market.chain.data_fee(bytes(100)) == 0
    await market.devnet.ask("anvil_setCode", DATA_FEES, ORACLE)
    assert await market.chain.data_fee(bytes(100)) == 100 * DATA_FEE


async def test_jobs_are_found_by_their_parties(market: Market) -> None:
    """A payer that lost its notes finds its jobs, and a host those that are opened with it."""
    first, second = await market.open(), await market.open(asset=ETH, deposit=10**15)
    assert [each.job_id for each in await market.chain.jobs(payer=market.payer.address)] == [first, second]
    assert [each.job_id for each in await market.chain.jobs(host=market.host.address)] == [first, second]
    assert len(await market.chain.jobs()) == 2
    assert await market.chain.jobs(payer=market.stranger.address) == []
    latest = await market.chain.block_number()
    assert [each.job_id for each in await market.chain.jobs(since=latest)] == [second]


async def test_an_opening_is_found_among_many_blocks(market: Market) -> None:
    """The opening is found by its time, in few steps, where blocks share one or months lie between them."""
    await market.devnet.mine(300)
    await market.devnet.increase_time(3 * DAY)
    await market.devnet.mine(7)
    job_id = await market.open(checkpoint_interval=40)
    await market.devnet.mine(200)
    await market.devnet.increase_time(300 * DAY)
    await market.devnet.mine(20)
    async with through_gateway(market) as (chain, gateway):
        job = await chain.job(job_id)
        assert job is not None
        assert job.interval == 40
        assert gateway.calls["eth_getBlockByNumber"] <= 40


async def test_an_opening_is_not_remembered_before_it_is_confirmed(market: Market) -> None:
    """After a reorganization that gave the job's id to other terms, the other terms are told."""
    deployment = dataclasses.replace(market.chain.deployment, confirmations=3)
    async with Chain(market.devnet.rpc_url, deployment) as chain:
        snapshot = await market.devnet.snapshot()
        job_id = await market.open(checkpoint_interval=40)
        before = await chain.job(job_id)
        await market.devnet.revert(snapshot)
        assert await market.open(checkpoint_interval=80) == job_id
        after = await chain.job(job_id)
        assert before is not None
        assert after is not None
        assert (before.interval, after.interval) == (40, 80)


# Claims


async def test_a_settled_checkpoint_tells_what_it_paid(market: Market) -> None:
    """The golden job: 47 580 tokens at 904 000 a million are 38 711 for the host, 4 301 for the treasury."""
    job_id = await market.open()
    result = await market.settle(job_id, Totals(0, 47_580))
    event = only(result, Settlement)
    assert event == Settlement(
        job_id, Totals(0, 47_580), 38_711, 4_301, b"\x07" * 32, result.hash, result.block
    )
    job = await market.chain.job(job_id)
    assert job is not None
    assert (job.settled, job.owed, job.fee) == (Totals(0, 47_580), 43_012, 4_301)
    assert await market.chain.earnings(market.host.address, market.dollar) == 38_711
    assert await market.chain.treasury_balance(market.dollar) == 4_301
    assert await market.chain.settlements(job_id) == [event]


async def test_an_equal_claim_is_harmless(market: Market) -> None:
    """Sending the same totals twice pays once and reverts nowhere."""
    job_id = await market.open()
    await market.settle(job_id, Totals(5, 100))
    again = await market.settle(job_id, Totals(5, 100))
    assert (again.succeeded, again.events) == (True, ())
    assert len(await market.chain.settlements(job_id)) == 1


async def test_a_batch_pays_the_good_rows_and_tells_of_the_bad(market: Market) -> None:
    """Rows are settled, completed and skipped one by one; a skipped one comes with its typed error."""
    first, second, third = await market.open(), await market.open(), await market.open()
    totals, before = Totals(0, 47_580), await market.chain.token_balance(market.dollar, market.payer.address)
    call = market.chain.submit_checkpoints(
        [
            Claim(first, totals.tokens, market.proof(first, totals), complete=True),
            Claim(second, 200, market.proof(second, Totals(0, 200), signed=Totals(0, 100))),
            Claim(third, 300, market.proof(third, Totals(0, 300))),
        ]
    )
    result = await market.send(call, market.host)
    by_kind: dict[type, Any] = {type(event): event for event in result.events}
    assert set(by_kind) == {Settlement, contracts.Skipped, Completion}
    skipped = by_kind[contracts.Skipped]
    assert (skipped.job_id, type(skipped.error)) == (second, errors.AboveReceipt)
    assert skipped.error.values == {"claimed": 200, "signed": 100}
    assert by_kind[Completion] == Completion(first, 43_012, 4_301, 456_988, result.hash, result.block)
    assert [event.job_id for event in result.events if isinstance(event, Settlement)] == [first, third]
    assert await market.chain.token_balance(market.dollar, market.payer.address) == before + 456_988
    assert await market.chain.completion(first) == by_kind[Completion]
    assert await market.chain.completion(second) is None


async def test_a_stale_row_and_a_row_of_another_host_say_so(market: Market) -> None:
    """A skipped row's error is the one that it would have reverted with by itself, with its values."""
    first, second = await market.open(), await market.open()
    totals = Totals(0, 300)
    claim = market.chain.submit_checkpoint(first, 300, market.proof(first, totals))
    await market.send(claim, market.host)
    stale = Claim(first, 200, market.proof(first, Totals(0, 200)))
    good = Claim(second, 300, market.proof(second, totals))
    result = await market.send(market.chain.submit_checkpoints([stale, good]), market.host)
    [skipped] = [event for event in result.events if isinstance(event, contracts.Skipped)]
    assert (skipped.job_id, type(skipped.error)) == (first, errors.StaleCheckpoint)
    assert skipped.error.values == {"settledPromptTokens": 0, "settledTokens": 300}
    result = await market.send(market.chain.submit_checkpoints([good]), market.stranger)
    assert type(only(result, contracts.Skipped).error) is errors.NotTheHost


async def test_a_host_attested_job_is_claimed_without_a_receipt(market: Market) -> None:
    """The host's word counts up to the job's rate; above it is a typed error."""
    job_id = await market.open(max_tokens_per_second=10)
    await market.devnet.increase_time(60)
    settled = await market.send(
        market.chain.submit_checkpoint(job_id, 500, proof.attested_proof(50)), market.host
    )
    assert only(settled, Settlement).totals == Totals(50, 500)
    with pytest.raises(errors.AboveRate) as caught:
        await market.send(
            market.chain.submit_checkpoint(job_id, 90_000, proof.attested_proof(50)), market.host
        )
    assert caught.value.values["total"] == 90_050


async def test_a_revert_is_a_typed_error_with_values_and_nothing_is_sent(market: Market) -> None:
    """The custom error decides before the transaction is sent: it costs no nonce and no gas."""
    job_id = await market.open()
    nonce = await market.chain.nonce(market.host.address, pending=True)
    call = market.chain.submit_checkpoint(
        job_id, 200, market.proof(job_id, Totals(7, 200), signed=Totals(7, 100))
    )
    with pytest.raises(errors.AboveReceipt) as caught:
        await market.send(call, market.host)
    assert caught.value.values == {"claimed": 200, "signed": 100}
    with pytest.raises(errors.AboveReceipt):
        await market.chain.simulate(call, market.host.address)
    with pytest.raises(errors.AboveReceipt):
        await market.chain.estimate_gas(call, market.host.address)
    assert await market.chain.nonce(market.host.address, pending=True) == nonce


async def test_a_receipt_of_another_signer_is_told_with_both(market: Market) -> None:
    """Who signed and who should have are in the error."""
    job_id = await market.open()
    forged = market.proof(job_id, Totals(0, 1), by=OTHER_SIGNER)
    with pytest.raises(errors.WrongSigner) as caught:
        await market.send(market.chain.submit_checkpoint(job_id, 1, forged), market.host)
    assert caught.value.values == {
        "recovered": market.devnet.accounts[OTHER_SIGNER].address,
        "signer": market.signer.address,
    }


async def test_only_the_host_can_submit_checkpoints(market: Market) -> None:
    """The one message that the contract says in words surfaces as it is."""
    job_id = await market.open()
    call = market.chain.submit_checkpoint(job_id, 1, market.proof(job_id, Totals(0, 1)))
    with pytest.raises(Reverted, match="Only host can submit checkpoints") as caught:
        await market.send(call, market.stranger)
    assert caught.value.values == {"reason": "Only host can submit checkpoints"}


async def test_the_token_s_own_errors_are_typed_too(market: Market) -> None:
    """A deposit that was not approved fails with the token's error and its values."""
    call = market.chain.create_job(await market.terms())
    with pytest.raises(errors.ERC20InsufficientAllowance) as caught:
        await market.send(call, market.payer)
    assert caught.value.values["needed"] == DEPOSIT


# Ends


async def test_the_host_closes_a_job_at_once(market: Market) -> None:
    """By the host, completeSession refunds what was not settled."""
    job_id = await market.open()
    event = only(await market.send(market.chain.complete_session(job_id), market.host), Completion)
    assert (event.owed, event.fee, event.refund) == (0, 0, DEPOSIT)
    job = await market.chain.job(job_id)
    assert job is not None
    assert job.status is JobStatus.CLOSED
    with pytest.raises(errors.JobClosed):
        await market.send(market.chain.complete_session(job_id), market.host)


async def test_the_payer_asks_and_reclaims_when_the_window_is_over(market: Market) -> None:
    """By the payer, completeSession opens the claim window; after it anybody can send the rest back."""
    job_id = await market.open()
    asked = only(
        await market.send(market.chain.complete_session(job_id), market.payer), contracts.CompletionRequested
    )
    job = await market.chain.job(job_id)
    assert job is not None
    assert (asked.by, asked.closes_at) == (market.payer.address, job.asked_at + 3600)
    assert (job.status, job.closes_at) == (JobStatus.COMPLETING, asked.closes_at)
    with pytest.raises(errors.NotYetReclaimable) as caught:
        await market.send(market.chain.reclaim(job_id), market.stranger)
    assert caught.value.values == {"jobId": job_id, "closesAt": asked.closes_at}
    await market.devnet.increase_time(3600)
    result = await market.send(market.chain.reclaim(job_id), market.stranger)
    assert only(result, Completion).refund == DEPOSIT


async def test_balances_are_withdrawn_to_the_last_unit(market: Market) -> None:
    """Host, payout address and treasury are paid what the settlements had credited."""
    job_id = await market.open()
    await market.settle(job_id, Totals(0, 1000))
    owed = pricing.owed(Totals(0, 1000), PRICES)
    host, fee = owed - pricing.fee(owed), pricing.fee(owed)
    paid = only(
        await market.send(market.chain.withdraw(market.dollar, market.stranger.address), market.host),
        contracts.Withdrawn,
    )
    assert (paid.owner, paid.to, paid.refunds, paid.earnings) == (
        market.host.address,
        market.stranger.address,
        0,
        host,
    )
    result = await market.send(
        market.chain.withdraw_treasury(market.dollar, market.cold.address), market.treasury
    )
    assert only(result, contracts.TreasuryWithdrawn).amount == fee
    assert await market.chain.token_balance(market.dollar, market.stranger.address) == host
    assert await market.chain.token_balance(market.dollar, market.cold.address) == fee
    assert await market.chain.earnings(market.host.address, market.dollar) == 0
    with pytest.raises(errors.NothingToWithdraw):
        await market.send(market.chain.withdraw(market.dollar, market.stranger.address), market.host)


async def test_earnings_go_to_the_payout_address(market: Market) -> None:
    """Once a host has named a cold address, anybody may send its earnings there and nowhere else."""
    assert await market.chain.payout(market.host.address) == market.host.address
    named = await market.send(market.chain.set_payout(market.host.address, market.cold.address), market.host)
    assert only(named, contracts.PayoutChanged).payout == market.cold.address
    assert await market.chain.payout(market.host.address) == market.cold.address
    job_id = await market.open()
    await market.settle(job_id, Totals(0, 1000))
    with pytest.raises(errors.PayoutElsewhere):
        await market.send(market.chain.withdraw(market.dollar, market.host.address), market.host)
    result = await market.send(market.chain.withdraw_for(market.host.address, market.dollar), market.stranger)
    assert only(result, contracts.Withdrawn).to == market.cold.address
    assert await market.chain.token_balance(market.dollar, market.cold.address) > 0


async def test_a_refund_that_cannot_be_sent_is_kept(market: Market) -> None:
    """A payer that refuses ETH finds its refund with the contract, and holds nobody up."""
    job_id = await market.open(asset=ETH, deposit=10**15)
    await market.devnet.ask("anvil_setCode", market.payer.address, "0x60006000fd")
    result = await market.send(market.chain.complete_session(job_id), market.host)
    kept = next(event for event in result.events if isinstance(event, contracts.RefundCredited))
    assert (kept.job_id, kept.payer, kept.asset, kept.amount) == (
        job_id,
        market.payer.address,
        ETH,
        10**15,
    )
    assert await market.chain.refunds(market.payer.address, ETH) == 10**15
    await market.devnet.ask("anvil_setCode", market.payer.address, "0x")
    paid = await market.send(market.chain.withdraw(ETH, market.stranger.address), market.payer)
    assert only(paid, contracts.Withdrawn).refunds == 10**15


# The registry


async def test_a_host_says_what_it_offers(chain: Chain, devnet: Devnet) -> None:
    """Registering, describing oneself anew and leaving; a host is registered by itself only."""
    market = Market(chain, devnet)
    host = market.host.address
    assert not await chain.is_registered(host)
    assert await chain.metadata(host) is None
    with pytest.raises(errors.NotTheHost):
        await market.send(chain.register(host, "{}"), market.stranger)
    registered = only(await market.send(chain.register(host, "one"), market.host), contracts.Registered)
    assert (registered.host, registered.metadata) == (host, "one")
    assert await chain.is_registered(host)
    assert await chain.metadata(host) == "one"
    with pytest.raises(errors.AlreadyRegistered):
        await market.send(chain.register(host, "{}"), market.host)
    updated = only(await market.send(chain.update("two"), market.host), contracts.Updated)
    assert (updated.host, updated.metadata) == (host, "two")
    assert await chain.metadata(host) == "two"
    assert only(await market.send(chain.unregister(), market.host), contracts.Unregistered).host == host
    assert await chain.metadata(host) is None
    with pytest.raises(errors.NotRegistered):
        await market.send(chain.unregister(), market.host)


async def test_events_are_read_by_blocks(market: Market) -> None:
    """All that the marketplace logged between two blocks comes in order, both blocks included."""
    first = await market.chain.block_number() + 1
    job_id = await market.open()
    await market.settle(job_id, Totals(0, 1))
    last = await market.chain.block_number()
    await market.send(market.chain.complete_session(job_id), market.host)
    kinds = [type(event) for event in await market.chain.events(first, last)]
    assert kinds == [contracts.Created, Settlement]


# Transactions


async def test_a_transaction_pays_by_eip_1559(market: Market) -> None:
    """Fees follow the base fee of the block, and the gas limit leaves room above what was used."""
    job_id = await market.open()
    result = await market.settle(job_id, Totals(0, 1))
    sent = await market.devnet.ask("eth_getTransactionByHash", result.hash)
    assert sent["type"] == "0x2"
    assert int(sent["gas"], 16) > result.gas_used
    block = await market.chain.block(result.block)
    assert block.hash == result.block_hash
    assert block.base_fee < result.gas_price <= int(sent["maxFeePerGas"], 16)


async def test_two_transactions_of_one_key_at_once_both_arrive(market: Market) -> None:
    """A key's transactions take turns, over all Chain objects: no nonce is used twice or left out."""
    async with Chain(market.devnet.rpc_url, market.chain.deployment) as other:
        before = await market.chain.nonce(market.stranger.address)
        results = await asyncio.gather(
            *(
                each.transact(
                    each.mint(market.dollar, market.stranger.address, 1), market.stranger.private_key
                )
                for each in (market.chain, other, market.chain)
            )
        )
    assert len({result.hash for result in results}) == 3
    assert await market.chain.nonce(market.stranger.address) == before + 3
    assert await market.chain.token_balance(market.dollar, market.stranger.address) == 3


async def test_transactions_of_one_key_take_turns_over_event_loops(market: Market) -> None:
    """Threads with a loop each, as sessions without `async` have, use no nonce twice."""
    stranger, url, place = market.stranger, market.devnet.rpc_url, market.chain.deployment

    async def mint() -> str:
        async with Chain(url, place) as chain:
            call = chain.mint(market.dollar, stranger.address, 1)
            return (await chain.transact(call, stranger.private_key)).hash

    hashes = await asyncio.gather(*(asyncio.to_thread(asyncio.run, mint()) for _ in range(3)))
    assert len(set(hashes)) == 3
    assert await market.chain.token_balance(market.dollar, stranger.address) == 3


async def test_a_nonce_that_another_program_took_is_left_to_it(market: Market) -> None:
    """Two programs with one key: who comes second with a nonce goes on to the next, and both arrive."""
    stranger, coins = market.stranger, (3, 4)
    first, second = (market.chain.mint(market.dollar, stranger.address, units) for units in coins)
    async with through_gateway(market) as (chain, gateway):
        stale = iter([{"result": hex(await chain.nonce(stranger.address))}])
        await market.chain.transact(first, stranger.private_key)
        gateway.rules["eth_getTransactionCount"] = lambda _: next(stale, None)
        assert (await chain.transact(second, stranger.private_key)).succeeded
        assert gateway.calls["eth_sendRawTransaction"] == 2
    assert await market.chain.token_balance(market.dollar, stranger.address) == sum(coins)


async def test_a_nonce_that_is_always_taken_is_told(market: Market) -> None:
    """An endpoint that tells an old nonce again and again is no reason to try for ever."""
    call = market.chain.mint(market.dollar, market.stranger.address, 1)
    old = {"result": hex(await market.chain.nonce(market.stranger.address))}
    await market.chain.transact(call, market.stranger.private_key)
    async with through_gateway(market) as (chain, gateway):
        gateway.rules["eth_getTransactionCount"] = lambda _: old
        with pytest.raises(RpcError, match="nonce too low"):
            await chain.transact(call, market.stranger.private_key)
        assert gateway.calls["eth_sendRawTransaction"] == NONCE_TRIES


async def test_a_transaction_waits_for_its_confirmations(market: Market) -> None:
    """Three confirmations are the block itself and two more."""
    async with through_gateway(market) as (chain, gateway):
        call = chain.mint(market.dollar, market.stranger.address, 1)
        sending = asyncio.create_task(chain.transact(call, market.stranger.private_key, confirmations=3))
        await until(lambda: chain.nonce(market.stranger.address))
        await market.devnet.mine()
        asked = gateway.calls.get("eth_blockNumber", 0)
        await until(lambda: gateway.called("eth_blockNumber", asked + 3))
        assert not sending.done()
        await market.devnet.mine()
        result = await sending
    assert await market.chain.block_number() == result.block + 2


async def test_a_transaction_that_is_not_mined_is_told_by_its_hash(market: Market) -> None:
    """When time is up the error names the transaction, which may still come."""
    await market.devnet.set_automine(False)
    call = market.chain.mint(market.dollar, market.stranger.address, 1)
    with pytest.raises(ChainError, match=r"transaction 0x[0-9a-f]{64} is not 1 deep after 0.2 s") as caught:
        await market.chain.transact(call, market.stranger.private_key, timeout=0.2)
    tx = str(caught.value).split()[1]
    assert await market.chain.result(tx) is None
    await market.devnet.mine()
    assert (await market.chain.included(tx)).succeeded


async def test_a_revert_after_the_simulation_is_typed_as_well(market: Market) -> None:
    """Of two who ask to complete in one block the second is told what it met there, not that all is well."""
    job_id = await market.open()
    await market.devnet.set_balance(market.signer.address, 10**18)
    await market.devnet.set_automine(False)
    call = market.chain.complete_session(job_id)
    asking = [asyncio.create_task(market.send(call, each)) for each in (market.payer, market.signer)]

    async def both_are_pending() -> bool:
        return bool((await market.devnet.ask("txpool_status"))["pending"] == "0x2")

    await until(both_are_pending)
    await market.devnet.mine()
    outcomes = await asyncio.gather(*asking, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {TxResult, errors.AlreadyCompleting}


async def test_a_call_to_where_no_contract_is_sends_nothing(market: Market) -> None:
    """ETH for a contract that is not there stays where it is."""
    elsewhere = dataclasses.replace(market.chain.deployment, marketplace=market.cold.address)
    async with Chain(market.devnet.rpc_url, elsewhere) as chain:
        assert not await chain.code_ok()
        call = chain.create_job(await market.terms(asset=ETH))
        assert call.value == DEPOSIT
        with pytest.raises(ChainError, match=f"no contract at {market.cold.address}"):
            await chain.transact(call, market.payer.private_key)
        with pytest.raises(ChainError, match=f"no contract at {market.cold.address}"):
            await chain.job(JobId(1))
    assert await market.chain.code_ok()


async def test_the_dollar_is_what_the_deployment_says(market: Market) -> None:
    """Symbol and decimals of the deployment's assets are the contract's own."""
    asset = market.chain.deployment.assets[market.dollar]
    token = market.chain._token(market.dollar)
    assert asset.symbol == await token.functions.symbol().call()
    assert asset.decimals == await token.functions.decimals().call()


async def test_a_tokens_domain_is_the_one_it_tells(market: Market) -> None:
    """Name and version of the domain for authorizations are read from the token, with or without EIP-5267."""
    told = await market.chain.token_domain(market.dollar)
    assert told == proof.TokenDomain("Test Dollar", "2", market.chain.deployment.chain_id, market.dollar)
    async with Upstream(market.devnet.rpc_url) as node, FaultyRpc(node) as rpc:
        # What geth answers for a token that has no `eip712Domain`.
        rpc.fail(Erring(-32000, "execution reverted"), "eth_call", when=nth(1))
        async with Chain(rpc.url, market.chain.deployment) as chain:
            assert await chain.token_domain(market.dollar) == told
        assert rpc.fired.total() == 1


async def test_a_token_that_tells_a_wrong_domain_is_refused(market: Market) -> None:
    """What is told has to be what the token's separator was made of, or nothing signed for it would hold."""
    code = bytes.fromhex((await market.devnet.ask("eth_getCode", market.dollar, "latest"))[2:])
    renamed = code.replace(b"Test Dollar".ljust(31, b"\0"), b"Best Dollar".ljust(31, b"\0"))
    assert renamed != code
    await market.devnet.ask("anvil_setCode", market.dollar, "0x" + renamed.hex())
    with pytest.raises(ChainError, match=f"domain of {market.dollar} is not 'Best Dollar', version '2'"):
        await market.chain.token_domain(market.dollar)


async def until(asked: Callable[[], Awaitable[object]]) -> None:
    """Asks until the answer is true; pytest's time limit ends it."""
    while True:
        if await asked():
            return
        await asyncio.sleep(0.01)


# Endpoints


Answer = dict[str, Any]
Rule = Callable[[list[Any]], "Answer | None"]


class Gateway:
    """An endpoint in front of anvil. By method, `rules` may answer in its place and `calls` counts."""

    def __init__(self, upstream: str) -> None:
        self.upstream = upstream
        self.rules: dict[str, Rule] = {}
        self.calls: dict[str, int] = {}
        self.drop_after: set[str] = set()
        """Methods of which the next call reaches anvil while its answer is lost."""

    async def called(self, method: str, times: int) -> bool:
        return self.calls.get(method, 0) >= times

    async def handle(self, request: web.Request) -> web.StreamResponse:
        raw = await request.read()
        asked = orjson.loads(raw)
        method = asked["method"]
        self.calls[method] = self.calls.get(method, 0) + 1
        answer = self.rules[method](asked["params"]) if method in self.rules else None
        if answer is not None:
            return web.Response(body=orjson.dumps({"jsonrpc": "2.0", "id": asked["id"], **answer}))
        async with (
            ClientSession() as session,
            session.post(self.upstream, data=raw, headers={"Content-Type": "application/json"}) as response,
        ):
            body = await response.read()
        if method in self.drop_after:
            self.drop_after.remove(method)
            return web.Response(status=504)
        return web.Response(body=body)


@asynccontextmanager
async def through_gateway(market: Market) -> AsyncIterator[tuple[Chain, Gateway]]:
    gateway = Gateway(market.devnet.rpc_url)
    app = web.Application()
    app.router.add_post("/", gateway.handle)
    async with TestServer(app) as server:
        url = f"http://127.0.0.1:{server.port}/"
        async with Chain(url, market.chain.deployment) as chain:
            yield chain, gateway


async def test_another_chain_is_refused(devnet: Devnet) -> None:
    """An endpoint on another chain than the deployment is told with both chains' ids."""
    elsewhere = dataclasses.replace(devnet.deployment, chain_id=8453, name="elsewhere")
    with pytest.raises(WrongChain, match="is on chain 31337, not 8453"):
        async with Chain(devnet.rpc_url, elsewhere):
            raise AssertionError("connected")


async def test_an_endpoint_that_is_down_is_told_by_its_host(devnet: Devnet) -> None:
    """Nobody there: a ChainError with host and port, and nothing of the path."""
    port = unused_port()
    with pytest.raises(ChainError, match=f"127.0.0.1:{port} cannot be reached") as caught:
        async with Chain(f"http://127.0.0.1:{port}/secret?key=secret", devnet.deployment):
            raise AssertionError("connected")
    assert "secret" not in str(caught.value)


async def test_an_endpoint_with_small_ranges_is_asked_in_small_steps(market: Market) -> None:
    """Where logs are to be had for a few blocks at a time, all of them are found."""
    job_id = await market.open()
    await market.settle(job_id, Totals(0, 100))
    await market.devnet.mine(30)
    await market.settle(job_id, Totals(0, 200))

    def four_blocks(params: list[Any]) -> Answer | None:
        span = int(params[0]["toBlock"], 16) - int(params[0]["fromBlock"], 16) + 1
        return {"error": {"code": -32600, "message": "at most 4 blocks"}} if span > 4 else None

    async with through_gateway(market) as (chain, gateway):
        gateway.rules["eth_getLogs"] = four_blocks
        assert [each.totals.tokens for each in await chain.settlements(job_id)] == [100, 200]
        assert [each.job_id for each in await chain.jobs(host=market.host.address)] == [job_id]
        assert await chain.metadata(market.host.address) == '{"url":"http://localhost"}'


async def test_a_job_is_read_in_few_calls_and_then_in_two(market: Market) -> None:
    """On a chain of even blocks a job's opening costs a dozen calls, once; later reads ask for the job."""
    await market.devnet.ask("anvil_setBlockTimestampInterval", 2)
    await market.devnet.mine(400)
    job_id = await market.open()
    await market.devnet.mine(600)
    await market.devnet.ask("anvil_removeBlockTimestampInterval")
    async with through_gateway(market) as (chain, gateway):
        gateway.calls.clear()
        assert await chain.job(job_id) is not None
        assert sum(gateway.calls.values()) <= 14
        assert gateway.calls["eth_getLogs"] == 1
        gateway.calls.clear()
        assert await chain.job(job_id) is not None
        assert gateway.calls == {"eth_blockNumber": 1, "eth_call": 1}


async def test_an_endpoint_that_refuses_logs_altogether_is_told(market: Market) -> None:
    """A refusal of the smallest range is the endpoint's own error."""
    job_id = await market.open()
    async with through_gateway(market) as (chain, gateway):
        gateway.rules["eth_getLogs"] = lambda _: {"error": {"code": -32601, "message": "no logs here"}}
        with pytest.raises(RpcError, match="no logs here"):
            await chain.job(job_id)


@pytest.mark.parametrize(
    ("method", "answer"),
    [
        ("eth_call", {"result": None}),
        ("eth_blockNumber", {"result": None}),
        ("eth_getBlockByNumber", {"result": None}),
        ("eth_getLogs", {"result": None}),
        ("eth_getLogs", {"result": []}),
    ],
)
async def test_a_replica_that_lags_is_no_proof_that_there_is_no_job(
    market: Market, method: str, answer: Answer
) -> None:
    """What a lagging replica leaves out is a ChainError, never a job without interval, and never None."""
    job_id = await market.open()
    async with through_gateway(market) as (chain, gateway):
        gateway.rules[method] = lambda _: answer
        with pytest.raises(ChainError):
            await chain.job(job_id)


async def test_a_history_with_gaps_is_not_told(market: Market) -> None:
    """Settlements and completion are held against the job itself: a missing one is an error."""
    job_id = await market.open()
    await market.settle(job_id, Totals(0, 100))
    await market.send(market.chain.complete_session(job_id), market.host)
    async with through_gateway(market) as (chain, gateway):
        assert await chain.job(job_id) is not None
        gateway.rules["eth_getLogs"] = lambda _: {"result": []}
        with pytest.raises(ChainError, match="not all of its settlements"):
            await chain.settlements(job_id)
        with pytest.raises(ChainError, match="not its completion"):
            await chain.completion(job_id)
        with pytest.raises(ChainError, match="not its metadata"):
            await chain.metadata(market.host.address)


async def test_a_transaction_whose_answer_was_lost_is_not_lost(market: Market) -> None:
    """The endpoint took it and its answer did not come: it is found in its block, once."""
    async with through_gateway(market) as (chain, gateway):
        gateway.drop_after.add("eth_sendRawTransaction")
        call = chain.mint(market.dollar, market.stranger.address, 5)
        result = await chain.transact(call, market.stranger.private_key)
        assert gateway.calls["eth_sendRawTransaction"] == 2
    assert result.succeeded
    assert await market.chain.token_balance(market.dollar, market.stranger.address) == 5


async def test_a_transaction_that_may_have_been_sent_is_told_so(market: Market) -> None:
    """Without any answer to the broadcast the error says what is not known, with the hash to look for."""
    async with through_gateway(market) as (chain, gateway):
        gateway.rules["eth_sendRawTransaction"] = lambda _: {}
        call = chain.mint(market.dollar, market.stranger.address, 5)
        with pytest.raises(ChainError, match=r"transaction 0x[0-9a-f]{64} may or may not have been sent"):
            await chain.transact(call, market.stranger.private_key)


async def test_a_refused_broadcast_is_the_endpoint_s_error(market: Market) -> None:
    """What the endpoint refuses was not sent, and its words are passed on."""
    async with through_gateway(market) as (chain, gateway):
        gateway.rules["eth_sendRawTransaction"] = lambda _: {
            "error": {"code": -32000, "message": "pool full"}
        }
        call = chain.mint(market.dollar, market.stranger.address, 5)
        with pytest.raises(RpcError, match="pool full"):
            await chain.transact(call, market.stranger.private_key)


async def test_an_endpoint_that_fails_while_one_waits_is_asked_again(market: Market) -> None:
    """Trouble after the broadcast does not make the transaction undone."""
    failures: Iterator[Answer] = iter([{"result": None}, {"error": {"code": 1, "message": "busy"}}])
    async with through_gateway(market) as (chain, gateway):
        gateway.rules["eth_getTransactionReceipt"] = lambda _: next(failures, None)
        call = chain.mint(market.dollar, market.stranger.address, 5)
        assert (await chain.transact(call, market.stranger.private_key)).succeeded
        assert gateway.calls["eth_getTransactionReceipt"] >= 3
