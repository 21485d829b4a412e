"""What a host lends without a signature is bounded in money: for one payer, and for all together."""

from __future__ import annotations

from tallystick.config import Amounts
from tallystick.testing.engine import Hang, Script, ScriptedEngine, say
from tests.hosting import CHAT, Host, Hosting
from tests.paying import Signer, until

# A job at the devnet's prices, with an interval of 100 tokens, is lent 0.00009 dollars at a time.
TWO_CREDITS = Amounts("0.0002")


def endless() -> ScriptedEngine:
    return ScriptedEngine(Script((*say("a"), Hang())))


async def begin(hosting: Hosting, host: Host, signer: Signer) -> None:
    """Asks for a reply that does not end, and reads its first token."""
    answer = await host.http.post(CHAT, json=signer.body(), headers=signer.headers())
    hosting.parts.callback(answer.close)
    assert answer.status == 200
    await answer.content.readany()


async def test_one_payer(hosting: Hosting) -> None:
    """A payer's jobs are lent so much together; what it signs for on one makes room for another."""
    host = await hosting.serve(endless(), exposure_per_payer=TWO_CREDITS)
    first, second, third = [await hosting.signer() for _ in range(3)]
    await begin(hosting, host, first)
    await begin(hosting, host, second)
    status, error = await host.error(third)
    assert (status, error["code"], error["retry"]) == (402, "payer_exposed", False)
    assert "job" in error["terms"]
    host.node.desk.accounts.forget(second.job.id)
    await until(lambda: _streams(host, 1))
    await begin(hosting, host, third)


async def test_what_closed_jobs_left_unsigned(hosting: Hosting) -> None:
    """A payer that let jobs be closed over unsigned tokens is lent that much less on others."""
    host = await hosting.serve(ScriptedEngine(Script(say(*"x" * 90))), exposure_per_payer=TWO_CREDITS)
    for _ in range(2):
        signer = await hosting.signer()
        await host.ask(signer, signing=False)
        host.node.desk.accounts.forget(signer.job.id)
    status, error = await host.error(await hosting.signer())
    assert (status, error["code"]) == (402, "payer_exposed")


async def test_all_together(hosting: Hosting) -> None:
    """All jobs together are lent so much; who comes then is told to come again."""
    host = await hosting.serve(endless(), exposure_max=TWO_CREDITS)
    for _ in range(2):
        await begin(hosting, host, await hosting.signer())
    status, error = await host.error(await hosting.signer())
    assert (status, error["code"], error["retry"]) == (503, "host_exposed", True)


async def test_attested_jobs_are_lent_nothing(hosting: Hosting) -> None:
    """What needs no signature is no exposure."""
    host = await hosting.serve(endless(), exposure_max=TWO_CREDITS)
    await hosting.devnet.increase_time(60)
    for _ in range(3):
        signer = await hosting.signer(max_tokens_per_second=1000)
        await hosting.devnet.increase_time(60)
        await begin(hosting, host, signer)


async def _streams(host: Host, number: int) -> bool:
    return host.node.desk.accounts.streams == number
