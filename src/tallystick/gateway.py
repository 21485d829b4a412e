"""OpenAI's API over a payer's jobs: a request in, an answer out that is paid for as it comes.

    async with gateway.answer("POST", "/v1/chat/completions", body) as answer:
        answer.status, answer.headers, answer.body          # bytes, or an iterator of them for a stream

What an answer cost is in its `tally`, and in that of its `usage`, which clients hand on. Every refusal has
OpenAI's shape, with whose move it is and what mends it. Knows no socket.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import msgspec
import orjson

from tallystick import caps, frames, pricing, reply, wire
from tallystick.config import MAX_TOKENS
from tallystick.errors import (
    ChainError,
    ConfigError,
    ContractError,
    HostRefused,
    LedgerError,
    ReceiptError,
    Refusal,
    SessionError,
    TallystickError,
)
from tallystick.exchange import Exchange, Part
from tallystick.frames import Problem
from tallystick.mends import complaint
from tallystick.networks import Asset
from tallystick.reply import Form
from tallystick.session import Session
from tallystick.spending import Spender
from tallystick.transcript import prompt_form
from tallystick.types import Prices, Totals
from tallystick.wallet import asset_at
from tallystick.wire import ReplyRequest

PATIENCE = 90.0
"""Seconds for which a host is asked again that does not see the job, or its new deposit, deep enough yet."""
PAUSE = 1.0
"""Seconds between two such tries."""
EVENTS = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache"}
JSON = {"content-type": "application/json"}

_OURS = frozenset({"job_id", "tally", "id", "access"})
_NOT_YET = frozenset({"job_unconfirmed", "deposit_exhausted"})
"""What a host says of a job that it has not seen grow yet: by the payer's own count there is enough."""
_USED_UP = frozenset(
    """
    job_closed job_completing job_ended job_unknown credit_used_up expiry_too_near price_too_low
    interval_too_small interval_too_large claim_window_too_short asset_not_accepted model_mismatch
    signer_reused
    """.split()
)
"""What another job mends."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What goes back to a client."""

    status: int
    body: bytes | AsyncGenerator[bytes, None] = field(repr=False)
    headers: Mapping[str, str] = field(default_factory=lambda: JSON)


@dataclass(frozen=True, slots=True)
class _Route:
    read: Callable[[bytes], ReplyRequest]
    form: Form


ROUTES: Mapping[str, _Route] = {
    "/v1/chat/completions": _Route(wire.parse_chat, reply.CHAT),
    "/v1/completions": _Route(wire.parse_text, reply.TEXT),
}


class Gateway:
    """What a proxy and an `openai` client in the process have in common."""

    def __init__(self, spender: Spender, *, max_tokens: int = MAX_TOKENS) -> None:
        """`max_tokens`: of a choice, where a request names no number."""
        self._spender = spender
        self._max_tokens = max_tokens

    @asynccontextmanager
    async def answer(self, method: str, path: str, body: bytes) -> AsyncIterator[Answer]:
        """The answer to one request; leaving ends it, at the host as well. Errors become answers."""
        async with AsyncExitStack() as parts:
            try:
                answer = await self._answer(method, path, body, parts)
            except TallystickError as error:
                answer = refused(error)
            yield answer

    async def _answer(self, method: str, path: str, body: bytes, parts: AsyncExitStack) -> Answer:
        if path == "/v1/models" or path.startswith("/v1/models/"):
            _allow(method, "GET")
            return await self._models(path.removeprefix("/v1/models").removeprefix("/"))
        if path not in ROUTES:
            raise Refusal("not_found")
        _allow(method, "POST")
        asked = ROUTES[path].read(body)
        paid = await parts.enter_async_context(self.paid(path, asked))
        headers = {"tally-job": str(paid.job), "tally-cost-at-most": paid.told(paid.at_most)}
        if asked.stream:
            return Answer(200, paid.events(asked.include_usage), {**EVENTS, **headers})
        whole = await paid.whole(ROUTES[path].form)
        headers["tally-cost"] = paid.told(paid.value)
        return Answer(200, orjson.dumps(whole), {**JSON, **headers})

    async def _models(self, name: str) -> Answer:
        """The host's models that the caps let one pay for; or the one of that name."""
        quote, spender = await self._spender.quote(), self._spender
        models = []
        for model in quote.models:
            prices = quote.models[model].get(spender.asset)
            if prices is not None and spender.caps.allows(model, prices):
                models.append(_model(model, quote.host, prices))
        if not name:
            return Answer(200, orjson.dumps({"object": "list", "data": models}))
        found = next((model for model in models if model["id"] == name), None)
        if found is None:
            raise Refusal("model_unknown", f"There is no {name!r} here.")
        return Answer(200, orjson.dumps(found))

    @asynccontextmanager
    async def paid(self, path: str, asked: ReplyRequest) -> AsyncIterator[Paid]:
        """A reply under way, on a job that pays for it; leaving ends it. Raises what keeps it from that."""
        order = await self._order(path, asked)
        async with AsyncExitStack() as parts:
            yield await self._paid(order, parts)

    async def _order(self, path: str, asked: ReplyRequest) -> Order:
        """What is sent to the host, and the most that it can cost. Raises what `Spender.prices` raises."""
        model = asked.model or next(iter((await self._spender.quote()).models), "")
        each = asked.max_tokens or self._max_tokens
        body = {name: member for name, member in asked.sent.items() if name not in _OURS}
        body["model"] = model
        if asked.max_tokens is None:
            body["max_tokens"] = each
        max_tokens = each * asked.choices
        prices = await self._spender.prices(model)
        cost = caps.at_most(len(prompt_form(body)), max_tokens, asked.choices, prices)
        return Order(path, asked, body, model, max_tokens, cost)

    async def _paid(self, order: Order, parts: AsyncExitStack) -> Paid:
        """The reply under way, on a job that pays for it; `parts` ends both. Raises TallystickError."""
        loop = asyncio.get_running_loop()
        deadline, retired = loop.time() + PATIENCE, False
        while True:
            async with AsyncExitStack() as attempt:
                session = await attempt.enter_async_context(self._spender.paying(order.model, order.cost))
                try:
                    exchange = await attempt.enter_async_context(_exchange(session, order))
                except HostRefused as refusal:
                    code = refusal.problem.code
                    if code in _USED_UP and not retired:
                        retired = True
                        await self._spender.retire(session)
                    elif code not in _NOT_YET or loop.time() > deadline:
                        raise
                    else:
                        await asyncio.sleep(PAUSE)
                    continue
                parts.push_async_exit(attempt.pop_all())
                asset = asset_at(self._spender.wallet.chain, session.job.asset)
                return Paid(exchange, session, order, asset)


@dataclass(frozen=True, slots=True)
class Order:
    """One request as it goes to a host."""

    path: str
    asked: ReplyRequest
    body: Mapping[str, Any] = field(repr=False)
    model: str
    max_tokens: int
    """Of all choices together."""
    cost: int
    """The most that it can cost, in base units."""


def _exchange(session: Session, order: Order) -> Exchange:
    return Exchange(session, order.path, order.body, max_tokens=order.max_tokens, choices=order.asked.choices)


def _model(name: str, host: str, prices: Prices) -> dict[str, Any]:
    priced = {"per_million": str(prices.per_million), "prompt_per_million": str(prices.prompt_per_million)}
    return {"id": name, "object": "model", "created": 0, "owned_by": host, "price": priced}


def _allow(method: str, wanted: str) -> None:
    if method != wanted:
        raise Refusal("not_allowed", f"The route takes {wanted}.")


class Paid:
    """A reply that is under way, and what it costs."""

    def __init__(self, exchange: Exchange, session: Session, order: Order, asset: Asset) -> None:
        self.job = session.job.id
        self.at_most = order.cost * pricing.MILLION
        """What it can cost, in micro base units."""
        self._exchange = exchange
        self._session = session
        self._symbol = asset.symbol
        self._decimals = asset.decimals

    @property
    def value(self) -> int:
        """What came so far is worth, in micro base units."""
        return pricing.value(self.totals, self._session.job.prices)

    def told(self, value: int) -> str:
        """An amount in micro base units, for people: "0.000135 tUSD", exactly."""
        return f"{pricing.from_units(value, self._decimals + 6)} {self._symbol}"

    def tally(self) -> dict[str, Any]:
        """What came so far; what it costs, in whole units; what the job has left, in base units."""
        totals = self.totals
        left = self._session.job.deposit - self._session.owed
        told: dict[str, Any] = {
            "job_id": self.job,
            "request": self._exchange.tab.request,
            "prompt_tokens": totals.prompt_tokens,
            "tokens": totals.tokens,
            "cost": pricing.from_units(self.value, self._decimals + 6),
            "left": str(left),
            "asset": self._symbol,
        }
        over = self._exchange.tab.overcount
        if over is not None:
            told["overcount"] = {"what": over.what, "counted": over.counted, "signed": over.bound}
        return told

    @property
    def totals(self) -> Totals:
        """What came so far, in tokens, as the host counts."""
        return self._exchange.tab.totals

    async def parts(self) -> AsyncGenerator[list[Part], None]:
        """The reply as it comes. HostRefused if it broke off at the host, SessionError if on the way."""
        async for parts in self._exchange:
            if failed := next((part.error for part in parts if part.error is not None), None):
                raise HostRefused(frames.problem(failed))
            yield parts

    async def events(self, include_usage: bool) -> AsyncGenerator[bytes, None]:
        """The reply as server-sent events, as they come."""
        try:
            async for parts in self._exchange:
                yield b"".join(self._event(part, include_usage) for part in parts)
        except TallystickError as error:
            yield wire.sse(openai_error(problem_of(error)))
        yield wire.SSE_DONE

    def _event(self, part: Part, include_usage: bool) -> bytes:
        if part.finished or part.usage is not None:
            return self._closing(part, include_usage)
        return b"data: " + part.raw + b"\n\n" if part.said or part.error is not None else b""

    def _closing(self, part: Part, include_usage: bool) -> bytes:
        """An event that ends a choice or the reply: with what it cost until then."""
        if not part.said and not include_usage:
            return b""
        event = orjson.loads(part.raw)
        event["tally"] = {**(event.get("tally") or {}), **self.tally()}
        if part.usage is not None:
            event["usage"] = {**part.usage, "tally": event["tally"]}
        return wire.sse(event)

    async def whole(self, form: Form) -> dict[str, Any]:
        """The reply in one piece. HostRefused if it broke off, SessionError if it cannot be read."""
        parts = [part async for parts in self.parts() for part in parts]
        events = [orjson.loads(part.raw) for part in parts if part.said]
        usage = next((part.usage for part in reversed(parts) if part.usage is not None), {})
        reason = next((part.tally.reason for part in reversed(parts) if part.tally), None)
        try:
            choices = reply.joined((choice for event in events for choice in event["choices"]), form)
            head = events[0]
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise SessionError(f"the host's reply cannot be put together: {error!r}") from error
        tally = {**self.tally(), "reason": reason}
        return {
            **head,
            "object": form.whole,
            "choices": choices,
            "usage": {**usage, "tally": tally},
            "tally": tally,
        }


def problem_of(error: TallystickError) -> dict[str, Any]:
    """What is wrong as the object of protocol §12, in the host's words where the host said it."""
    if isinstance(error, HostRefused):
        return {**msgspec.to_builtins(error.problem), "status": _status(error.problem)}
    return _refusal(error).problem()


def _status(problem: Problem) -> int:
    """A host's status, unless it has none, or one that clients take for an invitation when it is final."""
    if not 400 <= problem.status < 600:
        return 502 if problem.retry else 422
    repeated = problem.status in (408, 409, 429) or problem.status >= 500
    return 422 if repeated and not problem.retry else problem.status


def _refusal(error: TallystickError) -> Refusal:
    match error:
        case Refusal():
            return error
        case ReceiptError():
            return Refusal("host_disputed", complaint(error))
        case ContractError() | ConfigError():
            return Refusal("payment_failed", complaint(error))
        case ChainError():
            return Refusal("chain_unavailable", complaint(error))
        case LedgerError():
            return Refusal("ledger_unavailable", complaint(error))
        case _:
            return Refusal("host_unreachable", complaint(error))


def openai_error(problem: Mapping[str, Any]) -> dict[str, Any]:
    """A problem object as OpenAI's clients read it."""
    detail = problem.get("detail") or problem.get("title")
    message = f"{detail} {problem['mend']}" if problem.get("mend") else detail
    return {"error": {**problem, "message": message, "param": problem.get("param")}}


def refused(error: TallystickError) -> Answer:
    """An error as an answer."""
    problem = problem_of(error)
    return Answer(problem["status"], orjson.dumps(openai_error(problem)))
