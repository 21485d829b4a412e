"""The three failures that hosts report most, each with real processes: no key, a wrong key, no gas."""

import pytest

from tallystick import proof
from tallystick.contracts import Claim
from tallystick.devnet import Devnet
from tallystick.errors import Reverted, SessionError
from tallystick.types import JobStatus
from tests.stories.parties import DEPOSIT, HostFactory, Payer, ask, until


async def test_without_a_key_the_node_serves_and_says_that_it_is_not_paid(
    start_host: HostFactory, payer: Payer, devnet: Devnet
) -> None:
    """No HOST_PRIVATE_KEY: one line at start, tokens are served, nothing is sent, the payer gets all back."""
    address = devnet.accounts.host.address
    host = await start_host(HOST_PRIVATE_KEY=None, HOST_ADDRESS=address)
    lines = [line for line in host.logged().splitlines() if "HOST_PRIVATE_KEY" in line]
    assert len(lines) == 1
    assert "not be paid" in lines[0]
    before = await payer.balance()
    session = await payer.open(host)
    _, done = await ask(session, 150)
    assert done.totals.tokens == 150
    await session.flush()
    assert host.lines("checkpoint.submitted") == []
    assert await payer.chain.settlements(session.job.id) == []

    key = devnet.accounts.payer.private_key
    await payer.chain.transact(payer.chain.complete_session(session.job.id), key)
    await devnet.increase_time(session.job.claim_window + 1)
    await payer.chain.transact(payer.chain.reclaim(session.job.id), key)
    assert await payer.balance() == before


async def test_a_key_that_is_not_the_hosts_is_told_at_start(
    start_host: HostFactory, payer: Payer, devnet: Devnet
) -> None:
    """A key that is not HOST_ADDRESS's: both addresses are said, and the mend."""
    stranger, host_address = devnet.accounts.stranger, devnet.accounts.host.address
    host = await start_host(HOST_PRIVATE_KEY=stranger.private_key.hex(), HOST_ADDRESS=host_address)
    told = [line for line in host.logged().splitlines() if "node.wrong_key" in line]
    assert len(told) == 1
    assert stranger.address in told[0]
    assert host_address in told[0]
    assert "HOST_PRIVATE_KEY" in told[0]


async def test_an_unregistered_key_is_told_and_gets_nothing(
    start_host: HostFactory, payer: Payer, devnet: Devnet
) -> None:
    """A key that is not registered: said with the mend; a job of another host is refused before a token."""
    right = await start_host(HOST_DATA_DIR=str(payer.store.path.parent / "right"))
    before = await payer.balance()
    session = await payer.open(right)
    job_id = session.job.id
    right.end()
    stranger = devnet.accounts.stranger
    wrong = await start_host(
        HOST_PRIVATE_KEY=stranger.private_key.hex(), HOST_LISTEN=right.url.removeprefix("http://")
    )
    told = [line for line in wrong.logged().splitlines() if "node.not_registered" in line]
    assert len(told) == 1
    assert stranger.address in told[0]
    assert "tally host register" in told[0]

    with pytest.raises(SessionError, match="job_of_another_host"):
        await (await type(session).resume(payer.chain, payer.store, job_id)).connect()
    claim = payer.chain.submit_checkpoint(job_id, 100, proof.attested_proof(0))
    with pytest.raises(Reverted, match="Only host can submit checkpoints"):
        await payer.chain.transact(claim, stranger.private_key)

    key = devnet.accounts.payer.private_key
    await payer.chain.transact(payer.chain.complete_session(job_id), key)
    await devnet.increase_time(session.job.claim_window + 1)
    await payer.chain.transact(payer.chain.reclaim(job_id), key)
    assert await payer.balance() == before


async def test_without_gas_the_claim_waits_and_settles_by_itself(
    start_host: HostFactory, payer: Payer, devnet: Devnet
) -> None:
    """No ETH: tokens flow, an alarm is logged; once funded, all is settled without a further token."""
    host = await start_host()
    session = await payer.open(host)
    address = devnet.accounts.host.address
    await devnet.set_balance(address, 0)
    _, done = await ask(session, 150)
    assert done.totals.tokens == 150
    await session.flush()
    alarm = await host.wait_for("sender.no_gas")
    assert address in alarm
    assert await payer.chain.settlements(session.job.id) == []

    host.end()
    await host.start()
    await devnet.set_balance(address, 10**18)
    await host.wait_for("checkpoint.confirmed", job=session.job.id, tokens=100)
    assert [row.totals.tokens for row in await payer.chain.settlements(session.job.id)] == [100]

    again = await payer.stack.enter_async_context(
        await type(session).resume(payer.chain, payer.store, session.job.id)
    )
    completion = await again.complete()
    job = await payer.job(session)
    assert job.settled.tokens == 150
    assert completion.owed + completion.refund == DEPOSIT


async def test_a_host_that_claims_more_than_was_signed_is_reverted(
    start_host: HostFactory, payer: Payer, devnet: Devnet
) -> None:
    """Law 3: the payer pays for nothing that it did not sign for, whatever the host sends to the chain."""
    host = await start_host()
    session = await payer.open(host)
    _, done = await ask(session, 40)
    await session.flush()
    last = payer.store.last(session.job.signer)
    assert last is not None
    claimed = proof.checkpoint_proof(done.totals.prompt_tokens, last.receipt)
    chain, key = payer.chain, devnet.accounts.host.private_key
    with pytest.raises(Exception, match="AboveReceipt"):
        await chain.transact(chain.submit_checkpoint(session.job.id, 41, claimed), key)
    result = await chain.transact(
        chain.submit_checkpoints([Claim(session.job.id, 41, claimed, complete=True)]), key
    )
    job = await payer.job(session)
    assert result.succeeded
    assert (job.settled.tokens, job.status) == (0, JobStatus.OPEN)
    await session.complete()

    async def settled() -> bool:
        return (await payer.job(session)).settled.tokens == 40

    await until(settled, 10.0)
