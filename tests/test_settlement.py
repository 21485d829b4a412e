"""Settlement: what was counted and signed reaches the chain, once, whatever happens on the way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from fractions import Fraction
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from tallystick import gas, proof
from tallystick.chain import DATA_FEES, Chain
from tallystick.devnet import Devnet
from tallystick.ledger import Ledger
from tallystick.policy import Thrift
from tallystick.settlement import Left
from tallystick.testing.faults import Erring, Rule
from tallystick.testing.geth import Upstream
from tallystick.testing.rpc import FaultyRpc
from tallystick.types import ETH, Completion, JobId, JobStatus, Totals
from tallystick.types import Settlement as Settled
from tests.paying import until
from tests.settling import DAY, DEPOSIT, HOUR, Host, events


@pytest.fixture
async def host(chain: Chain, devnet: Devnet, tmp_path: Path) -> AsyncIterator[Host]:
    await chain.transact(chain.register(devnet.accounts.host.address, "{}"), devnet.accounts.host.private_key)
    async with Ledger(tmp_path) as ledger:
        yield Host(devnet, chain, ledger)


@asynccontextmanager
async def looping(host: Host) -> AsyncIterator[None]:
    """Sender and settlement by themselves."""
    loops = [asyncio.create_task(host.sender.run()), asyncio.create_task(host.settlement.run())]
    try:
        yield
    finally:
        for loop in loops:
            loop.cancel()
        await asyncio.wait(loops)


async def test_a_checkpoint_is_submitted_and_confirmed(host: Host) -> None:
    """90 % are the host's, 10 % the treasury's, and each line is logged when it is true."""
    job = await host.open()
    await host.sign(job, 100, 12)
    with capture_logs() as logs:
        await host.settlement.step()
        assert events(logs, "checkpoint.confirmed") == []
        await host.settle()
    [submitted] = events(logs, "checkpoint.submitted")
    [confirmed] = events(logs, "checkpoint.confirmed")
    assert (submitted["job"], submitted["tokens"]) == (job, 100)
    assert submitted["tx"] == confirmed["tx"]
    owed = (100 * 904_000 + 12 * 500_000) // 10**6
    assert (confirmed["host"], confirmed["treasury"]) == (owed - owed // 10, owed // 10)
    assert await host.on_chain(job) == await host.confirmed(job) == Totals(12, 100)
    [heard] = host.heard
    assert isinstance(heard, Settled)
    assert heard.totals == Totals(12, 100)


async def test_the_golden_session(host: Host) -> None:
    """Law 2: 47 580 tokens of half a dollar: 38 711 to the host, 4 301 to the treasury, 456 988 back."""
    job = await host.open()
    treasury = await host.chain.treasury_balance(host.devnet.dollar)
    before = await host.chain.token_balance(host.devnet.dollar, host.payer.address)
    for tokens in (100, 20_000, 47_500):
        await host.sign(job, tokens)
        await host.settle()
    await host.sign(job, 47_580, due=False)
    await host.ledger.end(job)
    nonce = await host.sent()
    await host.settle()
    assert await host.sent() == nonce + 1  # the last checkpoint and the completion: one transaction
    assert await host.chain.earnings(host.host.address, host.devnet.dollar) == 38_711
    assert await host.chain.treasury_balance(host.devnet.dollar) - treasury == 4_301
    after = await host.chain.token_balance(host.devnet.dollar, host.payer.address)
    assert after - before == 456_988
    assert isinstance(host.heard[-1], Completion)
    assert host.heard[-1].refund == 456_988
    assert await host.ledger.open_jobs() == []


async def test_newer_totals_wait_for_what_is_in_flight(host: Host) -> None:
    """At most one transaction of a job at a time; the next one takes all that came meanwhile."""
    job = await host.open()
    await host.devnet.set_automine(False)
    for tokens in (100, 200, 300):
        await host.sign(job, tokens)
        await host.settlement.step()
    assert len(await host.ledger.in_flight(host.host.address)) == 1
    await host.settle()
    assert await host.confirmed(job) == Totals(0, 300)
    assert [settled.totals.tokens for settled in host.heard if isinstance(settled, Settled)] == [100, 300]


async def test_many_jobs_go_in_one_transaction(host: Host) -> None:
    """A batch: one job is settled, one settled and completed, one only completed."""
    first, second, third = [await host.open() for _ in range(3)]
    await host.sign(first, 100)
    await host.sign(second, 17, due=False)
    await host.ledger.end(second)
    await host.ledger.end(third)
    with capture_logs() as logs:
        await host.settle()
    assert len({report["tx"] for report in events(logs, "checkpoint.confirmed", "session.completed")}) == 1
    assert await host.confirmed(first) == Totals(0, 100)
    assert await host.confirmed(second) == Totals(0, 17)
    assert [await host.status(job) for job in (first, second, third)] == [
        JobStatus.OPEN,
        JobStatus.CLOSED,
        JobStatus.CLOSED,
    ]
    assert [line["job"] for line in events(logs, "checkpoint.submitted")] == [first, second]


async def test_a_session_without_a_token_is_completed(host: Host) -> None:
    """The payer gets everything back at once."""
    job = await host.open()
    await host.ledger.end(job)
    with capture_logs() as logs:
        await host.settle()
    assert events(logs, "checkpoint.submitted", "checkpoint.confirmed") == []
    [completed] = events(logs, "session.completed")
    assert (completed["job"], completed["refund"]) == (job, DEPOSIT)


async def test_an_attested_job_is_settled_without_receipts(host: Host) -> None:
    """The host's word, within the job's rate."""
    job = await host.open(max_tokens_per_second=1_000)
    await host.devnet.increase_time(60)
    await host.ledger.checkpoint(job, Totals(12, 100), due=True)
    await host.settle()
    assert await host.confirmed(job) == Totals(12, 100)


async def test_an_ended_attested_job_claims_what_its_rate_allows(host: Host) -> None:
    """What its time has not earned is not the host's: the rest is claimed, and the session completed."""
    job = await host.open(max_tokens_per_second=10)
    await host.devnet.increase_time(5)
    await host.ledger.checkpoint(job, Totals(10, 4_000))
    await host.ledger.end(job)
    await host.settle()
    settled = await host.on_chain(job)
    assert settled.prompt_tokens == 10
    assert 40 <= settled.tokens < 4_000
    assert await host.status(job) is JobStatus.CLOSED


# Exactly once


async def test_what_is_settled_already_is_not_sent(host: Host) -> None:
    """The ledger was restored from before its last settlement: the chain is read, and nothing is sent."""
    job = await host.open()
    await host.sign(job, 100)
    proof_ = proof.checkpoint_proof(0, host.receipt(job, Totals(0, 100)))
    await host.chain.transact(host.chain.submit_checkpoint(job, 100, proof_), host.host.private_key)
    sent = await host.sent()
    with capture_logs() as logs:
        await host.settle()
    assert await host.sent() == sent
    assert events(logs, "checkpoint.submitted") == []
    [confirmed] = events(logs, "checkpoint.confirmed")
    assert (confirmed["job"], confirmed["tokens"]) == (job, 100)
    assert await host.confirmed(job) == Totals(0, 100)


@pytest.mark.parametrize("steps", [0, 1, 2])
async def test_a_restart_between_any_two_steps_settles_once(host: Host, steps: int) -> None:
    """Law 8: before sending, in flight, mined: the next process goes on without knowing."""
    job = await host.open()
    await host.sign(job, 100)
    for step in range(steps):
        await (host.sender.step() if step else host.settlement.step())
    host.restart()
    await host.settle()
    assert await host.chain.earnings(host.host.address, host.devnet.dollar) == 90 - 9
    assert await host.confirmed(job) == Totals(0, 100)
    assert await host.ledger.in_flight(host.host.address) == []


async def test_without_gas_nothing_is_lost_and_one_nonce_is_used(host: Host) -> None:
    """What is due waits in the ledger, not in a queue of transactions, until there is gas again."""
    first, second = await host.open(), await host.open()
    await host.devnet.set_balance(host.host.address, 0)
    for tokens in (100, 200, 300):
        await host.sign(first, tokens)
        await host.sign(second, tokens)
        await host.settlement.step()
        await host.sender.step()
    await asyncio.wait_for(host.settlement.idle(), 5)
    [stuck] = await host.ledger.in_flight(host.host.address)
    await host.devnet.set_balance(host.host.address, 10**18)
    await host.settle()
    assert await host.on_chain(first) == await host.on_chain(second) == Totals(0, 300)
    assert await host.chain.nonce(host.host.address) == await host.sent() == stuck.nonce + 2


async def test_a_reorganisation_is_settled_again(host: Host) -> None:
    """Law 9: what was confirmed is taken back, and confirmed anew."""
    job = await host.open()
    await host.sign(job, 100)
    await host.settle()
    assert await host.confirmed(job) == Totals(0, 100)
    depth = 0
    while await host.on_chain(job) != Totals():
        depth += 1
        await host.devnet.reorganise(depth)
    with capture_logs() as logs:
        await host.settle()
    assert [line["event"] for line in events(logs, "checkpoint.reorganised", "checkpoint.confirmed")] == [
        "checkpoint.reorganised",
        "checkpoint.confirmed",
    ]
    assert await host.on_chain(job) == await host.confirmed(job) == Totals(0, 100)


async def test_a_completion_that_is_taken_back_is_no_checkpoint(host: Host) -> None:
    """A row that only closes a job claims nothing: no line tells of a checkpoint, there or back."""
    job = await host.open()
    await host.ledger.end(job)
    host.confirm_after(3)
    await host.settlement.step()
    await host.sender.step()
    with capture_logs() as logs:
        while await host.status(job) is JobStatus.CLOSED:
            await host.devnet.reorganise(1)
        await host.settle()
    assert events(logs, "transaction.reorganised") != []
    assert events(logs, "checkpoint.reorganised", "checkpoint.submitted") == []
    assert await host.status(job) is JobStatus.CLOSED


# Leaving


async def test_a_payer_that_completes_is_settled_at_once(host: Host) -> None:
    """Law 6: what was signed is claimed and the rest sent back, though no interval is whole."""
    job = await host.open()
    await host.sign(job, 17, due=False)
    drained: list[JobId] = []

    async def drain(job_id: JobId) -> Totals | None:
        drained.append(job_id)
        return Totals(0, 17)

    host.restart(drain=drain)
    await host.settle()
    assert await host.on_chain(job) == Totals()
    await host.ask_to_complete(job)
    await host.settle()
    assert drained == [job]
    assert await host.on_chain(job) == Totals(0, 17)
    assert await host.status(job) is JobStatus.CLOSED


async def test_an_expired_job_is_settled_and_completed(host: Host) -> None:
    """Nobody has to ask."""
    job = await host.open()
    await host.sign(job, 17, due=False)
    await host.devnet.increase_time(DAY + 1)
    await host.settle()
    assert await host.on_chain(job) == Totals(0, 17)
    assert await host.status(job) is JobStatus.CLOSED


async def test_a_job_that_was_reclaimed_is_told_with_what_is_lost(host: Host) -> None:
    """Only the executed refund ends a claim; after it the loss has an amount, and nothing is sent."""
    job = await host.open()
    await host.sign(job, 100)
    await host.devnet.increase_time(DAY + HOUR + 1)
    await host.reclaim(job)
    sent = await host.sent()
    with capture_logs() as logs:
        await host.settle()
    assert await host.sent() == sent
    [lost] = events(logs, "checkpoint.lost")
    assert (lost["job"], lost["tokens"], lost["amount"]) == (job, 100, 90)
    [completed] = events(logs, "session.completed")
    assert completed["refund"] == DEPOSIT
    assert await host.ledger.open_jobs() == []


async def test_a_job_closed_while_its_claim_is_in_flight_is_told(host: Host) -> None:
    """The claim reverts in its block, behind the payer's reclaim; nothing is said to be confirmed."""
    job = await host.open()
    await host.devnet.increase_time(DAY + HOUR + 1)
    await host.sign(job, 100)
    await host.devnet.set_automine(False)
    reclaim = host.chain.reclaim(job)
    payer = host.payer
    nonce = await host.chain.nonce(payer.address)
    signed = host.chain.sign(reclaim, payer.private_key, nonce=nonce, gas=300_000, tip=10**10, max_fee=10**11)
    await host.settlement.step()
    await host.chain.send(signed.raw)
    with capture_logs() as logs:
        await host.settle()
    assert events(logs, "checkpoint.confirmed") == []
    [lost] = events(logs, "checkpoint.lost")
    assert (lost["job"], lost["amount"]) == (job, 90)


async def test_another_hosts_job_is_left_alone(host: Host) -> None:
    """A ledger of an earlier key: told once, never sent."""
    job = await host.open()
    await host.sign(job, 100)
    host.host = host.devnet.accounts.stranger
    host.restart()
    with capture_logs() as logs:
        await host.settle()
    [told] = events(logs, "settlement.not_ours")
    assert told["job"] == job
    assert await host.on_chain(job) == Totals()


async def test_a_claim_that_the_chain_refuses_is_told_and_waits(host: Host) -> None:
    """A receipt that was signed by somebody else: alarm, no transaction, and the others are settled."""
    good, bad = await host.open(), await host.open()
    host.signers[bad] = proof.new_key()
    await host.sign(good, 100)
    await host.sign(bad, 100)
    with capture_logs() as logs:
        await host.settle()
    assert await host.on_chain(good) == Totals(0, 100)
    refused = events(logs, "checkpoint.refused")
    assert {line["job"] for line in refused} == {bad}
    assert "WrongSigner" in refused[0]["reason"]
    assert [line["again_in"] for line in refused] == sorted({line["again_in"] for line in refused})


async def test_the_loops_settle_by_themselves(host: Host) -> None:
    """Poked, and then idle: with nobody stepping."""
    job = await host.open()
    async with looping(host):
        await host.sign(job, 100)
        host.settlement.poke()
        await asyncio.wait_for(host.settlement.idle(), 30)
        assert await host.confirmed(job) == Totals(0, 100)


# When it is worth it: the economic policy


def thrift(host: Host, *, units_an_ether: int, limit: int | None = None) -> Thrift:
    """With so many base units of the dollar for one ETH, and gas a twentieth at most."""
    dollar = host.devnet.dollar
    return Thrift(
        unsettled={} if limit is None else {dollar: limit},
        gas_share=Fraction(1, 20),
        rates={dollar: Fraction(10**18, units_an_ether)},
    )


DEAR = 10**12
"""Base units for one ETH at which no job of these tests is worth its gas."""
CHEAP = 10**3


async def test_what_is_not_worth_its_gas_waits(host: Host) -> None:
    """Whole intervals as well; with a better rate all of it goes, and not only whole intervals."""
    job = await host.open()
    host.restart(thrift=thrift(host, units_an_ether=DEAR))
    await host.sign(job, 117)
    sent = await host.sent()
    await host.settle()
    assert await host.sent() == sent
    await asyncio.wait_for(host.settlement.idle(), 5)
    host.restart(thrift=thrift(host, units_an_ether=CHEAP))
    await host.sign(job, 130, due=False)
    await host.settle()
    assert await host.on_chain(job) == await host.confirmed(job) == Totals(0, 130)


async def test_no_more_is_unsettled_than_the_host_allows(host: Host) -> None:
    """Whatever it is worth against its gas; the largest go."""
    small, large = await host.open(), await host.open()
    host.restart(thrift=thrift(host, units_an_ether=DEAR, limit=150))
    await host.sign(small, 30)
    await host.sign(large, 130)
    await host.settle()
    assert await host.on_chain(large) == Totals()
    await host.sign(large, 160)
    await host.settle()
    assert await host.on_chain(large) == Totals(0, 160)
    assert await host.on_chain(small) == Totals()


async def test_what_a_rollup_asks_for_data_is_counted(host: Host) -> None:
    """A claim that bears its gas waits, if it does not bear its data as well."""
    job = await host.open()
    await host.sign(job, 1_000)
    host.restart(thrift=thrift(host, units_an_ether=CHEAP))
    # A thousandth of an ETH for each byte.
    await host.devnet.ask("anvil_setCode", DATA_FEES, "0x60243566038d7ea4c680000260005260206000f3")
    sent = await host.sent()
    await host.settle()
    assert await host.sent() == sent
    await host.devnet.ask("anvil_setCode", DATA_FEES, "0x")
    await host.settle()
    assert await host.on_chain(job) == Totals(0, 1_000)


@pytest.mark.parametrize("how", ["ended", "asked", "expiring"])
async def test_what_must_go_goes_whatever_it_is_worth(host: Host, how: str) -> None:
    """Before a claim window or an expiry runs out, and when a payer asks to complete."""
    job, other = await host.open(), await host.open()
    host.restart(thrift=thrift(host, units_an_ether=DEAR))
    await host.sign(job, 17, due=False)
    await host.settle()
    assert await host.on_chain(job) == Totals()
    match how:
        case "ended":
            await host.ledger.end(job)
        case "asked":
            await host.ask_to_complete(job)
        case "expiring":
            stored = await host.ledger.job(job)
            assert stored is not None
            now = (await host.chain.block()).timestamp
            await host.devnet.increase_time(stored.job.expires_at - now - 30)
    await host.settle()
    assert await host.on_chain(job) == Totals(0, 17)
    assert await host.status(job) is (JobStatus.OPEN if how == "expiring" else JobStatus.CLOSED)
    assert await host.status(other) is JobStatus.OPEN


@pytest.mark.parametrize("economic", [False, True])
async def test_before_it_stops_all_is_settled(host: Host, economic: bool) -> None:
    """Tails included, whatever they are worth; no job is completed by that."""
    jobs = [await host.open() for _ in range(2)]
    host.restart(thrift=thrift(host, units_an_ether=DEAR) if economic else None)
    for job in jobs:
        await host.sign(job, 17, due=False)
    async with looping(host):
        await asyncio.wait_for(host.settlement.settle_all(), 30)
    for job in jobs:
        assert await host.confirmed(job) == Totals(0, 17)
        assert await host.status(job) is JobStatus.OPEN


CAPPED = Erring(-32000, "tx fee (1.20 ether) exceeds the configured cap (1.00 ether)")


@asynccontextmanager
async def refusing(host: Host) -> AsyncIterator[tuple[FaultyRpc, Rule]]:
    """A host whose job waits, since its endpoint refuses claims; its clock stands still from then on."""
    url, deployment = host.devnet.rpc_url, host.chain.deployment
    async with Upstream(url) as node, FaultyRpc(node) as rpc, Chain(rpc.url, deployment) as chain:
        refuse = rpc.fail(CAPPED, "eth_sendRawTransaction")
        host.restart(through=chain)
        for _ in range(2):
            host.now += 600
            await host.settlement.step()
            refuse.on = False  # what only fills the nonce is within the cap
            while await host.sender.step():
                await host.devnet.mine()
            refuse.on = True
        yield rpc, refuse


async def test_a_payer_that_asks_for_the_end_is_not_kept_waiting(host: Host) -> None:
    """However long a job's pause has become: its end is another claim, which goes at once."""
    job = await host.open()
    await host.sign(job, 100)
    async with refusing(host) as (_, refuse):
        refuse.on = False
        await host.settlement.step()
        assert await host.on_chain(job) == Totals()
        await host.ask_to_complete(job)
        for _ in range(2):  # its wish is seen, then its claim is sent
            await host.settlement.step()
        assert await host.on_chain(job) == Totals(0, 100)
        assert await host.status(job) is JobStatus.CLOSED


async def test_a_chain_that_answers_again_ends_all_pauses(host: Host) -> None:
    """What a job failed at may have been the endpoint's fault."""
    job = await host.open()
    await host.sign(job, 100)

    async def settled() -> bool:
        host.settlement.poke()
        return await host.on_chain(job) == Totals(0, 100)

    async with refusing(host) as (rpc, refuse), looping(host):
        with capture_logs() as logs:
            async with rpc.down():

                async def failing() -> bool:
                    host.settlement.poke()
                    return events(logs, "settlement.failing") != []

                await until(failing)
            refuse.on = False
            await until(settled)
    assert len(events(logs, "settlement.recovered")) == 1


async def test_before_it_stops_no_pause_is_kept(host: Host) -> None:
    """What was refused for long is settled by a host that stops, once its endpoint takes it."""
    job = await host.open()
    await host.sign(job, 100)
    async with refusing(host) as (_, refuse), looping(host):
        refuse.on = False
        await asyncio.wait_for(host.settlement.settle_all(), 30)
        assert await host.confirmed(job) == Totals(0, 100)
        assert await host.settlement.left(0) == Left(0, 0, {})


async def test_before_it_stops_it_waits_for_what_is_refused(host: Host) -> None:
    """While an endpoint refuses, it is not done: it uses up its time, and then knows what it leaves."""
    job = await host.open()
    await host.sign(job, 100)
    async with refusing(host), looping(host):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(host.settlement.settle_all(), 0.5)
        left = await host.settlement.left(0)
    assert (left.jobs, left.owed) == (1, {host.devnet.dollar: 81})


# Many jobs


async def test_a_batch_goes_without_what_is_to_blame(host: Host) -> None:
    """A bad row among good ones costs a part of its gas once, and is told by the chain; then it waits."""
    good, bad, fine = [await host.open() for _ in range(3)]
    host.signers[bad] = proof.new_key()
    for job in (good, bad, fine):
        await host.sign(job, 100)
    with capture_logs() as logs:
        await host.settle(rounds=5)
    assert await host.on_chain(good) == await host.on_chain(fine) == Totals(0, 100)
    assert len({line["tx"] for line in events(logs, "checkpoint.submitted")}) == 1
    refused = events(logs, "checkpoint.refused")
    assert {line["job"] for line in refused} == {bad}
    assert all("WrongSigner" in line["reason"] for line in refused)


async def test_gas_decides_how_many_go_together(host: Host) -> None:
    """As many rows as the chain's gas cap lets through, those of one asset next to each other."""
    jobs = [await host.open(asset=asset) for _ in range(3) for asset in (host.devnet.dollar, ETH)]
    for job in jobs:
        await host.sign(job, 100)
    host.cap_gas(gas.BASE + 2 * gas.ASSET + 4 * gas.ROW)
    with capture_logs() as logs:
        await host.settle()
    told = events(logs, "checkpoint.confirmed")
    assert [line["job"] for line in told] == jobs[1::2] + jobs[::2]
    assert [told[0]["tx"]] * 4 + [told[4]["tx"]] * 2 == [line["tx"] for line in told]


async def test_few_calls_for_many_jobs(host: Host) -> None:
    """What is due is read, sent and confirmed with a number of calls that does not grow with the jobs."""
    calls = []
    url, deployment = host.devnet.rpc_url, host.chain.deployment
    async with Upstream(url) as node, FaultyRpc(node) as rpc, Chain(rpc.url, deployment) as chain:
        host.restart(through=chain)
        await host.settle()  # what there is to do at first
        for many in (2, 8):
            jobs = [await host.open() for _ in range(many)]
            for job in jobs:
                await host.sign(job, 100)
            before = rpc.requests
            await host.settle()
            calls.append(rpc.requests - before)
            assert [await host.on_chain(job) for job in jobs] == [Totals(0, 100)] * many
    assert calls[1] <= calls[0]
