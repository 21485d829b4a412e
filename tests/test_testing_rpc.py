"""Each fault really does what its name says, to a real endpoint in front of a real chain."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from web3.types import RPCEndpoint

from tallystick.chain import Chain, Signed
from tallystick.contracts import Call
from tallystick.devnet import Devnet
from tallystick.endpoint import Endpoint
from tallystick.errors import ChainError, RpcError
from tallystick.fees import GWEI
from tallystick.testing.faults import (
    Break,
    Cut,
    Erring,
    Frozen,
    Garbage,
    Hang,
    Lag,
    LateReceipt,
    Malformed,
    Miscount,
    OtherChain,
    Severed,
    Slow,
    Status,
    Truncated,
    Twice,
    chance,
    first,
    nth,
)
from tallystick.testing.geth import Geth
from tallystick.testing.rpc import FaultyRpc
from tests.paying import until

SEND = "eth_sendRawTransaction"
COUNT = "eth_getTransactionCount"
RECEIPT = "eth_getTransactionReceipt"


class Bench:
    """A faulty endpoint, a chain read and written through it, and the same chain as it is."""

    def __init__(self, devnet: Devnet, geth: Geth, rpc: FaultyRpc, endpoint: Endpoint, truth: Chain) -> None:
        self.devnet = devnet
        self.geth = geth
        self.rpc = rpc
        self.endpoint = endpoint
        self.truth = truth
        self.host = devnet.accounts.host

    async def ask(self, method: str, *params: Any) -> Any:
        return (await self.endpoint.make_request(RPCEndpoint(method), list(params)))["result"]

    async def failure(self, method: str = "eth_blockNumber", *params: Any) -> str:
        """What a call that comes to nothing is told as."""
        with pytest.raises(ChainError) as caught:
            await self.ask(method, *params)
        return str(caught.value)

    def sign(self, nonce: int = 0) -> Signed:
        call = Call(self.devnet.accounts[9].address, b"", 1)
        key = self.host.private_key
        return self.truth.sign(call, key, nonce=nonce, gas=21_000, tip=GWEI, max_fee=10 * GWEI)

    async def send(self, signed: Signed) -> Any:
        return await self.ask(SEND, "0x" + signed.raw.hex())

    async def mined(self) -> str:
        """A transaction in the latest block."""
        signed = self.sign(await self.truth.nonce(self.host.address))
        await self.send(signed)
        await self.geth.mine()
        return signed.hash

    def pooled(self) -> list[str]:
        return [tx.hash for tx in self.geth.pool]


@asynccontextmanager
async def benched(devnet: Devnet, timeout: float = 10.0) -> AsyncIterator[Bench]:
    async with (
        Geth(devnet.rpc_url) as geth,
        FaultyRpc(geth) as rpc,
        Chain(devnet.rpc_url, devnet.deployment) as truth,
    ):
        endpoint = Endpoint(f"{rpc.url}/v3/key", timeout)
        try:
            yield Bench(devnet, geth, rpc, endpoint, truth)
        finally:
            await endpoint.disconnect()


@pytest.fixture
async def bench(devnet: Devnet) -> AsyncIterator[Bench]:
    async with benched(devnet) as made:
        yield made


@pytest.fixture
async def hasty(devnet: Devnet) -> AsyncIterator[Bench]:
    """A client that does not wait long."""
    async with benched(devnet, timeout=0.2) as made:
        yield made


async def test_without_a_rule_it_is_the_node(bench: Bench) -> None:
    """What is asked arrives, what is answered comes back, and nothing is counted but the calls."""
    assert await bench.ask("eth_chainId") == hex(bench.devnet.deployment.chain_id)
    assert await bench.send(bench.sign()) == bench.sign().hash
    assert bench.rpc.calls == bench.rpc.reached == {"eth_chainId": 1, SEND: 1}
    assert bench.rpc.fired == {}


# Answers that do not come as they should


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (Cut(), "ServerDisconnectedError"),
        (Status(429), "HTTP 429, and no JSON-RPC"),
        (Status(503), "HTTP 503, and no JSON-RPC"),
        (Garbage(), "HTTP 200, and no JSON-RPC"),
    ],
    ids=lambda given: given.name if isinstance(given, Break) else "",
)
async def test_before_the_node(bench: Bench, fault: Break, told: str) -> None:
    """A call that fails on its way there: the node knows nothing of it."""
    signed = bench.sign()
    with bench.rpc.failing(fault, SEND):
        assert told in await bench.failure(SEND, "0x" + signed.raw.hex())
    assert bench.rpc.reached[SEND] == 0
    assert bench.pooled() == []
    assert await bench.send(signed) == signed.hash


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (Cut(after=True), "ServerDisconnectedError"),
        (Status(504, after=True), "HTTP 504, and no JSON-RPC"),
        (Garbage(after=True), "HTTP 200, and no JSON-RPC"),
        (Truncated(), "HTTP 200, and no JSON-RPC"),
        (Malformed(), "HTTP 200, and no JSON-RPC"),
        (Severed(), "ClientPayloadError"),
    ],
    ids=lambda given: given.name if isinstance(given, Break) else "",
)
async def test_after_the_node(bench: Bench, fault: Break, told: str) -> None:
    """A call whose answer is lost: the node has done it, and the program cannot know."""
    signed = bench.sign()
    with bench.rpc.failing(fault, SEND):
        assert told in await bench.failure(SEND, "0x" + signed.raw.hex())
    assert bench.pooled() == [signed.hash]
    assert "already known" in await bench.failure(SEND, "0x" + signed.raw.hex())


@pytest.mark.parametrize(("after", "kept"), [(False, 0), (True, 1)])
async def test_silence(hasty: Bench, after: bool, kept: int) -> None:
    """It lasts until the client gives up; before the node or after it."""
    with hasty.rpc.failing(Hang(after=after), SEND):
        assert "did not answer within 0.2 s" in await hasty.failure(SEND, "0x" + hasty.sign().raw.hex())
    assert len(hasty.pooled()) == kept
    assert hasty.rpc.fired == {f"hang {'after' if after else 'before'}": 1}


async def test_a_delay(hasty: Bench) -> None:
    """A request that is long on its way arrives at the node, though nobody waits for it any longer."""
    signed = hasty.sign()
    with hasty.rpc.failing(Slow(0.4), SEND):
        assert "did not answer within" in await hasty.failure(SEND, "0x" + signed.raw.hex())
    assert hasty.pooled() == []

    async def arrived() -> bool:
        return hasty.pooled() == [signed.hash]

    await until(arrived)
    assert hasty.rpc.fired == {"delay": 1}


async def test_a_delay_that_is_waited_for(bench: Bench) -> None:
    """The answer comes, late."""
    clock = asyncio.get_running_loop().time
    start = clock()
    with bench.rpc.failing(Slow(0.05)):
        assert await bench.ask("eth_chainId") == hex(bench.devnet.deployment.chain_id)
    assert clock() - start >= 0.05


async def test_down(bench: Bench) -> None:
    """Nobody listens; afterwards it is at the same address again."""
    await bench.ask("eth_chainId")
    url = bench.rpc.url
    async with bench.rpc.down():
        assert "cannot be reached" in await bench.failure()
    assert bench.rpc.url == url
    await bench.ask("eth_chainId")
    assert bench.rpc.fired == {"down": 1}


# Answers that tell something else than the present


async def test_lag(bench: Bench) -> None:
    """Head, count, receipt, balance, logs and calls are those of some blocks ago; newer ones are unknown."""
    tx = await bench.mined()
    head = await bench.truth.block_number()
    address = bench.host.address
    with bench.rpc.failing(Lag(1)):
        assert int(await bench.ask("eth_blockNumber"), 16) == head - 1
        latest = await bench.ask("eth_getBlockByNumber", "latest", False)
        assert int(latest["number"], 16) == head - 1
        assert await bench.ask("eth_getBlockByNumber", hex(head), False) is None
        assert await bench.ask(COUNT, address, "latest") == "0x0"
        assert await bench.ask(COUNT, address, "pending") == "0x0"
        assert await bench.ask(RECEIPT, tx) is None
        assert "header not found" in await bench.failure(COUNT, address, hex(head))
        assert int(await bench.ask("eth_getBalance", address, "latest"), 16) == 10_000 * 10**18
    assert bench.rpc.fired == {"lag": 8}
    assert await bench.ask(COUNT, address, "latest") == "0x1"


async def test_lag_of_logs_and_calls(bench: Bench) -> None:
    """Logs of blocks that it does not have are left out without a word; calls are made on old state."""
    devnet, geth = bench.devnet, bench.geth
    await geth.mine()
    minting = bench.truth.mint(devnet.dollar, bench.host.address, 7)
    gas = await bench.truth.estimate_gas(minting, bench.host.address)
    key = bench.host.private_key
    await bench.send(bench.truth.sign(minting, key, nonce=0, gas=gas, tip=GWEI, max_fee=10 * GWEI))
    await geth.mine()
    head = await bench.truth.block_number()
    wanted = {"address": devnet.dollar, "fromBlock": hex(head - 1), "toBlock": hex(head)}
    balance = {"to": devnet.dollar, "data": "0x70a08231" + bench.host.address[2:].rjust(64, "0")}
    with bench.rpc.failing(Lag(1)):
        assert await bench.ask("eth_getLogs", wanted) == []
        assert await bench.ask("eth_getLogs", wanted | {"fromBlock": hex(head)}) == []
        assert int(await bench.ask("eth_call", balance), 16) == 0
        assert int(await bench.ask("eth_call", balance, "latest"), 16) == 0
    assert len(await bench.ask("eth_getLogs", wanted)) == 1
    assert int(await bench.ask("eth_call", balance, "latest"), 16) == 7


async def test_a_lagging_replica_hands_on_what_it_is_sent(bench: Bench) -> None:
    """Its view is old, its peers are not."""
    with bench.rpc.failing(Lag(3)):
        await bench.send(bench.sign())
    assert bench.pooled() == [bench.sign().hash]


async def test_a_frozen_replica(bench: Bench) -> None:
    """It stays at the block at which it was first asked, however the chain goes on."""
    head = await bench.truth.block_number()
    with bench.rpc.failing(Frozen()):
        assert int(await bench.ask("eth_blockNumber"), 16) == head
        tx = await bench.mined()
        await bench.geth.mine(5)
        assert int(await bench.ask("eth_blockNumber"), 16) == head
        assert await bench.ask(RECEIPT, tx) is None
    assert int(await bench.ask("eth_blockNumber"), 16) == head + 6
    assert await bench.ask(RECEIPT, tx) is not None


async def test_a_wrong_chain_id(bench: Bench) -> None:
    """It says so in both calls, and refuses what is signed for ours."""
    with bench.rpc.failing(OtherChain(5)):
        assert await bench.ask("eth_chainId") == "0x5"
        assert await bench.ask("net_version") == "5"
        assert "have 31337 want 5" in await bench.failure(SEND, "0x" + bench.sign().raw.hex())
        await bench.ask("eth_blockNumber")
    assert bench.rpc.fired == {"wrong chain id": 3}
    assert bench.pooled() == []


async def test_a_duplicate(bench: Bench) -> None:
    """The node gets it twice, and the second answer is told: for a transaction, that it is known."""
    with bench.rpc.failing(Twice(), SEND):
        assert "already known" in await bench.failure(SEND, "0x" + bench.sign().raw.hex())
    assert (bench.rpc.calls[SEND], bench.rpc.reached[SEND]) == (1, 2)
    assert bench.pooled() == [bench.sign().hash]


async def test_a_pending_count_of_its_own(bench: Bench) -> None:
    """Pending is what the test says above latest, which stays what it is."""
    await bench.send(bench.sign())
    address = bench.host.address
    assert await bench.ask(COUNT, address, "pending") == "0x1"
    for more, told in ((0, "0x0"), (3, "0x3"), (-1, "0x0")):
        with bench.rpc.failing(Miscount(more)):
            assert await bench.ask(COUNT, address, "pending") == told
            assert await bench.ask(COUNT, address, "latest") == "0x0"
    assert bench.rpc.fired == {"pending count": 3}


async def test_a_late_receipt(bench: Bench) -> None:
    """Each is null as often as it was told, then it is there; one that is not there is not counted."""
    pending = bench.sign(1)
    await bench.send(pending)
    with bench.rpc.failing(LateReceipt(times=2)):
        assert await bench.ask(RECEIPT, pending.hash) is None
        assert bench.rpc.fired == {}
        tx = await bench.mined()
        told = [await bench.ask(RECEIPT, tx) for _ in range(3)]
    assert [receipt is None for receipt in told] == [True, True, False]
    assert bench.rpc.fired == {"late receipt": 2}


async def test_an_error_of_the_endpoint(bench: Bench) -> None:
    """Code and words are the test's."""
    with bench.rpc.failing(Erring(-32005, "limit exceeded")), pytest.raises(RpcError) as caught:
        await bench.ask("eth_blockNumber")
    assert (caught.value.code, caught.value.message) == (-32005, "limit exceeded")
    assert bench.rpc.fired == {"error -32005": 1}


# Which calls


async def test_the_nth_call_of_a_method(bench: Bench) -> None:
    """Calls of other methods are not counted."""
    bench.rpc.fail(Erring(1, "no"), "eth_blockNumber", when=nth(2, 3))
    outcomes = []
    for _ in range(4):
        await bench.ask("eth_chainId")
        outcomes.append(await succeeds(bench))
    assert outcomes == [True, False, False, True]


async def test_the_first_calls(bench: Bench) -> None:
    """An endpoint that comes to itself."""
    bench.rpc.fail(Erring(1, "no"), when=first(2))
    assert [await succeeds(bench) for _ in range(3)] == [False, False, True]


async def test_a_switch(bench: Bench) -> None:
    """A rule that is off neither fires nor counts."""
    rule = bench.rpc.fail(Erring(1, "no"), when=nth(2))
    rule.on = False
    assert [await succeeds(bench) for _ in range(3)] == [True] * 3
    rule.on = True
    assert [await succeeds(bench) for _ in range(3)] == [True, False, True]


async def test_chance_is_the_seed_s(bench: Bench) -> None:
    """The same seed fails the same calls; another seed others; about as many as was said."""

    async def run(seed: int) -> list[bool]:
        with bench.rpc.failing(Erring(1, "no"), when=chance(0.3, seed)):
            return [await succeeds(bench) for _ in range(100)]

    one, again, other = await run(1), await run(1), await run(2)
    assert one == again != other
    assert 15 <= one.count(False) <= 45


async def succeeds(bench: Bench) -> bool:
    try:
        await bench.ask("eth_blockNumber")
    except RpcError:
        return False
    return True


async def test_faults_befall_a_call_together(bench: Bench) -> None:
    """A lagging replica behind a gateway that loses the answer: both are counted."""
    bench.rpc.fail(Status(503, after=True), "eth_blockNumber")
    bench.rpc.fail(Lag(1))
    bench.rpc.fail(Twice(), "eth_blockNumber")
    await bench.failure()
    assert bench.rpc.fired == {"HTTP 503 after": 1, "lag": 1, "duplicate": 1}


async def test_a_view_is_not_asked_what_does_not_concern_it(bench: Bench) -> None:
    """A lagging replica asks for the head to tell its receipts, of a node that withholds them."""
    tx = await bench.mined()
    bench.rpc.fail(Lag(1), "eth_getTransactionReceipt")
    withheld = bench.rpc.fail(LateReceipt(), "eth_getTransactionReceipt")
    await bench.geth.mine()
    assert await bench.ask("eth_getTransactionReceipt", tx) is None
    withheld.on = False
    assert (await bench.ask("eth_getTransactionReceipt", tx))["transactionHash"] == tx


async def test_endpoints_of_one_node_fail_each_for_itself(bench: Bench) -> None:
    """One counter for all of them, if the test wants one report."""
    fired: Counter[str] = Counter()
    async with FaultyRpc(bench.geth, fired=fired) as one, FaultyRpc(bench.geth, fired=fired) as other:
        one.fail(Lag(1))
        other.fail(Lag(2))
        heads = []
        for rpc in (one, other):
            async with Chain(rpc.url, bench.devnet.deployment) as chain:
                heads.append(await chain.block_number())
    assert heads[0] == heads[1] + 1
    assert fired == {"lag": one.calls["eth_blockNumber"] + other.calls["eth_blockNumber"]}
