"""A chain of one's own: it starts, does what it is told, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tallystick import devnet as module
from tallystick.chain import Chain, Signed
from tallystick.contracts import Call
from tallystick.devnet import PAYER_FUNDS, Accounts, Devnet, account, find_anvil
from tallystick.errors import ChainError, ConfigError, WrongChain
from tallystick.fees import GWEI
from tallystick.site import Site
from tallystick.types import ETH


def children() -> set[int]:
    """The processes that this one has started and that have not ended."""
    return {child.pid for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE}


async def test_a_devnet_has_the_contracts_and_funds() -> None:
    """When it has started, the contracts answer and the accounts can pay."""
    async with Devnet() as devnet, Chain(devnet.rpc_url, devnet.deployment) as chain:
        assert await chain.code_ok()
        payer, treasury = devnet.accounts.payer, devnet.accounts.treasury
        assert await chain.token_balance(devnet.dollar, payer.address) == PAYER_FUNDS
        assert await chain.eth_balance(payer.address) == 10_000 * 10**18
        assert devnet.deployment.treasury == treasury.address
        assert devnet.accounts[2] is payer


async def test_a_devnet_ends_the_process_that_it_started() -> None:
    """Nothing runs on when the block is left, and nobody answers on its port."""
    before = children()
    async with Devnet() as devnet:
        assert len(children() - before) == 1
    assert children() == before
    with pytest.raises(ChainError, match="cannot be reached"):
        await devnet.ask("eth_blockNumber")


async def test_a_devnet_whose_start_fails_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error between start and first use ends the process as well."""

    async def broken(_: Site, *__: object) -> None:
        raise ChainError("cannot deploy")

    before = children()
    monkeypatch.setattr(Site, "create", broken)
    with pytest.raises(ChainError, match="cannot deploy"):
        async with Devnet():
            raise AssertionError("started")
    assert children() == before


async def test_a_devnet_that_does_not_listen_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program that never says that it listens is ended after the time limit."""
    silent = tmp_path / "anvil"
    silent.write_text("#!/bin/sh\nexec sleep 600\n")
    silent.chmod(0o755)
    monkeypatch.setattr(module, "find_anvil", lambda: str(silent))
    monkeypatch.setattr(module, "START_TIMEOUT", 0.1)
    before = children()
    with pytest.raises(ChainError, match=r"anvil did not listen within 0\.1 s"):
        await Devnet().start()
    assert children() == before


async def test_a_devnet_that_will_not_end_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that ignores being asked to end is ended all the same."""
    before = children()
    devnet = Devnet()
    await devnet.start()
    (pid,) = children() - before
    monkeypatch.setattr(module, "STOP_TIMEOUT", 0.1)
    psutil.Process(pid).suspend()
    await devnet.close()
    assert children() == before


@pytest.mark.skipif(sys.platform != "linux", reason="other kernels have no such signal")
def test_a_devnet_ends_with_a_process_that_was_killed() -> None:
    """Even kill -9 leaves no anvil behind."""
    program = """
import asyncio, psutil
from tallystick.devnet import Devnet

async def main():
    async with Devnet():
        print(psutil.Process().children()[0].pid, flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        anvil = psutil.Process(int(parent.stdout.readline()))
        assert anvil.name() == "anvil"
        parent.kill()
        parent.wait()
    gone, alive = psutil.wait_procs([anvil], timeout=10)
    assert (gone, alive) == ([anvil], [])


async def test_a_port_that_is_taken_is_told() -> None:
    """The port is named with what chooses another, and no process is left behind."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ConfigError, match="is in use: choose another with --port"):
            await Devnet(taken.getsockname()[1]).start()


async def test_a_given_port_is_used() -> None:
    """A port other than 0 is where it listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    async with Devnet(port) as devnet:
        assert devnet.rpc_url == f"http://127.0.0.1:{port}"
        assert await devnet.ask("eth_chainId") == hex(devnet.deployment.chain_id)


def test_anvil_is_found_where_npm_puts_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The repository's anvil is taken before the working directory's, and that before the one on PATH."""
    elsewhere = tmp_path / "package" / "src" / "tallystick" / "devnet.py"
    monkeypatch.setattr(module, "__file__", str(elsewhere))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(ConfigError, match="run `npm ci` in the repository"):
        find_anvil()
    places = (
        "bin/anvil",
        "node_modules/@foundry-rs/anvil-linux-amd64/bin/anvil",
        "node_modules/.bin/anvil",
        "package/node_modules/.bin/anvil",
    )
    for place in places:
        path = tmp_path / place
        path.parent.mkdir(parents=True)
        path.touch(mode=0o755)
        assert find_anvil() == str(path)


def test_no_repr_shows_a_key() -> None:
    """Accounts can be printed."""
    told = repr(Accounts(*(account(index) for index in range(5)))) + str(account(0))
    for index in range(5):
        key = account(index).private_key
        assert len(key) == 32
        assert key.hex() not in told
        assert repr(key) not in told
        assert account(index).address in told


async def test_blocks_come_when_told() -> None:
    """Without mining a transaction waits for `mine`."""
    async with Devnet(mining=False) as devnet, Chain(devnet.rpc_url, devnet.deployment) as chain:
        start = await chain.block_number()
        sending = asyncio.create_task(devnet.mint(devnet.accounts.stranger.address, 7))
        while (await devnet.ask("txpool_status"))["pending"] == "0x0":
            assert not sending.done()
        assert await chain.block_number() == start
        await devnet.mine()
        await sending
        assert await chain.token_balance(devnet.dollar, devnet.accounts.stranger.address) == 7
        await devnet.mine(5)
        assert await chain.block_number() == start + 6


async def test_blocks_come_with_the_time() -> None:
    """With a block time, blocks come without transactions."""
    async with Devnet(block_time=1) as devnet, Chain(devnet.rpc_url, devnet.deployment) as chain:
        start = await chain.block_number()
        while True:
            if await chain.block_number() > start:
                break
            await asyncio.sleep(0.02)
        assert await devnet.ask("txpool_status") == {"pending": "0x0", "queued": "0x0"}


async def test_time_and_balances_are_what_one_wants(devnet: Devnet, chain: Chain) -> None:
    """ETH is set, test dollars are made, time passes."""
    before = await chain.block()
    await devnet.increase_time(3600)
    assert (await chain.block()).timestamp >= before.timestamp + 3600
    address = devnet.accounts[9].address
    await devnet.set_balance(address, 123)
    await devnet.mint(address, 456)
    assert await chain.token_balance(ETH, address) == 123
    assert await chain.token_balance(devnet.dollar, address) == 456


async def test_a_snapshot_brings_everything_back(devnet: Devnet, chain: Chain) -> None:
    """Blocks, balances and time are those of the snapshot, which serves once."""
    before = await chain.block()
    snapshot = await devnet.snapshot()
    await devnet.increase_time(86_400)
    await devnet.mint(devnet.accounts.stranger.address, 1)
    await devnet.revert(snapshot)
    assert await chain.block() == before
    assert await chain.token_balance(devnet.dollar, devnet.accounts.stranger.address) == 0
    await devnet.mine()
    assert (await chain.block()).timestamp < before.timestamp + 3600
    with pytest.raises(ChainError, match="has no snapshot"):
        await devnet.revert(snapshot)


async def test_a_snapshot_forgets_what_waits(devnet: Devnet, chain: Chain) -> None:
    """What was pending, or just sent, is not mined on top of the snapshot: not once in many times."""
    snapshot = await devnet.snapshot()
    before = await chain.block()
    for turn in range(40):
        await devnet.set_automine(turn % 2 == 0)
        await chain.send(payment(devnet, chain).raw)
        await devnet.revert(snapshot)
        snapshot = await devnet.snapshot()
        await devnet.set_automine(True)
        await chain.token_balance(ETH, devnet.accounts[9].address)
        assert await chain.block() == before


async def test_no_block_comes_again_after_a_snapshot(devnet: Devnet, chain: Chain) -> None:
    """The same blocks have other hashes: anvil finds by them what a reorganisation goes back to."""
    snapshot = await devnet.snapshot()
    at = (await chain.block()).timestamp + 100
    await devnet.ask("evm_setNextBlockTimestamp", at)
    await devnet.mine()
    before = await chain.block()
    await devnet.revert(snapshot)
    await devnet.ask("evm_setNextBlockTimestamp", at)
    await devnet.mine()
    after = await chain.block()
    assert (after.number, after.timestamp) == (before.number, before.timestamp)
    assert after.hash != before.hash


# What befalls a chain


def payment(devnet: Devnet, chain: Chain) -> Signed:
    """One wei to an account that nobody else pays."""
    call, key = Call(devnet.accounts[9].address, b"", 1), devnet.accounts.host.private_key
    return chain.sign(call, key, nonce=0, gas=21_000, tip=GWEI, max_fee=10 * GWEI)


async def pay(devnet: Devnet, chain: Chain) -> Signed:
    """A payment in the latest block, which comes a moment after it is sent."""
    paid = payment(devnet, chain)
    await chain.send(paid.raw)
    await chain.included(paid.hash)
    return paid


async def test_a_reorganisation_forgets_transactions(devnet: Devnet, chain: Chain) -> None:
    """The chain is as long as before; what was in the blocks is neither there nor in the pool."""
    paid = await pay(devnet, chain)
    before = await chain.block()
    await devnet.reorganise(1)
    after = await chain.block()
    assert (after.number, after.hash == before.hash) == (before.number, False)
    assert await chain.result(paid.hash) is None
    assert await devnet.ask("txpool_status") == {"pending": "0x0", "queued": "0x0"}


async def test_a_reorganisation_goes_back_to_what_was_there(devnet: Devnet, chain: Chain) -> None:
    """Though a thousand blocks came before it, and it is deeper than the last ten."""
    await devnet.mine(1_000)
    await devnet.reorganise(20)
    assert await chain.token_balance(devnet.dollar, devnet.accounts.payer.address) > 0


async def test_an_early_state_outlasts_what_is_reverted(devnet: Devnet, chain: Chain) -> None:
    """Though a thousand blocks came and went after it."""
    early = await chain.block_number()
    snapshot = await devnet.snapshot()
    await devnet.mine(1_000)
    await devnet.revert(snapshot)
    await devnet.mine()
    balance = await devnet.ask("eth_getBalance", devnet.accounts.payer.address, hex(early))
    assert int(balance, 16) > 0


async def test_a_reorganisation_may_take_a_transaction_along(devnet: Devnet, chain: Chain) -> None:
    """In another block than before."""
    paid = await pay(devnet, chain)
    await devnet.mine()
    before = await chain.result(paid.hash)
    await devnet.reorganise(2, [(paid.raw, 1)])
    after = await chain.result(paid.hash)
    assert before is not None
    assert after is not None
    assert (after.block, after.block_hash == before.block_hash) == (before.block + 1, False)


async def test_a_rollback_makes_the_chain_shorter(devnet: Devnet, chain: Chain) -> None:
    """Another transaction may then take the nonce."""
    start = await chain.block()
    paid = await pay(devnet, chain)
    await devnet.mine(2)
    await devnet.roll_back(3)
    assert await chain.block() == start
    assert await chain.result(paid.hash) is None
    assert await chain.nonce(devnet.accounts.host.address) == 0


async def test_a_dropped_transaction_is_in_no_pool(devnet: Devnet, chain: Chain) -> None:
    """It is not mined, and can be sent again."""
    await devnet.set_automine(False)
    paid = payment(devnet, chain)
    await chain.send(paid.raw)
    await devnet.drop(paid.hash)
    await devnet.mine()
    assert await chain.result(paid.hash) is None
    await chain.send(paid.raw)
    await devnet.mine()
    assert await chain.result(paid.hash) is not None


async def test_the_base_fee_and_the_chain_id_are_what_one_wants(devnet: Devnet, chain: Chain) -> None:
    """Both outlast a snapshot, so they are put back by hand."""
    try:
        await devnet.set_base_fee(77 * GWEI)
        await devnet.mine()
        assert (await chain.block()).base_fee == 77 * GWEI
        await devnet.set_chain_id(5)
        with pytest.raises(WrongChain):
            async with Chain(devnet.rpc_url, devnet.deployment):
                pass
    finally:
        await devnet.set_base_fee(GWEI)
        await devnet.set_chain_id(devnet.deployment.chain_id)
