"""What is known of the contracts without asking a chain: their calls, events and errors.

Knows no network and no key: chain.py asks and sends. Amounts are base units of the asset concerned (ETH's are
wei); times are seconds of the chain's clock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

from eth_abi.abi import decode, encode
from eth_abi.exceptions import DecodingError
from eth_utils.abi import (
    event_abi_to_log_topic,
    filter_abi_by_type,
    function_abi_to_4byte_selector,
    get_abi_input_names,
    get_abi_input_types,
)
from eth_utils.address import to_checksum_address
from eth_utils.conversions import to_bytes, to_hex
from web3 import AsyncWeb3
from web3.contract import AsyncContract
from web3.types import LogReceipt

from tallystick import errors
from tallystick.artifacts import artifact
from tallystick.authorization import Purpose, TopUp, terms_out
from tallystick.errors import ContractError, Panicked, Reverted, UnknownRevert
from tallystick.keccak import keccak
from tallystick.networks import Deployment
from tallystick.types import (
    ETH,
    Address,
    Authorization,
    Completion,
    JobId,
    Settlement,
    Terms,
    Totals,
)

# Calls


@dataclass(frozen=True, slots=True)
class Call:
    """What a transaction is to do. `value` is in wei."""

    to: Address
    data: bytes
    value: int = 0


@dataclass(frozen=True, slots=True)
class Claim:
    """One row of `submitCheckpoints`. `complete`: close the job once the row is paid."""

    job_id: JobId
    tokens: int
    proof: bytes
    complete: bool = False


# Events


@dataclass(frozen=True, slots=True, kw_only=True)
class Logged:
    """Where an event is: the hash of its transaction, the number of its block."""

    tx: str
    block: int


@dataclass(frozen=True, slots=True)
class Created(Logged):
    """A job was opened: its parties, and what the contract does not keep of its terms."""

    job_id: JobId
    payer: Address
    host: Address
    signer: Address
    checkpoint_interval: int
    """Tokens."""
    model_id: bytes


@dataclass(frozen=True, slots=True)
class Relayed(Logged):
    """A job was opened by authorization; who sent that earned `relay_fee` base units of the job's asset."""

    job_id: JobId
    relayer: Address
    relay_fee: int


@dataclass(frozen=True, slots=True)
class ToppedUp(Logged):
    """`amount` was added to a deposit, which is now `deposit`."""

    job_id: JobId
    amount: int
    deposit: int


@dataclass(frozen=True, slots=True)
class CompletionRequested(Logged):
    """Payer or signer asked to complete a job; from `closes_at` on anybody may reclaim its rest."""

    job_id: JobId
    by: Address
    closes_at: int


@dataclass(frozen=True, slots=True)
class Skipped(Logged):
    """A row of a batch was left out, for the `error` that it would have reverted with by itself."""

    job_id: JobId
    error: ContractError


@dataclass(frozen=True, slots=True)
class RefundCredited(Logged):
    """A refund could not be sent, and is kept for the payer to withdraw."""

    job_id: JobId
    payer: Address
    asset: Address
    amount: int


@dataclass(frozen=True, slots=True)
class Withdrawn(Logged):
    """`owner` was paid out: refunds kept for it as a payer, and what it earned as a host."""

    owner: Address
    asset: Address
    to: Address
    refunds: int
    earnings: int


@dataclass(frozen=True, slots=True)
class TreasuryWithdrawn(Logged):
    """The treasury was paid out."""

    asset: Address
    to: Address
    amount: int


@dataclass(frozen=True, slots=True)
class Registered(Logged):
    """`host` offers its service."""

    host: Address
    metadata: str


@dataclass(frozen=True, slots=True)
class Updated(Logged):
    """`host` describes itself anew."""

    host: Address
    metadata: str


@dataclass(frozen=True, slots=True)
class Unregistered(Logged):
    """`host` takes no new jobs."""

    host: Address


@dataclass(frozen=True, slots=True)
class PayoutChanged(Logged):
    """The earnings of `host` go to `payout` from now on."""

    host: Address
    payout: Address


Event = Settlement | Completion | Logged
"""Anything that the contracts log."""

# By the event's name: its class, from the event's arguments, transaction and block.
EVENTS: dict[str, Callable[[Mapping[str, Any], str, int], Event]] = {
    "CheckpointSettled": lambda a, tx, block: Settlement(
        a["jobId"], _totals(a), a["hostAmount"], a["fee"], a["transcript"], tx, block
    ),
    "SessionCompleted": lambda a, tx, block: Completion(
        a["jobId"], a["owed"], a["fee"], a["refund"], tx, block
    ),
    "JobCreated": lambda a, tx, block: Created(
        *(a["jobId"], a["payer"], a["host"], a["signer"], a["checkpointInterval"], a["modelId"]),
        tx=tx,
        block=block,
    ),
    "JobRelayed": lambda a, tx, block: Relayed(a["jobId"], a["relayer"], a["relayFee"], tx=tx, block=block),
    "JobToppedUp": lambda a, tx, block: ToppedUp(a["jobId"], a["amount"], a["deposit"], tx=tx, block=block),
    "CompletionRequested": lambda a, tx, block: CompletionRequested(
        a["jobId"], a["by"], a["closesAt"], tx=tx, block=block
    ),
    "CheckpointSkipped": lambda a, tx, block: Skipped(a["jobId"], _reason(a), tx=tx, block=block),
    "RefundCredited": lambda a, tx, block: RefundCredited(
        a["jobId"], a["payer"], a["asset"], a["amount"], tx=tx, block=block
    ),
    "Withdrawn": lambda a, tx, block: Withdrawn(
        a["owner"], a["asset"], a["to"], a["refunds"], a["earnings"], tx=tx, block=block
    ),
    "TreasuryWithdrawn": lambda a, tx, block: TreasuryWithdrawn(
        a["asset"], a["to"], a["amount"], tx=tx, block=block
    ),
    "NodeRegistered": lambda a, tx, block: Registered(a["host"], a["metadata"], tx=tx, block=block),
    "NodeUpdated": lambda a, tx, block: Updated(a["host"], a["metadata"], tx=tx, block=block),
    "NodeUnregistered": lambda a, tx, block: Unregistered(a["host"], tx=tx, block=block),
    "PayoutChanged": lambda a, tx, block: PayoutChanged(a["host"], a["payout"], tx=tx, block=block),
}


@cache
def topic(event: str) -> bytes:
    """The first topic of the logs of JobMarketplace's or NodeRegistry's event of that name."""
    abi = [*artifact("JobMarketplace").abi, *artifact("NodeRegistry").abi]
    return next(
        event_abi_to_log_topic(each) for each in filter_abi_by_type("event", abi) if each["name"] == event
    )


def _totals(args: Mapping[str, Any]) -> Totals:
    return Totals(args["promptTokens"], args["tokens"])


def _reason(args: Mapping[str, Any]) -> ContractError:
    """The error as a revert would carry it: its selector and two words, of which it may have one."""
    return decode_revert(args["reason"] + encode(["uint256", "uint256"], [args["first"], args["second"]]))


# A job's state

_WORD = 32


def job_state(data: bytes) -> dict[str, int]:
    """What `getJob` returned, by the ABI's names: each member is one word. ValueError if it is none of it."""
    names = _job_members()
    if len(data) != _WORD * len(names):
        raise ValueError(f"a job has {len(names)} words, and not {len(data)} bytes")
    words = (int.from_bytes(data[at : at + _WORD], "big") for at in range(0, len(data), _WORD))
    return dict(zip(names, words, strict=True))


@cache
def _job_members() -> list[str]:
    [output] = _get_job_abi()["outputs"]
    return [str(member["name"]) for member in output["components"]]


@cache
def _get_job_selector() -> bytes:
    return function_abi_to_4byte_selector(_get_job_abi())


def _get_job_abi() -> Any:
    functions = filter_abi_by_type("function", artifact("JobMarketplace").abi)
    return next(each for each in functions if each["name"] == "getJob")


# Errors


class _Error(NamedTuple):
    kind: type[ContractError]
    names: list[str]
    types: list[str]


@cache
def _errors() -> dict[bytes, _Error]:
    """By selector: every error of the contracts, and the two that Solidity itself has."""
    found = {
        function_abi_to_4byte_selector(each): _Error(
            getattr(errors, each["name"]),
            [str(name) for name in get_abi_input_names(each)],
            get_abi_input_types(each),
        )
        for name in ("JobMarketplace", "NodeRegistry", "TestDollar")
        for each in filter_abi_by_type("error", artifact(name).abi)
    }
    found[keccak(b"Error(string)")[:4]] = _Error(Reverted, ["reason"], ["string"])
    found[keccak(b"Panic(uint256)")[:4]] = _Error(Panicked, ["code"], ["uint256"])
    return found


def decode_revert(data: bytes) -> ContractError:
    """The error that a contract reverted with: an instance of its class, with its values by the ABI's names.

    UnknownRevert for data that none of the errors explains.
    """
    error = _errors().get(bytes(data[:4]))
    if error is None:
        return UnknownRevert("UnknownRevert", {"data": to_hex(data)})
    try:
        values = decode(error.types, data[4:])
    except DecodingError:
        return UnknownRevert("UnknownRevert", {"data": to_hex(data)})
    told = (
        to_checksum_address(value) if type_ == "address" else value
        for type_, value in zip(error.types, values, strict=True)
    )
    return error.kind(error.kind.__name__, dict(zip(error.names, told, strict=True)))


class Contracts:
    """The calls and events of one deployment, encoded and decoded by web3's codec. Asks nothing."""

    def __init__(self, deployment: Deployment, w3: AsyncWeb3[Any]) -> None:
        self.deployment = deployment
        # web3 takes milliseconds to make a contract object, and as long for each event's: made once.
        self._marketplace = _contract(w3, deployment.marketplace, "JobMarketplace")
        self._registry = _contract(w3, deployment.registry, "NodeRegistry")
        self._tokens: dict[Address, AsyncContract] = {}
        self._readers = {**_readers(self._marketplace), **_readers(self._registry)}
        self._w3 = w3

    # Jobs

    def create_job(self, terms: Terms) -> Call:
        """Opens a job; an ERC-20 deposit has to be approved first."""
        value = terms.deposit if terms.asset == ETH else 0
        return _call(self._marketplace, "createJob", terms_out(terms), value=value)

    def top_up(self, job_id: JobId, amount: int, asset: Address) -> Call:
        """Adds `amount` to the deposit of a job in `asset`; an ERC-20 has to be approved first."""
        return _call(self._marketplace, "topUp", job_id, amount, value=amount if asset == ETH else 0)

    def authorized(self, purpose: Purpose, auth: Authorization) -> Call:
        """Opens or tops up a job of `auth.payer`, by anybody: who opens it earns the relay fee."""
        signed = (auth.payer, auth.valid_after, auth.valid_before, auth.signature)
        if isinstance(purpose, TopUp):
            args: tuple[Any, ...] = (purpose.job_id, purpose.amount, purpose.salt, signed)
            return _call(self._marketplace, "topUpWithAuthorization", *args)
        args = (terms_out(purpose.terms), purpose.relay_fee, purpose.salt, signed)
        return _call(self._marketplace, "createJobWithAuthorization", *args)

    def approve(self, asset: Address, amount: int) -> Call:
        """Lets the marketplace take `amount` of the sender's ERC-20 `asset`."""
        return _call(self._token(asset), "approve", self.deployment.marketplace, amount)

    def submit_checkpoint(self, job_id: JobId, tokens: int, proof: bytes) -> Call:
        """Claims new totals; `proof` as of protocol §3."""
        return _call(self._marketplace, "submitCheckpoint", job_id, tokens, proof)

    def submit_checkpoints(self, claims: Iterable[Claim]) -> Call:
        """Claims new totals for many jobs, and completes those marked so."""
        rows = [(claim.job_id, claim.tokens, claim.complete, claim.proof) for claim in claims]
        return _call(self._marketplace, "submitCheckpoints", rows)

    def complete_session(self, job_id: JobId) -> Call:
        """By the host: closes the job. By payer or signer: asks the host to."""
        return _call(self._marketplace, "completeSession", job_id)

    def reclaim(self, job_id: JobId) -> Call:
        """Closes a job whose time is over, by anybody."""
        return _call(self._marketplace, "reclaim", job_id)

    def get_job(self, job_id: JobId) -> Call:
        """Reads a job; `job_state` understands the answer."""
        # Put together here, as web3 takes a millisecond for it and every request may need one.
        return Call(self.deployment.marketplace, _get_job_selector() + job_id.to_bytes(_WORD, "big"))

    # Balances

    def withdraw(self, asset: Address, to: Address) -> Call:
        """Pays the sender's balance to `to`."""
        return _call(self._marketplace, "withdraw", asset, to)

    def withdraw_for(self, owner: Address, asset: Address) -> Call:
        """Pays the balance of `owner` to where it belongs, by anybody."""
        return _call(self._marketplace, "withdrawFor", owner, asset)

    def withdraw_treasury(self, asset: Address, to: Address) -> Call:
        """Pays the treasury's balance to `to`; only by the treasury."""
        return _call(self._marketplace, "withdrawTreasury", asset, to)

    def mint(self, asset: Address, to: Address, amount: int) -> Call:
        """Makes test dollars. Only a TestDollar lets anybody do so."""
        return _call(self._token(asset), "mint", to, amount)

    # The registry

    def register(self, host: Address, metadata: str) -> Call:
        """Registers the sender, which `host` has to be."""
        return _call(self._registry, "registerNode", host, metadata)

    def update(self, metadata: str) -> Call:
        """Replaces the sender's metadata."""
        return _call(self._registry, "updateNode", metadata)

    def unregister(self) -> Call:
        """Takes the sender off the registry."""
        return _call(self._registry, "unregisterNode")

    def set_payout(self, host: Address, to: Address) -> Call:
        """Sends the earnings of `host` to `to` from now on; only by the present payout address."""
        return _call(self._registry, "setPayout", host, to)

    # Events

    def read_events(self, logs: Iterable[LogReceipt]) -> list[Event]:
        """The events of the two contracts among `logs`, in order. What other contracts log is left out."""
        found = []
        for log in logs:
            read = (
                self._readers.get((Address(log["address"]), bytes(log["topics"][0])))
                if log["topics"]
                else None
            )
            if read is not None:
                found.append(read(log))
        return found

    def _token(self, asset: Address) -> AsyncContract:
        """An ERC-20, of which TestDollar's ABI tells all that is asked here."""
        if asset not in self._tokens:
            self._tokens[asset] = _contract(self._w3, asset, "TestDollar")
        return self._tokens[asset]


def _contract(w3: AsyncWeb3[Any], address: Address, name: str) -> AsyncContract:
    return w3.eth.contract(address=to_checksum_address(address), abi=artifact(name).abi, decode_tuples=True)


def _call(contract: AsyncContract, function: str, *args: Any, value: int = 0) -> Call:
    data = contract.encode_abi(function, args=list(args))
    return Call(Address(contract.address), to_bytes(hexstr=data), value)


def _readers(contract: AsyncContract) -> dict[tuple[Address, bytes], Callable[[LogReceipt], Event]]:
    """By address and first topic: what makes an event of a log."""
    return {
        (Address(contract.address), event_abi_to_log_topic(each)): _reader(contract, each["name"])
        for each in filter_abi_by_type("event", contract.abi)
        if each["name"] in EVENTS
    }


def _reader(contract: AsyncContract, name: str) -> Callable[[LogReceipt], Event]:
    event = contract.events[name]()
    make = EVENTS[name]

    def read(log: LogReceipt) -> Event:
        args = event.process_log(log)["args"]
        return make(args, to_hex(log["transactionHash"]), log["blockNumber"])

    return read
