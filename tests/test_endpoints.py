"""Several endpoints as one, each of which fails as the test says, in front of one real chain."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs
from web3 import AsyncWeb3
from web3.types import RPCEndpoint

from tallystick import endpoints as module
from tallystick.chain import Chain, Signed, deployment_at
from tallystick.contracts import Call
from tallystick.devnet import Devnet
from tallystick.endpoints import Endpoints, chain_id_at
from tallystick.errors import ChainError, RpcError, WrongChain
from tallystick.fees import GWEI
from tallystick.ledger import Ledger
from tallystick.roster import LOOK_ELSEWHERE_EVERY, LOOK_EVERY
from tallystick.sender import Outcome, Report, Sender
from tallystick.tables import State
from tallystick.testing.faults import (
    Break,
    Cut,
    Erring,
    Frozen,
    Garbage,
    Hang,
    Lag,
    Malformed,
    OtherChain,
    Severed,
    Slow,
    Status,
    Truncated,
    first,
    nth,
)
from tallystick.testing.geth import Geth
from tallystick.testing.rpc import FaultyRpc
from tests.paying import until

SECRET = "a1b2c3d4"
HEAD = "eth_blockNumber"
SEND = "eth_sendRawTransaction"
COUNT = "eth_getTransactionCount"


class Bench:
    """Three endpoints of one node, the three as one, the chain as it is, and a clock that the test moves."""

    def __init__(self, devnet: Devnet, geth: Geth, rpcs: list[FaultyRpc], truth: Chain) -> None:
        self.devnet = devnet
        self.geth = geth
        self.a, self.b, self.c = self.rpcs = rpcs
        self.truth = truth
        self.host = devnet.accounts.host
        self.now = 0.0
        self.urls = [f"{rpc.url}/v3/{SECRET}?key={SECRET}" for rpc in rpcs]
        self.all = self.make()

    def make(self, timeout: float = 10.0) -> Endpoints:
        chain_id = self.devnet.deployment.chain_id
        self.all = Endpoints(self.urls, chain_id, timeout, clock=lambda: self.now)
        return self.all

    async def ask(self, method: str = HEAD, *params: Any) -> Any:
        return (await self.all.make_request(RPCEndpoint(method), list(params)))["result"]

    async def failure(self, method: str = HEAD, *params: Any) -> ChainError:
        with pytest.raises(ChainError) as caught:
            await self.ask(method, *params)
        return caught.value

    async def look(self) -> list[bool]:
        """Time for another look passes. Which of them are good then."""
        self.now += LOOK_EVERY
        return [status.good for status in await self.all.statuses()]

    def sign(self, nonce: int = 0, *, gwei: int = 10) -> Signed:
        call, key = Call(self.devnet.accounts[9].address, b"", 1), self.host.private_key
        return self.truth.sign(call, key, nonce=nonce, gas=21_000, tip=gwei * GWEI // 10, max_fee=gwei * GWEI)

    async def send(self, signed: Signed) -> Any:
        return await self.ask(SEND, "0x" + signed.raw.hex())

    def calls(self, method: str) -> list[int]:
        return [rpc.calls[method] for rpc in self.rpcs]

    def pooled(self) -> list[str]:
        return [tx.hash for tx in self.geth.pool]


@pytest.fixture
async def bench(devnet: Devnet) -> AsyncIterator[Bench]:
    async with AsyncExitStack() as stack:
        geth = await stack.enter_async_context(Geth(devnet.rpc_url))
        rpcs = [await stack.enter_async_context(FaultyRpc(geth)) for _ in range(3)]
        truth = await stack.enter_async_context(Chain(devnet.rpc_url, devnet.deployment))
        made = Bench(devnet, geth, rpcs, truth)
        yield made
        await made.all.disconnect()


# Reads


async def test_reads_go_to_the_first_one(bench: Bench) -> None:
    """And stay there, as long as it is good: what one endpoint says fits together."""
    await bench.all.statuses()
    before = bench.calls(HEAD)
    for _ in range(3):
        await bench.ask()
    assert bench.calls(HEAD) == [before[0] + 3, before[1], before[2]]


@pytest.mark.parametrize(
    "fault",
    [
        Cut(),
        Cut(after=True),
        Status(429),
        Status(503),
        Status(429, '{"jsonrpc":"2.0","id":0,"error":{"code":-32005,"message":"too many requests"}}'),
        Garbage(),
        Truncated(),
        Malformed(),
        Severed(),
    ],
    ids=lambda fault: fault.name,
)
async def test_a_call_that_fails_on_its_way_goes_on_to_the_next(bench: Bench, fault: Break) -> None:
    """The caller gets its answer; whoever failed is set aside, said so once, and asked nothing."""
    await bench.all.statuses()
    bench.a.fail(fault)
    with capture_logs() as logs:
        assert int(await bench.ask(), 16) == await bench.truth.block_number()
        before = bench.a.calls.total()
        await bench.ask()
    assert bench.a.calls.total() == before
    [told] = logs
    assert (told["event"], told["endpoint"]) == ("endpoint.set_aside", host_of(bench.a))
    assert SECRET not in str(told)


async def test_many_calls_that_fail_go_on_to_the_next(bench: Bench) -> None:
    """All of them together: one endpoint's answers fit together."""
    await bench.all.statuses()
    bench.a.fail(Severed(), COUNT, when=nth(3))
    calls = [(RPCEndpoint(COUNT), [bench.host.address, "latest"])] * 5
    with capture_logs() as logs:
        assert await bench.all.ask_all(calls) == ["0x0"] * 5
    assert bench.calls(COUNT)[1:] == [5, 0]
    assert [(told["event"], told["endpoint"]) for told in logs] == [("endpoint.set_aside", host_of(bench.a))]


async def test_silence_is_waited_for_once(bench: Bench) -> None:
    """For as long as a call may take; then the next one is asked, and from then on at once."""
    await bench.make(timeout=0.3).statuses()
    bench.a.fail(Hang())
    await bench.ask()
    await bench.ask()
    assert bench.a.fired["hang before"] == 1


async def test_an_error_is_an_answer(bench: Bench) -> None:
    """What the node says of a call is passed on: no other one is asked, none set aside."""
    bench.a.fail(Erring(-32000, "execution reverted"), "eth_call")
    error = await bench.failure("eth_call", {"to": bench.host.address}, "latest")
    assert isinstance(error, RpcError)
    assert error.message == "execution reverted"
    assert bench.calls("eth_call") == [1, 0, 0]
    assert await bench.look() == [True, True, True]


async def test_who_failed_is_tried_again(bench: Bench) -> None:
    """After a pause, by a look of its own, and not with somebody's call; that it is back is told."""
    await bench.all.statuses()
    bench.a.fail(Status(503), when=first(1))
    await bench.ask()
    with capture_logs() as logs:
        bench.now += 1
        await bench.ask()
        await settled(lambda: bench.a.calls["eth_chainId"] == 2)
        assert (await bench.look())[0]
    assert [line["event"] for line in logs] == ["endpoint.back"]


async def test_when_all_fail_each_is_told(bench: Bench) -> None:
    """With its host and what it did, and nothing else of its URL."""
    for rpc in bench.rpcs:
        rpc.fail(Status(502))
    error = await bench.failure()
    assert str(error).startswith("no endpoint can be asked: ")
    assert all(f"{host_of(rpc)} answered HTTP 502" in str(error) for rpc in bench.rpcs)
    assert SECRET not in str(error)


async def test_after_an_outage_it_goes_on(bench: Bench) -> None:
    """A second after the last try, whichever of them is there first."""
    async with bench.a.down(), bench.b.down():
        async with bench.c.down():
            await bench.failure()
            bench.now += 1
            await bench.failure()
        bench.now += 1
        await bench.ask()
    assert bench.all.host == host_of(bench.c)


async def test_no_more_of_a_url_than_its_host_is_shown(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """Not in a log of anybody, at any level, however the endpoints fail."""
    bench.make(timeout=0.3)
    bench.a.fail(Hang())
    bench.b.fail(Cut())
    with caplog.at_level(logging.DEBUG), capture_logs() as logs:
        async with bench.c.down():
            error = await bench.failure()
    assert SECRET not in str(error) + str(logs) + "".join(record.getMessage() for record in caplog.records)


# Looks


async def test_another_chain_is_set_aside_and_comes_back(bench: Bench) -> None:
    """It is said once; a minute later it is looked at again."""
    rule = bench.a.fail(OtherChain(5))
    with capture_logs() as logs:
        await bench.ask()
        assert await bench.look() == [False, True, True]
        assert await bench.look() == [False, True, True]
    assert [(line["event"], line["reason"]) for line in logs] == [
        ("endpoint.set_aside", f"{host_of(bench.a)} is on chain 5, not 31337")
    ]
    assert bench.calls(SEND) == [0, 0, 0]
    rule.on = False
    looks = bench.a.calls["eth_chainId"]
    bench.now += LOOK_ELSEWHERE_EVERY
    await bench.ask()
    await settled(lambda: bench.a.calls["eth_chainId"] > looks)
    assert (await bench.look())[0]


async def test_all_on_another_chain(bench: Bench) -> None:
    """That is the mistake of whoever set RPC_URL, and told as such."""
    for rpc in bench.rpcs:
        rpc.fail(OtherChain(5))
    assert isinstance(await bench.failure(), WrongChain)


async def test_who_lags_is_set_aside_from_the_start(bench: Bench) -> None:
    """Though it is the first one, and answers: the others are heard before it is believed."""
    await bench.geth.mine(20)
    rule = bench.a.fail(Lag(10))
    head = await bench.truth.block_number()
    with capture_logs() as logs:
        assert int(await bench.ask(), 16) == head
    assert [line["reason"] for line in logs] == [f"{host_of(bench.a)} is 10 blocks behind"]
    rule.on = False
    assert await bench.look() == [True, True, True]


async def test_who_begins_to_lag_is_set_aside(bench: Bench) -> None:
    """A replica that stands still is left within seconds, once the others have gone on."""
    await bench.ask()
    bench.a.fail(Frozen())
    assert await bench.look() == [True, True, True]
    await bench.geth.mine(6)
    assert await bench.look() == [False, True, True]
    assert int(await bench.ask(), 16) == await bench.truth.block_number()


async def test_one_that_hangs_does_not_hold_up_the_start(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It gets a moment's head start, and no more."""
    monkeypatch.setattr(module, "HEAD_START", 0.05)
    bench.a.fail(Hang())
    async with asyncio.timeout(5):
        await bench.ask()
    assert bench.all.host == host_of(bench.b)


# Transactions


async def test_a_transaction_goes_to_all(bench: Bench) -> None:
    """One takes it, the others may know it already: it is taken."""
    signed = bench.sign()
    assert await bench.send(signed) == signed.hash
    await settled(lambda: bench.calls(SEND) == [1, 1, 1])
    assert bench.pooled() == [signed.hash]
    assert await bench.look() == [True, True, True]


async def test_a_transaction_goes_to_the_good_ones_only(bench: Bench) -> None:
    """Not to one on another chain, or that lags."""
    await bench.geth.mine(20)
    bench.a.fail(OtherChain(5))
    bench.b.fail(Lag(10))
    await bench.send(bench.sign())
    assert bench.calls(SEND) == [0, 0, 1]


async def test_one_answer_is_enough(bench: Bench) -> None:
    """The sender does not wait for the slow ones, which get it all the same."""
    bench.a.fail(Slow(0.3), SEND)
    bench.b.fail(Status(503), SEND)
    signed = bench.sign()
    assert await bench.send(signed) == signed.hash
    assert bench.a.reached[SEND] == 0
    await settled(lambda: bench.a.reached[SEND] == 1)


async def test_known_to_one_is_taken(bench: Bench) -> None:
    """The one that took it lost its answer; what the other says of it proves that it is there."""
    bench.a.fail(Cut(after=True), SEND)
    bench.b.fail(Slow(0.3), SEND)
    bench.c.fail(Hang(), SEND)
    signed = bench.sign()
    assert await bench.send(signed) == signed.hash
    assert bench.pooled() == [signed.hash]


async def test_taken_by_none(bench: Bench) -> None:
    """Without any answer it is not known whether it was taken, and that is no refusal."""
    for rpc in bench.rpcs:
        rpc.fail(Cut(after=True), SEND)
    error = await bench.failure(SEND, "0x" + bench.sign().raw.hex())
    assert not isinstance(error, RpcError)
    assert bench.pooled() == [bench.sign().hash]


@pytest.mark.parametrize(
    ("answers", "told"),
    [
        (("execution reverted", "replacement transaction underpriced", None), "underpriced"),
        (("insufficient funds", "nonce too low", "execution reverted"), "nonce too low"),
        (("execution reverted", "intrinsic gas too low", "intrinsic gas too low"), "execution reverted"),
        (("execution reverted", None, None), "answered HTTP 503"),
    ],
)
async def test_of_several_refusals_the_least_final_is_told(
    bench: Bench, answers: tuple[str | None, ...], told: str
) -> None:
    """Refused for good is what all say that answer: it would have the nonce given away."""
    for rpc, answer in zip(bench.rpcs, answers, strict=True):
        rpc.fail(Erring(-32000, answer) if answer else Status(503), SEND)
    assert told in str(await bench.failure(SEND, "0x" + bench.sign().raw.hex()))


async def test_nothing_runs_on_after_it_is_closed(bench: Bench) -> None:
    """What was still on its way is given up."""
    bench.a.fail(Hang(), SEND)
    await bench.send(bench.sign())
    await settled(lambda: len(ours_running()) == 1)
    await bench.all.disconnect()
    assert ours_running() == []


async def test_after_it_is_closed_it_can_be_used_again(bench: Bench) -> None:
    """Though it was closed before its first look had begun."""
    asking = asyncio.create_task(bench.ask())
    await asyncio.sleep(0)
    asking.cancel()
    await bench.all.disconnect()
    assert int(await bench.ask(), 16) == await bench.truth.block_number()


def ours_running() -> list[str]:
    running = (str(task.get_coro()) for task in asyncio.all_tasks())
    return [name for name in running if "Endpoints" in name]


# Views


async def test_a_view_is_one_endpoint_s(bench: Bench) -> None:
    """If it fails in the middle the view fails: no other one fills in."""
    await bench.all.statuses()
    async with bench.all.view():
        await bench.ask(COUNT, bench.host.address, "latest")
        bench.a.fail(Status(503))
        assert "HTTP 503" in str(await bench.failure(COUNT, bench.host.address, "latest"))
        assert "HTTP 503" in str(await bench.failure(HEAD))
    assert bench.calls(COUNT) == [2, 0, 0]
    async with bench.all.view():
        await bench.ask(COUNT, bench.host.address, "latest")
    assert bench.calls(COUNT) == [2, 1, 0]


async def test_a_view_is_not_from_behind_what_was_shown(bench: Bench) -> None:
    """Not even one block, and not though the endpoint that showed it is gone."""
    await bench.all.statuses()
    await bench.geth.mine()
    shown = int(await bench.ask(), 16)
    bench.a.fail(Status(503))
    lagging = [bench.b.fail(Lag(1)), bench.c.fail(Lag(1))]
    with pytest.raises(ChainError, match=f"no endpoint has come to block {shown}, which was seen already"):
        async with bench.all.view():
            raise AssertionError("a view from behind")
    assert int(await bench.ask(), 16) == shown - 1
    lagging[1].on = False
    async with bench.all.view():
        assert int(await bench.ask(), 16) == shown
    assert bench.all.host == host_of(bench.c)


async def test_a_receipt_shows_how_far_the_chain_is(bench: Bench) -> None:
    """Whoever has seen it never again gets a view in which it is not there yet."""
    await bench.all.statuses()
    signed = bench.sign()
    await bench.send(signed)
    await bench.geth.mine()
    assert await bench.ask("eth_getTransactionReceipt", signed.hash) is not None
    for rpc in bench.rpcs:
        rpc.fail(Lag(1))
    with pytest.raises(ChainError, match="which was seen already"):
        async with bench.all.view():
            raise AssertionError("a view without the receipt")


async def test_a_view_has_the_block_that_the_reader_knows(bench: Bench) -> None:
    """From its own disk, after a restart."""
    head = await bench.truth.block_number()
    async with bench.all.view(head):
        pass
    with pytest.raises(ChainError, match=f"no endpoint has come to block {head + 1}"):
        async with bench.all.view(head + 1):
            raise AssertionError("a view from behind")


async def test_an_endpoint_that_goes_back_in_a_view_spoils_it(bench: Bench) -> None:
    """Behind one name there may be several replicas, one of which is behind."""
    await bench.all.statuses()
    async with bench.all.view():
        bench.a.fail(Lag(1), "eth_getBlockByNumber")
        assert "went back from block" in str(await bench.failure("eth_getBlockByNumber", "latest", False))


# The sender, through endpoints that lag


class Paying:
    """A sender over all endpoints, whose restarts forget everything but the ledger."""

    def __init__(self, bench: Bench, ledger: Ledger) -> None:
        self.bench = bench
        self.ledger = ledger
        self.reports: list[Report] = []
        self.now = 1_000_000.0
        self.deployment = replace(bench.devnet.deployment, confirmations=3)

    @asynccontextmanager
    async def sender(self) -> AsyncIterator[Sender]:
        async with Chain(",".join(self.bench.urls), self.deployment) as chain:
            sender = Sender(chain, self.ledger, self.bench.host.private_key, clock=lambda: self.now)
            sender.listen(self.reports.append)
            yield sender

    def call(self) -> Call:
        return Call(self.bench.devnet.accounts[9].address, b"", 1)

    async def paid(self) -> int:
        balance = await self.bench.truth.eth_balance(self.bench.devnet.accounts[9].address)
        return balance - 10_000 * 10**18

    def outcomes(self) -> list[Outcome]:
        return [report.outcome for report in self.reports]


@pytest.fixture
async def paying(bench: Bench, tmp_path: Path) -> AsyncIterator[Paying]:
    async with Ledger(tmp_path) as ledger:
        yield Paying(bench, ledger)


async def test_a_lagging_replica_takes_no_transaction_back(bench: Bench, paying: Paying) -> None:
    """Law 9: mined is taken back by a reorganisation, and by nothing else that an endpoint says."""
    async with paying.sender() as sender:
        await sender.submit(paying.call(), "pay")
        await bench.geth.mine()
        assert await sender.step()
        assert paying.outcomes() == [Outcome.SUBMITTED, Outcome.MINED]
        bench.a.fail(Status(503))
        lagging = [bench.b.fail(Lag(2)), bench.c.fail(Lag(2))]
        for _ in range(3):
            with pytest.raises(ChainError):
                await sender.step()
        for rule in lagging:
            rule.on = False
        await bench.geth.mine(2)
        while await sender.step():
            pass
    assert paying.outcomes() == [Outcome.SUBMITTED, Outcome.MINED, Outcome.CONFIRMED]
    assert await paying.paid() == 1


async def test_after_a_restart_a_stale_replica_takes_nothing_back(bench: Bench, paying: Paying) -> None:
    """The ledger says what was there: an endpoint that has not come so far has no say, though it is alone."""
    async with paying.sender() as sender:
        await sender.submit(paying.call(), "pay")
        await bench.geth.mine(3)
        while await sender.step():
            pass
    paying.reports.clear()
    for rpc in (bench.a, bench.b):
        rpc.fail(Status(503))
    stale = bench.c.fail(Lag(3))
    async with paying.sender() as sender:
        with pytest.raises(ChainError, match="which was seen already"):
            await sender.step()
        stale.on = False
        assert not await sender.step()
    assert paying.outcomes() == []
    [final] = await paying.ledger.at_nonces(bench.host.address, range(1))
    assert final.state is State.CONFIRMED


async def test_a_real_reorganisation_is_seen(bench: Bench, paying: Paying) -> None:
    """What is gone in a view that is not behind is gone: it is sent again, to all, and paid once."""
    async with paying.sender() as sender:
        await sender.submit(paying.call(), "pay")
        await bench.geth.mine()
        await sender.step()
        await bench.devnet.reorganise(1)
        await sender.step()
        assert paying.outcomes()[-1] is Outcome.TAKEN_BACK
        await bench.geth.mine(3)
        while await sender.step():
            pass
    assert paying.outcomes()[-1] is Outcome.CONFIRMED
    assert await paying.paid() == 1


# One alone, and from a setting


@pytest.fixture
def alone(bench: Bench) -> Bench:
    """The first endpoint is the only one."""
    del bench.urls[1:]
    bench.make()
    return bench


async def test_an_endpoint_that_is_alone_is_asked_again_whatever_it_did(alone: Bench) -> None:
    """It is set aside for nothing that a moment mends: each call is tried, and fails with what it met."""
    with capture_logs() as logs:
        for fault in (Status(503), Cut(), Status(429)):
            with alone.a.failing(fault):
                assert host_of(alone.a) in str(await alone.failure())
            assert await alone.ask() is not None
    assert logs == []


async def test_an_endpoint_that_is_alone_is_behind_nobody(alone: Bench) -> None:
    """What was seen may be gone: a view is what it says now."""
    async with alone.all.view(at_least=10**9):
        assert await alone.ask() is not None


async def test_an_endpoint_that_is_alone_may_move_to_another_chain(alone: Bench) -> None:
    """Nothing that it says there is believed, and it is said so once; it is asked again when it is back."""
    assert await alone.ask() is not None
    with capture_logs() as logs:
        with alone.a.failing(OtherChain(5)):
            with pytest.raises(WrongChain, match="is on chain 5, not 31337"):
                async with alone.all.view():
                    pytest.fail("it is a view of another chain")
            error = await alone.failure()
            assert isinstance(error, WrongChain)
            assert await alone.look() == [False]
        alone.now += LOOK_EVERY
        assert await alone.ask() is not None
    assert [line["event"] for line in logs] == ["endpoint.set_aside", "endpoint.back"]


async def test_no_nonce_of_another_chain_is_believed(alone: Bench, paying: Paying) -> None:
    """The only endpoint is on another chain for a while: nothing is signed for it, nothing taken for lost."""
    async with paying.sender() as sender:
        await sender.submit(paying.call(), "pay")
        await alone.geth.mine(5)
        while await sender.step():
            pass
        known = await paying.ledger.next_nonce(alone.host.address)
        with alone.a.failing(OtherChain(5)), alone.a.failing(Lag(5)):
            for what in (sender.submit(paying.call(), "pay"), sender.step()):
                with pytest.raises(WrongChain):
                    await what
    async with paying.sender() as sender:
        assert not await sender.step()
    assert await paying.ledger.next_nonce(alone.host.address) == known
    assert paying.outcomes()[-1] is Outcome.CONFIRMED


async def test_the_chain_is_what_most_of_them_say(bench: Bench) -> None:
    """One that is wrong, down or silent does not decide; of two that differ the first does."""
    ours, urls = bench.devnet.deployment.chain_id, bench.urls
    with bench.a.failing(OtherChain(5)):
        assert await chain_id_at(",".join(urls)) == ours
        assert await chain_id_at(",".join(urls[:2])) == 5
        with bench.b.failing(Cut()):
            assert await chain_id_at(",".join(urls[1:])) == ours
    assert await deployment_at(",".join(urls)) == bench.devnet.deployment


async def test_without_any_answer_there_is_no_chain(bench: Bench) -> None:
    """The first one's failure is told."""
    for rpc in bench.rpcs:
        rpc.fail(Status(502))
    with pytest.raises(ChainError, match=f"{host_of(bench.a)} answered HTTP 502"):
        await chain_id_at(",".join(bench.urls))


async def test_a_chain_of_several_endpoints_is_used_as_any_other(bench: Bench) -> None:
    """Reads, transactions and confirmations, while one after the other fails for a while."""
    async with (
        Geth(bench.devnet.rpc_url, automine=True) as geth,
        FaultyRpc(geth) as one,
        FaultyRpc(geth) as other,
        Chain(f"{one.url},{other.url}", bench.devnet.deployment) as chain,
    ):
        one.fail(Status(503), when=nth(5))
        other.fail(Cut(), when=nth(3))
        stranger = bench.devnet.accounts.stranger
        result = await chain.transact(
            chain.mint(bench.devnet.dollar, stranger.address, 7), stranger.private_key
        )
        assert result.succeeded
        assert await chain.token_balance(bench.devnet.dollar, stranger.address) == 7
        assert len(await chain.endpoints()) == 2


async def test_web3_does_not_repeat_a_call_by_itself(bench: Bench) -> None:
    """A transaction is sent once to each endpoint, and a read asked once of each."""
    eth = AsyncWeb3(bench.all, middleware=[]).eth
    await bench.all.statuses()
    for rpc in bench.rpcs:
        rpc.fail(Status(503, after=True), SEND, "eth_gasPrice")
    with pytest.raises(ChainError):
        await eth.send_raw_transaction(bench.sign().raw)
    assert bench.calls(SEND) == [1, 1, 1]
    bench.now += 1
    with pytest.raises(ChainError):
        await eth.gas_price
    assert bench.calls("eth_gasPrice") == [1, 1, 1]


def host_of(rpc: FaultyRpc) -> str:
    return rpc.url.removeprefix("http://")


async def settled(holds: Callable[[], bool]) -> None:
    """Waits for what goes on beside the test."""

    async def held() -> bool:
        return holds()

    await until(held)
