"""Who lost what, from the chain and from what the sockets brought.

Reads the chain over a connection of its own, raw web3.py on anvil's port. Shares no arithmetic and no
decision with the package: tokens are counted by their words, prices are multiplied here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import rfc8785
from web3 import HTTPProvider, Web3

from tallystick.artifacts import artifact
from tests.adversaries.client import Opened
from tests.adversaries.engine import Order, words

MILLION = 10**6
CREDITS = 2
"""Law 3: one that is under way, and one written off over the job's life."""
TEMPLATE = 64
"""Tokens that a payer believes of a prompt beyond its bytes (protocol §6)."""

Pair = tuple[int, int]
"""Prompt and generated tokens."""


@dataclass(frozen=True)
class Took:
    """What came over the sockets of one client, or of several that are one party."""

    job: Opened
    texts: Sequence[str]
    stranger: bool = False
    """It may not spend the job."""


@dataclass(frozen=True)
class Served:
    """A session in which the client lied, and the honest host served."""

    seed: int
    lie: str
    honest: bool
    strangers_most: int
    """Tokens that strangers may get."""
    order: Order
    job: Opened
    signed: Pair
    """No receipt that the job's key signed is above it."""
    took: Sequence[Took]
    told: int
    answers: Mapping[str, int]


@dataclass(frozen=True)
class Dealt:
    """A session in which the host lied, and the honest payer asked."""

    seed: int
    lie: str
    honest: bool
    orders: Sequence[Order]
    job: Opened | None
    """None: the payer was to open it."""
    opened: bool
    """The payer did."""
    signed: Pair
    """By the payer's own store."""
    texts: Sequence[str]
    """What the payer's socket brought of each reply."""
    told: int
    answers: Mapping[str, int]
    trouble: str | None
    """What the payer said when it stopped."""


@dataclass(frozen=True)
class Loss:
    """In generated tokens: a prompt's weigh what they cost, and what is begun counts as a whole one."""

    tokens: int = 0
    most: int = 0
    """What law 3 allows."""


@dataclass(frozen=True)
class Result:
    """One session, judged."""

    seed: int
    lie: str
    told: int
    answers: Mapping[str, int]
    interval: int
    host: Loss | None = None
    payer: Loss = field(default_factory=Loss)
    stranger: Loss | None = None
    burnt: Loss | None = None
    """What the engine made and no socket brought."""
    wrong: Sequence[str] = ()
    at_once: int = 0
    """Tokens in one read from the engine, where that is the honest host's."""


class Oracle:
    """Reads jobs, and judges sessions by them."""

    def __init__(self, url: str, marketplace: str, dollar: str) -> None:
        self._w3 = Web3(HTTPProvider(url, exception_retry_configuration=None), middleware=[])
        self._marketplace: Any = self._contract("JobMarketplace", marketplace)
        self._dollar: Any = self._contract("TestDollar", dollar)

    def balance(self, owner: str) -> int:
        """Of the dollar, in base units."""
        return int(self._dollar.functions.balanceOf(Web3.to_checksum_address(owner)).call())

    def settled(self, job_id: int) -> Pair:
        """What the chain has paid for."""
        job = self._job(job_id)
        return job["promptTokens"], job["tokens"]

    def owed(self, jobs: Iterable[int]) -> int:
        """What these jobs cost their payers by their totals, in base units."""
        return sum(map(self._owed, map(self._job, jobs)))

    @staticmethod
    def _owed(job: Mapping[str, int]) -> int:
        prompts = job["promptTokens"] * job["promptPricePerMillion"]
        return int((job["tokens"] * job["pricePerMillion"] + prompts) // MILLION)

    def judge_served(self, session: Served, made: Sequence[Mapping[str, int]]) -> Result:
        """`made`: what the honest host's engine made, reply by reply."""
        wrong: list[str] = []
        settled = self.settled(session.job.id)
        mine = [took for took in session.took if took.job.id == session.job.id]
        came = _brought(mine)
        delivered = _delivered(came, made)
        host = _lost(session.job, delivered, settled, CREDITS * session.job.interval)
        strangers = self._strangers(session, wrong)
        replies = {number for number, each in enumerate(made) if each["session"] == session.seed}
        wrong += _unpayable(session, settled, [made[number] for number in replies])
        burnt = _burnt(session, replies, made)
        for party, loss in (("the host", host), ("the engine", burnt), ("a stranger", strangers)):
            if loss is not None and loss.tokens > loss.most:
                wrong.append(f"{party}: {loss.tokens} tokens, where {loss.most} are allowed")
        if session.honest and (delivered != settled or host.tokens):
            wrong.append(f"{delivered} came, {settled} was paid, and nobody lied")
        told = (session.seed, session.lie, session.told, session.answers, session.job.interval)
        return Result(
            *told, host=host, stranger=strangers, burnt=burnt, wrong=wrong, at_once=session.order.at_once
        )

    def judge_dealt(self, session: Dealt) -> Result:
        """What the chain took from the payer for what its socket brought."""
        told = (session.seed, session.lie, session.told, session.answers)
        if session.job is None:
            return Result(*told, 0, wrong=["it opened a job"] if session.opened else [])
        settled, wrong = self.settled(session.job.id), []
        job, honest, bound = session.job, _words_of(session), _bound_of(session)
        payer = _lost(job, settled, honest, _tokens(job, _beyond(bound, honest)))
        if _beyond(settled, session.signed) != (0, 0):
            wrong.append(f"{settled} was paid for, {session.signed} signed")
        if _beyond(settled, bound) != (0, 0):
            wrong.append(f"{settled} was paid for, where what came bears out {bound}")
        if session.honest and settled != honest and session.trouble is None:
            wrong.append(f"{honest} came, {settled} was paid, and nobody lied")
        return Result(*told, job.interval, payer=payer, wrong=wrong)

    def _strangers(self, session: Served, wrong: list[str]) -> Loss | None:
        strangers = [took for took in session.took if took.stranger]
        if not strangers:
            return None
        others = [took for took in strangers if took.job.id != session.job.id]
        mine = [took for took in session.took if took.job.id == session.job.id]
        if _brought(others).keys() & _brought(mine).keys():
            wrong.append("a stranger was sent another's reply")
        return Loss(sum(_brought(strangers).values()), session.strangers_most)

    def _job(self, job_id: int) -> Mapping[str, int]:
        found: Any = self._marketplace.functions.getJob(job_id).call()
        return dict(found._asdict())

    def _contract(self, name: str, address: str) -> Any:
        at = Web3.to_checksum_address(address)
        return self._w3.eth.contract(address=at, abi=artifact(name).abi, decode_tuples=True)


def _brought(took: Iterable[Took]) -> Counter[int]:
    """By reply of the engine: how many of its tokens came."""
    return words("\n".join(text for each in took for text in each.texts))


def _delivered(came: Mapping[int, int], made: Sequence[Mapping[str, int]]) -> Pair:
    """With the prompts of all replies of which something came."""
    return sum(made[reply]["prompt_tokens"] for reply in came), sum(came.values())


def _unpayable(session: Served, settled: Pair, made: Sequence[Mapping[str, int]]) -> list[str]:
    """What the payer paid and was not signed for, or never made."""
    whole = (sum(each["prompt_tokens"] for each in made), sum(each["tokens"] for each in made))
    told = []
    if _beyond(settled, session.signed) != (0, 0):
        told.append(f"{settled} was paid for, {session.signed} signed")
    if _beyond(settled, whole) != (0, 0):
        told.append(f"{settled} was paid for, {whole} made")
    return told


def _burnt(session: Served, replies: Iterable[int], made: Sequence[Mapping[str, int]]) -> Loss:
    """An interval is held for all streams, and what the last read of each brought; then it is cancelled."""
    came = _brought(session.took)
    numbers = list(replies)
    burnt = sum(made[reply]["tokens"] - came[reply] for reply in numbers)
    interval = session.job.interval
    return Loss(burnt, len(numbers) * (interval + session.order.at_once) + CREDITS * interval)


def _words_of(session: Dealt) -> Pair:
    """What an honest host would have counted for what came."""
    came = [
        (order, sum(words(text).values())) for order, text in zip(session.orders, session.texts, strict=False)
    ]
    return sum(order.prompt_tokens for order, count in came if count), sum(count for _, count in came)


def _bound_of(session: Dealt) -> Pair:
    """The most that the protocol has a payer sign for what came (protocol §6)."""
    asked = session.orders[: len(session.texts)]
    prompts = sum(len(rfc8785.dumps(order.body())) + TEMPLATE for order in asked)
    tokens = [
        min(order.limit or order.tokens, len(text.encode()) + 1)
        for order, text in zip(asked, session.texts, strict=True)
    ]
    return prompts, sum(tokens)


def _lost(job: Opened, gave: Pair, got: Pair, most: int) -> Loss:
    """What `gave` is worth beyond `got`."""
    return Loss(_tokens(job, _beyond(gave, got)), most)


def _beyond(one: Pair, other: Pair) -> Pair:
    return max(0, one[0] - other[0]), max(0, one[1] - other[1])


def _tokens(job: Opened, pair: Pair) -> int:
    """What a pair is worth, in generated tokens, begun ones included."""
    return -(-(pair[0] * job.prompt_price + pair[1] * job.price) // job.price)
