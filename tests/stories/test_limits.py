"""What bounds the risk of both sides: the credit, the deposit, and what was signed."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import aiohttp

from tallystick import pricing
from tallystick.devnet import Devnet
from tallystick.session import Done, Session, Text
from tallystick.types import JobStatus, Totals
from tests.stories.parties import HostFactory, Payer, ask, until

KILLED_AT_TOKENS = 60


class Silent(Session):
    """A payer that takes and does not sign."""

    async def _sign_due(self) -> None:
        await asyncio.Event().wait()

    async def flush(self) -> None:
        """There is nothing that it would sign."""


async def test_a_payer_that_does_not_sign_gets_one_credit(start_host: HostFactory, payer: Payer) -> None:
    """Law 3: without a receipt the stream ends after one interval's worth, with its code."""
    host = await start_host(HOST_RECEIPT_TIMEOUT="1")
    honest = await payer.open(host)
    silent = await Silent.resume(payer.chain, payer.store, honest.job.id)
    await silent.connect()
    _, done = await ask(silent, 400)
    await silent.close()
    assert (done.reason, done.finish_reason) == ("receipt_due", "length")
    credit = pricing.credit(honest.job.interval, honest.job.prices)
    one_more = done.totals + Totals(0, 8)  # a cut character is several tokens at once
    assert (
        pricing.value(done.totals, honest.job.prices) <= credit < pricing.value(one_more, honest.job.prices)
    )
    completion = await honest.complete()
    assert completion.owed == 0


async def test_the_deposit_ends_in_the_middle_of_a_stream(start_host: HostFactory, payer: Payer) -> None:
    """Law 4: the stream stops at the last affordable token and says why; the job adds up to the unit."""
    host = await start_host(HOST_RECEIPT_TIMEOUT="1")
    session = await payer.open(host, deposit=150)
    _, done = await ask(session, 400)
    assert (done.reason, done.finish_reason) == ("deposit_exhausted", "length")
    assert 0 <= pricing.affordable(150, done.totals, session.job.prices) < 8
    completion = await session.complete()
    job = await payer.job(session)
    assert job.settled == done.totals
    assert completion.owed + completion.refund == 150


async def test_a_payer_killed_in_the_middle_comes_back_and_goes_on(
    start_host: HostFactory, payer: Payer, devnet: Devnet
) -> None:
    """A payer killed with -9 in a stream loses nothing that it signed; another request on the same job goes
    on.
    """
    host = await start_host(HOST_GRACE="1")
    session = await payer.open(host)
    await session.close()
    script = Path(__file__).with_name("killed_payer.py")
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        str(script),
        devnet.rpc_url,
        str(payer.store.path.parent),
        str(session.job.id),
        str(KILLED_AT_TOKENS),
        env={"PATH": os.environ["PATH"]},
    )
    assert await child.wait() == -signal.SIGKILL
    again = await payer.stack.enter_async_context(
        await Session.resume(payer.chain, payer.store, session.job.id)
    )
    signed_before = again.receipted.tokens
    assert signed_before <= KILLED_AT_TOKENS
    _, done = await ask(again, 150)
    assert (done.totals.tokens, done.reason) == (150, "length")
    completion = await again.complete()
    job = await payer.job(session)
    assert job.settled.tokens == signed_before + 150
    assert completion.owed == pricing.owed(job.settled, job.prices)
    assert job.status is JobStatus.CLOSED


async def test_not_streamed_counts_as_streamed(start_host: HostFactory, payer: Payer) -> None:
    """The same request costs the same, streamed or not, and its text is the same."""
    host = await start_host()
    session = await payer.open(host)
    now = (await payer.chain.block()).timestamp
    body = {
        "messages": [{"role": "user", "content": "Tell me of the harbour."}],
        "max_tokens": 40,
        "temperature": 0,
    }
    text = ""
    done: Done | None = None
    async for part in session.stream(body["messages"], max_tokens=40, temperature=0):  # type: ignore[arg-type]
        if isinstance(part, Text):
            text += part.text
        else:
            done = part
    await session.flush()
    headers = {"Authorization": f"Bearer {session.bearer(now + 600)}"}
    async with (
        aiohttp.ClientSession(headers=headers) as http,
        http.post(f"{host.url}/v1/chat/completions", json=body) as answer,
    ):
        plain = await answer.json()
    assert done is not None
    assert plain["choices"][0]["message"]["content"] == text
    assert plain["usage"]["completion_tokens"] == done.totals.tokens == 40
    assert plain["usage"]["prompt_tokens"] == done.totals.prompt_tokens
    assert plain["tally"]["job"] == {
        "prompt_tokens": 2 * done.totals.prompt_tokens,
        "tokens": 2 * done.totals.tokens,
    }


async def test_what_nobody_acknowledges_is_written_off(start_host: HostFactory, payer: Payer) -> None:
    """Tokens that a vanished payer never acknowledged leave the count after the grace; nobody claims them."""
    host = await start_host(HOST_RECEIPT_TIMEOUT="1", HOST_GRACE="1")
    honest = await payer.open(host)
    silent = await Silent.resume(payer.chain, payer.store, honest.job.id)
    await silent.connect()
    await ask(silent, 60)
    await silent.close()

    async def written_off() -> bool:
        return bool(host.lines("tokens.written_off", job=honest.job.id))

    await until(written_off, 20.0, host.logged)
    _, done = await ask(honest, 150)
    assert done.totals.tokens == 150
    await honest.complete()
    assert (await payer.job(honest)).settled == done.totals
