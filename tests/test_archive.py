"""Evidence is kept when a job is over, can be had before, and is held against the chain."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from tallystick import archive
from tallystick.chain import Chain
from tallystick.devnet import Devnet
from tallystick.errors import ConfigError, SessionError
from tallystick.evidence import Evidence
from tallystick.opening import Wishes
from tallystick.session import Session
from tallystick.testing.engine import Script, say
from tests.buying import Bench
from tests.paying import register


@pytest.fixture
async def bench(devnet: Devnet, chain: Chain, tmp_path: Path) -> AsyncIterator[Bench]:
    await register(devnet, chain)
    async with AsyncExitStack() as parts:
        yield Bench(devnet, chain, tmp_path, parts)


async def test_a_job_leaves_its_evidence(bench: Bench) -> None:
    """Before the end it can be had, at the end it is kept; both hold, also against the chain."""
    wallet = bench.wallet()
    url = await bench.serve(Script(say("a", "b")))
    session = await Session.open(bench.chain, wallet.store, wallet.key(), url, Wishes(deposit=500_000))
    stored = wallet.stored(session.job.id)
    assert stored is not None
    async with session:
        async for _ in session.stream("Why?", max_tokens=10):
            pass
        await session.flush()
        before = Evidence(await archive.gather(bench.chain, wallet.store, stored))
        await session.complete()
    [path] = (bench.directory / "payer" / "evidence").iterdir()
    after = archive.read(path)
    for read in (before, after):
        assert [check for check in read.checks() if not check.passed] == []
    assert (before.form.completion, after.signed.tokens) == (None, 2)
    assert all(check.passed for check in await archive.confirm(after, bench.chain))
    outdated = [check.name for check in await archive.confirm(before, bench.chain) if not check.passed]
    assert outdated == ["settlements on chain", "end on chain"]
    checks = await archive.confirmed(after, bench.devnet.rpc_url)
    assert all(check.passed for check in checks)


async def test_evidence_that_cannot_be_had_is_told(bench: Bench, tmp_path: Path) -> None:
    """A file that is not there, an endpoint that is none, a job that the chain does not have."""
    with pytest.raises(ConfigError, match="cannot be read"):
        archive.read(tmp_path / "nothing")
    wallet = bench.wallet()
    url = await bench.serve(Script(say("a")))
    session = await Session.open(bench.chain, wallet.store, wallet.key(), url, Wishes(deposit=500_000))
    stored = wallet.stored(session.job.id)
    assert stored is not None
    read = Evidence(await archive.gather(bench.chain, wallet.store, stored))
    with pytest.raises(ConfigError, match="--rpc-url"):
        await archive.confirmed(read, "nowhere")
    with pytest.raises(SessionError, match="not on this chain"):
        await archive.gather(bench.chain, wallet.store, replace(stored, job_id=None))
