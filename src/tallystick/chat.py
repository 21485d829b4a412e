"""`tally chat`: a conversation at the terminal, with what it costs under each reply as it comes.

Ctrl-C ends a reply, and between replies the conversation; the job stays open unless it is told to complete.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from typing import Any

from tallystick import pricing, session, wallet
from tallystick.countersign import Overcount
from tallystick.errors import ChainError, ConfigError, SessionError
from tallystick.screen import Screen, console, printable
from tallystick.session import Done, Session, Text
from tallystick.types import Completion, JobId, JobStatus, Totals
from tallystick.wallet import Say, Wallet


@dataclass(frozen=True, slots=True)
class Wanted:
    """The options of the command."""

    prompt: str | None
    """None: read one after another from standard input."""
    host: str | None
    deposit: str | None
    job: int | None
    model: str | None
    max_tokens: int
    complete: bool


@dataclass(frozen=True, slots=True)
class Reply:
    """One reply, whole or cut: `done` is None if it was interrupted."""

    text: str
    totals: Totals
    left: int
    """Deposit less what is owed, in base units."""
    done: Done | None


async def converse(wanted: Wanted, *, as_json: bool = False) -> dict[str, Any]:
    """The whole command. Returns what `--json` prints. Raises what the session raises."""
    # At the interpreter's end there is nothing left to interrupt, and Ctrl-C there would be told as a fault.
    atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)
    out = console(stderr=as_json)
    async with wallet.opened() as purse:
        using = await begin(purse, wanted, out.print)
        talk = Talk(purse, using, wanted.max_tokens, Screen(out, wrap=False))
        completion = None
        try:
            async with using:
                with talk.interrupts():
                    replies = [reply async for reply in talk.replies(wanted.prompt)]
                if wanted.complete:
                    completion = await using.complete()
        except SessionError as error:
            raise SessionError(f"{str(error).rstrip('. ')}. {await _outlook(purse, using)}") from error
        out.print(_paid(purse, using, completion) if completion else await _outlook(purse, using))
        return _told(using, replies, completion)


async def begin(purse: Wallet, wanted: Wanted, say: Say) -> Session:
    """A session on the job that was asked for, on one that can be gone on with, or on a new one.

    A deposit that is named is a new job's.
    """
    host_url = purse.host_url(wanted.host)
    job_id = JobId(wanted.job) if wanted.job is not None else None
    if job_id is not None and wanted.deposit is not None:
        more = f"tally job top-up {job_id} {wanted.deposit}"
        raise ConfigError(f"--deposit is of a new job, leave out --job; or add to the one there is: {more}")
    if job_id is None and wanted.deposit is None:
        job_id = await purse.latest(host_url, wanted.model)
    if job_id is not None:
        using = await purse.resume(job_id)
        if using.job.status is JobStatus.CLOSED:
            raise SessionError(f"job {job_id} is complete; leave out --job to open another")
        left = wallet.money(purse.chain, using.job.asset, purse.left(using.job))
        say(f"going on with job {job_id}: {left} left of its deposit")
        return using
    using = await purse.open(host_url, purse.wishes(wanted.deposit, wanted.model), say)
    say(wallet.describe(purse, using.job))
    return using


class Talk:
    """A conversation: what was said goes along with each new prompt."""

    def __init__(self, purse: Wallet, using: Session, max_tokens: int, screen: Screen) -> None:
        self._purse = purse
        self._session = using
        self._max_tokens = max_tokens
        self._screen = screen
        self._messages: list[dict[str, str]] = []
        self._waiting: asyncio.Future[Any] | None = None
        """What Ctrl-C ends: the wait for a prompt, or a reply."""
        self._leaving = False
        using.on(self._heard)

    async def replies(self, prompt: str | None) -> AsyncIterator[Reply]:
        """One reply to `prompt`; without one, replies to what is typed, until that ends."""
        if prompt is not None:
            yield await self._ask(prompt)
            return
        while not self._leaving and (typed := await self._typed()) is not None:
            if typed.strip():
                yield await self._ask(typed.strip())

    @contextmanager
    def interrupts(self) -> Iterator[None]:
        """Ctrl-C ends what is waited for, and the conversation goes on or ends in order; SIGTERM ends it."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGINT, self._interrupt)
        loop.add_signal_handler(signal.SIGTERM, self._leave)
        try:
            yield
        finally:
            loop.remove_signal_handler(signal.SIGINT)
            loop.remove_signal_handler(signal.SIGTERM)

    def _leave(self) -> None:
        self._leaving = True
        self._interrupt()

    def _interrupt(self) -> None:
        if self._waiting is None or not self._waiting.cancel():
            self._leaving = True

    async def _ask(self, prompt: str) -> Reply:
        self._messages.append({"role": "user", "content": prompt})
        parts: list[Text | Done] = []
        self._waiting = receiving = asyncio.create_task(self._receive(parts))
        await asyncio.wait([receiving])
        self._screen.pause()
        if not receiving.cancelled():
            receiving.result()
        reply = _reply(parts, self._session)
        self._messages.append({"role": "assistant", "content": reply.text})
        self._note(self._cost(reply.totals, reply.left) + _ending(reply))
        return reply

    async def _receive(self, parts: list[Text | Done]) -> None:
        async with aclosing(self._session.stream(self._messages, self._max_tokens)) as stream:
            async for part in stream:
                parts.append(part)
                if isinstance(part, Text):
                    self._screen.text(part.reasoning + part.text)
                    self._screen.line(self._cost(part.totals, part.left))

    async def _typed(self) -> str | None:
        """The next line of standard input; None at its end, or at Ctrl-C."""
        if sys.stdin.isatty():
            print("> ", end="", flush=True)  # noqa: T201 - a prompt, not a line
        line: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        self._waiting = line
        threading.Thread(target=_read_line, args=(asyncio.get_running_loop(), line), daemon=True).start()
        await asyncio.wait([line])
        typed = None if line.cancelled() else line.result()
        if typed is None and sys.stdin.isatty():
            self._screen.note("")  # off the prompt's line
        return typed

    def _cost(self, totals: Totals, left: int) -> str:
        cost = self._money(pricing.owed(totals, self._session.job.prices))
        tokens = f"{totals.tokens} tokens, {totals.prompt_tokens} prompt tokens"
        return f"{tokens} · {cost} · {self._money(left)} left"

    def _heard(self, event: session.Event) -> None:
        """Notes what the payer should know of; receipts and settlements are `tally job show`'s."""
        if isinstance(event, session.BalanceLow):
            self._note(f"a fifth of the deposit or less is left: {self._money(event.left)}")
        elif isinstance(event, session.PromptAhead):
            cost = self._money(event.cost)
            self._note(f"the prompt's {event.prompt_tokens} tokens are signed for ahead: {cost} at risk")
        elif isinstance(event, Overcount):
            counted = f"the host counted {event.counted} {event.what}"
            self._note(f"{counted}, this side {event.bound}: signed for no more")

    def _note(self, note: str) -> None:
        self._screen.note(f"[{note}]")

    def _money(self, units: int) -> str:
        return wallet.money(self._purse.chain, self._session.job.asset, units)


def _read_line(loop: asyncio.AbstractEventLoop, line: asyncio.Future[str | None]) -> None:
    """Runs in a thread of its own, which nobody has to wait for: a read cannot be interrupted."""

    def hand_over() -> None:
        if not line.done():
            line.set_result(read.removesuffix("\n") if read else None)

    read = _line_of_stdin()
    if not loop.is_closed():
        loop.call_soon_threadsafe(hand_over)


def _line_of_stdin() -> str:
    """Without sys.stdin's lock where there is a file: held here, it would abort the interpreter's end."""
    try:
        file = sys.stdin.fileno()
    except OSError:
        return sys.stdin.readline()
    line = bytearray()
    while not line.endswith(b"\n") and (byte := os.read(file, 1)):
        line += byte
    return line.decode(errors="replace")


def _reply(parts: list[Text | Done], using: Session) -> Reply:
    last = parts[-1] if parts else None
    texts = [part for part in parts if isinstance(part, Text)]
    return Reply(
        text="".join(part.text for part in texts),
        totals=last.totals if last is not None else Totals(),
        left=texts[-1].left if texts else using.job.deposit - using.job.owed,
        done=last if isinstance(last, Done) else None,
    )


def _ending(reply: Reply) -> str:
    """Why a reply ended, where that is not what everybody expects."""
    if reply.done is None:
        return " · interrupted"
    return "" if reply.done.reason == "stop" else f" · {printable(reply.done.reason)}"


def _paid(purse: Wallet, using: Session, completion: Completion) -> str:
    job = using.job
    paid, refund = (wallet.money(purse.chain, job.asset, x) for x in (completion.owed, completion.refund))
    return f"job {job.id} is complete: {paid} paid, {refund} back, transaction {completion.tx}"


async def _outlook(purse: Wallet, using: Session) -> str:
    """What can be done with the job now: its host may have ended it meanwhile."""
    number = using.job.id
    try:
        job = await purse.job(number)
    except ChainError as error:
        return f"Job {number} cannot be looked up now ({error}); later: tally job show {number}"
    if job.status is JobStatus.CLOSED:
        return f"job {number} was closed; what it cost: tally job show {number}"
    return (
        f"job {number} stays open. Go on: tally chat --job {number}. Add to its deposit: "
        f"tally job top-up {number} AMOUNT. End: tally job complete {number}"
    )


def _told(using: Session, replies: list[Reply], completion: Completion | None) -> dict[str, Any]:
    return {
        "job_id": using.job.id,
        "replies": [
            {
                "text": reply.text,
                "tokens": reply.totals.tokens,
                "prompt_tokens": reply.totals.prompt_tokens,
                "cost": pricing.owed(reply.totals, using.job.prices),
                "left": reply.left,
                "reason": reply.done.reason if reply.done else "interrupted",
            }
            for reply in replies
        ],
        "completed": completion is not None,
        "tx": completion.tx if completion else None,
    }
