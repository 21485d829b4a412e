"""What an application pays with: a host's models in two lines, with jobs opened and completed on the way.

    async with AsyncSession(deposit="2 USDC", model="llama-3.1-8b", max_price="0.60") as session:
        async for text in session.chat("Why was the stick split?"):
            print(text, end="")

`sync.py` has the same without `async`. Whose money it is, on which chain, and where keys and receipts are
kept comes from the settings (docs/settings.md), unless a PayerConfig is given.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, contextmanager
from dataclasses import dataclass
from decimal import Decimal
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, overload

import orjson

from tallystick import wallet
from tallystick.asking import ReplyRequest, parse_chat
from tallystick.config import PayerConfig
from tallystick.countersign import Overcount
from tallystick.errors import ConfigError, Refusal, SessionError
from tallystick.gateway import Gateway, Paid
from tallystick.listeners import Hearing, Listeners
from tallystick.session import BalanceLow, Settled, Signed
from tallystick.spending import IDLE, HostChosen, OfHost, OfJob, SetAside, Spender
from tallystick.types import Completion, Job, JobId, Totals

if TYPE_CHECKING:
    import openai

Amount = str | Decimal | int
"""An amount as people type it: "2 USDC", "0.001 ETH", "2", Decimal("0.60"), 2. Exact, so never a float."""
Messages = str | Sequence[Mapping[str, Any]]
"""One prompt of a user, or messages as OpenAI's API has them."""
Kind = Literal["checkpoint", "settled", "balance_low", "overcount", "completed", "host_chosen", "set_aside"]
Told = Signed | Settled | BalanceLow | Overcount | Completion | HostChosen | SetAside
"""What listeners hear of a job: a receipt was acknowledged, or settled; the deposit runs low; the host
counted more than is signed for; all is over. And of hosts: which one is asked from now on, and which one is
not for a while.
"""

_KINDS: Mapping[Kind, type[Told]] = {
    "checkpoint": Signed,
    "settled": Settled,
    "balance_low": BalanceLow,
    "overcount": Overcount,
    "completed": Completion,
    "host_chosen": HostChosen,
    "set_aside": SetAside,
}


@dataclass(frozen=True, slots=True)
class Reply:
    """What became of the last reply."""

    totals: Totals
    """Prompt tokens and generated tokens."""
    cost: Decimal
    """In whole units of the asset, exactly."""
    asset: str
    """Its symbol."""
    reason: str
    """Why it ended: `stop`, `length`, or in the words of docs/protocol.md, section 9."""
    job_id: JobId
    host: str = ""
    """The URL of the host that made it."""


OUTSIDE = "the session is not entered, or was left: `with Session(…) as session`"
"""Why nothing can be asked."""
CUT = "the session was left before the reply had ended; what came of it is paid for"
"""Why no more comes."""


class AsyncSession:
    """Pays hosts for what is asked of their models, within a deposit. `async with` it.

    Entering connects to the chain; the first request opens a job, which all further ones share. Leaving
    completes it: what was not spent comes back. A program that was killed goes on with its job when it runs
    again. All errors are TallystickErrors of `tallystick.errors`, and say what mends them.
    """

    def __init__(
        self,
        *,
        deposit: Amount | None = None,
        model: str | None = None,
        max_price: Amount | None = None,
        max_per_day: Amount | None = None,
        host: str | Sequence[str] | None = None,
        idle: float = IDLE,
        tokenizers: Sequence[str] = (),
        config: PayerConfig | None = None,
    ) -> None:
        """What may be spent, and on what.

        Amounts are in whole units and exact: "2 USDC", "0.60", Decimal("0.60"), 2; a float is a ConfigError.

        `deposit`: in escrow at a time, like "2 USDC"; by default PAYER_DEPOSIT of the dollar.
        `model`: by default the first that the chosen host names.
        `max_price`: the most per million tokens, prompt or generated, in the same asset; by default no bound.
        `max_per_day`: the most on a day of the chain's clock (UTC); by default one deposit.
        `host`: its URL, or those of several to choose among; by default HOST_URL, or else all registered
        hosts. Chosen is by price and by this payer's own record of them; when one fails, the next is asked.
        `idle`: seconds without a request until a job is completed.
        `tokenizers`: what to hold the host's counts against, each as "MODEL=FILE@sha256:DIGITS", a GGUF or a
            `tokenizers` JSON; by default PAYER_TOKENIZERS. A model without one is held to bounds.
        `config`: in the place of the environment's settings.
        """
        self._deposit = typed(deposit)
        self._model = model
        self._prices = [] if max_price is None else [str(typed(max_price))]
        self._per_day = typed(max_per_day)
        self._hosts = [host] if isinstance(host, str) else list(host or ())
        self._idle = idle
        self._tokenizers = tokenizers
        self._config = config
        self._listeners: dict[type[Told], Listeners[[Any]]] = {kind: Listeners() for kind in _KINDS.values()}
        self._hearing = Hearing()
        self._parts = AsyncExitStack()
        self._spender: Spender | None = None
        self._gateway: Gateway | None = None
        self._reply: Reply | None = None

    async def __aenter__(self) -> Self:
        """Connects to the chain. No job is opened yet, and no money moves.

        ConfigError for settings or amounts that make no sense, ChainError if the chain does not answer,
        LedgerError if the store of keys and receipts (PAYER_DATA_DIR) cannot be used.
        """
        async with AsyncExitStack() as parts:
            purse = await parts.enter_async_context(wallet.opened(self._config, self._tokenizers))
            await parts.enter_async_context(self._hearing)
            asset = purse.asset(_symbol(self._deposit))
            caps = purse.caps(self._deposit, self._per_day, self._prices, asset, named=str)
            spender = Spender(
                purse,
                caps,
                purse.host_urls(self._hosts, name="host"),
                asset=asset,
                idle=self._idle,
                hear=self._heard,
            )
            self._spender = await parts.enter_async_context(spender)
            self._gateway = Gateway(spender, max_tokens=purse.config.max_tokens)
            parts.push_async_callback(self._gateway.stop)
            self._parts = parts.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends replies under way and completes the jobs, also one that is being opened. One whose host does
        not answer is logged, with what brings its rest back.
        """
        self._gateway = None
        await self._parts.aclose()

    @property
    def gateway(self) -> Gateway:
        """OpenAI's API over this session's jobs, for requests as bytes. SessionError outside of `with`."""
        if self._gateway is None:
            raise SessionError(OUTSIDE)
        return self._gateway

    @property
    def reply(self) -> Reply | None:
        """What became of the last reply that ended, and what it cost."""
        return self._reply

    @overload
    def on(self, kind: Literal["checkpoint"], listener: Callable[[Signed], object]) -> None: ...

    @overload
    def on(self, kind: Literal["settled"], listener: Callable[[Settled], object]) -> None: ...

    @overload
    def on(self, kind: Literal["balance_low"], listener: Callable[[BalanceLow], object]) -> None: ...

    @overload
    def on(self, kind: Literal["overcount"], listener: Callable[[Overcount], object]) -> None: ...

    @overload
    def on(self, kind: Literal["completed"], listener: Callable[[Completion], object]) -> None: ...

    @overload
    def on(self, kind: Literal["host_chosen"], listener: Callable[[HostChosen], object]) -> None: ...

    @overload
    def on(self, kind: Literal["set_aside"], listener: Callable[[SetAside], object]) -> None: ...

    def on(self, kind: Kind, listener: Callable[[Any], object]) -> None:
        """Has `listener` called with each event of a kind, in their order, while replies go on.

        `checkpoint`: a Signed; the host has this `receipt` on its disk, for so many tokens in all.
        `settled`: a Settled; the host says that the chain paid for `totals`: `host`, `treasury`, in `tx`.
        `balance_low`: a BalanceLow; a fifth of the deposit or less is `left`.
        `overcount`: an Overcount; the host `counted` more than `bound`, which is all that is signed for.
        `completed`: a Completion; the job is closed: `owed` was paid, `refund` came back, in `tx`.
        `host_chosen`: a HostChosen; requests for `model` go to `url` from now on, and `why`.
        `set_aside`: a SetAside; others are asked before `url` for so many `seconds`, for a `cause`.

        Amounts are in base units of the asset, totals in tokens.

        An AsyncSession calls it in its event loop, where it has to return soon; an `async def` is awaited,
        one event after the other. A Session calls it in a thread, one event after the other, so that it may
        take its time, and call the session. Leaving the session waits until all is heard. What a listener
        raises is logged, and harms nothing else. ConfigError for another kind, and for an `async def` where
        nothing awaits it, in a Session.
        """
        if kind not in _KINDS:
            raise ConfigError(f"there is no event {kind!r}; there are {', '.join(_KINDS)}")
        self._listeners[_KINDS[kind]].add(self._hearing.of(listener))

    async def models(self) -> list[str]:
        """The names of the models that hosts sell within the caps. SessionError if none can be asked."""
        async with self.gateway.answer("GET", "/v1/models", b"") as answer:
            assert isinstance(answer.body, bytes)
            told = orjson.loads(answer.body)
        if answer.status != 200:
            raise SessionError(told["error"]["message"])
        return [model["id"] for model in told["data"]]

    async def chat(
        self, prompt: Messages, *, max_tokens: int | None = None, **sampling: Any
    ) -> AsyncGenerator[str, None]:
        """Asks, and yields the text of the reply as it comes; then `reply` tells what it cost.

        `prompt`: a user's text, or messages as OpenAI's API has them. `max_tokens`: the most that the reply
        may have; by default PAYER_MAX_TOKENS. Before it is asked, its cost at the most is held against the
        deposit and the day. `sampling` is passed on: temperature, seed, stop, …

        Leaving the iteration early ends the reply; what came is paid for. Raises Refusal where it is no
        request, or the caps do not allow it, HostRefused where the host does not serve it, ReceiptError where
        the host's counts cannot be signed for, SessionError and ChainError where host or chain do not answer,
        and SessionError if the session is left before the reply has ended.
        """
        asked = {"model": self._model, "max_tokens": max_tokens, **sampling}
        request = _request(prompt, {name: each for name, each in asked.items() if each is not None})
        with _leaving_told():
            async with self.gateway.paid("/v1/chat/completions", request) as paid:
                reason = ""
                async with aclosing(paid.parts()) as reads:
                    async for parts in reads:
                        for part in parts:
                            reason = (part.tally and part.tally.reason) or reason
                        if text := "".join([part.content for part in parts]):
                            yield text
                self._reply = _reply(paid, reason)
        if reason == "cancelled":
            raise SessionError(CUT)

    def openai(self, **options: Any) -> openai.AsyncOpenAI:
        """OpenAI's own client, paying from this session. `options` go to it; close it as any other.

        Of its `timeout` the time to read counts: until a reply begins, or is whole, and between two events of
        a stream. What came until then is paid for. SessionError for requests after the session was left.
        """
        from tallystick import transport

        return transport.async_client(lambda: self.gateway, **options)

    def _heard(self, job: Job | None, event: OfJob | OfHost) -> None:
        for kind, listeners in self._listeners.items():
            if isinstance(event, kind):
                listeners.tell(event)


def _request(prompt: Messages, members: Mapping[str, Any]) -> ReplyRequest:
    """What chat() asks for. Refusal `invalid_request` for what is no prompt, or no JSON; `too_large`."""
    if not isinstance(prompt, str | Sequence):
        raise Refusal(
            "invalid_request", "`prompt`: it is neither a text nor a list of messages.", param="prompt"
        )
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    try:
        request = parse_chat(orjson.dumps({"messages": messages, **members}))
    except orjson.JSONEncodeError as error:
        raise Refusal("invalid_request", f"The request cannot be written as JSON: {error}.") from None
    if request.n != 1:
        raise Refusal("invalid_request", "`n`: chat() gives one choice; openai() gives several.", param="n")
    return request


@contextmanager
def _leaving_told() -> Iterator[None]:
    """To whoever waits in the program itself: no proxy stops here, a session was left."""
    try:
        yield
    except Refusal as refusal:
        if refusal.code != "proxy_stopping":
            raise
        raise SessionError(CUT) from None


def _reply(paid: Paid, reason: str) -> Reply:
    told = paid.tally()
    return Reply(paid.totals, Decimal(told["cost"]), told["asset"], reason, paid.job, paid.candidate.url)


def typed(amount: Amount | None) -> str | None:
    """An amount as it is typed. ConfigError for a float: it may not be the number that it looks like."""
    if amount is None or isinstance(amount, str):
        return amount
    if isinstance(amount, bool) or not isinstance(amount, Decimal | int):
        raise ConfigError(f'{amount!r} is no exact amount: write it in quotes, like "0.60"')
    return format(amount, "f") if isinstance(amount, Decimal) else str(amount)


def _symbol(amount: str | None) -> str | None:
    """The asset that an amount names."""
    return (amount or "").strip().partition(" ")[2].strip() or None
