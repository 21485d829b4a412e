"""How a payer's money stands: what may be done about a job, and amounts that chain and meter bear out."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from tallystick import overview, pricing
from tallystick.caps import Caps
from tallystick.chain import Chain
from tallystick.devnet import Devnet
from tallystick.overview import Overview, actions
from tallystick.testing.engine import Script, say
from tallystick.types import ZERO_HASH, Address, Job, JobId, JobStatus, Prices, Totals
from tests.buying import DEPOSIT, Bench, Proxy
from tests.paying import PRICES, PROMPT, register

NOBODY = Address("0x" + "00" * 20)
OPEN = Job(
    id=JobId(7),
    payer=NOBODY,
    host=NOBODY,
    asset=NOBODY,
    signer=NOBODY,
    deposit=DEPOSIT,
    prices=Prices(1, 1),
    max_tokens_per_second=0,
    claim_window=50,
    created_at=0,
    expires_at=100,
    asked_at=0,
    closes_at=150,
    settled=Totals(),
    owed=0,
    fee=0,
    status=JobStatus.OPEN,
    interval=100,
    model_id=ZERO_HASH,
)
ASKED = replace(OPEN, status=JobStatus.COMPLETING, asked_at=20, closes_at=70)
CLOSED = replace(OPEN, status=JobStatus.CLOSED)


@pytest.mark.parametrize(
    ("job", "now", "payable", "can"),
    [
        (OPEN, 99, True, ["top_up", "complete"]),
        (OPEN, 99, False, ["complete"]),
        (replace(OPEN, max_tokens_per_second=9), 99, True, ["complete"]),
        (OPEN, 100, True, ["complete"]),
        (OPEN, 149, True, ["complete"]),
        (OPEN, 150, True, ["reclaim"]),
        (ASKED, 69, True, ["complete"]),
        (ASKED, 70, True, ["reclaim"]),
        (CLOSED, 99, True, []),
        (CLOSED, 999, True, []),
    ],
)
def test_only_what_the_contract_takes_is_offered(job: Job, now: int, payable: bool, can: list[str]) -> None:
    """To add before it expires, to complete before it closes, to reclaim after that; nothing once closed."""
    assert actions(job, now, payable=payable) == can


@pytest.fixture
async def bench(devnet: Devnet, chain: Chain, tmp_path: Path) -> AsyncIterator[Bench]:
    await register(devnet, chain)
    async with AsyncExitStack() as parts:
        yield Bench(devnet, chain, tmp_path, parts)


async def serving(bench: Bench, caps: Caps | None = None) -> tuple[Proxy, Overview]:
    proxy = await bench.proxy(await bench.serve(Script(say(*["a "] * 250))), caps)
    return proxy, Overview(proxy.spender)


async def test_before_anything_is_asked_all_is_in_the_wallet(bench: Bench) -> None:
    """No job, the whole day's cap left, and what may be opened is the lower of both caps."""
    proxy, shown = await serving(bench, Caps(500_000, 300_000))
    told = await shown.whole()
    wallet, _ = await bench.money()
    assert told["wallet"] == pricing.from_units(wallet, 6)
    assert (told["room"], told["opening_most"], told["kept"], told["jobs"]) == ("0.3", "0.3", "0", [])
    [url] = proxy.spender.hosts.urls
    assert told["models"] == [{"name": "scripted", "url": url, "price": "0.9", "prompt_price": "0.2"}]
    [host] = told["hosts"]
    assert (host["url"], host["record"], host["aside"]) == (url, "never asked", False)


async def test_deposit_is_spent_and_refundable_at_any_moment(bench: Bench) -> None:
    """What came counts as spent, signed or not; what is refundable then is what does come back."""
    proxy, shown = await serving(bench, Caps(DEPOSIT, 2 * DEPOSIT))
    await proxy.ask()
    [job] = (await shown.whole())["jobs"]
    owed = pricing.owed(Totals(PROMPT, 250), PRICES)
    assert (job["status"], job["actions"]) == ("open", ["top_up", "complete"])
    assert (job["deposit"], job["spent"]) == ("2", pricing.from_units(owed, 6))
    assert job["top_up_most"] == pricing.from_units(owed, 6)
    completion = await proxy.spender.complete(JobId(job["job_id"]))
    assert job["refundable"] == pricing.from_units(completion.refund, 6)
    [closed] = (await shown.whole())["jobs"]
    assert (closed["status"], closed["spent"]) == ("closed", job["spent"])
    assert (closed["refundable"], closed["actions"]) == (job["refundable"], [])


async def test_of_closed_jobs_the_newest_are_shown(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many there were, and open ones all of them."""
    monkeypatch.setattr(overview, "CLOSED_SHOWN", 2)
    proxy, shown = await serving(bench, Caps(1000, 10_000))
    opened = [await proxy.spender.open("scripted", 500)]
    for _ in range(3):
        await proxy.spender.complete(opened[-1].id)
        opened.append(await proxy.spender.open("scripted", 500))
    told = (await shown.whole())["jobs"]
    assert [each["job_id"] for each in told] == [job.id for job in reversed(opened[1:])]
    assert [each["status"] for each in told] == ["open", "closed", "closed"]
