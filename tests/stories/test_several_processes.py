"""Several processes of one host over one PostgreSQL: whichever is killed, another goes on where it was."""

import asyncio
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp
import pytest

from tallystick import pricing
from tallystick.errors import SessionError
from tallystick.leases import LEASE
from tallystick.session import Session
from tallystick.types import JobStatus
from tests.stories.parties import DEPOSIT, HostFactory, HostProcess, Payer, ask

TOO_LONG = {"messages": [{"role": "user", "content": "Tides?"}], "max_tokens": 10**6}
"""A request that is refused once the job was taken up for it."""

StartHost = Callable[[str], Awaitable[HostProcess]]


@pytest.fixture
async def start(start_host: HostFactory, tmp_path: Path, postgres_url: str) -> StartHost:
    """Starts a process of the host, with a data directory of its own as on another machine."""

    async def start(name: str) -> HostProcess:
        return await start_host(LEDGER_URL=postgres_url, HOST_DATA_DIR=str(tmp_path / name))

    return start


async def have_it_served(session: Session, host: HostProcess, payer: Payer) -> None:
    """From here on this process serves the session's job."""
    bearer = session.bearer((await payer.chain.block()).timestamp + 600)
    async with (
        aiohttp.ClientSession(headers={"Authorization": f"Bearer {bearer}"}) as http,
        http.post(f"{host.url}/v1/chat/completions", json=TOO_LONG) as answer,
    ):
        assert answer.status == 400
    await host.wait_for("job.taken_up", job=session.job.id)


async def connect_again(session: Session) -> None:
    """Once the host takes the session again: within the lease of the process that is gone."""
    await session.close()
    async with asyncio.timeout(2 * LEASE):
        while (refusal := await refused(session)) is not None:
            assert "job_elsewhere" in refusal
            await asyncio.sleep(0.5)


async def refused(session: Session) -> str | None:
    try:
        await session.connect()
    except SessionError as error:
        return str(error)
    return None


async def test_the_process_that_serves_a_job_is_killed(start: StartHost, payer: Payer) -> None:
    """In the middle of a reply: another takes the job over, and every token that was signed for is paid."""
    settling, serving = await start("one"), await start("two")
    session = await payer.open(settling)
    await have_it_served(session, serving, payer)
    _, done = await ask(session, 150)
    assert done.totals.tokens == 150
    assert serving.lines("checkpoint.receipted", job=session.job.id, tokens=100)
    await settling.wait_for("checkpoint.confirmed", job=session.job.id, tokens=100)

    received = await killed_in_the_middle(session, serving)
    assert not settling.lines("job.taken_up")
    await connect_again(session)
    _, done = await ask(session, 100, "Tell me of the sea.")
    assert done.totals.tokens == 100
    await settling.wait_for("job.taken_up", job=session.job.id, blind=True)
    await all_is_paid(session, payer, tokens=150 + received + 100)


async def killed_in_the_middle(session: Session, serving: HostProcess) -> int:
    """The tokens that came of a reply until its process was killed."""
    received = 0
    try:
        async for part in session.stream("Tell me of the moon.", max_tokens=400, seed=7):
            received = part.totals.tokens
            if received >= 60 and serving.process is not None and serving.process.poll() is None:
                serving.end(signal.SIGKILL)
    except SessionError:
        return received
    raise AssertionError("the reply went on to its end")


async def test_the_process_that_settles_is_killed(start: StartHost, payer: Payer) -> None:
    """The job goes on where it is served, and that process settles once the lease of the other is out."""
    settling, serving = await start("one"), await start("two")
    session = await payer.open(serving)
    await ask(session, 50)
    settling.end(signal.SIGKILL)
    await ask(session, 100, "Tell me of the sea.")
    await session.flush()
    assert serving.lines("job.taken_up", job=session.job.id)
    assert await payer.chain.settlements(session.job.id) == []
    await serving.wait_for("sender.leading")
    await serving.wait_for("checkpoint.confirmed", job=session.job.id, tokens=100)
    await all_is_paid(session, payer, tokens=150)


async def test_a_process_that_is_stopped_leaves_no_gap(start: StartHost, payer: Payer) -> None:
    """One that is asked to end gives its jobs up: another serves them at once, with its count."""
    leaving, staying = await start("one"), await start("two")
    session = await payer.open(staying)
    await have_it_served(session, leaving, payer)
    await ask(session, 120)
    assert leaving.end() == 0
    await connect_again(session)
    await ask(session, 40, "Tell me of the sea.")
    await staying.wait_for("job.taken_up", job=session.job.id, blind=False)
    await all_is_paid(session, payer, tokens=160)


async def all_is_paid(session: Session, payer: Payer, *, tokens: int) -> None:
    """What was received is what was signed for and settled, and the deposit is accounted for to the unit."""
    await session.flush()
    signed = session.receipted
    completion = await session.complete()
    job = await payer.job(session)
    assert (job.status, job.settled) == (JobStatus.CLOSED, signed)
    assert job.settled.tokens == tokens
    assert completion.owed == pricing.owed(job.settled, job.prices)
    assert completion.owed + completion.refund == DEPOSIT
    settlements = await payer.chain.settlements(session.job.id)
    assert sum(each.host_amount + each.fee for each in settlements) == completion.owed
