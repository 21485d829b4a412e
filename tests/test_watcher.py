"""What befalls a host's jobs on the chain is seen, whatever the endpoint does not tell."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from tallystick import watcher as module
from tallystick.chain import Chain
from tallystick.devnet import Devnet
from tallystick.errors import ChainError
from tallystick.ledger import Ledger
from tallystick.testing.faults import Erring, FewBlocks, Lag, nth
from tallystick.testing.geth import Upstream
from tallystick.testing.rpc import FaultyRpc
from tallystick.types import JobId
from tallystick.watcher import SWEEP_EVERY, Watcher
from tests.settling import Host, events

ALL_BLOCKS = 10**9
LOGS = "eth_getLogs"


class Watching:
    """A watcher, looking through an endpoint that fails as the test says."""

    def __init__(self, host: Host, rpc: FaultyRpc, chain: Chain) -> None:
        self.host = host
        self.rpc = rpc
        self.chain = chain
        self.now = 0.0
        self.restart()

    def restart(self) -> None:
        async def end(job_id: JobId) -> None:
            await self.host.ledger.end(job_id)

        host = self.host
        self.watcher = Watcher(
            host.ledger, self.chain, host.host.address, end, host.heard.append, clock=lambda: self.now
        )

    async def look(self) -> None:
        await self.watcher.look(await self.chain.block())

    async def asked(self, job: JobId) -> bool:
        """Whether the ledger knows that the payer asked to complete."""
        row = await self.host.ledger.job(job)
        assert row is not None
        return row.job.asked_at > 0

    async def depth(self, confirmations: int) -> None:
        """How deep things have to be, from now on."""
        self.chain.deployment = replace(self.chain.deployment, confirmations=confirmations)


@pytest.fixture
async def watching(chain: Chain, devnet: Devnet, tmp_path: Path) -> AsyncIterator[Watching]:
    await chain.transact(chain.register(devnet.accounts.host.address, "{}"), devnet.accounts.host.private_key)
    async with (
        Ledger(tmp_path) as ledger,
        Upstream(devnet.rpc_url) as node,
        FaultyRpc(node) as rpc,
        Chain(rpc.url, devnet.deployment) as seen,
    ):
        host = Host(devnet, chain, ledger)
        await ledger.lead(host.host.address)
        yield Watching(host, rpc, seen)


async def test_what_happens_to_a_job_is_seen(watching: Watching) -> None:
    """Opened, topped up, completing, closed: each is told once, and stands in the ledger."""
    host = watching.host
    await watching.look()
    with capture_logs() as logs:
        job = await host.open()
        await watching.look()
        await host.top_up(job, 7)
        await watching.look()
        await host.ask_to_complete(job)
        for _ in range(3):
            await watching.look()
        stored = await host.ledger.job(job)
        assert stored is not None
        assert (stored.job.deposit, stored.job.asked_at > 0) == (500_007, True)
        await host.devnet.increase_time(4_000)
        await host.reclaim(job)
        await watching.look()
    told = events(logs, "job.opened", "job.topped_up", "job.completing")
    assert [(line["event"], line["job"]) for line in told] == [
        ("job.opened", job),
        ("job.topped_up", job),
        ("job.completing", job),
    ]
    assert told[1]["amount"] == 7
    assert [found.job_id for found in host.heard] == [job]
    assert await host.ledger.open_jobs() == []


async def test_new_jobs_are_read_together_and_told_with_their_deposits(watching: Watching) -> None:
    """However many were opened since the last look, one request more tells what is at stake."""
    host = watching.host
    await watching.look()
    requests = set()
    for count in (1, 3):
        opened = [await host.open() for _ in range(count)]
        watching.rpc.requests = 0
        with capture_logs() as logs:
            await watching.look()
        requests.add(watching.rpc.requests)
        told = [(line["job"], line["asset"], line["deposit"]) for line in events(logs, "job.opened")]
        assert told == [(job, host.devnet.dollar, 500_000) for job in opened]
    assert len(requests) == 1


async def test_a_new_job_that_could_not_be_read_is_told_when_it_is(watching: Watching) -> None:
    """Once; and not at all if a reorganisation took it away before."""
    host = watching.host
    await watching.look()
    with capture_logs() as logs:
        first = await host.open()
        with watching.rpc.failing(Erring(-32000, "busy"), "eth_call"):
            await watching.look()
        assert events(logs, "job.opened") == []
        await watching.look()
        await host.open()
        with watching.rpc.failing(Erring(-32000, "busy"), "eth_call"):
            await watching.look()
        await host.devnet.reorganise(1)
        for _ in range(2):
            await host.devnet.mine()
            await watching.look()
    assert [line["job"] for line in events(logs, "job.opened")] == [first]


async def test_quiet_jobs_cost_no_call(watching: Watching) -> None:
    """A look at a chain on which nothing befell the host's jobs reads none of them, however many.

    It asks for the chain's id and its head, for blocks and for events.
    """
    for _ in range(3):
        await watching.host.open()
    await watching.look()
    watching.rpc.calls.clear()
    for _ in range(3):
        await watching.host.devnet.mine()
        await watching.look()
    assert watching.rpc.calls["eth_call"] == 0
    assert watching.rpc.calls.total() <= 3 * 6


async def test_other_hosts_jobs_are_not_looked_at(watching: Watching) -> None:
    """Nor is what happens to them told."""
    host = watching.host
    stranger = host.devnet.accounts.stranger
    await host.chain.transact(host.chain.register(stranger.address, "{}"), stranger.private_key)
    await watching.look()
    with capture_logs() as logs:
        theirs = await host.open(host=stranger.address)
        await host.ask_to_complete(theirs)
        await watching.look()
    assert events(logs, "job.opened", "job.completing") == []
    assert not await watching.asked(theirs)


async def test_a_restart_goes_on_where_events_were_read(watching: Watching) -> None:
    """What happened while nobody looked is told then, and nothing is told again."""
    host = watching.host
    with capture_logs() as logs:
        await watching.look()
        first = await host.open()
        await watching.look()
        second = await host.open()
        watching.restart()
        await watching.look()
    assert [line["job"] for line in events(logs, "job.opened")] == [first, second]


async def test_events_are_read_a_few_blocks_at_a_time(
    watching: Watching, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a long time in several looks, each of ranges that the endpoint allows; where it was is kept."""
    monkeypatch.setattr(module, "SPAN", 40)
    host = watching.host
    job = await host.open()
    await watching.look()
    await host.ask_to_complete(job)
    watching.rpc.fail(FewBlocks(10))
    await host.devnet.mine(100)
    looks = 0
    watching.watcher.late = True
    while watching.watcher.late:
        await watching.look()
        looks += 1
    assert looks == 3
    assert watching.rpc.fired["block range"] > 0
    assert await watching.asked(job)
    cursor = await host.ledger.cursor(host.host.address)
    assert cursor is not None
    assert await host.chain.block_number() - cursor.block < module.KEEP_EVERY


async def test_a_replica_that_has_the_block_and_not_its_events(watching: Watching) -> None:
    """The last blocks are read again: what an endpoint did not know of then is found in the next look."""
    await watching.depth(3)
    host = watching.host
    job = await host.open()
    await watching.look()
    await host.ask_to_complete(job)
    with watching.rpc.failing(Lag(1), LOGS):
        await watching.look()
        assert not await watching.asked(job)
    await host.devnet.mine()
    await watching.look()
    assert await watching.asked(job)


async def test_what_events_missed_is_found_by_reading_all(watching: Watching) -> None:
    """Now and then every open job is read, a page at a time."""
    host = watching.host
    jobs = [await host.open() for _ in range(3)]
    with watching.rpc.failing(Lag(ALL_BLOCKS), LOGS):
        await watching.look()
        await host.ask_to_complete(jobs[1])
        await host.devnet.mine(5)
        watching.now += SWEEP_EVERY - 1
        await watching.look()
        assert not await watching.asked(jobs[1])
        watching.now += 1
        await watching.look()
    assert [await watching.asked(job) for job in jobs] == [False, True, False]


async def test_after_a_reorganisation_all_is_read_again(watching: Watching) -> None:
    """The block up to which events were read is another one: what its branch told of jobs may not be so."""
    host = watching.host
    job = await host.open()
    await watching.look()
    await host.top_up(job, 7)
    await watching.look()
    await host.devnet.reorganise(2)
    with capture_logs() as logs:
        await watching.look()
    assert [line["event"] for line in events(logs, "chain.reorganised")] == ["chain.reorganised"]
    stored = await host.ledger.job(job)
    assert stored is not None
    assert stored.job.deposit == 500_000


async def test_a_job_that_a_reorganisation_took_away_is_told_once(watching: Watching) -> None:
    """Its row stays: what was signed for it is evidence. Who relies on it hears of what happens to it."""
    host = watching.host
    heard: list[JobId] = []
    watching.watcher.listen(heard.append)
    await host.open()
    await watching.look()
    depth = 0
    while await host.chain.job(JobId(1)) is not None:
        depth += 1
        await host.devnet.reorganise(depth)
    with capture_logs() as logs:
        for _ in range(2):
            await host.devnet.mine()
            await watching.look()
    assert [line["job"] for line in events(logs, "job.vanished")] == [1]
    assert set(heard) == {1}
    assert len(await host.ledger.open_jobs()) == 1


async def test_a_look_that_fails_in_the_middle_forgets_nothing(watching: Watching) -> None:
    """The event was read, the job was not: the next look reads it."""
    host = watching.host
    job = await host.open()
    await watching.look()
    await host.ask_to_complete(job)
    with watching.rpc.failing(Erring(-32000, "busy"), "eth_call", when=nth(1)):
        await watching.look()
    assert not await watching.asked(job)
    await watching.look()
    assert await watching.asked(job)


async def test_a_silent_endpoint_moves_nothing(watching: Watching) -> None:
    """Where there is no answer, nothing is taken for read."""
    host = watching.host
    job = await host.open()
    await watching.look()
    head = await host.chain.block()
    await host.ask_to_complete(job)
    async with watching.rpc.down():
        with pytest.raises(ChainError):
            await watching.watcher.look(replace(head, number=head.number + 1, hash="0x"))
    await watching.look()
    assert await watching.asked(job)
