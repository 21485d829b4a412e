"""The chain: what the contracts say there, and transactions sent to them and watched.

Knows no ledger and keeps no key: `transact` signs with the one that it is given, for the payer and the
command line, while the host's transactions go through sender.py. Whatever an endpoint does wrong is a
ChainError. Amounts are base units of the asset, gas prices wei per gas, times seconds of the chain's
clock.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Self, TypeVar
from weakref import WeakValueDictionary

from eth_abi.abi import encode
from eth_account import Account
from eth_typing import HexStr
from eth_utils.conversions import to_bytes, to_hex
from web3 import AsyncWeb3
from web3.exceptions import BadFunctionCallOutput, BlockNotFound, TransactionNotFound
from web3.types import RPCEndpoint, TxParams

from tallystick import state
from tallystick.contracts import (
    Call,
    Contracts,
    Created,
    Event,
    Registered,
    Unregistered,
    Updated,
    decode_revert,
    job_state,
    topic,
)
from tallystick.endpoint import CALL_TIMEOUT, Asked
from tallystick.endpoints import Endpoints, chain_id_at
from tallystick.errors import ChainError, ContractError, RpcError
from tallystick.fees import Answer, read_answer
from tallystick.keccak import keccak
from tallystick.networks import Deployment, Network, network
from tallystick.proof import TokenDomain
from tallystick.roster import Status
from tallystick.turns import Turns
from tallystick.types import ETH, Address, Completion, Job, JobId, JobStatus, Settlement, Totals

INCLUSION_TIMEOUT = 120.0
"""Seconds that a transaction may take to be as deep as asked for."""
NONCE_TRIES = 5
"""How often a transaction is signed anew because its nonce was taken by another one."""
APPROVALS = 5
"""How often an asset is approved for one payment."""
NONCE_TAKEN = frozenset({Answer.NONCE_TOO_LOW, Answer.UNDERPRICED})
"""How an endpoint refuses a transaction whose nonce another one of the key has, mined or in the pool."""

DATA_FEES = Address("0x420000000000000000000000000000000000000F")
"""GasPriceOracle, which tells on each chain of the OP stack what a transaction's data costs."""
_GET_DATA_FEE = keccak(b"getL1Fee(bytes)")[:4]

REMEMBERED_JOBS = 10_000
"""How many jobs' openings are kept in memory, so that a job that is in use is read with one call."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Block:
    """The head of a block. `base_fee` is in wei per gas."""

    number: int
    timestamp: int
    base_fee: int
    hash: str
    gas_limit: int
    """Gas that all its transactions may use together."""


@dataclass(frozen=True, slots=True)
class Signed:
    """A transaction that can be sent, and sent again, by anybody."""

    hash: str
    raw: bytes
    nonce: int


Ahead = Callable[[Signed], Awaitable[None]]
"""Is told what was signed, before it is sent."""


@dataclass(frozen=True, slots=True)
class TxResult:
    """A transaction that is in a block. `gas_price` is what it paid, in wei per gas."""

    hash: str
    block: int
    block_hash: str
    succeeded: bool
    gas_used: int
    gas_price: int
    events: tuple[Event, ...]
    data_fee: int = 0
    """Wei beside its gas: what a rollup asks for the transaction's data."""

    @property
    def cost(self) -> int:
        """Wei that its sender paid for it, value aside."""
        return self.gas_used * self.gas_price + self.data_fee


# One turn a key and chain, over all Chain objects of the process; forgotten when nobody waits for it.
_turns: WeakValueDictionary[tuple[int, Address], Turns] = WeakValueDictionary()
_turns_guard = threading.Lock()


def _turns_of(chain_id: int, sender: Address) -> Turns:
    with _turns_guard:
        return _turns.setdefault((chain_id, sender), Turns())


class Chain(Contracts):
    """The contracts of one deployment, through one endpoint or several. `async with` connects and closes.

    `rpc_url`: as RPC_URL, with commas between several. Every method raises ChainError when there is no usable
    answer within `timeout` seconds, from each of them.
    """

    def __init__(
        self,
        rpc_url: str,
        deployment: Deployment,
        *,
        timeout: float = CALL_TIMEOUT,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`clock`: for how long an endpoint that fails is set aside."""
        self._endpoint = Endpoints(rpc_url.split(","), deployment.chain_id, timeout, clock=clock)
        super().__init__(deployment, AsyncWeb3(self._endpoint, middleware=[]))
        self._openings: dict[JobId, Created] = {}
        self._with_code: set[Address] = set()

    @property
    def endpoint(self) -> str:
        """Host and port of the endpoint that is asked: all of its URL that may be shown."""
        return self._endpoint.host

    async def endpoints(self) -> list[Status]:
        """How each endpoint is, after a look at all of them."""
        return await self._endpoint.statuses()

    def view(self, at_least: int = 0) -> AbstractAsyncContextManager[None]:
        """Inside, all reads are of one endpoint, which is not behind: nothing is missed that was seen before.

        `at_least`: a block that is known to be there. ChainError: no endpoint can give such a view, or it
        failed in the middle; nothing is to be concluded then. See endpoints.py.
        """
        return self._endpoint.view(at_least)

    async def __aenter__(self) -> Self:
        try:
            await self.connect()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def connect(self) -> None:
        """Asks for the first time. ChainError: no endpoint answers; WrongChain: all are on another chain."""
        await self.block_number()

    async def close(self) -> None:
        """Closes the connections. The next call opens new ones."""
        await self._endpoint.disconnect()

    # Blocks

    async def block_number(self) -> int:
        """The number of the latest block."""
        return await self._w3.eth.block_number

    async def block(self, number: int | None = None) -> Block:
        """Block `number`, the latest if there is none given."""
        try:
            raw = await self._w3.eth.get_block("latest" if number is None else number)
        except BlockNotFound:
            raise self._lagging(f"no block {number}") from None
        return Block(
            number=raw["number"],
            timestamp=raw["timestamp"],
            base_fee=raw.get("baseFeePerGas", 0),
            hash=to_hex(raw["hash"]),
            gas_limit=raw["gasLimit"],
        )

    async def code_ok(self) -> bool:
        """True if marketplace and registry are there. Any code at their addresses is theirs (CREATE2)."""
        contracts = (self.deployment.registry, self.deployment.marketplace)
        return all([await self._has_code(each) for each in contracts])

    # Jobs

    async def job(self, job_id: JobId, depth: int = 0, *, latest: int | None = None) -> Job | None:
        """The job as of `depth` blocks ago, None if there was none. `latest`: the latest block, if known."""
        if latest is None:
            latest = await self.block_number()
        return await self._job_at(job_id, latest - depth, latest)

    async def latest(self, known: Sequence[Job]) -> dict[JobId, Job | None]:
        """Known jobs as of the latest block, in few requests. None: another one has its id now, or none has.

        Left out is what the endpoint could not tell. What the contract never reads is taken as it is known.
        """
        states = await self._states([job.id for job in known])
        return {job.id: state.moved_on(job, states[job.id]) for job in known if job.id in states}

    async def opened(self, openings: Sequence[Created]) -> dict[JobId, Job | None]:
        """The jobs of these openings as of the latest block, in few requests. None: a reorg has undone it.

        Left out is what the endpoint could not tell.
        """
        states = await self._states([each.job_id for each in openings])
        return {
            each.job_id: state.opened(each, states[each.job_id]) for each in openings if each.job_id in states
        }

    def remember(self, opening: Created) -> None:
        """An opening that has its confirmations: its job is read without looking for it."""
        self._openings[opening.job_id] = opening
        if len(self._openings) > REMEMBERED_JOBS:
            del self._openings[next(iter(self._openings))]

    async def jobs(
        self, *, payer: Address | None = None, host: Address | None = None, since: int | None = None
    ) -> list[Created]:
        """The openings of all jobs of this payer and this host, oldest first; None: of any.

        `since`: from that block on. An endpoint that gives logs for few blocks at a time is slow without it.
        """
        topics = [topic("JobCreated"), None, _word(payer), _word(host)]
        first, last = since or self.deployment.from_block, await self.block_number()
        events = await self._events(self.deployment.marketplace, topics, first, last)
        return [event for event in events if isinstance(event, Created)]

    async def opening(self, job: Job) -> Created:
        """The event with which a job was opened."""
        latest = await self.block_number()
        return await self._opening(job.id, job.created_at, latest, latest)

    async def settlements(self, job_id: JobId) -> list[Settlement]:
        """All that was ever settled of a job, oldest first."""
        job, events = await self._story(job_id, "CheckpointSettled")
        found = [event for event in events if isinstance(event, Settlement)]
        settled = found[-1].totals if found else Totals()
        if job is not None and settled != job.settled:
            raise self._lagging(f"job {job_id} but not all of its settlements")
        return found

    async def completion(self, job_id: JobId) -> Completion | None:
        """How a job was closed, None if it was not."""
        job, events = await self._story(job_id, "SessionCompleted")
        found = [event for event in events if isinstance(event, Completion)]
        if job is not None and job.status is JobStatus.CLOSED and not found:
            raise self._lagging(f"job {job_id} but not its completion")
        return found[0] if found else None

    async def events(self, first: int, last: int, names: Sequence[str] = ()) -> list[Event]:
        """The marketplace's events of these names, or all, in blocks `first` to `last`, both included."""
        topics = [[topic(name) for name in names]] if names else []
        return await self._events(self.deployment.marketplace, topics, first, last)

    # Hosts

    async def is_registered(self, host: Address) -> bool:
        """Whether `host` takes new jobs."""
        return bool(await self._read(self._registry.functions.isRegistered(host)))

    async def payout(self, host: Address) -> Address:
        """Where the earnings of `host` go."""
        return Address(await self._read(self._registry.functions.payoutOf(host)))

    async def metadata(self, host: Address) -> str | None:
        """How a registered host describes itself, None if it is not registered."""
        if not await self.is_registered(host):
            return None
        topics = [[topic("NodeRegistered"), topic("NodeUpdated")], _word(host)]
        first, last = self.deployment.from_block, await self.block_number()
        events = await self._events(self.deployment.registry, topics, first, last)
        told = [event.metadata for event in events if isinstance(event, Registered | Updated)]
        if not told:
            raise self._lagging(f"host {host} but not its metadata")
        return told[-1]

    async def hosts(self) -> dict[Address, str]:
        """The hosts that are registered, longest known first, each with how it describes itself."""
        topics = [[topic("NodeRegistered"), topic("NodeUpdated"), topic("NodeUnregistered")]]
        first, last = self.deployment.from_block, await self.block_number()
        told: dict[Address, str] = {}
        for event in await self._events(self.deployment.registry, topics, first, last):
            if isinstance(event, Registered | Updated):
                told[event.host] = event.metadata
            elif isinstance(event, Unregistered):
                told.pop(event.host, None)
        return told

    # Balances, in base units

    async def eth_balance(self, owner: Address) -> int:
        """What `owner` has, in wei."""
        return await self._w3.eth.get_balance(AsyncWeb3.to_checksum_address(owner))

    async def token_balance(self, asset: Address, owner: Address) -> int:
        """What `owner` has of `asset`, which may be ETH."""
        if asset == ETH:
            return await self.eth_balance(owner)
        return int(await self._read(self._token(asset).functions.balanceOf(owner)))

    async def allowance(self, asset: Address, owner: Address) -> int:
        """How much of the ERC-20 `asset` the marketplace may take from `owner`."""
        marketplace = self.deployment.marketplace
        return int(await self._read(self._token(asset).functions.allowance(owner, marketplace)))

    async def token_domain(self, asset: Address) -> TokenDomain:
        """The domain in which the ERC-20 `asset` takes authorizations, as the token itself tells it.

        ChainError if it tells none, or one that is not the one of its DOMAIN_SEPARATOR.
        """
        functions = self._token(asset).functions
        try:
            told = await self._read(functions.eip712Domain())
            name, version = told.name, told.version
        except ChainError:  # USDC, for one, has no EIP-5267
            name, version = await self._read(functions.name()), await self._read(functions.version())
        domain = TokenDomain(name, version, self.deployment.chain_id, asset)
        if domain.separator != await self._read(functions.DOMAIN_SEPARATOR()):
            raise ChainError(f"the EIP-712 domain of {asset} is not {name!r}, version {version!r}")
        return domain

    async def earnings(self, owner: Address, asset: Address) -> int:
        """What `owner` earned as a host and has not been paid out."""
        return int((await self._balance(owner, asset)).earnings)

    async def refunds(self, owner: Address, asset: Address) -> int:
        """Refunds that could not be sent to `owner` and are kept for it."""
        return int((await self._balance(owner, asset)).refunds)

    async def treasury_balance(self, asset: Address) -> int:
        """What the treasury can withdraw."""
        return int(await self._read(self._marketplace.functions.treasuryBalance(asset)))

    # Transactions, step by step

    async def simulate(self, call: Call, sender: Address) -> None:
        """Raises the ContractError that `call` would meet if it came from `sender` now."""
        await self._require_code(call.to)
        await _or_revert(self._w3.eth.call(_as_params(call, sender)))

    async def estimate_gas(self, call: Call, sender: Address) -> int:
        """The least gas with which `call` goes through now. Raises its ContractError if it does not."""
        return await _or_revert(self._w3.eth.estimate_gas(_as_params(call, sender)))

    async def priority_fee(self) -> int:
        """What the endpoint suggests as a tip, in wei per gas."""
        return await self._w3.eth.max_priority_fee

    async def data_fee(self, data: bytes) -> int:
        """Wei that the chain asks for a transaction's data beside its gas: a rollup's fee, elsewhere 0."""
        if not await self._has_code(DATA_FEES):
            return 0
        asked: TxParams = {
            "to": AsyncWeb3.to_checksum_address(DATA_FEES),
            "data": _GET_DATA_FEE + encode(["bytes"], [data]),
        }
        return int.from_bytes(await self._w3.eth.call(asked), "big")

    async def nonce(self, address: Address, *, pending: bool = False) -> int:
        """How many transactions of `address` are in blocks; `pending`: and in the endpoint's pool."""
        block: Literal["pending", "latest"] = "pending" if pending else "latest"
        return await self._w3.eth.get_transaction_count(AsyncWeb3.to_checksum_address(address), block)

    async def nonce_at(self, address: Address, block: int) -> int:
        """How many transactions of `address` are in blocks up to that one."""
        return await self._w3.eth.get_transaction_count(AsyncWeb3.to_checksum_address(address), block)

    def sign(self, call: Call, key: bytes, *, nonce: int, gas: int, tip: int, max_fee: int) -> Signed:
        """An EIP-1559 transaction. `tip` and `max_fee` are in wei per gas."""
        signed = Account.sign_transaction(
            {
                "type": 2,
                "chainId": self.deployment.chain_id,
                "to": call.to,
                "data": call.data,
                "value": call.value,
                "nonce": nonce,
                "gas": gas,
                "maxPriorityFeePerGas": tip,
                "maxFeePerGas": max_fee,
            },
            key,
        )
        return Signed(to_hex(signed.hash), bytes(signed.raw_transaction), nonce)

    async def send(self, raw: bytes) -> str:
        """Broadcasts a signed transaction: its hash. RpcError: the endpoint refused it, or has it already."""
        return to_hex(await self._w3.eth.send_raw_transaction(raw))

    async def resend(self, raw: bytes) -> None:
        """Broadcasts what may have been broadcast before. RpcError: the endpoint refused it."""
        try:
            await self.send(raw)
        except RpcError as error:
            if read_answer(error.message) is not Answer.KNOWN:
                raise

    async def result(self, tx: str) -> TxResult | None:
        """The transaction of that hash, None while it is in no block."""
        try:
            receipt = await self._w3.eth.get_transaction_receipt(HexStr(tx))
        except TransactionNotFound:
            return None
        # Some endpoints give a receipt before there is a block.
        if receipt.get("blockHash") is None:
            return None
        return TxResult(
            hash=tx,
            block=receipt["blockNumber"],
            block_hash=to_hex(receipt["blockHash"]),
            succeeded=receipt["status"] == 1,
            gas_used=receipt["gasUsed"],
            gas_price=receipt["effectiveGasPrice"],
            events=tuple(self.read_events(receipt["logs"])),
            data_fee=_number(receipt.get("l1Fee")),
        )

    # Transactions as a whole

    async def transact(
        self,
        call: Call,
        key: bytes,
        *,
        confirmations: int | None = None,
        timeout: float = INCLUSION_TIMEOUT,
        ahead: Ahead | None = None,
    ) -> TxResult:
        """Simulates, signs and sends `call`, and waits for its confirmations (by default the deployment's).

        `ahead` hears of each transaction that is about to be sent; the last one is what may be mined. Raises
        the ContractError that it meets, before anything is sent where that can be known; ChainError if it is
        not in a block, or then not as deep, within `timeout` seconds, or if the endpoint fails. A key's
        transactions go one after another, so that each is simulated on what the one before it left behind.
        """
        sender = Address(Account.from_key(key).address)
        async with _turns_of(self.deployment.chain_id, sender):
            signed = await self._sent(call, key, sender, ahead)
            result = await self.included(signed.hash, timeout=timeout)
        if not result.succeeded:
            raise await self._failure(call, sender, result)
        depth = self.deployment.confirmations if confirmations is None else confirmations
        return await self.included(signed.hash, depth, timeout=timeout)

    async def pay_in(
        self, call: Call, asset: Address, units: int, key: bytes, *, ahead: Ahead | None = None
    ) -> TxResult:
        """Sends a call that takes `units` base units of an asset, approved first where that is needed.

        `ahead` hears of the call, and of no approval. What another program with the key spent of the
        approval meanwhile is approved again. Raises what `transact` raises.
        """
        payer = Address(Account.from_key(key).address)
        for tries_left in reversed(range(APPROVALS)):
            if await self._has_to_approve(asset, payer, units):
                await self.transact(self.approve(asset, units), key)
            try:
                return await self.transact(call, key, ahead=ahead)
            except ContractError:
                if not tries_left or not await self._has_to_approve(asset, payer, units):
                    raise
        raise AssertionError("the last try returns or raises")

    async def included(
        self, tx: str, confirmations: int = 1, *, timeout: float = INCLUSION_TIMEOUT
    ) -> TxResult:
        """Waits until a transaction is `confirmations` deep. ChainError after `timeout` seconds.

        An endpoint that fails meanwhile is asked again: what was sent is not undone by that.
        """
        pause, trouble = 0.02, None
        try:
            async with asyncio.timeout(timeout):
                while True:
                    try:
                        result = await self.result(tx)
                        if result and await self.block_number() - result.block + 1 >= confirmations:
                            return result
                    except ChainError as error:
                        trouble = error
                    await asyncio.sleep(pause)
                    pause = min(pause * 1.5, 1.0)
        except TimeoutError:
            late = f"transaction {tx} is not {confirmations} deep after {timeout:g} s; it may still come"
            raise ChainError(late) from trouble

    # Below: how

    async def _has_to_approve(self, asset: Address, payer: Address, units: int) -> bool:
        return asset != ETH and await self.allowance(asset, payer) < units

    async def _read(self, function: Any, at: int | None = None) -> Any:
        """What a view function of a contract returns, as of block `at`."""
        try:
            return await function.call(block_identifier="latest" if at is None else at)
        except BadFunctionCallOutput:
            raise self._missing(function.address) from None

    async def _states(self, ids: Sequence[JobId]) -> dict[JobId, dict[str, int]]:
        """By job: what `getJob` says in the latest block. Left out is what the endpoint could not tell."""
        answers = await self._endpoint.ask_all([self._getting(job_id) for job_id in ids])
        found = {}
        for job_id, answer in zip(ids, answers, strict=True):
            with suppress(ValueError):
                found[job_id] = job_state(_bytes(answer))
        return found

    def _getting(self, job_id: JobId) -> Asked:
        call = self.get_job(job_id)
        return RPCEndpoint("eth_call"), [{"to": call.to, "data": to_hex(call.data)}, "latest"]

    async def _balance(self, owner: Address, asset: Address) -> Any:
        return await self._read(self._marketplace.functions.balanceOf(owner, asset))

    async def _job_at(self, job_id: JobId, at: int, latest: int) -> Job | None:
        if at < 0:
            return None
        told = await self._state(job_id, at)
        if told["status"] == JobStatus.NONE:
            return None
        return state.of(await self._opening(job_id, told["createdAt"], at, latest), told)

    async def _state(self, job_id: JobId, at: int) -> dict[str, int]:
        """What `getJob` says as of block `at`."""
        call = self.get_job(job_id)
        asked: TxParams = {"to": AsyncWeb3.to_checksum_address(call.to), "data": call.data}
        try:
            return job_state(await self._w3.eth.call(asked, at))
        except ValueError:
            raise self._missing(call.to) from None

    async def _opening(self, job_id: JobId, created_at: int, at: int, latest: int) -> Created:
        """The event with which a job was opened, remembered once it has its confirmations."""
        if job_id in self._openings:
            return self._openings[job_id]
        first, last = await self._blocks_of(created_at, at)
        topics = [topic("JobCreated"), _word(job_id)]
        events = await self._events(self.deployment.marketplace, topics, first, last)
        opening = next((event for event in events if isinstance(event, Created)), None)
        if opening is None:
            raise self._lagging(f"job {job_id} but not the event of its opening")
        if latest - opening.block >= self.deployment.depth:
            self.remember(opening)
        return opening

    async def _story(self, job_id: JobId, event: str) -> tuple[Job | None, list[Event]]:
        """The job, and its events of that name from its opening on, as of the latest block."""
        latest = await self.block_number()
        job = await self._job_at(job_id, latest, latest)
        if job is None:
            return None, []
        opening = await self._opening(job_id, job.created_at, latest, latest)
        topics = [topic(event), _word(job_id)]
        return job, await self._events(self.deployment.marketplace, topics, opening.block, latest)

    async def _blocks_of(self, when: int, at: int) -> tuple[int, int]:
        """The first and the last block of that timestamp, which there are, up to block `at`."""
        head = await self.block(at)
        first = await self._first_since(when, await self.block(self.deployment.from_block), head)
        if head.timestamp == when:
            return first.number, head.number
        after = await self._first_since(when + 1, first, head)
        return first.number, after.number - 1

    async def _first_since(self, when: int, low: Block, high: Block) -> Block:
        """The first block from `low` on that is not older than `when`, which `high` is not.

        By timestamps, since endpoints limit the range in which one may look for logs, many of them to
        very few blocks. Guessing from the average block time finds it in a few steps; halving in between
        bounds the steps where block times are uneven.
        """
        if low.timestamp >= when:
            return low
        halve = False
        while (gap := high.number - low.number) > 1:
            guess = gap * (when - low.timestamp) // (high.timestamp - low.timestamp)
            step = gap // 2 if halve else min(max(guess, 1), gap - 1)
            probe = await self.block(low.number + step)
            low, high = (low, probe) if probe.timestamp >= when else (probe, high)
            halve = not halve
        return high

    async def _events(self, address: Address, topics: Sequence[Any], first: int, last: int) -> list[Event]:
        """The events that match, oldest first. If the endpoint refuses, half as many blocks are asked for."""
        found: list[Event] = []
        span = last - first + 1
        while first <= last:
            upto = min(last, first + span - 1)
            try:
                found += await self._events_at_once(address, topics, first, upto)
            except RpcError:
                if span == 1:
                    raise
                span = (span + 1) // 2
            else:
                first = upto + 1
        return found

    async def _events_at_once(
        self, address: Address, topics: Sequence[Any], first: int, last: int
    ) -> list[Event]:
        logs = await self._w3.eth.get_logs(
            {
                "address": AsyncWeb3.to_checksum_address(address),
                "topics": list(topics),
                "fromBlock": first,
                "toBlock": last,
            }
        )
        return self.read_events(logs)

    async def _has_code(self, address: Address) -> bool:
        if address not in self._with_code and await self._w3.eth.get_code(
            AsyncWeb3.to_checksum_address(address)
        ):
            self._with_code.add(address)
        return address in self._with_code

    async def _require_code(self, address: Address) -> None:
        # A call to an address without code succeeds, does nothing, and keeps the ETH that came with it.
        if not await self._has_code(address):
            raise self._missing(address)

    async def _prepare(self, call: Call, key: bytes, sender: Address) -> Signed:
        await self.simulate(call, sender)
        gas = await self.estimate_gas(call, sender)
        tip = await self.priority_fee()
        base_fee = (await self.block()).base_fee
        nonce = await self.nonce(sender, pending=True)
        # A fifth more gas, as the state may change until then; twice the base fee outlasts five full blocks.
        return self.sign(call, key, nonce=nonce, gas=gas + gas // 5, tip=tip, max_fee=2 * base_fee + tip)

    async def _sent(self, call: Call, key: bytes, sender: Address, ahead: Ahead | None) -> Signed:
        """The transaction once an endpoint took it.

        Another program may have the key too. Where it took the nonce in between, the next one is tried.
        """
        for tries_left in reversed(range(NONCE_TRIES)):
            signed = await self._prepare(call, key, sender)
            if ahead is not None:
                await ahead(signed)
            try:
                await self._broadcast(signed)
            except RpcError as error:
                if not tries_left or read_answer(error.message) not in NONCE_TAKEN:
                    raise
            else:
                return signed
        raise AssertionError("the last try returns or raises")

    async def _broadcast(self, signed: Signed) -> None:
        """Sends, and once more if no answer came: a refusal then may mean that the first one had arrived."""
        try:
            await self.send(signed.raw)
        except RpcError:
            raise
        except ChainError:
            await self._broadcast_again(signed)

    async def _broadcast_again(self, signed: Signed) -> None:
        try:
            await self.send(signed.raw)
        except RpcError:
            return
        except ChainError as error:
            raise ChainError(f"transaction {signed.hash} may or may not have been sent: {error}") from error

    async def _failure(self, call: Call, sender: Address, result: TxResult) -> ChainError:
        """Why a transaction failed that its simulation had let through: what it meets after its block."""
        try:
            await _or_revert(self._w3.eth.call(_as_params(call, sender), result.block))
        except ContractError as error:
            return error
        return ChainError(f"transaction {result.hash} failed in block {result.block}, and after it would not")

    def _missing(self, address: Address) -> ChainError:
        return ChainError(f"there is no contract at {address} for {self.endpoint}")

    def _lagging(self, what: str) -> ChainError:
        return ChainError(f"{self.endpoint} has {what}: it may lag behind")


async def deployment_at(rpc_url: str) -> Deployment:
    """The contracts on the chain that an endpoint is on. ConfigError if there are none; ChainError."""
    return (await network_at(rpc_url)).deployment()


async def network_at(rpc_url: str) -> Network:
    """The network that an endpoint is on. ConfigError if it is none that is known; ChainError."""
    return network(await chain_id_at(rpc_url))


def _as_params(call: Call, sender: Address) -> TxParams:
    return {
        "from": AsyncWeb3.to_checksum_address(sender),
        "to": AsyncWeb3.to_checksum_address(call.to),
        "data": call.data,
        "value": AsyncWeb3.to_wei(call.value, "wei"),
    }


def _bytes(answer: Any) -> bytes:
    """What a call returned. ValueError if it returned nothing."""
    if not isinstance(answer, str):
        raise ValueError(str(answer))
    return to_bytes(hexstr=answer)


def _number(answer: Any) -> int:
    """A number that web3 does not know, as the endpoint wrote it; 0 where there is none."""
    return int(answer, 16) if isinstance(answer, str) else int(answer or 0)


def _word(value: int | str | None) -> str | None:
    """A job id or an address as a topic; None matches anything."""
    if value is None:
        return None
    number = int(value, 16) if isinstance(value, str) else value
    return f"0x{number:064x}"


async def _or_revert(asked: Awaitable[T]) -> T:
    """The answer, or the ContractError of a revert: it has the error code 3, and data that says which."""
    try:
        return await asked
    except RpcError as error:
        if isinstance(error.data, str) and error.data.startswith("0x"):
            raise decode_revert(to_bytes(hexstr=error.data)) from None
        if error.code == 3:
            raise decode_revert(b"") from None
        raise
