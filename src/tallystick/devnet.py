"""A chain of one's own: anvil, with the contracts deployed and keys funded.

For demonstrations, tests and trying things out. Its keys are published ones: money on them belongs to
everybody. Knows nothing of hosts and payers beyond their accounts.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import secrets
import shutil
import signal
import socket
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from eth_account import Account as EthAccount
from eth_account.hdaccount import key_from_seed, seed_from_mnemonic
from web3.types import RPCEndpoint

from tallystick.chain import Chain
from tallystick.endpoint import Endpoint
from tallystick.errors import ChainError, ConfigError
from tallystick.networks import DEVNET, Deployment, network
from tallystick.site import Site
from tallystick.types import Address

MNEMONIC = "test test test test test test test test test test test junk"
"""anvil's, printed in its manual. anvil gives each of the first ten accounts 10 000 ETH."""

PAYER_FUNDS = 1_000_000_000_000
"""Base units of tUSD that the payer starts with: a million."""

STATES = 20_000
"""Blocks whose state anvil keeps at hand, the latest; what was reverted counts. 5 000 take 30 MB."""

START_TIMEOUT = 30.0
"""Seconds that anvil may take to listen."""

STOP_TIMEOUT = 5.0
"""Seconds that anvil may take to end when asked to; then it is killed."""


@dataclass(frozen=True, slots=True)
class Account:
    """An address and its key, 32 bytes, which no repr shows."""

    address: Address
    private_key: bytes = field(repr=False)


@cache
def account(index: int) -> Account:
    """Account `index` of anvil's mnemonic."""
    key = key_from_seed(seed_from_mnemonic(MNEMONIC, ""), f"m/44'/60'/0'/0/{index}")
    return Account(Address(EthAccount.from_key(key).address), key)


@dataclass(frozen=True, slots=True)
class Accounts:
    """The first accounts of the mnemonic, by what they are for. By index: any of them."""

    deployer: Account
    host: Account
    payer: Account
    treasury: Account
    stranger: Account

    def __getitem__(self, index: int) -> Account:
        return account(index)


class Anvil:
    """anvil on 127.0.0.1, with nothing on it but CREATE2's proxy and ETH on its accounts.

    `async with Anvil() as anvil:` starts it and ends it. `port` 0 is a free one.
    """

    def __init__(self, port: int = 0, *, chain_id: int = DEVNET) -> None:
        self.accounts = Accounts(*(account(index) for index in range(5)))
        self._port = port
        self._chain_id = chain_id
        self._process: Process | None = None

    @property
    def rpc_url(self) -> str:
        """Where it listens, once it is started."""
        return f"http://127.0.0.1:{self._port}"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def start(self) -> None:
        """Returns when it answers.

        ConfigError: there is no anvil, or the port is another's. ChainError: it did not start.
        """
        _check_free(self._port)
        # In a session of its own: the terminal's Ctrl-C is for what uses it, which then closes it.
        self._process = await asyncio.create_subprocess_exec(
            find_anvil(),
            *("--host", "127.0.0.1", "--port", str(self._port), "--chain-id", str(self._chain_id)),
            # Else it has older states than 500 on disk, and goes back to an empty one in their place.
            *("--prune-history", str(STATES)),
            stdin=DEVNULL,
            stdout=PIPE,
            stderr=PIPE,
            start_new_session=True,
            preexec_fn=_end_with_parent if sys.platform == "linux" else None,
        )
        try:
            self._port = await self._listening(self._process)
            await self._set_up()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Ends the process that `start` started."""
        process, self._process = self._process, None
        if process is None or process.returncode is not None:
            return
        process.terminate()
        try:
            await asyncio.wait_for(process.wait(), STOP_TIMEOUT)
        except TimeoutError:
            process.kill()
            await process.wait()

    async def ask(self, method: str, *params: Any) -> Any:
        """One JSON-RPC call, of which anvil has more than other nodes: its result."""
        # A connection for this call alone: it may come from another event loop than the last one.
        endpoint = Endpoint(self.rpc_url)
        try:
            return (await endpoint.make_request(RPCEndpoint(method), list(params)))["result"]
        finally:
            await endpoint.disconnect()

    async def mine(self, blocks: int = 1) -> None:
        """Adds blocks; what is pending goes into the first."""
        await self.ask("anvil_mine", hex(blocks))

    async def set_balance(self, address: Address, wei: int) -> None:
        """Gives `address` that much ETH, no more and no less."""
        await self.ask("anvil_setBalance", address, hex(wei))

    async def increase_time(self, seconds: int) -> None:
        """Adds a block that is that much later."""
        await self.ask("evm_increaseTime", seconds)
        await self.mine()

    async def set_automine(self, on: bool) -> None:
        """Whether a block comes with each transaction."""
        await self.ask("evm_setAutomine", on)

    async def set_base_fee(self, wei: int) -> None:
        """What a unit of gas costs in the next block at least. No snapshot brings the former fee back."""
        await self.ask("anvil_setNextBlockBaseFeePerGas", hex(wei))

    async def set_chain_id(self, chain_id: int) -> None:
        """The chain that it says it is, and takes transactions for. No snapshot brings the former id back."""
        await self.ask("anvil_setChainId", chain_id)

    async def drop(self, tx: str) -> None:
        """Has anvil's pool forget the transaction of that hash."""
        await self.ask("anvil_dropTransaction", tx)

    async def reorganise(self, depth: int, again: Sequence[tuple[bytes, int]] = ()) -> None:
        """Puts other blocks in the place of the latest `depth`; what was in these is gone, from the pool too.

        `again`: signed transactions that the new branch has, and in which of its blocks, counted from 0.
        """
        await self.ask("anvil_reorg", depth, [["0x" + raw.hex(), block] for raw, block in again])

    async def roll_back(self, depth: int) -> None:
        """Takes the latest `depth` blocks away, with what was in them; the chain is shorter then."""
        await self.ask("anvil_rollback", depth)

    async def snapshot(self) -> str:
        """Remembers the state. `revert` takes what this returns, once."""
        return str(await self.ask("evm_snapshot"))

    async def revert(self, snapshot: str) -> None:
        """Goes back to a snapshot: to its blocks, balances and time, and to an empty pool.

        Mining is as it was. Raises ChainError if there is no such snapshot.
        """
        # anvil mines beside its answers and keeps its pool: a transaction that waited would be mined on top.
        automine = await self.ask("anvil_getAutomine")
        await self.set_automine(False)
        await self.ask("anvil_dropAllTransactions")
        await self.mine()  # takes its turn after a block that is being made
        found = await self.ask("evm_revert", snapshot)
        await self.ask("anvil_dropAllTransactions")
        # A proposer of its own gives each branch its own hashes: anvil keeps states by block hash, and would
        # drop, with the old block, the state of an equal new one.
        await self.ask("anvil_setCoinbase", f"0x{secrets.token_hex(20)}")
        await self.set_automine(automine)
        if not found:
            raise ChainError(f"the devnet has no snapshot {snapshot}")

    async def _listening(self, process: Process) -> int:
        """The port, from the line with which anvil says that it listens."""
        assert process.stdout is not None
        try:
            async with asyncio.timeout(START_TIMEOUT):
                async for line in process.stdout:
                    if line.startswith(b"Listening on "):
                        return int(line.rsplit(b":", 1)[1])
        except TimeoutError:
            raise ChainError(f"anvil did not listen within {START_TIMEOUT:g} s") from None
        raise ChainError(f"anvil ended: {await self._complaint(process)}")

    async def _complaint(self, process: Process) -> str:
        assert process.stderr is not None
        lines = (await process.stderr.read()).decode(errors="replace").strip().splitlines()
        await process.wait()
        return lines[-1] if lines else "it said nothing"

    async def _set_up(self) -> None:
        # Otherwise it prints a line for each call, into a pipe that nobody reads any longer.
        await self.ask("anvil_setLoggingEnabled", False)


class Devnet(Anvil):
    """A chain with the contracts deployed and the payer's test dollars minted.

    A block comes with each transaction; with `block_time`, every so many seconds instead; with
    `mining=False`, when `mine` is called.
    """

    def __init__(self, port: int = 0, *, block_time: int | None = None, mining: bool = True) -> None:
        super().__init__(port)
        devnet = network(DEVNET)
        self.deployment: Deployment = devnet.deployment()
        self.blueprints = devnet.blueprints(self.deployment.treasury)
        self.dollar = self.deployment.asset("tUSD")
        self._block_time = block_time
        self._mining = mining

    async def mint(self, to: Address, amount: int) -> None:
        """Gives `to` that many base units of tUSD more."""
        async with Chain(self.rpc_url, self.deployment) as chain:
            await chain.transact(chain.mint(self.dollar, to, amount), self.accounts.deployer.private_key)

    async def _set_up(self) -> None:
        await super()._set_up()
        async with Site(self.rpc_url, self.deployment) as site:
            for blueprint in self.blueprints:
                await site.create(blueprint, self.accounts.deployer.private_key)
        await self.mint(self.accounts.payer.address, PAYER_FUNDS)
        if self._block_time is not None:
            await self.ask("evm_setIntervalMining", self._block_time)
        elif not self._mining:
            await self.set_automine(False)


# Loaded here, since little may be done between fork and exec.
_libc = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def _end_with_parent() -> None:
    """Has the kernel end this process when its parent is killed and cannot do so itself."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _check_free(port: int) -> None:
    """Before anvil is asked: it would answer with a backtrace."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise ConfigError(
                    f"port {port} is in use: choose another with --port (0: a free one)"
                ) from None
            raise ConfigError(f"port {port} cannot be listened on: {error.strerror}; see --port") from None


def find_anvil() -> str:
    """The anvil that npm installed here, or the one on PATH. Raises ConfigError if there is none.

    Here is the repository that this package lies in, or else the working directory.
    """
    for root in (Path(__file__).resolve().parents[2], Path.cwd()):
        modules = root / "node_modules"
        for found in (modules / ".bin" / "anvil", *modules.glob("@foundry-rs/anvil-*/bin/anvil")):
            if found.is_file():
                return str(found)
    on_path = shutil.which("anvil")
    if on_path is None:
        raise ConfigError(
            "there is no anvil: run `npm ci` in the repository, as `make test` does, or put Foundry's on PATH"
        )
    return on_path
