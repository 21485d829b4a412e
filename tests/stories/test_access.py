"""Who may spend a job: its signer, and nobody else."""

from collections.abc import AsyncIterator
from dataclasses import replace

import aiohttp
import pytest
from eth_typing import HexAddress, HexStr
from eth_utils.conversions import to_hex
from web3.utils.address import get_create2_address

from tallystick import proof
from tallystick.artifacts import CREATE2_PROXY, artifact
from tallystick.contracts import Call, Created
from tallystick.devnet import Devnet
from tallystick.types import Address, Job, JobId, Prices, Terms
from tests.stories.parties import HostFactory, HostProcess, Payer, ask

BODY = {"model": "tally-demo", "messages": [{"role": "user", "content": "Tides?"}], "max_tokens": 20}


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


async def refused(
    http: aiohttp.ClientSession, host: HostProcess, bearer: str | None, **members: object
) -> tuple[int, str]:
    """Status and code of a request that is turned down."""
    headers = {"Authorization": f"Bearer {bearer}"} if bearer else {}
    async with http.post(
        f"{host.url}/v1/chat/completions", json={**BODY, **members}, headers=headers
    ) as answer:
        error = (await answer.json())["error"]
        assert {"detail", "move", "mend"} <= error.keys()
        return answer.status, error["code"]


async def test_no_stranger_spends_a_job(
    start_host: HostFactory, payer: Payer, devnet: Devnet, http: aiohttp.ClientSession
) -> None:
    """Law 10: another job's bearer, a forged, an expired and a missing one get no token, and cost nothing."""
    host = await start_host()
    mine, other = await payer.open(host), await payer.open(host)
    now = (await payer.chain.block()).timestamp
    domain = proof.Domain(devnet.deployment.chain_id, devnet.deployment.marketplace)
    forged = proof.make_bearer(domain, mine.job.id, now + 600, proof.new_key())
    assert await refused(http, host, other.bearer(now + 600), job_id=mine.job.id) == (403, "job_mismatch")
    assert await refused(http, host, forged) == (401, "access_forged")
    assert await refused(http, host, mine.bearer(now - 1)) == (401, "access_expired")
    assert await refused(http, host, None) == (401, "access_missing")
    assert await refused(http, host, "sk-nothing") == (401, "access_malformed")
    nobody = proof.make_bearer(domain, JobId(999_999), now + 600, proof.new_key())
    assert await refused(http, host, nobody) == (404, "job_unknown")
    for session in (mine, other):
        completion = await session.complete()
        assert completion.owed == 0


async def test_a_complete_job_serves_no_more(
    start_host: HostFactory, payer: Payer, http: aiohttp.ClientSession
) -> None:
    """A job that was completed is refused with the reason, and its totals stay as they are."""
    host = await start_host()
    session = await payer.open(host)
    await ask(session, 20)
    await session.complete()
    bearer = session.bearer((await payer.chain.block()).timestamp + 600)
    status, code = await refused(http, host, bearer)
    assert (status, code in {"job_closed", "job_ended"}) == (402, True)
    assert (await payer.job(session)).settled.tokens == 20


async def test_a_job_at_price_1_is_refused(
    start_host: HostFactory, payer: Payer, http: aiohttp.ClientSession
) -> None:
    """A job that pays less than the host asks is refused before the engine is touched."""
    host = await start_host()
    fair = await payer.open(host)
    bearer = await open_like(payer, fair.job, prices=Prices(1, 1))
    assert await refused(http, host, bearer) == (402, "price_too_low")


async def test_a_job_in_a_token_of_the_payers_own_making_is_refused(
    start_host: HostFactory, payer: Payer, devnet: Devnet, http: aiohttp.ClientSession
) -> None:
    """Money that the payer printed is refused before the engine is touched."""
    host = await start_host()
    fair = await payer.open(host)
    chain, account = payer.chain, devnet.accounts.payer
    salt, code = b"\x07" * 32, artifact("TestDollar").bytecode
    await chain.transact(Call(CREATE2_PROXY, salt + code), account.private_key)
    proxy = HexAddress(HexStr(CREATE2_PROXY))
    own = Address(get_create2_address(proxy, HexStr(to_hex(salt)), HexStr(to_hex(code))))
    await chain.transact(chain.mint(own, account.address, 10**12), account.private_key)
    await chain.transact(chain.approve(own, fair.job.deposit), account.private_key)
    bearer = await open_like(payer, fair.job, asset=own)
    assert await refused(http, host, bearer) == (402, "asset_not_accepted")


async def open_like(payer: Payer, job: Job, **changes: object) -> str:
    """Opens a job as `job` is, but for the changes; a bearer for it."""
    chain, key = payer.chain, payer.devnet.accounts.payer.private_key
    session_key = proof.new_key()
    terms = Terms(
        host=job.host,
        asset=job.asset,
        deposit=job.deposit,
        prices=job.prices,
        signer=proof.address(session_key),
        max_tokens_per_second=0,
        claim_window=job.claim_window,
        expires_at=job.expires_at,
        checkpoint_interval=job.interval,
        model_id=job.model_id,
    )
    terms = replace(terms, **changes)  # type: ignore[arg-type]
    if terms.asset == job.asset:
        await chain.transact(chain.approve(terms.asset, terms.deposit), key)
    result = await chain.transact(chain.create_job(terms), key)
    created = next(event for event in result.events if isinstance(event, Created))
    domain = proof.Domain(chain.deployment.chain_id, chain.deployment.marketplace)
    expires_at = (await chain.block()).timestamp + 600
    return proof.make_bearer(domain, created.job_id, expires_at, session_key)
