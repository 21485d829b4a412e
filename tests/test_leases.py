"""Leases: whatever a process believes, one at a time writes of a job, and one sends for a key."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import text

from tallystick import database
from tallystick.counter import Record
from tallystick.errors import Elsewhere, LedgerError, Refusal, Superseded
from tallystick.leases import LEASE
from tallystick.ledger import Ledger
from tallystick.tables import State
from tallystick.types import JobId, Totals
from tests.test_ledger import HOST, a_completion, a_draft, a_job, a_receipt, an_attempt

JOB = JobId(121)


@dataclass
class Pair:
    """Two processes of one host over one ledger."""

    one: Ledger
    two: Ledger

    async def expire(self, process: Ledger) -> None:
        """The process is not heard of for as long as its lease lasts; itself it does not know."""
        await process.heartbeat.stop()
        engine = database.engine(process.url, writing=True)
        with engine.begin() as connection:
            ended = text("UPDATE processes SET until = 0 WHERE id = :id")
            connection.execute(ended, {"id": process.process})
        engine.dispose()


@pytest.fixture
async def pair(tmp_path: Path, ledger_url: str | None) -> AsyncIterator[Pair]:
    url = ledger_url or database.url_in(tmp_path)
    # Each in a directory of its own: the lock that keeps a second process off an SQLite ledger is there.
    async with Ledger(tmp_path, url) as one, Ledger(tmp_path / "two", url) as two:
        yield Pair(one, two)


# Jobs


async def test_one_process_at_a_time_serves_a_job(pair: Pair) -> None:
    """The other one is told who does, where that is reached, and for how long at least."""
    await pair.one.reach("http://one:8402")
    row = await pair.one.serve(a_job())
    assert row.owner == pair.one.process
    with pytest.raises(Elsewhere) as caught:
        await pair.two.serve(a_job())
    assert (caught.value.job_id, caught.value.address) == (JOB, "http://one:8402")
    assert 0 < caught.value.seconds <= LEASE
    owner = await pair.two.served_elsewhere(JOB)
    assert owner is not None
    assert owner.address == "http://one:8402"
    assert await pair.one.served_elsewhere(JOB) is None


async def test_of_two_that_want_a_job_at_once_one_gets_it(pair: Pair) -> None:
    """However they meet, there is one owner, and the other knows that it is none."""
    for number in range(20):
        job = a_job(121 + number)
        asked = await asyncio.gather(pair.one.serve(job), pair.two.serve(job), return_exceptions=True)
        assert sorted(type(answer).__name__ for answer in asked) == ["Elsewhere", "JobRow"]


async def test_of_two_jobs_of_one_signer_one_is_served(pair: Pair) -> None:
    """Law 10: a session key serves one job, though each came to another process at the same moment."""
    first, second = a_job(121), a_job(122, signer=a_job(121).signer)
    asked = await asyncio.gather(pair.one.serve(first), pair.two.serve(second), return_exceptions=True)
    [refused] = [answer for answer in asked if isinstance(answer, BaseException)]
    assert isinstance(refused, Refusal)
    assert refused.code == "signer_reused"


Write = Callable[[Ledger, int | None], Awaitable[object]]
WRITES: dict[str, Write] = {
    "receipt": lambda ledger, epoch: ledger.store_receipt(
        a_receipt(tokens=200),
        acknowledged=Totals(0, 200),
        gross=Totals(0, 200),
        due=True,
        epoch=epoch,
    ),
    "checkpoint": lambda ledger, epoch: ledger.checkpoint(JOB, Totals(0, 200), due=True, epoch=epoch),
    "write-off": lambda ledger, epoch: ledger.write_off(JOB, Totals(0, 1), epoch=epoch),
    "end": lambda ledger, epoch: ledger.end(JOB, Totals(0, 200), epoch=epoch),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
async def test_who_lost_its_lease_writes_nothing(pair: Pair, write: Write) -> None:
    """A process that was stopped and wakes after another took its job over changes nothing of it."""
    before = await pair.one.serve(a_job())
    await write(pair.one, before.epoch)
    await pair.expire(pair.one)
    after = await pair.two.serve(a_job())
    assert (after.owner, after.epoch) == (pair.two.process, before.epoch + 1)
    for epoch in (before.epoch, None):
        with pytest.raises(Elsewhere):
            await write(pair.one, epoch)
    assert await pair.two.job(JOB) == after


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
async def test_what_was_begun_in_an_earlier_epoch_writes_nothing(pair: Pair, write: Write) -> None:
    """Nor does a process that serves the job again write what it had begun before."""
    before = await pair.one.serve(a_job())
    after = await pair.one.serve(a_job())
    with pytest.raises(Superseded, match="taken up anew"):
        await write(pair.one, before.epoch)
    assert await pair.one.job(JOB) == after
    await write(pair.one, after.epoch)


async def test_a_lease_that_ran_out_and_that_nobody_missed_is_good(pair: Pair) -> None:
    """As long as no other process has taken the job, its owner may go on."""
    row = await pair.one.serve(a_job())
    await pair.expire(pair.one)
    await pair.one.checkpoint(JOB, Totals(0, 7), epoch=row.epoch)
    assert not await pair.one.renew()
    assert await pair.one.renew()
    with pytest.raises(Elsewhere):
        await pair.two.serve(a_job())


async def test_who_leaves_is_followed_at_once(pair: Pair) -> None:
    """A process that stops frees its jobs, and one is free that was given up or whose owner is known dead."""
    await pair.one.serve(a_job(121))
    await pair.one.release(JobId(121))
    assert (await pair.two.serve(a_job(121))).owner == pair.two.process
    await pair.one.serve(a_job(122))
    await pair.two.bury(pair.one.process)
    assert (await pair.two.serve(a_job(122))).owner == pair.two.process
    await pair.two.close()
    assert (await pair.one.serve(a_job(121))).owner == pair.one.process


async def test_the_chains_news_come_from_anyone(pair: Pair) -> None:
    """The process that settles writes what it saw on the chain, of jobs that others serve."""
    row = await pair.one.serve(a_job())
    await pair.two.adopt(a_job(deposit=7))
    await pair.two.settled(JOB, Totals(0, 5))
    assert await pair.two.closed(a_completion())
    after = await pair.one.job(JOB)
    assert after is not None
    assert (after.owner, after.epoch, after.closed) == (row.owner, row.epoch, True)
    assert (after.job.deposit, after.settled) == (7, Totals(0, 5))


async def test_a_closed_job_is_served_until_its_process_has_heard(pair: Pair) -> None:
    """Whoever closes a job of its own knows of it; another one's stays on that one's list."""
    for number in (121, 122):
        await pair.one.serve(a_job(number))
    await pair.one.closed(a_completion())
    assert [row.job.id for row in await pair.one.served()] == [122]
    await pair.two.closed(a_completion(job_id=122))
    assert [row.closed for row in await pair.one.served()] == [True]
    await pair.one.release(JobId(122))
    assert await pair.one.served() == []


async def test_what_a_dead_process_had_counted_is_taken_over_with_the_job(pair: Pair) -> None:
    """Of the slots that are found, the one of the job's last epoch counts, and only until that is over."""
    row = await pair.one.serve(a_job())
    await pair.one.checkpoint(JOB, Totals(0, 50), epoch=row.epoch)
    await pair.expire(pair.one)
    left = [Record(JOB, row.epoch, Totals(12, 70)), Record(JOB, row.epoch - 1, Totals(0, 999))]
    assert (await pair.two.serve(a_job(), left)).gross == Totals(12, 70)
    late = Record(JOB, row.epoch, Totals(12, 80))
    assert await pair.two.recover([late]) == [JOB]
    after = await pair.two.job(JOB)
    assert after is not None
    assert after.gross == Totals(12, 70)


# Keys


async def test_one_process_at_a_time_sends_for_a_key(pair: Pair) -> None:
    """The other stands by until the lease of the first has run out, and then goes on with its nonces."""
    assert await pair.one.lead(HOST)
    sent = await pair.one.save(a_draft(7), an_attempt(1))
    assert not await pair.two.lead(HOST)
    assert (await pair.one.leads(HOST), await pair.two.leads(HOST)) == (True, False)
    with pytest.raises(LedgerError, match="does not send"):
        await pair.two.save(a_draft(8), an_attempt(2))
    await pair.expire(pair.one)
    assert await pair.two.lead(HOST)
    assert (await pair.one.leads(HOST), await pair.two.leads(HOST)) == (False, True)
    assert await pair.two.in_flight(HOST) == [sent]
    await pair.two.save(a_draft(8), an_attempt(2))


async def test_a_key_is_led_in_a_new_epoch_each_time(pair: Pair) -> None:
    """What a process had begun before it lost the key and got it back is not written."""
    await pair.one.lead(HOST)
    before = pair.one.epoch(HOST)
    await pair.expire(pair.one)
    await pair.two.lead(HOST)
    await pair.two.close()
    await pair.one.renew()
    with pytest.raises(LedgerError, match="does not send"):
        await pair.one.save(a_draft(7), an_attempt(1))
    assert await pair.one.lead(HOST)
    assert pair.one.epoch(HOST) == before + 2
    assert await pair.one.lead(HOST)
    assert pair.one.epoch(HOST) == before + 2


async def test_who_is_not_heard_of_sends_nothing(pair: Pair) -> None:
    """A process whose lease ran out does not broadcast, though no other one has the key yet."""
    await pair.one.lead(HOST)
    await pair.expire(pair.one)
    assert not await pair.one.leads(HOST)
    assert not await pair.one.lead(HOST)
    await pair.one.renew()
    assert await pair.one.lead(HOST)


async def test_who_lost_a_key_changes_no_transaction(pair: Pair) -> None:
    """Not one of the statements over transactions goes by the fence."""
    await pair.one.lead(HOST)
    sent = await pair.one.save(a_draft(7), an_attempt(1))
    await pair.expire(pair.one)
    await pair.two.lead(HOST)
    one = pair.one
    for write in (
        one.save(a_draft(8), an_attempt(2)),
        one.add_attempt(sent, an_attempt(2)),
        one.taken(sent, sent.newest, 1.5),
        one.mined(sent, sent.newest.hash, 7),
        one.finish(sent, State.CONFIRMED, sent.newest.hash, 7),
        one.take_back(sent),
    ):
        with pytest.raises(Superseded, match="another one has taken over"):
            await write
    assert await pair.two.in_flight(HOST) == [sent]


async def test_of_two_that_want_a_key_at_once_one_gets_it(pair: Pair) -> None:
    """However they meet, one sends."""
    led = await asyncio.gather(pair.one.lead(HOST), pair.two.lead(HOST))
    assert sorted(led) == [False, True]
