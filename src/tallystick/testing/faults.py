"""How an endpoint fails: what it does to one call, and which calls it does it to.

A `View` changes what is asked or answered: the answer is sound JSON-RPC, and tells something else than the
chain's present. A `Break` spoils the answer on its way, before the node had got the request or after.
Knows no server: rpc.py applies them.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import ClassVar

from aiohttp import web

from tallystick.testing.geth import REFUSED, WRONG_CHAIN, Answer, Request
from tallystick.testing.pool import Pooled

# When

When = Callable[[int], bool]
"""Given the number of a call, counted from 1 among those that the rule is about: whether it fails."""


def always(_: int) -> bool:
    """Each time."""
    return True


def nth(*numbers: int) -> When:
    """The calls of these numbers."""
    return lambda number: number in numbers


def first(count: int) -> When:
    """The first so many calls."""
    return lambda number: number <= count


def chance(probability: float, seed: object) -> When:
    """Each call with that probability, in an order that the seed decides."""
    dice = random.Random(repr(seed))
    return lambda _: dice.random() < probability


@dataclass(slots=True, eq=False)
class Rule:
    """A fault, the methods whose calls it befalls (none: all that it can), when, and a switch."""

    fault: View | Break
    methods: frozenset[str] = frozenset()
    when: When = always
    on: bool = True
    calls: int = 0
    """How many calls it was about so far, while it was on."""

    def fires(self, method: str) -> bool:
        """Whether this call fails. Counts it."""
        methods = self.methods or self.fault.concerns
        if not self.on or (methods and method not in methods):
            return False
        self.calls += 1
        return self.when(self.calls)


# Views

Onward = Callable[[Request], Awaitable[Answer]]
"""Asks what lies behind: another view, or the node."""


class View:
    """An endpoint that answers, but not with the chain's present."""

    name: str
    """What it is counted as."""
    concerns: ClassVar[frozenset[str]] = frozenset()
    """The methods that it can change anything of; none: all."""

    async def ask(self, request: Request, onward: Onward) -> Answer | None:
        """The answer, or None if this request is not changed after all."""
        raise NotImplementedError


# Where the block is among the parameters.
_BLOCK_AT = {
    "eth_getBlockByNumber": 0,
    "eth_getBalance": 1,
    "eth_getCode": 1,
    "eth_getTransactionCount": 1,
    "eth_call": 1,
    "eth_estimateGas": 1,
    "eth_feeHistory": 1,
    "eth_getStorageAt": 2,
}
# What is null to a replica that has not come to its block yet, and which member of it is the block's number.
_NUMBERED = {
    "eth_getTransactionReceipt": "blockNumber",
    "eth_getTransactionByHash": "blockNumber",
    "eth_getBlockByHash": "number",
}
_HEADS = {"latest", "pending", "safe", "finalized"}


class Lag(View):
    """A replica that is some blocks behind: head, counts, balances, calls, logs and receipts are of then.

    It still hands on what it is sent: transactions reach the node.
    """

    name = "lag"
    concerns = frozenset(_BLOCK_AT) | frozenset(_NUMBERED) | {"eth_blockNumber", "eth_getLogs"}

    def __init__(self, blocks: int) -> None:
        self.blocks = blocks

    async def ask(self, request: Request, onward: Onward) -> Answer | None:
        top = await self._top(onward)
        if request.method == "eth_blockNumber":
            return {"result": hex(top)}
        if request.method == "eth_getLogs":
            return await _logs_until(top, request, onward)
        if request.method in _NUMBERED:
            return _seen_at(top, _NUMBERED[request.method], await onward(request))
        return await _at(top, request, onward)

    async def _top(self, onward: Onward) -> int:
        head = await onward(Request("eth_blockNumber"))
        return max(0, int(head["result"], 16) - self.blocks)


class Frozen(Lag):
    """A replica that stands still: for ever at the block that was the latest when it was first asked.

    By number: after a reorganisation it shows the new branch's block.
    """

    name = "frozen"

    def __init__(self) -> None:
        super().__init__(0)
        self._stopped: int | None = None

    async def _top(self, onward: Onward) -> int:
        if self._stopped is None:
            self._stopped = await super()._top(onward)
        return self._stopped


async def _logs_until(top: int, request: Request, onward: Onward) -> Answer:
    """What was asked for, as far as it is known: a replica does not say that it knows less."""
    wanted = dict(request.params[0])
    start, end = (_number(wanted.get(edge, "latest"), top) for edge in ("fromBlock", "toBlock"))
    if start > top:
        return {"result": []}
    return await onward(Request("eth_getLogs", [wanted | {"toBlock": hex(min(end, top))}]))


def _seen_at(top: int, member: str, answer: Answer) -> Answer:
    found = answer.get("result")
    if found is not None and found[member] is not None and int(found[member], 16) > top:
        return {"result": None}
    return answer


async def _at(top: int, request: Request, onward: Onward) -> Answer:
    params, at = list(request.params), _BLOCK_AT[request.method]
    if len(params) == at:
        params.append("latest")
    number = _number(params[at], top)
    if number <= top:
        params[at] = hex(number)
        return await onward(Request(request.method, params))
    if request.method == "eth_getBlockByNumber":
        return {"result": None}
    return {"error": {"code": REFUSED, "message": "header not found"}}


def _number(block: str, top: int) -> int:
    if block in _HEADS:
        return top
    return 0 if block == "earliest" else int(block, 16)


class OtherChain(View):
    """An endpoint that says it is on another chain, and takes no transactions for this one."""

    name = "wrong chain id"
    concerns = frozenset({"eth_chainId", "net_version", "eth_sendRawTransaction"})

    def __init__(self, chain_id: int) -> None:
        self.chain_id = chain_id

    async def ask(self, request: Request, onward: Onward) -> Answer | None:
        if request.method == "eth_chainId":
            return {"result": hex(self.chain_id)}
        if request.method == "net_version":
            return {"result": str(self.chain_id)}
        tx = Pooled.read(bytes.fromhex(request.params[0].removeprefix("0x")))
        message = WRONG_CHAIN.format(have=tx.chain_id, want=self.chain_id)
        return {"error": {"code": REFUSED, "message": message}}


class Twice(View):
    """A gateway that asks the node again by itself, and passes the second answer on."""

    name = "duplicate"

    async def ask(self, request: Request, onward: Onward) -> Answer | None:
        await onward(request)
        return await onward(request)


class Slow(View):
    """A request that is long on its way: it reaches the node, even if nobody waits for the answer."""

    name = "delay"

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    async def ask(self, request: Request, onward: Onward) -> Answer | None:
        await asyncio.sleep(self.seconds)
        return await onward(request)


class Miscount(View):
    """The count of pending transactions is `more` than that of mined ones, whatever the pool holds.

    0: a node that does not see the pool. Above: one that holds what the others have dropped.
    """

    name = "pending count"
    concerns = frozenset({"eth_getTransactionCount"})

    def __init__(self, more: int = 0) -> None:
        self.more = more

    async def ask(self, request: Request, onward: Onward) -> Answer | None:
        sender, block = request.params
        if block != "pending":
            return None
        latest = await onward(Request(request.method, [sender, "latest"]))
        return {"result": hex(max(0, int(latest["result"], 16) + self.more))}


class LateReceipt(View):
    """A receipt that is there is null the first `times` that it is asked for."""

    name = "late receipt"
    concerns = frozenset({"eth_getTransactionReceipt"})

    def __init__(self, times: int = 1) -> None:
        self.times = times
        self._withheld: Counter[str] = Counter()

    async def ask(self, request: Request, onward: Onward) -> Answer | None:
        tx = request.params[0]
        if self._withheld[tx] == self.times or (await onward(request)).get("result") is None:
            return None
        self._withheld[tx] += 1
        return {"result": None}


class FewBlocks(View):
    """An endpoint that gives logs for so many blocks at a time, and refuses to look through more."""

    name = "block range"
    concerns = frozenset({"eth_getLogs"})

    def __init__(self, blocks: int) -> None:
        self.blocks = blocks

    async def ask(self, request: Request, onward: Onward) -> Answer | None:
        first, last = (int(request.params[0][edge], 16) for edge in ("fromBlock", "toBlock"))
        if last - first < self.blocks:
            return None
        return {"error": {"code": -32005, "message": f"block range is limited to {self.blocks}"}}


class Erring(View):
    """A JSON-RPC error in the place of an answer; the node is not asked."""

    def __init__(self, code: int, message: str) -> None:
        self.name = f"error {code}"
        self.code = code
        self.message = message

    async def ask(self, request: Request, onward: Onward) -> Answer | None:
        return {"error": {"code": self.code, "message": self.message}}


# Breaks


@dataclass(frozen=True, slots=True)
class Break:
    """The answer does not come as it should. `after`: the node had got the request, and did it."""

    after: bool = field(default=False, kw_only=True)
    concerns: ClassVar[frozenset[str]] = frozenset()

    @property
    def name(self) -> str:
        """What it is counted as."""
        return f"{type(self).__name__.lower()} {'after' if self.after else 'before'}"

    async def respond(self, http: web.Request, answer: bytes) -> web.StreamResponse:
        """What goes over the wire; `answer`: what should, empty if the node was not asked."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Cut(Break):
    """The connection is cut, and nothing was answered."""

    async def respond(self, http: web.Request, answer: bytes) -> web.StreamResponse:
        return _abort(http)


@dataclass(frozen=True, slots=True)
class Hang(Break):
    """Silence, until the client gives up."""

    async def respond(self, http: web.Request, answer: bytes) -> web.StreamResponse:
        await asyncio.Event().wait()
        return web.Response()


@dataclass(frozen=True, slots=True)
class Status(Break):
    """What a gateway says by HTTP: 429 to who asks too often, 502 to 504 when the node fails."""

    code: int = 503
    body: str = "upstream failed"

    @property
    def name(self) -> str:
        return f"HTTP {self.code} {'after' if self.after else 'before'}"

    async def respond(self, http: web.Request, answer: bytes) -> web.StreamResponse:
        return web.Response(status=self.code, text=self.body)


@dataclass(frozen=True, slots=True)
class Garbage(Break):
    """HTTP 200, and a page for people."""

    async def respond(self, http: web.Request, answer: bytes) -> web.StreamResponse:
        return web.Response(text="<html>Please sign in</html>", content_type="text/html")


@dataclass(frozen=True, slots=True)
class Truncated(Break):
    """Half of the JSON, as if it were all."""

    after: bool = field(default=True, kw_only=True)

    async def respond(self, http: web.Request, answer: bytes) -> web.StreamResponse:
        return web.Response(body=answer[: len(answer) // 2], content_type="application/json")


@dataclass(frozen=True, slots=True)
class Malformed(Break):
    """All of the answer, with a comma too many for JSON."""

    after: bool = field(default=True, kw_only=True)

    async def respond(self, http: web.Request, answer: bytes) -> web.StreamResponse:
        return web.Response(body=answer[:-1] + b",}", content_type="application/json")


@dataclass(frozen=True, slots=True)
class Severed(Break):
    """The connection is cut in the middle of the answer."""

    after: bool = field(default=True, kw_only=True)

    async def respond(self, http: web.Request, answer: bytes) -> web.StreamResponse:
        response = web.StreamResponse()
        response.content_length = len(answer)
        await response.prepare(http)
        await response.write(answer[: len(answer) // 2])
        _abort(http)
        return response


def _abort(http: web.Request) -> web.Response:
    if http.transport is not None:
        http.transport.abort()
    return web.Response()
