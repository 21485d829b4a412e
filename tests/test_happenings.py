"""What happens to a payer's jobs, as its page is told of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tallystick import lookout, pricing
from tallystick.caps import Caps
from tallystick.chain import Chain
from tallystick.countersign import Overcount
from tallystick.devnet import Devnet
from tallystick.happenings import Happenings, Told
from tallystick.session import BalanceLow, PromptAhead, Stopped
from tallystick.testing.engine import Script, say
from tallystick.types import JobId, RequestId, Totals
from tests.buying import DEPOSIT, Bench
from tests.paying import PRICES, PROMPT, register


@pytest.fixture
async def bench(
    devnet: Devnet, chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Bench]:
    monkeypatch.setattr(lookout, "FRESH", 0.0)
    await register(devnet, chain)
    async with AsyncExitStack() as parts:
        yield Bench(devnet, chain, tmp_path, parts)


async def test_a_jobs_life_is_told_from_opening_to_refund(bench: Bench) -> None:
    """Each step with its amounts, which add up: what was paid and what came back is what was put in."""
    proxy = await bench.proxy(await bench.serve(Script(say(*["a "] * 150))), Caps(DEPOSIT, 2 * DEPOSIT))
    happenings, heard = Happenings(proxy.spender), list[Told]()
    proxy.spender.on(lambda job, event: heard.append(happenings.told(job, event)))
    job = await proxy.spender.open("scripted", 1_000_000)
    await proxy.ask()
    await proxy.spender.top_up(job.id, 250_000)
    await proxy.spender.complete(job.id)
    kinds = [each["kind"] for each in heard]
    told = {each["kind"]: each for each in heard}
    owed = pricing.owed(Totals(PROMPT, 150), PRICES)
    assert (kinds[0], kinds[-1]) == ("opened", "completed")
    assert {each["job_id"] for each in heard} == {job.id}
    assert told["opened"]["deposit"] == "1"
    assert told["topped_up"]["amount"] == "0.25"
    assert (told["signed"]["tokens"], told["signed"]["owed"]) == (150, pricing.from_units(owed, 6))
    assert told["completed"]["paid"] == pricing.from_units(owed, 6)
    assert told["completed"]["refund"] == pricing.from_units(1_250_000 - owed, 6)


async def test_warnings_are_told_in_plain_values(bench: Bench) -> None:
    """What runs low, goes ahead, does not add up or stops."""
    proxy = await bench.proxy(await bench.serve(Script(say("a"))))
    happenings, job = Happenings(proxy.spender), JobId(3)
    common = {"job_id": 3, "symbol": "tUSD"}
    overcount = Overcount(RequestId("00" * 16), "prompt_tokens", 90, 40)
    assert happenings.told(job, BalanceLow(400_000)) == {**common, "kind": "balance_low", "left": "0.4"}
    assert happenings.told(job, PromptAhead(900, 180)) == {
        **common,
        "kind": "prompt_ahead",
        "prompt_tokens": 900,
        "cost": "0.00018",
    }
    assert happenings.told(job, overcount) == {
        **common,
        "kind": "overcount",
        "what": "prompt_tokens",
        "counted": 90,
        "signed": 40,
    }
    assert happenings.told(job, Stopped("why")) == {**common, "kind": "stopped", "reason": "why"}
