"""The sender: each transaction is in the chain once, whatever happens on the way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from tallystick.chain import Chain
from tallystick.contracts import Call
from tallystick.devnet import Devnet
from tallystick.errors import AlreadyRegistered, ChainError, LedgerError, RpcError
from tallystick.fees import GWEI, Fees, Pace
from tallystick.ledger import Ledger
from tallystick.networks import Deployment
from tallystick.sender import GAP, Outcome, Report, Sender
from tallystick.tables import State, Transaction
from tallystick.testing.faults import Lag, Status
from tallystick.testing.geth import Geth, Upstream
from tallystick.testing.rpc import FaultyRpc
from tallystick.types import Address

DEPTH = 3
"""Confirmations in these tests."""


class Bench:
    """A sender, the chain under it, and what the test can do to both."""

    def __init__(self, devnet: Devnet, chain: Chain, ledger: Ledger) -> None:
        self.devnet = devnet
        self.chain = chain
        self.ledger = ledger
        self.now = 1_000_000.0
        self.reports: list[Report] = []
        self.host = devnet.accounts.host
        # Never used before, so its balance says how often it was paid.
        self.receiver = devnet.accounts[9].address
        self.sender = self.restart()

    def restart(self, chain: Chain | None = None, pace: Pace | None = None) -> Sender:
        """A sender that remembers nothing but what the ledger does."""
        key = self.host.private_key
        self.sender = Sender(chain or self.chain, self.ledger, key, pace=pace, clock=lambda: self.now)
        self.sender.listen(self.reports.append)
        return self.sender

    async def pay(self) -> Transaction:
        """Submits a payment of one wei: paid twice, it shows."""
        return await self.sender.submit(Call(self.receiver, b"", 1), "pay")

    async def paid(self) -> int:
        return await self.chain.eth_balance(self.receiver) - 10_000 * 10**18

    async def mined(self, wei: int) -> None:
        """Waits until so much is paid: with a block for each transaction, anvil mines beside its answers."""
        async with asyncio.timeout(10):
            while await self.paid() < wei:  # noqa: ASYNC110 - nothing tells of it
                await asyncio.sleep(0.01)

    async def settle(self) -> None:
        """Steps, mines and lets time pass until nothing is in flight."""
        while await self.sender.step():
            await self.devnet.mine()
            self.now += 11

    def outcomes(self) -> list[Outcome]:
        return [report.outcome for report in self.reports]

    async def nonces(self) -> tuple[int, int]:
        """The chain's count, and the ledger's next nonce: equal if there is no gap and nothing in flight."""
        address = self.host.address
        return await self.chain.nonce(address), await self.ledger.next_nonce(address)


def deeper(deployment: Deployment) -> Deployment:
    return replace(deployment, confirmations=DEPTH)


@pytest.fixture
async def bench(devnet: Devnet, tmp_path: Path) -> AsyncIterator[Bench]:
    async with Chain(devnet.rpc_url, deeper(devnet.deployment)) as chain, Ledger(tmp_path) as ledger:
        yield Bench(devnet, chain, ledger)
    # What anvil does not put back with a snapshot.
    await devnet.ask("anvil_setNextBlockBaseFeePerGas", hex(GWEI))


async def test_a_transaction_is_confirmed_n_blocks_deep(bench: Bench) -> None:
    """Law 9: in a block it is mined; it is confirmed when it lies three deep."""
    await bench.pay()
    assert bench.outcomes() == [Outcome.SUBMITTED]
    await bench.sender.step()
    assert bench.outcomes() == [Outcome.SUBMITTED, Outcome.MINED]
    await bench.devnet.mine(DEPTH - 2)
    await bench.sender.step()
    assert bench.outcomes() == [Outcome.SUBMITTED, Outcome.MINED]
    await bench.devnet.mine()
    await bench.sender.step()
    assert bench.outcomes() == [Outcome.SUBMITTED, Outcome.MINED, Outcome.CONFIRMED]
    assert not await bench.sender.step()
    assert await bench.paid() == 1


async def test_two_at_once_have_two_nonces(bench: Bench) -> None:
    """Nonces are given out one after another, without a gap."""
    first = (await bench.nonces())[0]
    saved = await asyncio.gather(*(bench.pay() for _ in range(4)))
    assert sorted(each.nonce for each in saved) == list(range(first, first + 4))
    await bench.settle()
    assert await bench.paid() == 4


async def test_what_would_revert_is_not_sent(bench: Bench) -> None:
    """The contract's error comes back, and no nonce is used."""
    register = bench.chain.register(bench.host.address, "{}")
    await bench.chain.transact(register, bench.host.private_key, confirmations=1)
    with pytest.raises(AlreadyRegistered):
        await bench.sender.submit(register, "register")
    assert await bench.ledger.in_flight(bench.host.address) == []


async def test_what_reverts_in_its_block_is_told(bench: Bench) -> None:
    """Law 9: status 0 is not confirmed, however deep."""
    await bench.devnet.set_automine(False)
    for _ in range(2):
        await bench.sender.submit(bench.chain.register(bench.host.address, "{}"), "register")
    await bench.settle()
    assert bench.outcomes()[-2:] == [Outcome.CONFIRMED, Outcome.REVERTED]


@asynccontextmanager
async def running(sender: Sender) -> AsyncIterator[None]:
    """The sender's loop beside the test."""
    task = asyncio.create_task(sender.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


# What the endpoint answers


class FailingChain(Chain):
    """A chain whose broadcasts go wrong as the test says."""

    down: Exception | None = None
    """Raised in place of the count that each step begins with."""
    before: Exception | None = None
    """Raised in place of sending."""
    after: Exception | None = None
    """Raised though it was sent."""

    def __init__(self, rpc_url: str, deployment: Deployment) -> None:
        super().__init__(rpc_url, deployment)
        self._asked = asyncio.Event()

    async def asked(self) -> None:
        """Returns after the next count was asked for."""
        self._asked.clear()
        await self._asked.wait()

    async def nonce(self, address: Address, *, pending: bool = False) -> int:
        self._asked.set()
        if self.down is not None:
            raise self.down
        return await super().nonce(address, pending=pending)

    async def send(self, raw: bytes) -> str:
        if self.before is not None:
            raise self.before
        tx = await super().send(raw)
        if self.after is not None:
            raise self.after
        return tx


@pytest.fixture
async def failing(bench: Bench) -> AsyncIterator[FailingChain]:
    chain = FailingChain(bench.devnet.rpc_url, bench.chain.deployment)
    bench.restart(chain)
    yield chain
    await chain.close()


async def test_a_kill_between_saving_and_sending_loses_nothing(bench: Bench, failing: FailingChain) -> None:
    """Law 7: nonce and signed bytes are on disk before they are sent, and the next start sends them."""
    failing.before = ChainError("connection refused")
    saved = await bench.pay()
    assert await bench.ledger.in_flight(bench.host.address) == [saved]
    bench.restart()
    await bench.settle()
    assert bench.outcomes()[-1] is Outcome.CONFIRMED
    assert await bench.paid() == 1


async def test_a_lost_answer_pays_once(bench: Bench, failing: FailingChain) -> None:
    """An endpoint that took it and did not say so."""
    failing.after = ChainError("timed out")
    await bench.pay()
    assert bench.outcomes() == []
    await bench.settle()
    assert bench.outcomes() == [Outcome.SUBMITTED, Outcome.MINED, Outcome.CONFIRMED]
    assert await bench.paid() == 1
    before, after = await bench.nonces()
    assert before == after


async def test_a_restart_after_the_broadcast_pays_once(bench: Bench) -> None:
    """Sent again by the next process, it is known already."""
    await bench.devnet.set_automine(False)
    await bench.pay()
    bench.restart()
    await bench.settle()
    assert bench.outcomes() == [Outcome.SUBMITTED, Outcome.MINED, Outcome.CONFIRMED]
    assert await bench.paid() == 1


async def test_what_no_endpoint_takes_gives_its_nonce_away(bench: Bench, failing: FailingChain) -> None:
    """A nonce that stays unused would hold up all that come after it."""
    failing.before = RpcError("test", 3, "execution reverted")
    await bench.pay()
    failing.before = None
    await bench.settle()
    assert bench.outcomes()[-1] is Outcome.CANCELLED
    await bench.pay()
    await bench.settle()
    assert bench.outcomes()[-1] is Outcome.CONFIRMED
    assert await bench.paid() == 1


async def test_what_cancels_a_transaction_is_not_told_as_it(bench: Bench, failing: FailingChain) -> None:
    """Law 9: nobody took the transaction, so it was never submitted; what fills its nonce is another one."""
    failing.before = RpcError("test", -32000, "tx fee (1.20 ether) exceeds the configured cap (1.00 ether)")
    await bench.pay()
    failing.before = None
    await bench.settle()
    assert bench.outcomes() == [Outcome.MINED, Outcome.CANCELLED]


async def test_a_no_to_the_caller_is_no_verdict_on_the_transaction(bench: Bench) -> None:
    """A gateway that does not know its key, for broadcasts alone: the same bytes go once it does."""
    body = '{"jsonrpc":"2.0","id":1,"error":{"code":-32001,"message":"Invalid API key"}}'
    async with (
        Upstream(bench.devnet.rpc_url) as node,
        FaultyRpc(node) as rpc,
        Chain(rpc.url, bench.chain.deployment) as chain,
    ):
        bench.restart(chain)
        with rpc.failing(Status(401, body), "eth_sendRawTransaction"):
            saved = await bench.pay()
            bench.now += 31
            await bench.sender.step()
        [kept] = await bench.ledger.in_flight(bench.host.address)
        assert kept.attempts == saved.attempts
        bench.now += 31
        await bench.settle()
    assert bench.outcomes() == [Outcome.SUBMITTED, Outcome.MINED, Outcome.CONFIRMED]
    assert await bench.paid() == 1


async def test_the_loop_outlives_an_endpoint_that_is_down(bench: Bench, failing: FailingChain) -> None:
    """It is told once that the chain does not answer, once that it does, and what was due is done."""
    await bench.pay()
    failing.down = ChainError("connection refused")
    confirmed = asyncio.Event()
    bench.sender.listen(lambda report: confirmed.set() if report.outcome is Outcome.CONFIRMED else None)
    with capture_logs() as logs:
        async with asyncio.timeout(60), running(bench.sender):
            for _ in range(3):
                await failing.asked()
                bench.sender.poke()
            failing.down = None
            await bench.devnet.mine(DEPTH)
            bench.sender.poke()
            await confirmed.wait()
    events = [line["event"] for line in logs]
    assert events == ["sender.failing", "sender.recovered"]


# Gas


async def test_without_gas_it_waits_and_goes_on_by_itself(bench: Bench) -> None:
    """One nonce, no gap, one alarm with address, balance and what is needed; then it is paid, once."""
    await bench.devnet.set_balance(bench.host.address, 1_000)
    with capture_logs() as logs:
        saved = await bench.sender.submit(Call(bench.receiver, b"", 1), "pay")
        assert bench.sender.starving is True
        for _ in range(3):
            bench.now += 20
            await bench.sender.step()
        [alarm] = [line for line in logs if line["event"] == "sender.no_gas"]
        needed = saved.draft.gas * saved.newest.fees.max_fee + 1
        assert (alarm["address"], alarm["balance"], alarm["needed"]) == (bench.host.address, 1_000, needed)
        assert bench.outcomes() == []

        await bench.devnet.set_balance(bench.host.address, 10**18)
        bench.now += 20
        await bench.settle()
    assert [line["event"] for line in logs].count("sender.funded") == 1
    assert bench.outcomes() == [Outcome.SUBMITTED, Outcome.MINED, Outcome.CONFIRMED]
    assert [report.transaction.nonce for report in bench.reports] == [saved.nonce] * 3
    assert await bench.paid() == 1
    before, after = await bench.nonces()
    assert before == after


async def test_a_lack_of_gas_is_told_again_after_a_while(bench: Bench) -> None:
    """An alarm that nobody saw comes back, not with every try."""
    await bench.devnet.set_balance(bench.host.address, 0)
    with capture_logs() as logs:
        await bench.sender.submit(Call(bench.receiver, b"", 0), "pay")
        for _ in range(31):
            bench.now += 10
            await bench.sender.step()
    assert [line["event"] for line in logs].count("sender.no_gas") == 2


async def test_what_is_stuck_is_replaced_at_higher_fees(bench: Bench) -> None:
    """Two hashes with one nonce: whichever is mined, it is paid once."""
    await bench.devnet.set_automine(False)
    saved = await bench.pay()
    bench.now += 31
    await bench.sender.step()
    [stuck] = await bench.ledger.in_flight(bench.host.address)
    assert len(stuck.attempts) == 2
    assert stuck.newest.fees.max_fee * 8 >= saved.newest.fees.max_fee * 9
    assert stuck.newest.taken_at is not None
    await bench.settle()
    assert bench.reports[-1].tx == stuck.newest.hash
    assert bench.outcomes() == [Outcome.SUBMITTED, Outcome.MINED, Outcome.CONFIRMED]
    assert await bench.paid() == 1


class WatchedChain(Chain):
    """A chain that looks into the ledger when something is sent."""

    ledger: Ledger
    host: Address

    async def send(self, raw: bytes) -> str:
        saved = [attempt.raw for sent in await self.ledger.in_flight(self.host) for attempt in sent.attempts]
        assert raw in saved
        return await super().send(raw)


async def test_what_replaces_is_saved_before_it_is_sent(bench: Bench) -> None:
    """Law 7: the bytes at higher fees are on the disk when they are broadcast, as the first ones were."""
    await bench.devnet.set_automine(False)
    chain = WatchedChain(bench.devnet.rpc_url, bench.chain.deployment)
    chain.ledger, chain.host = bench.ledger, bench.host.address
    bench.restart(chain)
    async with chain:
        await bench.pay()
        bench.now += 31
        await bench.sender.step()
        [stuck] = await bench.ledger.in_flight(bench.host.address)
    assert len(stuck.attempts) == 2
    assert stuck.newest.taken_at is not None


async def test_an_earlier_form_may_be_the_one_that_is_mined(bench: Bench) -> None:
    """`nonce too low` by one of its own hashes: its receipt is found."""
    await bench.devnet.set_automine(False)
    await bench.pay()
    bench.now += 31
    chain = FailingChain(bench.devnet.rpc_url, bench.chain.deployment)
    chain.before = ChainError("timed out")
    await bench.restart(chain).step()
    bench.now += 31
    await bench.sender.step()
    await bench.devnet.mine()
    await chain.close()
    bench.restart()
    await bench.settle()
    assert bench.outcomes()[-1] is Outcome.CONFIRMED
    assert await bench.paid() == 1


async def test_a_spike_of_the_base_fee_is_followed(bench: Bench) -> None:
    """What the next blocks leave out is replaced at what they ask for."""
    await bench.devnet.set_automine(False)
    saved = await bench.pay()
    spike = 5 * saved.newest.fees.max_fee
    await bench.devnet.ask("anvil_setNextBlockBaseFeePerGas", hex(spike))
    await bench.devnet.mine()
    bench.now += 31
    await bench.sender.step()
    [flight] = await bench.ledger.in_flight(bench.host.address)
    assert flight.newest.fees.max_fee > spike
    await bench.settle()
    assert bench.reports[-1].tx == flight.newest.hash


async def test_fees_stop_at_the_ceiling(bench: Bench) -> None:
    """However long it takes, no more is offered than was allowed."""
    await bench.devnet.set_automine(False)
    ceiling = 3 * GWEI
    bench.restart(pace=Pace(ceiling=ceiling, bump_after=30, resend_after=10))
    await bench.pay()
    for _ in range(40):
        bench.now += 31
        await bench.sender.step()
    [flight] = await bench.ledger.in_flight(bench.host.address)
    assert 2 <= len(flight.attempts) <= 12
    assert max(attempt.fees.max_fee for attempt in flight.attempts) <= ceiling
    await bench.settle()
    assert await bench.paid() == 1


# What the chain forgets


async def test_a_dropped_transaction_is_sent_again(bench: Bench) -> None:
    """The pool forgot it; the ledger did not."""
    await bench.devnet.set_automine(False)
    saved = await bench.pay()
    await bench.devnet.ask("anvil_dropTransaction", saved.newest.hash)
    bench.now += 11
    await bench.settle()
    assert bench.reports[-1].tx == saved.newest.hash
    assert bench.outcomes() == [Outcome.SUBMITTED, Outcome.MINED, Outcome.CONFIRMED]
    assert await bench.paid() == 1


async def test_a_reorganisation_takes_a_transaction_back(bench: Bench) -> None:
    """Law 9: mined and gone again, it is sent again and confirmed anew."""
    await bench.pay()
    await bench.mined(1)
    await bench.sender.step()
    await bench.devnet.reorganise(1)
    assert await bench.paid() == 0
    await bench.settle()
    assert bench.outcomes() == [
        Outcome.SUBMITTED,
        Outcome.MINED,
        Outcome.TAKEN_BACK,
        Outcome.MINED,
        Outcome.CONFIRMED,
    ]
    assert await bench.paid() == 1


async def test_one_endpoint_that_lags_takes_nothing_back(bench: Bench) -> None:
    """Law 9: what an endpoint that is behind does not show, in flight or confirmed, is not gone."""
    async with (
        Geth(bench.devnet.rpc_url) as geth,
        FaultyRpc(geth) as rpc,
        Chain(rpc.url, bench.chain.deployment) as chain,
    ):
        bench.restart(chain)
        await bench.pay()
        await geth.mine()
        await bench.sender.step()
        with rpc.failing(Lag(1)):
            await bench.sender.step()
        await geth.mine(DEPTH)
        await bench.sender.step()
        bench.restart(chain)
        with rpc.failing(Lag(DEPTH + 1)):
            await bench.sender.step()
    assert rpc.fired["lag"] > 0
    assert bench.outcomes() == [Outcome.SUBMITTED, Outcome.MINED, Outcome.CONFIRMED]


async def test_a_reorganisation_deeper_than_n_takes_confirmed_transactions_back(bench: Bench) -> None:
    """Law 9: the nonces that are free again show it, and the bytes are still there."""
    before = await bench.chain.block_number()
    for _ in range(2):
        await bench.pay()
    await bench.settle()
    assert bench.outcomes()[-1] is Outcome.CONFIRMED
    await bench.devnet.reorganise(await bench.chain.block_number() - before)
    assert await bench.paid() == 0
    bench.reports.clear()
    bench.restart()
    await bench.settle()
    assert bench.outcomes()[:2] == [Outcome.TAKEN_BACK] * 2
    assert bench.outcomes()[-1] is Outcome.CONFIRMED
    assert await bench.paid() == 2


async def test_a_nonce_that_was_never_ours_is_filled(bench: Bench) -> None:
    """The key was used elsewhere, and a reorganisation took that back: what comes after it is not held up."""
    await by_hand(bench, (await bench.nonces())[0], Fees(2 * GWEI, 0))
    await bench.pay()
    await bench.mined(1)
    await bench.devnet.reorganise(2)
    assert await bench.paid() == 0
    await bench.settle()
    assert await bench.paid() == 1
    purposes = {r.transaction.draft.purpose for r in bench.reports if r.outcome is Outcome.CONFIRMED}
    assert purposes == {"pay", GAP}
    before, after = await bench.nonces()
    assert before == after


async def test_another_use_of_the_key_displaces_a_transaction(bench: Bench) -> None:
    """N blocks without a receipt of ours at a nonce that is used: it is given up, and told."""
    await bench.devnet.set_automine(False)
    saved = await bench.pay()
    fees = saved.newest.fees
    await by_hand(bench, saved.nonce, Fees(2 * fees.max_fee, 2 * fees.tip + 1))
    await bench.devnet.mine()
    for _ in range(DEPTH):
        await bench.sender.step()
        assert bench.outcomes() == [Outcome.SUBMITTED]
        await bench.devnet.mine()
    assert await bench.sender.step()
    assert bench.outcomes() == [Outcome.SUBMITTED, Outcome.DISPLACED]
    [given_up] = await bench.ledger.at_nonces(bench.host.address, range(saved.nonce, saved.nonce + 1))
    assert given_up.state is State.DISPLACED
    await bench.pay()
    await bench.settle()
    assert await bench.paid() == 1


async def by_hand(bench: Bench, nonce: int, fees: Fees) -> None:
    """Uses the key as the operator's own wallet would."""
    call, key = Call(bench.host.address, b""), bench.host.private_key
    signed = bench.chain.sign(call, key, nonce=nonce, gas=21_000, tip=fees.tip, max_fee=fees.max_fee)
    await bench.chain.send(signed.raw)


# Two processes with one key


@asynccontextmanager
async def another(bench: Bench, directory: Path) -> AsyncIterator[Sender]:
    """A sender of the same key, in what stands for another process over the same ledger."""
    async with Ledger(directory / "another", bench.ledger.url) as ledger:
        yield Sender(bench.chain, ledger, bench.host.private_key, clock=lambda: bench.now)


async def test_of_two_processes_one_sends(bench: Bench, tmp_path: Path) -> None:
    """The other one stands by: it submits nothing and looks after nothing."""
    await bench.pay()
    async with another(bench, tmp_path) as second:
        assert not await second.step()
        with pytest.raises(LedgerError, match="another process sends"):
            await second.submit(Call(bench.receiver, b"", 1), "pay")
        assert (bench.sender.leading, second.leading) == (True, False)
    await bench.settle()
    assert await bench.paid() == 1


async def test_the_other_takes_over_what_is_in_flight(bench: Bench, tmp_path: Path) -> None:
    """Whichever of both sends, each transaction has one nonce and is in the chain once."""
    await bench.devnet.set_automine(False)
    await bench.pay()
    async with another(bench, tmp_path) as second:
        await bench.ledger.bury(bench.ledger.process)
        assert await second.step()
        await second.submit(Call(bench.receiver, b"", 1), "pay")
        with pytest.raises(LedgerError, match="another process sends"):
            await bench.pay()
        await bench.devnet.set_automine(True)
        while await second.step():
            await bench.devnet.mine()
            bench.now += 11
    assert await bench.paid() == 2
    ours, ledgers = await bench.nonces()
    assert ours == ledgers


async def test_who_lost_the_key_between_saving_and_sending_does_not_send(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that was stopped after it had signed finds out before the bytes leave it."""
    await bench.devnet.set_automine(False)
    sent: list[bytes] = []
    send = bench.chain.send

    async def watched(raw: bytes) -> str:
        sent.append(raw)
        return await send(raw)

    async def stopped(*saved: object) -> Transaction:
        transaction = await save(*saved)  # type: ignore[arg-type]
        await bench.ledger.bury(bench.ledger.process)
        return transaction

    save = bench.ledger.save
    monkeypatch.setattr(bench.chain, "send", watched)
    monkeypatch.setattr(bench.ledger, "save", stopped)
    with pytest.raises(LedgerError, match="another process sends"):
        await bench.pay()
    assert sent == []
    async with another(bench, tmp_path) as second:
        assert await second.step()
        assert len(sent) == 1
        await bench.devnet.set_automine(True)
        await bench.devnet.mine()
        while await second.step():
            await bench.devnet.mine()
            bench.now += 11
    assert await bench.paid() == 1
