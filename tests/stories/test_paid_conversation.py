"""A paid conversation, end to end, and what its host can read in the log."""

import re

from tallystick import pricing
from tallystick.devnet import Devnet
from tallystick.session import Settled
from tallystick.types import JobStatus, Totals
from tests.stories.parties import DEPOSIT, HostFactory, Payer, ask


async def test_every_token_is_paid_90_to_10_and_the_rest_comes_back(
    start_host: HostFactory, payer: Payer, devnet: Devnet
) -> None:
    """150 tokens are settled at 100 and at the end: on chain, host + treasury + refund = deposit."""
    host = await start_host()
    before = await payer.balance()
    session = await payer.open(host)
    settled: list[Settled] = []
    session.on(lambda event: settled.append(event) if isinstance(event, Settled) else None)
    text, done = await ask(session, 150)
    await host.wait_for("checkpoint.confirmed", job=session.job.id, tokens=100)
    completion = await session.complete()

    job = await payer.job(session)
    rows = await payer.chain.settlements(session.job.id)
    earned = await payer.chain.earnings(devnet.accounts.host.address, job.asset)
    treasury = await payer.chain.treasury_balance(job.asset)
    assert text
    assert done.totals.tokens == 150
    assert [row.totals.tokens for row in rows] == [100, 150]
    assert job.settled == Totals(done.totals.prompt_tokens, 150)
    assert (earned, treasury) == (sum(r.host_amount for r in rows), sum(r.fee for r in rows))
    assert earned + treasury + completion.refund == DEPOSIT
    assert completion.owed == pricing.owed(job.settled, job.prices)
    assert treasury == completion.owed // 10
    assert await payer.balance() == before - earned - treasury
    assert [event.tx for event in settled] == [row.tx for row in rows]
    assert rows[1].tx == completion.tx


async def test_the_log_tells_the_story(start_host: HostFactory, payer: Payer) -> None:
    """Each step is one line with `job=`, in order, with the chain's hashes and amounts, and no key."""
    host = await start_host()
    session = await payer.open(host)
    await ask(session, 150)
    await host.wait_for("checkpoint.confirmed", job=session.job.id, tokens=100)
    completion = await session.complete()
    rows = await payer.chain.settlements(session.job.id)
    await host.wait_for("session.completed", job=session.job.id)

    story = [line for line in host.logged().splitlines() if re.search(rf"\bjob={session.job.id}\b", line)]
    at_100 = [line for line in story if "tokens=100" in line.split()]
    events = [re.search(r"checkpoint\.\w+", line) for line in at_100]
    assert [event[0] for event in events if event] == [
        "checkpoint.due",
        "checkpoint.receipted",
        "checkpoint.submitted",
        "checkpoint.confirmed",
    ]
    confirmed = host.lines("checkpoint.confirmed", job=session.job.id)
    for line, row in zip(confirmed, rows, strict=True):
        assert {f"tx={row.tx}", f"host={row.host_amount}", f"treasury={row.fee}"} <= set(line.split())
    completed = host.lines("session.completed", job=session.job.id)
    assert len(completed) == 1
    assert f"refund={completion.refund}" in completed[0].split()
    assert host.environment["HOST_PRIVATE_KEY"] not in host.logged()


async def test_ten_replies_of_20_tokens_reach_two_checkpoints(start_host: HostFactory, payer: Payer) -> None:
    """A job spans requests: ten short replies are 200 tokens, settled at 100 and at 200."""
    host = await start_host()
    session = await payer.open(host)
    for _ in range(10):
        _, done = await ask(session, 20, "Tides?")
        assert done.totals.tokens == 20
    await session.flush()
    await host.wait_for("checkpoint.confirmed", job=session.job.id, tokens=200)
    rows = await payer.chain.settlements(session.job.id)
    assert [row.totals.tokens for row in rows] == [100, 200]
    await session.complete()
    assert (await payer.job(session)).settled.tokens == 200


async def test_a_tail_is_paid_to_the_token(start_host: HostFactory, payer: Payer) -> None:
    """Law 5: a job of 17 tokens pays for 17: no minimum, no padding, no forfeit."""
    host = await start_host()
    session = await payer.open(host)
    _, done = await ask(session, 17)
    completion = await session.complete()
    job = await payer.job(session)
    assert done.totals.tokens == 17
    assert job.settled == done.totals
    assert completion.owed == pricing.owed(done.totals, job.prices)
    assert job.status is JobStatus.CLOSED


async def test_characters_cut_between_tokens_are_counted_and_paid(
    start_host: HostFactory, payer: Payer
) -> None:
    """Replies whose characters are cut between tokens arrive whole, and are paid as the engine counts."""
    host = await start_host()
    session = await payer.open(host)
    text, cuts, asked = "", 0, 0
    while cuts == 0:
        assert asked < 3_000, "no character was cut in 20 replies"
        before = 0
        async for part in session.stream("Tell me of the harbour.", max_tokens=150, seed=asked):
            cuts += part.totals.tokens > before + 1
            before = part.totals.tokens
            text += part.text
        asked += 150
    assert "\N{REPLACEMENT CHARACTER}" not in text
    await session.complete()
    assert (await payer.job(session)).settled.tokens == asked
