"""What happens to a payer's jobs, as its page is told of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from tallystick import happenings, pricing
from tallystick.caps import Caps
from tallystick.chain import Chain
from tallystick.countersign import Overcount
from tallystick.devnet import Devnet
from tallystick.happenings import Happening, Told
from tallystick.session import BalanceLow, PromptAhead, Stopped
from tallystick.testing.engine import Script, say
from tallystick.types import ETH, Completion, RequestId, Totals
from tests.buying import DEPOSIT, Bench
from tests.paying import PRICES, PROMPT, look_always, open_job, register


@pytest.fixture
async def bench(
    devnet: Devnet, chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Bench]:
    look_always(monkeypatch)
    await register(devnet, chain)
    async with AsyncExitStack() as parts:
        yield Bench(devnet, chain, tmp_path, parts)


async def test_a_jobs_life_is_told_from_opening_to_refund(bench: Bench) -> None:
    """Each step with its amounts, which add up: what was paid and what came back is what was put in."""
    proxy = await bench.proxy(await bench.serve(Script(say(*["a "] * 150))), Caps(DEPOSIT, 2 * DEPOSIT))
    heard = list[Told]()
    proxy.spender.on(lambda job, event: heard.append(happenings.told(bench.chain, job, event)))
    job = await proxy.spender.open("scripted", 1_000_000)
    await proxy.ask()
    await proxy.spender.top_up(job.id, 250_000)
    await proxy.spender.complete(job.id)
    told = {each["kind"]: each for each in heard}
    owed = pricing.owed(Totals(PROMPT, 150), PRICES)
    assert heard.pop(0)["kind"] == "host_chosen"
    assert {each["job_id"] for each in heard} == {job.id}
    assert (heard[0]["kind"], heard[-1]["kind"]) == ("opened", "completed")
    assert told["opened"]["deposit"] == "1"
    assert told["topped_up"]["amount"] == "0.25"
    assert (told["signed"]["tokens"], told["signed"]["owed"]) == (150, pricing.from_units(owed, 6))
    assert told["completed"]["paid"] == pricing.from_units(owed, 6)
    assert told["completed"]["refund"] == pricing.from_units(1_250_000 - owed, 6)


@pytest.mark.parametrize(
    ("event", "members"),
    [
        (BalanceLow(400_000), {"kind": "balance_low", "left": "0.4"}),
        (PromptAhead(900, 180), {"kind": "prompt_ahead", "prompt_tokens": 900, "cost": "0.00018"}),
        (
            Overcount(RequestId("00" * 16), "prompt_tokens", 90, 40),
            {"kind": "overcount", "what": "prompt_tokens", "counted": 90, "signed": 40},
        ),
        (Stopped("why"), {"kind": "stopped", "reason": "why"}),
    ],
)
async def test_warnings_are_told_in_plain_values(bench: Bench, event: Happening, members: Told) -> None:
    """What runs low, goes ahead, does not add up or stops, with the asset of its job."""
    job = (await open_job(bench.devnet, bench.chain)).job
    common = {"job_id": job.id, "symbol": "tUSD", "decimals": 6}
    assert happenings.told(bench.chain, job, event) == {**common, **members}


async def test_amounts_are_in_the_asset_of_their_job(bench: Bench) -> None:
    """A job in ETH is told with its 18 decimals."""
    job = replace((await open_job(bench.devnet, bench.chain)).job, asset=ETH)
    event = Completion(job.id, 1, 0, 10**18 - 1, "0x", 9)
    told = happenings.told(bench.chain, job, event)
    assert (told["symbol"], told["paid"]) == ("ETH", "0.000000000000000001")
    assert told["refund"] == "0.999999999999999999"
