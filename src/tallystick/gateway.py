"""OpenAI's API over a payer's jobs: a request in, an answer out that is paid for as it comes.

    async with gateway.answer("POST", "/v1/chat/completions", body) as answer:
        answer.status, answer.headers, answer.body          # bytes, or an iterator of them for a stream

What an answer cost is in its `tally`, and in that of its `usage`, which clients hand on. Every refusal has
OpenAI's shape, with whose move it is and what mends it. Knows no socket.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import msgspec
import orjson
import structlog

from tallystick import asking, caps, frames, pricing, reply, sse
from tallystick.asking import ReplyRequest
from tallystick.blame import NOT_YET, USED_UP, blame
from tallystick.config import MAX_TOKENS
from tallystick.errors import (
    ChainError,
    ConfigError,
    ContractError,
    HostLate,
    HostRefused,
    LedgerError,
    PriceRose,
    ReceiptError,
    Refusal,
    SessionError,
    TallystickError,
)
from tallystick.exchange import Exchange, Part
from tallystick.frames import Problem
from tallystick.mends import complaint
from tallystick.networks import Asset
from tallystick.ranking import Candidate
from tallystick.record import Came, Trouble
from tallystick.reply import Form
from tallystick.session import Session
from tallystick.spending import Spender
from tallystick.transcript import prompt_form
from tallystick.tries import Tries, Try
from tallystick.types import Totals
from tallystick.wallet import asset_at

PATIENCE = 90.0
"""Seconds for which a host is asked again that does not see the job, or its new deposit, deep enough yet."""
PAUSE = 1.0
"""Seconds between two such tries."""
EVENTS = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache"}
JSON = {"content-type": "application/json"}

_OURS = frozenset({"job_id", "tally", "id", "access"})

log = structlog.get_logger(__name__)


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
    "/v1/chat/completions": _Route(asking.parse_chat, reply.CHAT),
    "/v1/completions": _Route(asking.parse_text, reply.TEXT),
}


class Gateway:
    """What a proxy and an `openai` client in the process have in common."""

    def __init__(self, spender: Spender, *, max_tokens: int = MAX_TOKENS) -> None:
        """`max_tokens`: of a choice, where a request names no number."""
        self._spender = spender
        self._max_tokens = max_tokens
        self._first_token = float(spender.wallet.config.first_token)
        self._under_way: set[Paid] = set()
        self._stopping = asyncio.Event()

    @asynccontextmanager
    async def answer(self, method: str, path: str, body: bytes) -> AsyncIterator[Answer]:
        """The answer to one request; leaving ends it, at the host as well. Errors become answers."""
        async with AsyncExitStack() as parts:
            try:
                answer = await self._answer(method, path, body, parts)
            except TallystickError as error:
                answer = refused(error)
            yield answer

    async def stop(self) -> None:
        """Begins no reply any more, and has those under way ended by their hosts, as cut ones."""
        self._stopping.set()
        await asyncio.gather(*(paid.end() for paid in self._under_way))

    async def _answer(self, method: str, path: str, body: bytes, parts: AsyncExitStack) -> Answer:
        if path == "/v1/models" or path.startswith("/v1/models/"):
            _allow(method, "GET")
            return await self._models(path.removeprefix("/v1/models").removeprefix("/"))
        if path not in ROUTES:
            raise Refusal("not_found")
        _allow(method, "POST")
        asked = ROUTES[path].read(body)
        if asked.stream:
            paid = await parts.enter_async_context(self.paid(path, asked))
            return Answer(200, paid.events(asked.include_usage), {**EVENTS, **paid.headers})
        tries = Tries()
        try:
            paid, whole = await self._whole(path, asked, tries)
        except TallystickError as error:
            return refused(error, tries.told())
        headers = {**JSON, **paid.headers, "tally-cost": paid.told(paid.value)}
        return Answer(200, orjson.dumps(whole), headers)

    async def _models(self, name: str) -> Answer:
        """The models that the caps allow, each of whoever would be asked; or the one of that name."""
        spender = self._spender
        models = [_model(each) for each in await spender.hosts.sold(spender.asset, spender.caps)]
        if not name:
            return Answer(200, orjson.dumps({"object": "list", "data": models}))
        found = next((model for model in models if model["id"] == name), None)
        if found is None:
            raise Refusal("model_unknown", f"There is no {name!r} here.")
        return Answer(200, orjson.dumps(found))

    @asynccontextmanager
    async def paid(self, path: str, asked: ReplyRequest) -> AsyncIterator[Paid]:
        """A reply that has begun, on a job that pays for it; leaving ends it. Raises TallystickError."""
        async with AsyncExitStack() as parts:
            yield await self._unless_stopping(self._begun(path, asked, Tries(), parts))

    async def _whole(self, path: str, asked: ReplyRequest, tries: Tries) -> tuple[Paid, dict[str, Any]]:
        """A reply in one piece. Of one that broke off nobody has read anything: the next host is asked."""
        while True:
            async with AsyncExitStack() as parts:
                paid = await self._unless_stopping(self._begun(path, asked, tries, parts))
                try:
                    return paid, await paid.whole(ROUTES[path].form)
                except TallystickError as error:
                    tries.add(Try(paid.candidate.url, error, paid.cost()))
                    if blame(error) is None:
                        raise

    async def _unless_stopping(self, beginning: Coroutine[Any, Any, Paid]) -> Paid:
        """What it brings. Refusal `proxy_stopping` once this stops."""
        begun, stopping = asyncio.create_task(beginning), asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait([begun, stopping], return_when=asyncio.FIRST_COMPLETED)
            if not begun.done():
                raise Refusal("proxy_stopping")
            return begun.result()
        finally:
            begun.cancel()
            stopping.cancel()
            await asyncio.wait([begun, stopping])

    async def _begun(self, path: str, asked: ReplyRequest, tries: Tries, parts: AsyncExitStack) -> Paid:
        """A reply that has begun, at the first host that does; `parts` ends it. Raises TallystickError."""
        while True:
            candidate = await self._next_host(asked.model, tries)
            order = self._order(path, asked, candidate)
            try:
                return await self._paid(order, tries, parts)
            except PriceRose as error:
                if candidate.url in tries.risen:
                    raise
                tries.add(Try(candidate.url, error))
            except Refusal as refusal:
                if not tries:
                    raise
                raise tries.after(refusal, self._spender.held_at(tries.failed)) from refusal
            except TallystickError as error:
                if (trouble := blame(error)) is None:
                    raise
                tries.add(Try(candidate.url, error))
                came = Came(trouble=trouble, cause=complaint(error), began=order.began)
                await self._spender.note(candidate, came)

    async def _next_host(self, model: str | None, tries: Tries) -> Candidate:
        """Who is asked now. Raises why there is nobody, or why nobody is left."""
        chosen = await self._spender.choose(model, tries.urls)
        if chosen is None and tries.risen:
            chosen = await self._spender.choose(model, tries.failed)
        if chosen is None:
            raise tries.error
        return chosen.candidate

    def _order(self, path: str, asked: ReplyRequest, candidate: Candidate) -> Order:
        """What is sent to a host, and the most that it can cost there."""
        each = asked.max_tokens or self._max_tokens
        body = {name: member for name, member in asked.sent.items() if name not in _OURS}
        body["model"] = candidate.model
        if asked.max_tokens is None:
            body["max_tokens"] = each
        max_tokens = each * asked.choices
        cost = caps.at_most(len(prompt_form(body)), max_tokens, asked.choices, candidate.prices)
        return Order(path, asked, body, candidate, max_tokens, cost, time.time())

    async def _paid(self, order: Order, tries: Tries, parts: AsyncExitStack) -> Paid:
        """The reply from the order's host, once it has begun; `parts` ends it. Raises TallystickError."""
        loop = asyncio.get_running_loop()
        deadline, retired = loop.time() + PATIENCE, False
        while True:
            async with AsyncExitStack() as attempt:
                paying = self._spender.paying(order.candidate, order.cost)
                session = await attempt.enter_async_context(paying)
                exchange = _exchange(session, order)
                try:
                    await self._start(exchange, order.candidate, tries, attempt)
                except HostLate:
                    self._spender.see_to(attempt.pop_all().aclose())  # which waits for what is on its way
                    raise
                except HostRefused as refusal:
                    code = refusal.problem.code
                    if code in USED_UP and not retired:
                        retired = True
                        await self._spender.retire(session)
                    elif code not in NOT_YET or loop.time() > deadline:
                        raise
                    else:
                        await asyncio.sleep(PAUSE)
                    continue
                asset = asset_at(self._spender.wallet.chain, session.job.asset)
                paid = Paid(exchange, session, order, asset, tries, self._note)
                self._under_way.add(paid)
                parts.callback(self._under_way.discard, paid)
                parts.push_async_callback(paid.over)
                parts.push_async_exit(attempt.pop_all())
                return paid

    async def _start(
        self, exchange: Exchange, candidate: Candidate, tries: Tries, attempt: AsyncExitStack
    ) -> None:
        """Asks, and waits for the first token; `attempt` ends it.

        HostLate if it is not there in time, and there is another host; raises what Exchange raises.
        """
        starting = asyncio.create_task(_first(exchange, attempt))
        try:
            await asyncio.wait([starting], timeout=self._first_token)
            if not starting.done() and await self._is_other(candidate, tries) and not starting.done():
                within = f"within {self._first_token:.0f} s (PAYER_FIRST_TOKEN)"
                raise HostLate(f"{candidate.url} has not begun its reply {within}")
            await starting
        finally:
            starting.cancel()
            await asyncio.wait([starting])

    async def _is_other(self, candidate: Candidate, tries: Tries) -> bool:
        """There is another host that was not asked yet."""
        try:
            return await self._spender.is_other(candidate, tries.urls)
        except TallystickError as error:
            log.warning("host.late", url=candidate.url, cause=f"no other is known: {error}")
            return False

    async def _note(self, candidate: Candidate, came: Came) -> None:
        """Writes down what came of a reply that is over, for its host's record."""
        try:
            await self._spender.note(candidate, came)
        except TallystickError as error:
            log.warning("host.not_noted", host=candidate.host, cause=str(error))


async def _first(exchange: Exchange, attempt: AsyncExitStack) -> None:
    await attempt.enter_async_context(exchange)
    await exchange.begun()


@dataclass(frozen=True, slots=True)
class Order:
    """One request as it goes to a host."""

    path: str
    asked: ReplyRequest
    body: Mapping[str, Any] = field(repr=False)
    candidate: Candidate
    max_tokens: int
    """Of all choices together."""
    cost: int
    """The most that it can cost, in base units."""
    began: float
    """When it was made, of this machine's clock."""


def _exchange(session: Session, order: Order) -> Exchange:
    return Exchange(session, order.path, order.body, max_tokens=order.max_tokens, choices=order.asked.choices)


def _model(candidate: Candidate) -> dict[str, Any]:
    prices = candidate.prices
    priced = {"per_million": str(prices.per_million), "prompt_per_million": str(prices.prompt_per_million)}
    owner = {"owned_by": candidate.host, "host": candidate.url}
    return {"id": candidate.model, "object": "model", "created": 0, **owner, "price": priced}


def _allow(method: str, wanted: str) -> None:
    if method != wanted:
        raise Refusal("not_allowed", f"The route takes {wanted}.")


class Paid:
    """A reply that is under way, and what it costs."""

    def __init__(
        self,
        exchange: Exchange,
        session: Session,
        order: Order,
        asset: Asset,
        tries: Tries,
        note: Callable[[Candidate, Came], Awaitable[None]],
    ) -> None:
        self.job = session.job.id
        self.candidate = order.candidate
        self.at_most = order.cost * pricing.MILLION
        """What it can cost, in micro base units."""
        self._exchange = exchange
        self._session = session
        self._order = order
        self._symbol = asset.symbol
        self._decimals = asset.decimals
        self._tries = tries
        self._note = note
        self._noted = False
        self._failure: TallystickError | None = None
        """Why it broke off, as its reader was told."""
        self._last = b""
        """The newest event that had a choice."""
        self._ended: set[int] = set()
        """Choices that came to their end."""

    @property
    def headers(self) -> dict[str, str]:
        """What is known of it when it begins."""
        at_most = self.told(self.at_most)
        return {"tally-job": str(self.job), "tally-host": self.candidate.url, "tally-cost-at-most": at_most}

    def came(self) -> Came:
        """What its host's record is to have of it, once it is over."""
        trouble, cause = None, ""
        failure = self._failure or self._exchange.failure
        if (over := self._exchange.tab.overcount) is not None:
            trouble = Trouble.OVERCOUNTED
            cause = f"{over.counted} {over.what} counted, {over.bound} signed for"
        elif failure is not None and (trouble := blame(failure)) is not None:
            cause = complaint(failure)
        return Came(self.totals.tokens, self._exchange.first_token, trouble, cause, self._order.began)

    async def end(self) -> None:
        """Has its host end it, or gives it up as cut."""
        with suppress(SessionError):  # then it breaks off, and its reader learns that
            await self._exchange.end(Refusal("proxy_stopping"))

    async def over(self) -> None:
        """Has what came of it noted; twice is harmless."""
        if not self._noted:
            self._noted = True
            await self._note(self.candidate, self.came())

    def cost(self) -> dict[str, Any]:
        """What came of it so far, and what that costs in whole units."""
        totals, cost = self.totals, pricing.from_units(self.value, self._decimals + 6)
        counts = {"prompt_tokens": totals.prompt_tokens, "tokens": totals.tokens}
        return {"job_id": self.job, **counts, "cost": cost}

    @property
    def value(self) -> int:
        """What came so far is worth, in micro base units."""
        return pricing.value(self.totals, self._session.job.prices)

    def told(self, value: int) -> str:
        """An amount in micro base units, for people: "0.000135 tUSD", exactly."""
        return f"{pricing.from_units(value, self._decimals + 6)} {self._symbol}"

    def tally(self) -> dict[str, Any]:
        """What came so far; what it costs, in whole units; what the job has left, in base units."""
        left = self._session.job.deposit - self._session.owed
        told = {
            **self.cost(),
            "request": self._exchange.tab.request,
            "left": str(left),
            "asset": self._symbol,
            "host": self.candidate.url,
        }
        over = self._exchange.tab.overcount
        if over is not None:
            told["overcount"] = {"what": over.what, "counted": over.counted, "signed": over.bound}
        if self._tries:
            told["tried"] = self._tries.told()
        return told

    @property
    def totals(self) -> Totals:
        """What came so far, in tokens, as the host counts."""
        return self._exchange.tab.totals

    async def parts(self) -> AsyncGenerator[list[Part], None]:
        """The reply as it comes. HostRefused if it broke off at the host, SessionError if on the way."""
        async for parts in self._exchange:
            good = [part for part in parts if part.error is None]
            if good:
                yield good
            if failed := next((part.error for part in parts if part.error is not None), None):
                self._failure = HostRefused(frames.problem(failed))
                raise self._failure

    async def events(self, include_usage: bool) -> AsyncGenerator[bytes, None]:
        """The reply as server-sent events, as they come.

        One that breaks off ends as one that was cut, as its reader has the beginning; its `tally` says why.
        """
        try:
            async for parts in self.parts():
                yield b"".join(self._event(part, include_usage) for part in parts)
        except TallystickError as error:
            yield b"".join(map(sse.event, self._broken(error, include_usage)))
        if self.came().trouble is not None:
            await self.over()  # so that the next request, which may come at once, goes elsewhere
        yield sse.DONE

    def _event(self, part: Part, include_usage: bool) -> bytes:
        if part.said:
            self._last = part.raw
        if part.finished or part.usage is not None:
            return self._closing(part, include_usage)
        return b"data: " + part.raw + b"\n\n" if part.said else b""

    def _closing(self, part: Part, include_usage: bool) -> bytes:
        """An event that ends a choice or the reply: with what it cost until then."""
        if not part.said and not include_usage:
            return b""
        event = orjson.loads(part.raw)
        self._ended |= {each.get("index", 0) for each in event["choices"] if each.get("finish_reason")}
        event["tally"] = {**(event.get("tally") or {}), **self.tally()}
        if part.usage is not None:
            event["usage"] = {**part.usage, "tally": event["tally"]}
        return sse.event(event)

    def _broken(self, error: TallystickError, include_usage: bool) -> Iterator[dict[str, Any]]:
        """The end of a reply that broke off: what was not at its end has been cut."""
        problem = problem_of(error)
        if not self._last:
            yield openai_error(problem)
            return
        head, blank = orjson.loads(self._last), ROUTES[self._order.path].form.blank
        tally = {**self.tally(), "reason": problem["code"], "error": problem}
        cut = set(range(self._order.asked.choices)) - self._ended
        choices = [{"index": index, **blank, "finish_reason": "length"} for index in sorted(cut)]
        yield {**head, "choices": choices, "tally": tally}
        if include_usage:
            totals = self.totals
            counts = {"prompt_tokens": totals.prompt_tokens, "completion_tokens": totals.tokens}
            usage = {**counts, "total_tokens": totals.prompt_tokens + totals.tokens, "tally": tally}
            yield {**head, "choices": [], "tally": tally, "usage": usage}

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


_OF_SOME = ("stored", "prompt_tokens", "terms", "retry_after")
"""Members that a problem has only where they mean something."""


def problem_of(error: TallystickError) -> dict[str, Any]:
    """What is wrong as the object of protocol §12, in the host's words where the host said it."""
    if isinstance(error, HostRefused):
        told = {**msgspec.to_builtins(error.problem), "status": _status(error.problem)}
        return {name: member for name, member in told.items() if member or name not in _OF_SOME}
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
            return Refusal("rpc_unavailable", complaint(error))
        case LedgerError():
            return Refusal("store_unavailable", complaint(error))
        case _:
            return Refusal("host_unreachable", complaint(error))


def openai_error(problem: Mapping[str, Any]) -> dict[str, Any]:
    """A problem object as OpenAI's clients read it."""
    detail = problem.get("detail") or problem.get("title")
    message = f"{detail} {problem['mend']}" if problem.get("mend") else detail
    return {"error": {**problem, "message": message, "param": problem.get("param")}}


def refused(error: TallystickError, tried: Sequence[Mapping[str, Any]] = ()) -> Answer:
    """An error as an answer. `tried`: what was asked of hosts in vain, with what came of it and is paid."""
    problem = problem_of(error)
    if tried:
        problem["tried"] = tried
    return Answer(problem["status"], orjson.dumps(openai_error(problem)))
