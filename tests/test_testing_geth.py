"""A node as strict as geth, over a real chain: what is taken, kept, mined and refused."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from eth_utils.conversions import to_hex
from web3 import AsyncHTTPProvider, AsyncWeb3

from tallystick.chain import Chain, Signed
from tallystick.contracts import Call
from tallystick.devnet import Devnet
from tallystick.endpoint import Endpoint
from tallystick.endpoints import SEND
from tallystick.errors import RpcError
from tallystick.fees import GWEI, Answer, read_answer
from tallystick.testing.geth import Geth, Request
from tallystick.testing.pool import ETHER, Limits
from tallystick.testing.rpc import FaultyRpc


class Bench:
    """The host's key, sending to an account that nobody else pays, through a node as strict as geth."""

    def __init__(self, devnet: Devnet, geth: Geth, chain: Chain, url: str) -> None:
        self.devnet = devnet
        self.geth = geth
        self.chain = chain
        self.url = url
        self.host = devnet.accounts.host
        self.receiver = devnet.accounts[9].address

    def sign(self, nonce: int, *, max_fee: int = 10 * GWEI, tip: int = GWEI, value: int = 1) -> Signed:
        call = Call(self.receiver, b"", value)
        key = self.host.private_key
        return self.chain.sign(call, key, nonce=nonce, gas=21_000, tip=tip, max_fee=max_fee)

    async def send(self, signed: Signed) -> str:
        return await self.chain.send(signed.raw)

    async def refused(self, signed: Signed) -> str:
        """As the node itself says it: a chain takes what is known for sent."""
        endpoint = Endpoint(self.url)
        try:
            with pytest.raises(RpcError) as caught:
                await endpoint.make_request(SEND, [to_hex(signed.raw)])
        finally:
            await endpoint.disconnect()
        assert caught.value.code == -32000
        return caught.value.message

    async def counts(self) -> tuple[int, int]:
        """Mined, and with what is pending."""
        address = self.host.address
        return await self.chain.nonce(address), await self.chain.nonce(address, pending=True)


@asynccontextmanager
async def benched(devnet: Devnet, limits: Limits | None = None) -> AsyncIterator[Bench]:
    async with (
        Geth(devnet.rpc_url, limits) as geth,
        FaultyRpc(geth) as rpc,
        Chain(rpc.url, devnet.deployment) as chain,
    ):
        yield Bench(devnet, geth, chain, rpc.url)


@pytest.fixture
async def bench(devnet: Devnet) -> AsyncIterator[Bench]:
    async with benched(devnet) as made:
        yield made
    # What anvil does not put back with a snapshot.
    await devnet.set_base_fee(GWEI)


async def test_what_is_taken_is_pending_until_a_block_is_mined(bench: Bench) -> None:
    """Its hash is known, it has no receipt, and it counts as pending; then it is in the block."""
    sent = bench.sign(0)
    assert await bench.send(sent) == sent.hash
    assert await bench.counts() == (0, 1)
    assert await bench.chain.result(sent.hash) is None
    told = await bench.geth.answer(Request("eth_getTransactionByHash", [sent.hash]))
    assert (told["result"]["nonce"], told["result"]["blockHash"]) == ("0x0", None)
    await bench.geth.mine()
    result = await bench.chain.result(sent.hash)
    assert result is not None
    assert result.succeeded
    assert await bench.counts() == (1, 1)
    told = await bench.geth.answer(Request("eth_getTransactionByHash", [sent.hash]))
    assert int(told["result"]["blockNumber"], 16) == result.block


async def test_a_tenth_more_replaces(bench: Bench) -> None:
    """anvil is content with one wei; here the old one stays until both fees are a tenth higher."""
    old = bench.sign(0, max_fee=10 * GWEI, tip=GWEI)
    new = bench.sign(0, max_fee=11 * GWEI, tip=11 * GWEI // 10)
    await bench.send(old)
    cheap = bench.sign(0, max_fee=11 * GWEI, tip=GWEI + 1)
    assert await bench.refused(cheap) == "replacement transaction underpriced"
    await bench.send(new)
    await bench.geth.mine()
    assert await bench.chain.result(old.hash) is None
    assert await bench.chain.result(new.hash) is not None
    assert bench.geth.fired == {"replacement transaction underpriced": 1}


async def test_the_same_bytes_are_known_until_they_are_mined(bench: Bench) -> None:
    """After that their nonce is too low."""
    sent = bench.sign(0)
    await bench.send(sent)
    assert await bench.refused(sent) == "already known"
    await bench.geth.mine()
    assert await bench.refused(sent) == "nonce too low: next nonce 1, tx nonce 0"


async def test_what_is_below_the_base_fee_waits_until_it_is_not(bench: Bench) -> None:
    """anvil forgets it in the first block that it does not fit; here it is mined when the price is down."""
    sent = bench.sign(0, max_fee=10 * GWEI)
    await bench.send(sent)
    await bench.devnet.set_base_fee(11 * GWEI)
    await bench.geth.mine()
    assert await bench.counts() == (0, 1)
    assert bench.geth.fired["held back"] == 1
    await bench.geth.mine()
    assert bench.geth.fired["held back"] == 1
    assert await bench.counts() == (1, 1)


async def test_what_is_below_the_base_fee_is_taken(bench: Bench) -> None:
    """anvil refuses it; geth waits for a cheaper block."""
    cheap = bench.sign(0, max_fee=1, tip=1)
    with pytest.raises(RpcError, match="less than block base fee"):
        await bench.devnet.ask("eth_sendRawTransaction", "0x" + cheap.raw.hex())
    assert await bench.send(cheap) == cheap.hash


async def test_a_gap_holds_up_what_follows(bench: Bench) -> None:
    """Kept, not counted as pending, and mined together with what fills the gap."""
    await bench.send(bench.sign(1))
    await bench.geth.mine()
    assert await bench.counts() == (0, 0)
    await bench.send(bench.sign(0))
    assert await bench.counts() == (0, 2)
    await bench.geth.mine()
    assert await bench.counts() == (2, 2)


async def test_a_node_may_refuse_gaps(devnet: Devnet) -> None:
    """`nonce too high`, as nodes say that keep no queue."""
    async with benched(devnet, Limits(gaps=False)) as bench:
        assert await bench.refused(bench.sign(1)) == "nonce too high: tx nonce 1, gapped nonce 0"


async def test_funds_are_looked_at_over_all_that_is_pending(bench: Bench) -> None:
    """What each could pay alone may be too much together; a top-up mends it."""
    await bench.devnet.set_balance(bench.host.address, ETHER)
    half = ETHER // 2
    await bench.send(bench.sign(0, value=half))
    refusal = await bench.refused(bench.sign(1, value=half))
    assert refusal.startswith(f"insufficient funds for gas * price + value: balance {ETHER}, queued cost")
    await bench.devnet.set_balance(bench.host.address, 2 * ETHER)
    await bench.send(bench.sign(1, value=half))
    await bench.geth.mine()
    assert await bench.counts() == (2, 2)


async def test_what_the_balance_no_longer_covers_is_forgotten_with_the_next_block(bench: Bench) -> None:
    """It is gone from the pool, and can be sent again when there is money."""
    sent = bench.sign(0)
    await bench.send(sent)
    await bench.devnet.set_balance(bench.host.address, 0)
    await bench.geth.mine()
    assert await bench.counts() == (0, 0)
    await bench.devnet.set_balance(bench.host.address, ETHER)
    await bench.send(sent)


async def test_a_dropped_transaction_can_be_sent_again(bench: Bench) -> None:
    """A pool that is full forgets; the same bytes are taken once more."""
    sent = bench.sign(0)
    await bench.send(sent)
    bench.geth.pool.drop(sent.hash)
    await bench.geth.mine()
    assert await bench.counts() == (0, 0)
    await bench.send(sent)


async def test_a_reorganisation_leaves_a_gap(bench: Bench) -> None:
    """What was mined is gone, as anvil has it, and what followed it waits for it."""
    first, second = bench.sign(0), bench.sign(1)
    await bench.send(first)
    await bench.geth.mine()
    await bench.send(second)
    await bench.devnet.reorganise(1)
    assert await bench.counts() == (0, 0)
    await bench.send(first)
    assert await bench.counts() == (0, 2)


async def test_a_transaction_for_another_chain_is_refused(bench: Bench) -> None:
    """Its signature binds it to one."""
    sent = bench.sign(0)
    await bench.devnet.set_chain_id(5)
    try:
        words = "invalid sender: invalid chain id for signer: have 31337 want 5"
        assert await bench.refused(sent) == words
    finally:
        await bench.devnet.set_chain_id(bench.devnet.deployment.chain_id)


async def test_what_geth_refuses_is_understood(bench: Bench) -> None:
    """The sender reads each of these words as what they mean."""
    await bench.send(bench.sign(0))
    answers = {
        await bench.refused(bench.sign(0)): Answer.KNOWN,
        await bench.refused(bench.sign(0, value=2)): Answer.UNDERPRICED,
        await bench.refused(bench.sign(1, tip=0)): Answer.UNDERPRICED,
        await bench.refused(bench.sign(1, value=20_000 * ETHER)): Answer.NO_FUNDS,
        await bench.refused(bench.sign(1, max_fee=10**6 * GWEI)): Answer.REFUSED,
    }
    assert {words: read_answer(words) for words in answers} == answers


async def test_a_block_may_come_with_each_transaction(devnet: Devnet) -> None:
    """As anvil does it, which a program needs that mines nothing itself; and anvil is left as it was."""
    async with (
        Geth(devnet.rpc_url, automine=True) as geth,
        FaultyRpc(geth) as rpc,
        Chain(rpc.url, devnet.deployment) as chain,
    ):
        mint = chain.mint(devnet.dollar, devnet.accounts.stranger.address, 7)
        assert (await chain.transact(mint, devnet.accounts.stranger.private_key)).succeeded
    assert await devnet.ask("anvil_getAutomine") is True


async def test_web3_s_own_provider_sends_through_it(bench: Bench) -> None:
    """It is a node to other programs as well."""
    provider = AsyncHTTPProvider(bench.url)
    eth = AsyncWeb3(provider).eth
    sent = await eth.send_raw_transaction(bench.sign(0).raw)
    assert (await eth.get_transaction(sent))["nonce"] == 0
    await bench.geth.mine()
    assert (await eth.wait_for_transaction_receipt(sent, timeout=10))["status"] == 1
    await provider.disconnect()
