"""A marketplace on a chain: set up for the parties, told what to do, asked for its books.

`Chain` is what that takes of a chain; revm.py and anvil.py have one each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple, Protocol

from tallystick.artifacts import CREATE2_PROXY
from tallystick.contracts import decode_revert
from tallystick.types import Address
from tests.differential import bytecode, codec
from tests.differential.model import Books, Event, Name, Refused
from tests.differential.parties import (
    ASSETS,
    BLUEPRINTS,
    DOLLAR,
    ETH,
    FIRST_PAYOUTS,
    FIRST_REFUSING,
    HOSTS,
    LISTED,
    MARKETPLACE,
    OWNED,
    PARTIES,
    PAYERS,
    READER,
    REGISTRY,
    START,
    STRANGER,
    TOKENS,
    VAULT,
    VAULT_OWNER,
)
from tests.differential.steps import Call, Refuse, RegisterNode, Sent, SetPayout, Step, Wait


class Log(NamedTuple):
    """What a contract logged. The address may be in small letters."""

    address: Address
    topics: Sequence[bytes]
    data: bytes


@dataclass(frozen=True, slots=True)
class Revert:
    """What a transaction reverted with."""

    data: bytes


class Chain(Protocol):
    """A chain with CREATE2's proxy on it, nothing else, and no price for gas."""

    def transact(self, call: Call, at: int) -> Sequence[Log] | Revert:
        """Carries a transaction out at that time, not earlier than the last one's."""

    def ask(self, to: Address, data: bytes) -> bytes:
        """What a contract answers."""

    def ether(self, owners: Sequence[Address]) -> Sequence[int]:
        """How many wei each has."""

    def set_ether(self, owner: Address, wei: int) -> None:
        """Gives somebody that many wei, no more and no less."""

    def set_code(self, address: Address, code: bytes) -> None:
        """Makes a contract of an address."""

    def set_word(self, contract: Address, slot: int, value: int) -> None:
        """Writes to a contract's storage."""


class Market:
    """The contracts on a fresh chain, at START, with everybody's first money in place."""

    def __init__(self, chain: Chain) -> None:
        self._chain = chain
        self._now = START
        chain.set_code(VAULT, bytecode.wallet(VAULT_OWNER))
        chain.set_code(READER, bytecode.READER)
        chain.set_code(LISTED, bytecode.listed(DOLLAR))
        for party in PARTIES:
            chain.set_ether(party, OWNED.get(party, 0))
        for call in _first_calls():
            self._transact(call)
        for party, asset in FIRST_REFUSING:
            self.do(Refuse(party, asset))

    def do(self, step: Step) -> list[Event]:
        """Carries a step out; what the marketplace says then. Raises Refused."""
        match step:
            case Wait():
                self._now += step.seconds
            case Refuse():
                contract = VAULT if step.asset == ETH else step.asset
                self._chain.set_word(contract, codec.word(step.party), int(step.refuses))
            case Sent():
                return self._transact(step.call)
        return []

    def books(self) -> Books:
        """What the chain holds, under the names that the model has for it."""
        ether = self._chain.ether(_OWNERS)
        books: Books = {("wallet", owner, ETH): wei for owner, wei in zip(_OWNERS, ether, strict=True)}
        books.update(self._answers(_QUESTIONS))
        books.update(self._answers([_job(number + 1) for number in range(books["jobs",])]))
        return books

    def _answers(self, questions: Sequence[_Question]) -> Iterator[tuple[Name, int]]:
        answers = self._chain.ask(READER, b"".join(question.packed for question in questions))
        for number, question in enumerate(questions):
            at = number * bytecode.ANSWER
            for name in question.names:
                yield name, int.from_bytes(answers[at : at + 32], "big")
                at += 32

    def _transact(self, call: Call) -> list[Event]:
        result = self._chain.transact(_through_vault(call) if call.by == VAULT else call, self._now)
        if isinstance(result, Revert):
            error = decode_revert(result.data)
            raise Refused(error.name, **error.values)
        return [_event(log) for log in result if codec.word(log.address) == codec.word(MARKETPLACE)]


def _first_calls() -> Iterator[Call]:
    for blueprint in BLUEPRINTS:
        yield Call(STRANGER, CREATE2_PROXY, blueprint.order)
    for token in TOKENS:
        for party, amount in OWNED.items():
            yield Call(party, token, codec.calldata("TestDollar", "mint", party, amount))
        for payer in PAYERS:
            yield Call(payer, token, codec.calldata("TestDollar", "approve", MARKETPLACE, 2**256 - 1))
    for host in HOSTS:
        yield RegisterNode(host, host).call
    for host, payout in FIRST_PAYOUTS.items():
        yield SetPayout(host, host, payout).call


def _through_vault(call: Call) -> Call:
    target = codec.word(call.to).to_bytes(32, "big")
    return Call(VAULT_OWNER, VAULT, target + call.value.to_bytes(32, "big") + call.data)


def _event(log: Log) -> Event:
    name = codec.event_names()[log.topics[0]]
    return Event(name, tuple(codec.words(log.topics[1:]) + codec.read_words(log.data)))


# The books, as questions


class _Question(NamedTuple):
    """A call of a contract, packed for the reader, and the names of the words that it answers."""

    names: Sequence[Name]
    packed: bytes


def _question(names: Sequence[Name], to: Address, contract: str, function: str, *args: Any) -> _Question:
    packed = codec.word(to).to_bytes(32, "big") + codec.calldata(contract, function, *args)
    return _Question(names, packed.ljust(bytecode.QUESTION, b"\0"))


def _asked(names: Sequence[Name], function: str, *args: Any) -> _Question:
    return _question(names, MARKETPLACE, "JobMarketplace", function, *args)


@cache
def _job(job_id: int) -> _Question:
    return _asked([("job", job_id, member) for member in codec.job_members()], "getJob", job_id)


def _questions() -> Iterator[_Question]:
    yield _asked([("jobs",)], "jobCount")
    for asset in ASSETS:
        yield _asked([("treasury", asset)], "treasuryBalance", asset)
        for party in PARTIES:
            names = [("refunds", party, asset), ("earnings", party, asset)]
            yield _asked(names, "balanceOf", party, asset)
    for token in TOKENS:
        for owner in _OWNERS:
            yield _question([("wallet", owner, token)], token, "TestDollar", "balanceOf", owner)
    for host in HOSTS:
        yield _question([("registered", host)], REGISTRY, "NodeRegistry", "isRegistered", host)
        yield _question([("payout", host)], REGISTRY, "NodeRegistry", "payoutOf", host)


_OWNERS = (*PARTIES, MARKETPLACE)
_QUESTIONS = tuple(_questions())
