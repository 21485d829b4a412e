"""One host put together: what it says at start, what it offers, and what it brings to the chain."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import orjson
import pytest
from structlog.testing import capture_logs

from tallystick import asking, database, pricing
from tallystick.chain import Chain
from tallystick.config import Amounts, AssetPrice, HostConfig, Secret
from tallystick.counter import Counter
from tallystick.devnet import Devnet
from tallystick.engine import Health
from tallystick.errors import ChainError, ConfigError, LedgerError, Refusal
from tallystick.ledger import Ledger
from tallystick.node import COUNTER, Node, Payout, policy_of, thrift_of
from tallystick.policy import Policy, Thrift
from tallystick.testing.engine import Hang, Script, ScriptedEngine, say
from tallystick.types import ETH, Address, JobId, JobStatus, Totals
from tests import postgresql
from tests.disk import SmallDisk
from tests.paying import PROMPT, Signer, look_always, open_job, register, until

Line = Mapping[str, Any]


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test changes the chain and asks at once."""
    look_always(monkeypatch)


@pytest.fixture
async def config(devnet: Devnet, chain: Chain, tmp_path: Path) -> HostConfig:
    """A host that is registered and has its key."""
    await register(devnet, chain)
    return HostConfig(
        host_private_key=Secret(devnet.accounts.host.private_key), rpc_url=devnet.rpc_url, data_dir=tmp_path
    )


def changed(config: HostConfig, **settings: Any) -> HostConfig:
    names = ("host_private_key", "rpc_url", "data_dir")
    return HostConfig(**{**{name: getattr(config, name) for name in names}, **settings})


def node(config: HostConfig, *, tokens: int = 60) -> Node:
    return Node(config, engine=ScriptedEngine(Script(say(*"x" * tokens))))


async def told_at_start(config: HostConfig) -> list[Line]:
    """What a node logs while it starts."""
    with capture_logs() as lines:
        async with node(config):
            return list(lines)


async def ask(host: Node, signer: Signer, number: int = 1) -> None:
    """A whole reply, and a receipt for all of it."""
    asked = asking.parse_chat(orjson.dumps(signer.body(number)))
    async with await host.desk.admit(asked, signer.access()) as stream:
        async for chunks in stream:
            for chunk in chunks:
                choices = chunk.piece.choices if chunk.piece else []
                signer.receive({"choices": choices, "tally": chunk.tally})
            if chunks[-1].tally.get("due"):
                await sign(host, signer)
    await sign(host, signer)


async def sign(host: Node, signer: Signer) -> None:
    while signer.job.receipted and (receipt := signer.receipt()) is not None:
        signer.acked((await host.desk.receipt(receipt, signer.access())).out())


# What it says


async def test_a_good_start(config: HostConfig) -> None:
    """A host that is set up says who it is and what it sells, and nothing is wrong."""
    lines = await told_at_start(config)
    started = next(line for line in lines if line["event"] == "node.started")
    assert (started["host"], started["models"]) == (config.host, ["scripted"])
    assert [line for line in lines if line["log_level"] in ("warning", "error")] == []


async def test_unpaid(config: HostConfig, devnet: Devnet, chain: Chain) -> None:
    """Without HOST_PRIVATE_KEY it serves, says in one line that it is not paid and how to change that."""
    unpaid = changed(config, host_private_key=None, host_address=config.host)
    lines = await told_at_start(unpaid)
    [line] = [line for line in lines if line["log_level"] in ("warning", "error")]
    assert (line["event"], line["host"]) == ("node.unpaid", config.host)
    assert "HOST_PRIVATE_KEY" in line["meaning"]
    async with node(unpaid) as host:
        assert not (await host.quote())["paid"]
        assert await host.unready() == ["HOST_PRIVATE_KEY is not set: this host will not be paid"]
        signer = await open_job(devnet, chain)
        for number in (1, 2):
            await ask(host, signer, number)
    job = await chain.job(signer.job.id)
    assert job is not None
    assert job.settled == Totals()


class Failing(ScriptedEngine):
    """Says that it is set aside."""

    why: str | None = None

    def health(self) -> list[Health]:
        return [Health(0, self.why), Health(1, "engine_timeout")]


async def test_an_engine_has_to_serve(config: HostConfig) -> None:
    """A host of which no engine serves is not ready; one that serves is enough."""
    engine = Failing()
    async with Node(config, engine=engine) as host:
        assert await host.unready() == []
        engine.why = "engine_unavailable"
        [reason] = await host.unready()
        assert "engine_unavailable, engine_timeout" in reason


async def test_not_registered(config: HostConfig, devnet: Devnet, chain: Chain) -> None:
    """A host with which no job can be opened is not ready, and is once it has registered."""
    stranger = devnet.accounts.stranger
    async with node(changed(config, host_private_key=Secret(stranger.private_key))) as host:
        [reason] = await host.unready()
        assert "tally host register" in reason
        await chain.transact(chain.register(stranger.address, "{}"), stranger.private_key)
        assert await host.unready() == []


async def test_wrong_key(config: HostConfig, devnet: Devnet, chain: Chain) -> None:
    """A key that is not HOST_ADDRESS's is told with both addresses; the other host's jobs are refused."""
    stranger = devnet.accounts.stranger
    wrong = changed(config, host_private_key=Secret(stranger.private_key), host_address=config.host)
    lines = {line["event"]: line for line in await told_at_start(wrong)}
    told = lines["node.wrong_key"]
    assert (told["key"], told["host_address"]) == (stranger.address, config.host)
    assert "HOST_ADDRESS" in told["mend"]
    assert lines["node.not_registered"]["mend"] == "tally host register"
    assert stranger.private_key.hex() not in str(lines)
    async with node(wrong) as host:
        signer = await open_job(devnet, chain)
        with pytest.raises(Refusal) as caught:
            await ask(host, signer)
        assert caught.value.code == "job_of_another_host"


async def test_not_set_up(config: HostConfig, devnet: Devnet, chain: Chain) -> None:
    """With neither key nor address it serves no paid job, and says so at start, to clients and to probes."""
    nobody = changed(config, host_private_key=None)
    assert "node.not_set_up" in [line["event"] for line in await told_at_start(nobody)]
    async with node(nobody) as host:
        signer = await open_job(devnet, chain)
        with pytest.raises(Refusal) as caught:
            await ask(host, signer)
        assert caught.value.code == "host_not_set_up"
        assert "HOST_PRIVATE_KEY" in (await host.unready())[0]


async def test_unreachable(config: HostConfig) -> None:
    """A node whose chain cannot be read does not start, and says which endpoint it was."""
    with pytest.raises(ChainError, match=r"127\.0\.0\.1:9"):
        await node(changed(config, rpc_url="http://127.0.0.1:9")).start()


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"assets": (AssetPrice(Address("0x" + "11" * 20)),)}, "HOST_ASSETS"),
        ({"price": "0.0000001"}, "decimals"),
        ({"policy": Policy.ECONOMIC, "unsettled_max": Amounts("0.0000001")}, "HOST_UNSETTLED_MAX"),
        ({"policy": Policy.ECONOMIC, "eth_price": Amounts(own={Address("0x" + "11" * 20): "1"})}, "HOST_ETH"),
    ],
)
async def test_senseless_settings(config: HostConfig, settings: dict[str, Any], told: str) -> None:
    """Prices and assets that the chain does not know keep a node from starting."""
    with pytest.raises(ConfigError, match=told):
        await node(changed(config, **settings)).start()


async def test_no_engine(config: HostConfig) -> None:
    """Without an engine there is nothing to sell."""
    with pytest.raises(ConfigError, match="MODEL_PATH"):
        await Node(config).start()


# What it offers


async def test_prices_by_asset(config: HostConfig, devnet: Devnet) -> None:
    """An asset has its own prices or the general ones, in its own base units."""
    own = AssetPrice(ETH, "0.0003", "0.0001")
    async with node(changed(config, assets=(own, AssetPrice(devnet.dollar)), price="1.5")) as host:
        [model] = (await host.quote())["models"]
        assert model["prices"] == {
            ETH: {"per_million": str(3 * 10**14), "prompt_per_million": str(10**14)},
            devnet.dollar: {"per_million": "1500000", "prompt_per_million": "200000"},
        }


async def test_confirmations(config: HostConfig, devnet: Devnet, chain: Chain) -> None:
    """HOST_CONFIRMATIONS decides how deep a job has to lie."""
    async with node(changed(config, confirmations=3)) as host:
        assert (await host.quote())["confirmations"] == 3
        signer = await open_job(devnet, chain)
        with pytest.raises(Refusal) as caught:
            await ask(host, signer)
        assert caught.value.code == "job_unconfirmed"
        await devnet.mine(2)
        await ask(host, signer)


# What reaches the chain


async def test_checkpoint_and_completion(config: HostConfig, devnet: Devnet, chain: Chain) -> None:
    """A whole interval is settled once signed for; the end settles the rest and refunds, to the unit."""
    payouts: list[Payout] = []
    with capture_logs() as lines:
        async with node(config) as host:
            signer = await open_job(devnet, chain)
            with host.watch(signer.job.id, payouts.append):
                for number in (1, 2):
                    await ask(host, signer, number)
                await until(lambda: happened(payouts, 1))
                await host.desk.end(signer.job.id, None, signer.end())
                await until(lambda: happened(payouts, 2))
    first, last = payouts
    assert (first.totals, first.refund) == (Totals(2 * PROMPT, 100), None)
    assert last.totals == Totals(2 * PROMPT, 120)
    job = await chain.job(signer.job.id)
    assert job is not None
    assert job.status is JobStatus.CLOSED
    assert (job.settled, job.owed) == (last.totals, 112)  # 120 x 0.9 + 22 x 0.2 = 112.4
    assert first.host + last.host + first.treasury + last.treasury == job.owed
    assert first.treasury + last.treasury == job.fee == 11
    assert last.refund == job.deposit - job.owed
    told = [line["event"] for line in lines if line.get("tokens") == 100]
    assert told == [f"checkpoint.{step}" for step in ("due", "receipted", "submitted", "confirmed")]


async def happened(payouts: list[Payout], times: int) -> bool:
    return len(payouts) == times


async def test_settles_before_it_stops(config: HostConfig, devnet: Devnet, chain: Chain) -> None:
    """What is due when a node stops is settled first."""
    async with node(config) as host:
        signer = await open_job(devnet, chain, max_tokens_per_second=1000)
        await devnet.increase_time(60)
        for number in (1, 2):
            await ask(host, signer, number)
    job = await chain.job(signer.job.id)
    assert job is not None
    assert job.settled.tokens >= 100


async def test_the_last_line_tells_what_is_left(config: HostConfig, devnet: Devnet, chain: Chain) -> None:
    """Law 9: an end in order says what it leaves, how much that is, and what goes on with it."""
    with capture_logs() as lines:
        async with node(config) as host:
            signer = await open_job(devnet, chain)
            await devnet.set_balance(devnet.accounts.host.address, 0)
            await ask(host, signer)
        async with node(config) as host:
            await devnet.set_balance(devnet.accounts.host.address, 10**18)
    left, done = [line for line in lines if line["event"] == "node.stopped"]
    assert (left["jobs"], left["log_level"]) == (1, "warning")
    worth = pricing.split(Totals(), Totals(PROMPT, 60), signer.job.prices).host
    assert left["owed"] == devnet.deployment.amount(devnet.dollar, worth)
    assert "tally host run" in left["mend"]
    assert done == {"event": "node.stopped", "log_level": "info", "host": config.host}


async def test_the_economic_policy(config: HostConfig, devnet: Devnet, chain: Chain) -> None:
    """Whole intervals wait while they are not worth their gas; at the end of the node all is settled."""
    async with node(changed(config, policy=Policy.ECONOMIC, eth_price=Amounts("3000"))) as host:
        signer = await open_job(devnet, chain)
        for number in (1, 2):
            await ask(host, signer, number)
        assert (await chain.job(signer.job.id)) == signer.job
    job = await chain.job(signer.job.id)
    assert job is not None
    assert job.settled == Totals(2 * PROMPT, 120)


def test_the_knobs_of_the_economic_policy(config: HostConfig, devnet: Devnet) -> None:
    """In base units, and wei for a base unit; without the price of an ETH nobody knows what gas is worth."""
    economic = changed(
        config, policy=Policy.ECONOMIC, unsettled_max=Amounts("2", {ETH: "0.5"}), eth_price=Amounts("2500")
    )
    assert thrift_of(config, devnet.deployment) is None
    assert thrift_of(economic, devnet.deployment) == Thrift(
        unsettled={devnet.dollar: 2_000_000, ETH: 5 * 10**17},
        gas_share=Fraction(1, 20),
        rates={devnet.dollar: Fraction(10**18, 2_500_000_000), ETH: Fraction(1)},
    )
    blind = thrift_of(changed(config, policy=Policy.ECONOMIC), devnet.deployment)
    assert blind is not None
    assert (dict(blind.unsettled), set(blind.rates)) == ({devnet.dollar: 1_000_000}, {ETH})


def test_a_policy_that_nobody_sets(config: HostConfig, devnet: Devnet) -> None:
    """A host that sets none settles each interval on a devnet, and elsewhere when it is worth the gas."""
    elsewhere = replace(devnet.deployment, chain_id=8453)
    assert policy_of(config, devnet.deployment) is Policy.CHECKPOINT
    assert policy_of(config, elsewhere) is Policy.ECONOMIC
    assert policy_of(changed(config, policy=Policy.CHECKPOINT), elsewhere) is Policy.CHECKPOINT


async def test_goes_on_after_a_restart(config: HostConfig, devnet: Devnet, chain: Chain) -> None:
    """Law 8: a session that was ended before a restart is completed after it."""
    unpaid = changed(config, host_private_key=None, host_address=config.host)
    async with node(unpaid) as host:
        signer = await open_job(devnet, chain)
        await ask(host, signer)
        await host.desk.end(signer.job.id, None, signer.end())
    async with node(config):
        await until(lambda: is_closed(chain, signer))
    job = await chain.job(signer.job.id)
    assert job is not None
    assert job.settled == Totals(PROMPT, 60)


async def test_a_kill_before_the_ledger_was_told(config: HostConfig, devnet: Devnet, chain: Chain) -> None:
    """Law 7: what a killed node had counted, its ledger knows at the next start."""
    async with node(config) as host:
        signer = await open_job(devnet, chain)
        await ask(host, signer)
        row = await host.ledger.job(signer.job.id)
    assert row is not None
    with Counter(config.data_dir / COUNTER) as counter:  # as the node left it that was killed
        counter.open(signer.job.id, row.epoch, row.gross).add(0, 30)
    async with node(config) as host:
        after = await host.ledger.job(signer.job.id)
    assert after is not None
    assert after.gross == row.gross + Totals(0, 30)


async def is_closed(chain: Chain, signer: Signer) -> bool:
    job = await chain.job(signer.job.id)
    return job is not None and job.status is JobStatus.CLOSED


# Beside other processes


async def test_what_a_process_beside_had_counted_is_taken_over(
    config: HostConfig, devnet: Devnet, chain: Chain, postgres_url: str
) -> None:
    """Law 7: on the same disk, what a dead process counted and told nobody goes over with the job."""
    shared = changed(config, ledger_url=Secret(postgres_url))
    async with node(shared) as dead, node(shared) as host:
        assert {each.counter.path.name for each in (dead, host)} == {COUNTER, f"{COUNTER}.2"}
        signer = await open_job(devnet, chain)
        asked = asking.parse_chat(orjson.dumps(signer.body()))
        async with await dead.desk.admit(asked, signer.access()) as stream:
            async for chunks in stream:
                for chunk in chunks:
                    signer.receive(
                        {"choices": chunk.piece.choices if chunk.piece else [], "tally": chunk.tally}
                    )
        told = await dead.ledger.job(signer.job.id)
        assert told is not None
        assert told.gross == Totals()
        await dead.ledger.heartbeat.stop()
        await host.ledger.bury(dead.ledger.process)
        await sign(host, signer)
        row = await host.ledger.job(signer.job.id)
    assert row is not None
    assert (row.owner, row.gross) == (host.ledger.process, Totals(PROMPT, 60))
    assert row.receipted is not None
    assert row.receipted.totals == Totals(PROMPT, 60)


async def test_a_killed_nodes_jobs_are_served_at_once_by_the_next(
    config: HostConfig, devnet: Devnet, chain: Chain, postgres_url: str
) -> None:
    """A node that takes the file of slots of a dead one knows that it is dead, and waits for no lease."""
    shared = changed(config, ledger_url=Secret(postgres_url))
    async with node(shared) as first:
        signer = await open_job(devnet, chain)
        killed = first.ledger.process
    async with Ledger(config.data_dir, postgres_url) as ledger:
        ledger.process = killed  # as it was: alive in the ledger, and never to be heard of again
        await ledger.renew()
        row = await ledger.serve(signer.job)
        assert await ledger.lead(signer.job.host)
        await ledger.heartbeat.stop()
        async with node(shared) as second:
            assert second.counter.predecessor == killed
            after = await second.ledger.serve(signer.job)
            assert (after.owner, after.epoch) == (second.ledger.process, row.epoch + 1)
            assert await second.ledger.lead(signer.job.host)


async def test_a_lease_that_ran_out_ends_what_is_served(
    config: HostConfig, devnet: Devnet, chain: Chain
) -> None:
    """No token goes out once another process might serve the job, and what was begun before counts anew."""
    async with Node(config, engine=ScriptedEngine(Script((*say("a"), Hang())))) as host:
        signer = await open_job(devnet, chain)
        asked = asking.parse_chat(orjson.dumps(signer.body()))
        async with await host.desk.admit(asked, signer.access()) as stream:
            chunks = await anext(stream)
            host.ledger.heartbeat._run_out()
            [reason] = await host.unready()
            assert "lease ran out" in reason
            assert not (await host.quote())["ready"]
            async for more in stream:
                chunks += more
        assert stream.end is not None
        assert stream.end.reason == "ledger_unavailable"
        for chunk in chunks:
            signer.receive({"choices": chunk.piece.choices if chunk.piece else [], "tally": chunk.tally})
        await sign(host, signer)
        row = await host.ledger.job(signer.job.id)
    assert row is not None
    assert row.receipted is not None
    assert row.receipted.totals == Totals(PROMPT, 1)


async def test_a_database_that_stands_still_takes_no_new_work(
    config: HostConfig,
    devnet: Devnet,
    chain: Chain,
    postgres: postgresql.Server,
    postgres_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The node finds it out by itself, says why, and goes on by itself."""
    monkeypatch.setattr(database, "SILENCE_LIMIT", 0.5)
    monkeypatch.setattr(database, "CONNECT_LIMIT", 2)
    async with node(changed(config, ledger_url=Secret(postgres_url))) as host:
        signer = await open_job(devnet, chain)
        await ask(host, signer)
        postgres.freeze()
        try:
            await until(lambda: is_unready(host))
            [reason] = await host.unready()
            assert reason.startswith("the ledger cannot be written: ")
            with pytest.raises(Refusal) as caught:
                await ask(host, signer, 2)
            assert caught.value.problem()["retry_after"] == 2
        finally:
            postgres.thaw()
        await until(lambda: is_ready(host))
        await ask(host, signer, 3)


async def is_unready(host: Node) -> bool:
    return not await is_ready(host)


# A disk that is full


async def test_a_full_disk_loses_nothing(
    config: HostConfig, devnet: Devnet, chain: Chain, small_disk: SmallDisk
) -> None:
    """No new work is taken while the disk is full, and why is told; with room, all goes on by itself."""
    async with node(changed(config, data_dir=small_disk.path)) as host:
        signer = await open_job(devnet, chain)
        await ask(host, signer)
        asked = asking.parse_chat(orjson.dumps(signer.body(2)))
        async with await host.desk.admit(asked, signer.access()) as stream:
            small_disk.fill()
            async for chunks in stream:
                for chunk in chunks:
                    choices = chunk.piece.choices if chunk.piece else []
                    signer.receive({"choices": choices, "tally": chunk.tally})
        receipt = signer.receipt()
        assert receipt is not None
        with pytest.raises(LedgerError, match="full"):
            await host.desk.receipt(receipt, signer.access())
        [reason] = await host.unready()
        assert reason.startswith("the ledger cannot be written: ")
        with pytest.raises(Refusal) as caught:
            await ask(host, signer, 3)
        assert (caught.value.code, caught.value.row.retry) == ("ledger_unavailable", True)

        small_disk.free()
        await until(lambda: is_ready(host))
        signer.acked((await host.desk.receipt(receipt, signer.access())).out())
        await ask(host, signer, 4)
        await host.desk.end(signer.job.id, None, signer.end())
        await until(lambda: is_closed(chain, signer))
    job = await chain.job(signer.job.id)
    assert job is not None
    assert job.settled == Totals(3 * PROMPT, 180)


async def is_ready(host: Node) -> bool:
    return await host.unready() == []


async def test_a_count_that_reaches_no_disk_takes_no_new_work(
    config: HostConfig, devnet: Devnet, chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A counter whose disk fails is told as well; tokens that are counted meanwhile survive kill -9."""
    async with node(config) as host:
        signer = await open_job(devnet, chain)
        await ask(host, signer)
        with monkeypatch.context() as patch:
            patch.setattr(os, "fdatasync", fail)
            host.counter.open(JobId(99), 1).add(0, 0)
            await until(lambda: is_failing(host))
            [reason] = await host.unready()
            assert reason == "counts do not reach the disk: [Errno 5] Input/output error"
            with pytest.raises(Refusal) as caught:
                await ask(host, signer, 2)
            assert caught.value.code == "ledger_unavailable"
        await until(lambda: is_ready(host))
        await ask(host, signer, 3)


async def is_failing(host: Node) -> bool:
    return host.counter.failure is not None


def fail(_: int) -> None:
    raise OSError(5, "Input/output error")


@pytest.mark.parametrize("lapses", [False, True], ids=["in time", "after the lease ran out"])
async def test_what_was_not_written_is_written_once_it_can_be(
    config: HostConfig, devnet: Devnet, chain: Chain, small_disk: SmallDisk, lapses: bool
) -> None:
    """What nobody asks for again comes into the ledger by itself: a last count, an end that was asked for."""
    async with node(changed(config, data_dir=small_disk.path)) as host:
        counting = await open_job(devnet, chain, max_tokens_per_second=1000)
        ending = await open_job(devnet, chain)
        await devnet.increase_time(60)
        await ask(host, ending)
        asked = asking.parse_chat(orjson.dumps(counting.body()))
        async with await host.desk.admit(asked, counting.access()) as stream:
            small_disk.fill()
            host.ledger.heartbeat._hold(asyncio.get_running_loop().time() + 3600)
            async for _ in stream:
                pass
        with pytest.raises(LedgerError, match="full"):
            await host.desk.end(ending.job.id, None, ending.end())
        for signer in (counting, ending):
            row = await host.ledger.job(signer.job.id)
            assert row is not None
            assert (row.ending, row.gross) == (False, Totals() if signer is counting else Totals(PROMPT, 60))
        if lapses:
            host.ledger.heartbeat._run_out()
        small_disk.free()

        async def is_counted() -> bool:
            row = await host.ledger.job(counting.job.id)
            return row is not None and row.gross == Totals(PROMPT, 60)

        await until(is_counted)
        await until(lambda: is_closed(chain, ending))
    job = await chain.job(ending.job.id)
    assert job is not None
    assert job.settled == Totals(PROMPT, 60)
