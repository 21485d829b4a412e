"""The payer: asks, receives, countersigns, completes. One Session is one job over one WebSocket to its host.

    session = await Session.open(chain, store, payer_key, host_url, Wishes(deposit=2_000_000))
    async with session:
        async for part in session.stream("Tell me a story.", max_tokens=150):
            print(part.text, end="")
        completion = await session.complete()

What is counted and signed is decided in `countersign.py`, how a job is opened in `opening.py`; this module
carries frames (protocol §10) and keeps the order: a receipt is in the store before it is sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from types import TracebackType
from typing import Any, Self
from weakref import WeakSet

import aiohttp
import structlog

from tallystick import archive, frames, opening, outgoing, pricing, proof, wire
from tallystick.chain import Chain
from tallystick.config import BEARER
from tallystick.countersign import Countersigner, Overcount
from tallystick.errors import HostRefused, SessionError, TallystickError
from tallystick.frames import (
    Answer,
    Checkpoint,
    Ended,
    Failed,
    Finished,
    Frame,
    Low,
    OfRequest,
    Paid,
    Problem,
    Token,
)
from tallystick.listeners import Listeners
from tallystick.recount import Recounts, Scale
from tallystick.store import Store, StoredJob
from tallystick.tab import Tab
from tallystick.types import Completion, Job, JobId, JobStatus, Receipt, RequestId, Standing, Totals

CONNECT = 10.0
"""Seconds within which a connection to the host stands."""
ACK_TIMEOUT = 10.0
"""Seconds until a receipt that nobody acknowledged is sent again."""
ACK_TRIES = 3
LATE_ANSWERS = 64
"""How many receipts back a second answer to one is known as such."""
SILENCE = 120.0
"""Seconds without a frame until a stream is given up; a host's engine answers or fails within these."""
LEAVING = 5.0
"""Seconds for which what was on its way, when a reply was left, is still taken in."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Text:
    """One chunk of a reply, with the request's and the job's running counts."""

    request: RequestId
    text: str
    reasoning: str
    tool_calls: tuple[dict[str, Any], ...]
    """As OpenAI's deltas have them."""
    totals: Totals
    job: Totals
    left: int
    """Deposit less what is owed, in base units."""


@dataclass(frozen=True, slots=True)
class Done:
    """The end of a reply. `reason` says why, in the words of protocol §9; `finish_reason` is OpenAI's."""

    request: RequestId
    finish_reason: str
    reason: str
    totals: Totals
    overcount: Overcount | None
    text: str = ""


@dataclass(frozen=True, slots=True)
class Signed:
    """The host holds this receipt on its disk."""

    receipt: Receipt


@dataclass(frozen=True, slots=True)
class Settled:
    """The host says that it saw this settlement confirmed; amounts in base units.

    The chain is the proof, and tells at the end what the host did not.
    """

    totals: Totals
    host: int
    treasury: int
    tx: str
    refund: int | None
    """What came back, where the transaction closed the job."""


@dataclass(frozen=True, slots=True)
class BalanceLow:
    """A fifth of the deposit or less is left, in base units."""

    left: int


@dataclass(frozen=True, slots=True)
class PromptAhead:
    """A prompt beyond the credit is signed for before it is served: `cost` base units are at risk."""

    prompt_tokens: int
    cost: int


@dataclass(frozen=True, slots=True)
class Stopped:
    """The session cannot go on, for the reason given. What was signed stays signed; nothing more will be."""

    reason: str
    retry_after: float = 0.0
    """Seconds after which the host says that it can go on; 0: it says nothing of it."""


Event = Signed | Settled | BalanceLow | PromptAhead | Overcount | Stopped
Listener = Callable[[Event], None]


class Session:
    """A job in use. Made by `open`, or by `resume` for a job that the store knows."""

    def __init__(
        self,
        chain: Chain,
        store: Store,
        stored: StoredJob,
        job: Job,
        *,
        ahead: int = 0,
        scale: Scale | None = None,
    ) -> None:
        """`ahead`: tokens signed for before they came; `scale`: what the host's counts are held against."""
        self.job = job
        self._chain = chain
        self._store = store
        self._stored = stored
        self._domain = proof.Domain(chain.deployment.chain_id, chain.deployment.marketplace)
        last = store.last(stored.signer)
        self._signs = Countersigner(
            job.id,
            job.prices,
            job.interval,
            self._domain,
            stored.key,
            ahead=ahead,
            last=last.receipt if last else None,
            acknowledged=last.acknowledged if last else None,
        )
        self._listeners: Listeners[[Event]] = Listeners()
        self._settled_before = job.settled
        self._paid: set[str] = set()
        """Transactions whose settlement was told."""
        self._streams: dict[str, asyncio.Queue[OfRequest | None]] = {}
        """What came for each request; None: look at `_failure`."""
        self._answers: asyncio.Queue[Answer | Failed | None] = asyncio.Queue()
        self._acked: deque[bytes] = deque(maxlen=LATE_ANSWERS)
        """Transcripts of the latest receipts that were acknowledged."""
        self._due = asyncio.Event()
        self._signed = asyncio.Event()
        """A receipt was acknowledged, or none will be."""
        self._failure: TallystickError | None = None
        """Why this connection cannot go on."""
        self._ending = False
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._closed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._http: aiohttp.ClientSession | None = None
        self._socket: aiohttp.ClientWebSocketResponse | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._rests: set[asyncio.Task[None]] = set()
        """Replies that were left, while what was on its way of them is taken in."""
        self._claim: int | None = None
        """Says to other processes with this store that the job is in use."""
        self._scale = scale
        self._tabs: WeakSet[Tab] = WeakSet()
        self._keeping: tuple[Receipt | None, asyncio.Task[None] | None] = None, None
        """The receipt that was written last, or is being written."""
        self._bearer = ""
        self._renew_at = 0.0
        """When the bearer is to be made anew, on the event loop's clock."""

    @classmethod
    async def open(
        cls,
        chain: Chain,
        store: Store,
        payer_key: bytes,
        host_url: str,
        wishes: opening.Wishes,
        *,
        ahead: int = 0,
        quote: opening.Quote | None = None,
        recounts: Recounts | None = None,
    ) -> Self:
        """Opens a job with the host at `host_url` (see `opening.open_job`, also for what it raises).

        `quote`: the host's, if it was asked already; `recounts`: the payer's tokenizers.
        """
        stored, job = await opening.open_job(chain, store, payer_key, host_url, wishes, quote)
        return cls(chain, store, stored, job, ahead=ahead, scale=_scale(recounts, stored, job))

    @classmethod
    async def resume(
        cls,
        chain: Chain,
        store: Store,
        job_id: JobId,
        *,
        ahead: int = 0,
        recounts: Recounts | None = None,
    ) -> Self:
        """Goes on with a job of the store. SessionError if its key is not there or the chain does not know
        it.
        """
        deployment = chain.deployment
        stored = store.job(deployment.chain_id, deployment.marketplace, job_id)
        if stored is None:
            raise SessionError(
                f"the session key of job {job_id} is not in {store.path}; it can only be reclaimed"
            )
        job = await chain.job(job_id)
        if job is None:
            raise SessionError(f"job {job_id} does not exist on chain {deployment.chain_id}")
        if job.signer != stored.signer:
            raise SessionError(f"job {job_id} of {store.path} was on a chain that is gone: open a new one")
        return cls(chain, store, stored, job, ahead=ahead, scale=_scale(recounts, stored, job))

    async def __aenter__(self) -> Self:
        await self.connect()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def receipted(self) -> Totals:
        """What this payer has signed for and the host has acknowledged, in tokens."""
        return self._signs.receipted

    @property
    def owed(self) -> int:
        """What all that has come and is within this payer's bounds is worth, in base units, signed or not."""
        return pricing.owed(self._signs.received.higher(self._signs.receipted), self.job.prices)

    @property
    def connected(self) -> bool:
        """There is a connection to the host, and nothing has come that keeps it from being used."""
        return self._socket is not None and not self._socket.closed and self._failure is None

    @property
    def host_url(self) -> str:
        """Where the job's host answers."""
        return self._stored.host_url

    @property
    def model(self) -> str:
        """The model that the job was opened for."""
        return self._stored.model

    def on(self, listener: Listener) -> None:
        """Calls `listener` with each Event, in the order they come. What it raises is logged."""
        self._listeners.add(listener)

    def bearer(self, expires_at: int) -> str:
        """A bearer for this job, valid until `expires_at` of the chain's clock."""
        return proof.make_bearer(self._domain, self.job.id, expires_at, self._stored.key)

    async def connect(self) -> None:
        """Connects to the host, and agrees with it on the last receipt. SessionError if that fails.

        Also connects again, after a failure: what is under way over HTTP goes on meanwhile.
        """
        await self._stop()
        self._bearer = ""  # While this machine slept the chain's clock went on, and its own did not.
        if self._claim is None:
            self._claim = await asyncio.to_thread(self._store.claim, self._stored.signer)
        if self._http is None or self._http.closed:
            patience = aiohttp.ClientTimeout(sock_connect=CONNECT, sock_read=SILENCE)
            self._http = outgoing.client(patience, found_on=self._stored.found_on, limit=0)
        try:
            await self._agree()
            self._socket = await self._http.ws_connect(
                f"{self._stored.host_url}/v1/session",
                headers=await self._authorization(),
                max_msg_size=wire.MAX_BODY,
                heartbeat=30.0,
            )
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            await self._let_go()
            raise SessionError(f"the host at {self._stored.host_url} cannot be reached: {error}") from error
        except TallystickError:
            await self._let_go()
            raise
        self._answers = asyncio.Queue()
        self._failure, self._ending = None, False
        self._tasks = [asyncio.create_task(self._read()), asyncio.create_task(self._countersign())]
        self._due.set()

    async def close(self) -> None:
        """Signs what was received and is not signed yet, then closes the connection. The job stays open."""
        if self._socket is not None and not self._socket.closed:
            # What keeps it from being signed was told as Stopped; nothing more is owed than what was signed.
            with contextlib.suppress(TallystickError):
                await self.flush()
        await self._stop()
        if self._socket is not None:
            await self._socket.close()
        await self._let_go()

    async def _let_go(self) -> None:
        if self._http is not None:
            await self._http.close()
        if self._claim is not None:
            os.close(self._claim)
            self._claim = None

    async def _stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        writing = self._keeping[1]
        await asyncio.gather(*self._tasks, *filter(None, [writing]), return_exceptions=True)

    async def refresh(self) -> None:
        """Reads the job again: its deposit may have grown. SessionError if the chain does not have it."""
        job = await self._chain.job(self.job.id)
        if job is None:
            raise SessionError(f"job {self.job.id} has gone: a reorg took it back")
        self.job = job

    async def _authorization(self) -> dict[str, str]:
        """The header with a bearer that has half of its time left or more."""
        now = asyncio.get_running_loop().time()
        if not self._bearer or now >= self._renew_at:
            self._bearer = self.bearer((await self._chain.block()).timestamp + BEARER)
            self._renew_at = now + BEARER / 2
        return {"Authorization": f"Bearer {self._bearer}"}

    # Requests

    def counting(self, body: Mapping[str, Any], max_tokens: int, choices: int = 1) -> Tab:
        """Begins to count a request of this job, before it is sent. See Tab."""
        tab = Tab(self._signs, self._due, self._tell, body, max_tokens, choices, self._scale)
        self._tabs.add(tab)
        return tab

    async def leave(self) -> None:
        """Asks the host to end all replies under way. SessionError if it cannot be asked."""
        for tab in self._open_tabs:
            await self.cancel(tab.request)

    @property
    def _open_tabs(self) -> list[Tab]:
        return [tab for tab in self._tabs if tab.is_open]

    async def post(self, path: str, body: bytes) -> aiohttp.ClientResponse:
        """Sends a JSON request for a reply; its body is read by whoever asked. SessionError."""
        answer = await self._post(path, body)
        if answer.status != HTTPStatus.UNAUTHORIZED:
            return answer
        answer.release()
        self._bearer = ""  # It ran out unseen.
        return await self._post(path, body)

    async def _post(self, path: str, body: bytes) -> aiohttp.ClientResponse:
        if self._http is None or self._http.closed:
            raise SessionError("there is no connection to the host; connect again")
        headers = {**await self._authorization(), "Content-Type": "application/json"}
        try:
            return await self._http.post(f"{self._stored.host_url}{path}", data=body, headers=headers)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise SessionError(f"the host at {self._stored.host_url} cannot be reached: {error}") from error

    def keep(self, rest: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Runs what takes in the rest of a reply; `flush` waits for it."""
        task = asyncio.create_task(rest)
        self._rests.add(task)
        task.add_done_callback(self._rests.discard)
        return task

    async def stream(
        self, prompt: str | Sequence[Mapping[str, Any]], max_tokens: int = 512, **sampling: Any
    ) -> AsyncGenerator[Text | Done, None]:
        """Asks, and yields the reply as it comes; the last item is a Done.

        `prompt` is one user message, or a list of messages; `sampling` is passed on (temperature, seed, …).
        SessionError with the host's own words if it refuses. Leaving the iteration early cancels the request
        at the host.
        """
        asked = {"prompt": prompt} if isinstance(prompt, str) else {"messages": list(prompt)}
        body = {**asked, "max_tokens": max_tokens, **sampling}
        tab = self.counting(body, max_tokens)
        self._streams[tab.request] = asyncio.Queue()
        end: Finished | None = None
        try:
            async for frame in self._frames(tab, body):
                told = self._count(tab, frame)
                if isinstance(frame, Finished):
                    end = frame
                    break
                if isinstance(frame, Token):
                    yield _text(tab.request, frame, told)
        except (GeneratorExit, asyncio.CancelledError):
            self.keep(self._take_rest(tab))
            raise
        except BaseException:
            await self._over(tab)
            await self.cancel(tab.request)
            raise
        await self._over(tab)
        assert end is not None
        yield Done(tab.request, end.finish_reason, end.reason, tab.totals, tab.overcount)

    async def _over(self, tab: Tab) -> None:
        del self._streams[tab.request]
        await tab.close()

    async def _take_rest(self, tab: Tab) -> None:
        """Ends a reply that was left. What was on its way was delivered: it is counted, and signed for."""
        with contextlib.suppress(TimeoutError, TallystickError):  # all that came until then is due
            async with asyncio.timeout(LEAVING):
                await self.cancel(tab.request)
                while not isinstance(frame := await self._streams[tab.request].get(), Failed | None):
                    self._count(tab, frame)
                    if isinstance(frame, Finished):
                        break
        await self._over(tab)

    async def _frames(
        self, tab: Tab, body: Mapping[str, Any]
    ) -> AsyncIterator[Token | Checkpoint | Finished]:
        """The frames of one request; signs for its prompt and asks again where the host wants that first."""
        access = (await self._authorization())["Authorization"].removeprefix("Bearer ")
        asking = {"job_id": self.job.id, "id": tab.request, "access": access, **body}
        await self._send("inference", request=asking)
        while True:
            frame = await self._next_frame(self._streams[tab.request])
            if isinstance(frame, Failed):
                await self.mend(tab, frame.problem)
                await self._send("inference", request=asking)
            else:
                yield frame

    async def _next_frame(self, queue: asyncio.Queue[OfRequest | None]) -> OfRequest:
        # Not wait_for: before Python 3.12 it loses a cancellation that comes together with a frame.
        try:
            async with asyncio.timeout(SILENCE):
                frame = await queue.get()
        except TimeoutError:
            raise SessionError(f"the host was silent for {SILENCE:.0f} s") from None
        if frame is None:
            raise self._why()
        return frame

    async def mend(self, tab: Tab, problem: Problem) -> None:
        """Signs for a prompt that does not fit the credit: the request can then be sent again.

        HostRefused for any other problem, and where that was signed for already. ReceiptError.
        """
        if problem.code != "prompt_receipt_due" or not tab.may_sign_prompt:
            raise HostRefused(problem)
        told = tab.prompt_signed
        await tab.sign_prompt(problem.prompt_tokens, problem.least_prompt_tokens)
        if not told:
            cost = pricing.owed(Totals(problem.prompt_tokens, 0), self.job.prices)
            self._tell(PromptAhead(problem.prompt_tokens, cost))
        self._due.set()
        # Replies that go on beside it always leave something to sign: that is not waited for.
        await self._until(lambda: not self._signs.prompts_outstanding)

    async def flush(self) -> None:
        """Waits until the host has acknowledged all that was received. SessionError if it does not."""
        await asyncio.gather(*self._rests)
        await self._acknowledge()

    async def _acknowledge(self) -> None:
        await self._recount()
        self._due.set()
        await self._until(lambda: not (self._signs.outstanding or self._signs.pending))

    async def _until(self, signed: Callable[[], bool]) -> None:
        """Waits for receipts to be acknowledged. Raises why none is any more."""
        while self.job.receipted and not signed():
            if self._failure is not None:
                raise self._failure
            self._signed.clear()
            await self._signed.wait()

    async def complete(self, *, seconds: float = 60.0) -> Completion:
        """Ends the session: the host settles the last checkpoint and the rest comes back, in one transaction.

        Returns what the chain says of it. SessionError if that has not happened within `seconds`: the payer
        can then ask on chain (`tally job complete --on-chain`), and reclaim after the claim window.
        """
        try:
            async with asyncio.timeout(seconds):
                await self.flush()
                await self._end()
                completion = await self._completion()
                await self._tell_unheard(completion)
        except TimeoutError:
            raise SessionError(
                f"the host has not completed job {self.job.id} within {seconds:.0f} s; "
                f"ask on chain: tally job complete {self.job.id} --on-chain"
            ) from None
        await asyncio.to_thread(self._store.end, self._stored.signer)
        await archive.keep(self._chain, self._store, self._stored)
        return completion

    async def _end(self) -> None:
        """Tells the host, and waits until it has that on its disk."""
        self._ended = asyncio.get_running_loop().create_future()
        self._ending = True
        signature = proof.sign(self._domain.end(self.job.id), self._stored.key)
        await self._send("session_end", job_id=self.job.id, end="0x" + signature.hex())
        await self._ended

    async def _completion(self) -> Completion:
        """Waits for the job to be closed on chain, woken by the host's word or by a look now and then."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await asyncio.shield(self._closed)
            job = await self._chain.job(self.job.id)
            if job is not None and job.status is JobStatus.CLOSED:
                completion = await self._chain.completion(self.job.id)
                if completion is not None:
                    return completion

    async def _tell_unheard(self, completion: Completion) -> None:
        """What was settled since this session began, where the chain is quicker than the host."""
        if self._closed.done():
            return
        for each in await self._chain.settlements(self.job.id):
            if each.totals.against(self._settled_before) is Standing.AHEAD:
                refund = completion.refund if each.tx == completion.tx else None
                self._tell_paid(Settled(each.totals, each.host_amount, each.fee, each.tx, refund))

    def _tell_paid(self, paid: Settled) -> None:
        """Once: a transaction has one row of a job."""
        if paid.tx not in self._paid:
            self._paid.add(paid.tx)
            self._tell(paid)

    def _count(self, tab: Tab, frame: Token | Checkpoint | Finished) -> wire.Tally:
        """Counts what a frame brought, and has it signed for if that is due. Raises ReceiptError."""
        told = frames.tally(frame.tally)
        text = ""
        if isinstance(frame, Token):
            text = frame.delta
            if tab.recounts:
                tab.hear(0, frame.members)
        finish_reason = frame.finish_reason if isinstance(frame, Finished) else None
        tab.take(told.totals, text, finish_reason, due=told.due or told.waiting)
        return told

    async def cancel(self, request: RequestId) -> None:
        """Asks the host to end a reply, if it can be asked."""
        if self._socket is not None and not self._socket.closed:
            await self._send("cancel", request=request)

    async def _send(self, kind: str, **members: Any) -> None:
        if self._socket is None or self._socket.closed:
            raise self._why()
        try:
            await self._socket.send_str(wire.frame(kind, **members))
        except ConnectionError as error:
            raise SessionError(f"the connection to the host broke: {error}") from error

    # What comes

    async def _read(self) -> None:
        """Hands each frame to whom it concerns, until the connection ends or brings what cannot be read."""
        assert self._socket is not None
        lost = "connection_lost: the connection to the host ended; the job stays open, connect again"
        failure: TallystickError = SessionError(lost)
        try:
            async for message in self._socket:
                if message.type is aiohttp.WSMsgType.TEXT and (frame := frames.read(message.data)):
                    self._hand_over(frame)
        except Exception as error:  # noqa: BLE001 - told to all who wait, who would wait for ever
            failure = _ended_by(error)
            await self._socket.close()
        self._fail(failure)

    def _hand_over(self, frame: Frame) -> None:
        match frame:
            case Paid():
                self._settled(frame)
            case Low():
                self.run_low(frames.tally(frame.tally).left)
            case Ended() if not self._ended.done():
                self._ended.set_result(None)
            case Failed(request=None) if self._ending and not self._ended.done():
                self._ended.set_exception(HostRefused(frame.problem))
            case Answer() | Failed(request=None):
                self._answers.put_nowait(frame)
            case Token() | Checkpoint() | Finished() | Failed() if frame.request in self._streams:
                self._streams[frame.request].put_nowait(frame)

    def _settled(self, frame: Paid) -> None:
        try:
            paid = (int(frame.host), int(frame.treasury))
            refund = int(frame.refund or 0) if frame.completed else None
        except ValueError as error:
            raise SessionError(f"the host sent a frame that cannot be read: {error}") from error
        self._tell_paid(Settled(Totals(frame.prompt_tokens, frame.tokens), *paid, frame.tx, refund))
        if frame.completed and not self._closed.done():
            self._closed.set_result(frame.tx)

    def run_low(self, left: int) -> None:
        """The host says that a fifth of the deposit or less is left, in base units."""
        self._tell(BalanceLow(left))

    def _tell(self, event: Event) -> None:
        self._listeners.tell(event)

    def _why(self) -> TallystickError:
        """Why this connection cannot be used."""
        return self._failure or SessionError("there is no connection to the host; connect again")

    def _fail(self, failure: TallystickError) -> None:
        """This connection cannot go on: whoever waits for something learns why."""
        if self._failure is not None:
            return
        self._failure = failure
        for queue in self._streams.values():
            queue.put_nowait(None)
        self._answers.put_nowait(None)
        if self._ending and not self._ended.done():
            self._ended.set_exception(failure)
        self._signed.set()
        after = failure.problem.retry_after if isinstance(failure, HostRefused) else 0.0
        self._tell(Stopped(str(failure), after))

    # Receipts

    async def _countersign(self) -> None:
        """Signs whenever something is due; when it cannot go on, neither can the session."""
        try:
            while True:
                await self._due.wait()
                self._due.clear()
                await self._sign_due()
                self._signed.set()
        except Exception as error:  # noqa: BLE001 - told to all who wait, who would wait for ever
            self._fail(_ended_by(error))

    async def _sign_due(self) -> None:
        """One receipt at a time; one that a lost connection left unanswered comes first."""
        await self._recount()
        while self.job.receipted and (receipt := self._signs.pending or self._signs.next()) is not None:
            await self._keep(receipt)
            await self._deliver(receipt)
            self._signed.set()

    async def _recount(self) -> None:
        """Holds all that came against the payer's own count, where there is one. Raises EngineError."""
        if self._scale is not None:
            for tab in self._open_tabs:
                await tab.recount()

    async def _keep(self, receipt: Receipt) -> None:
        """Has the pending receipt in the store, once, whatever becomes of the connection meanwhile."""
        kept, writing = self._keeping
        if kept is not receipt or writing is None or _failed(writing):
            acknowledged = self._signs.pending_acknowledged
            written = asyncio.to_thread(self._store.signed, self._stored.signer, receipt, acknowledged)
            writing = asyncio.create_task(written)
            self._keeping = receipt, writing
        await asyncio.shield(writing)

    async def _deliver(self, receipt: Receipt) -> None:
        """Sends a receipt until the host has answered it: twice is harmless, an equal one is acknowledged."""
        for _ in range(ACK_TRIES):
            await self._send("receipt", receipt=wire.receipt_out(receipt))
            try:
                async with asyncio.timeout(ACK_TIMEOUT):
                    while not await self._answered(receipt, await self._answers.get()):
                        pass
                return
            except TimeoutError:
                continue
        raise SessionError(
            f"the host has not acknowledged a receipt in {ACK_TRIES} tries of {ACK_TIMEOUT:.0f} s"
        )

    async def _answered(self, receipt: Receipt, answer: Answer | Failed | None) -> bool:
        """Takes the host's answer. False for a second one to a receipt that was acknowledged before."""
        if answer is None:
            raise self._why()
        if isinstance(answer, Failed):
            if answer.problem.code != "receipt_out_of_order" or answer.problem.stored is None:
                raise HostRefused(answer.problem)
            await self._adopt(frames.receipt(answer.problem.stored))
            return True
        ack = frames.ack(answer.ack)
        if ack.transcript in self._acked:
            return False
        if answer.stored is not None and ack.transcript != receipt.transcript:
            await self._adopt(frames.receipt(answer.stored))
            return True
        self._signs.acked(ack, self.job.host)
        self._acked.append(ack.transcript)
        await asyncio.to_thread(self._store.acked, self._stored.signer, ack)
        self._tell(Signed(receipt))
        return True

    async def _adopt(self, stored: Receipt) -> None:
        """Takes the host's receipt for the last one; what it acknowledged is in the store, if it was signed
        here.
        """
        known = await asyncio.to_thread(self._store.acknowledged, self._stored.signer, stored.transcript)
        self._signs.adopt(stored, known)

    async def _agree(self) -> None:
        """Takes the host's stored receipt, if this payer has lost it, or brings its own once more."""
        stored = await self._stored_at_host()
        mine = self._signs.last
        if mine is not None and (stored is None or stored.totals.against(mine.totals) is Standing.STALE):
            if not await self._bring(mine):
                self._signs.rebase(stored, await self._acknowledged(stored))
        elif stored is not None and stored.totals != self._signs.receipted:
            self._signs.adopt(stored, await self._acknowledged(stored))

    async def _acknowledged(self, stored: Receipt | None) -> Totals | None:
        if stored is None:
            return Totals()
        return await asyncio.to_thread(self._store.acknowledged, self._stored.signer, stored.transcript)

    async def _stored_at_host(self) -> Receipt | None:
        assert self._http is not None
        url, headers = f"{self._stored.host_url}/v1/jobs/{self.job.id}", await self._authorization()
        async with self._http.get(url, headers=headers) as answer:
            view = await answer.json(content_type=None)
            if answer.status != 200:
                raise HostRefused(frames.problem(view))
        if not isinstance(view, dict) or "receipt" not in view:
            raise SessionError(f"{self._stored.host_url} gave no view of the job: is it a host's base URL?")
        return None if view["receipt"] is None else frames.receipt(view["receipt"])

    async def _bring(self, receipt: Receipt) -> bool:
        """Sends the last receipt of the store. False if the host does not take it any more."""
        assert self._http is not None
        url = f"{self._stored.host_url}/v1/jobs/{self.job.id}/receipts"
        headers = await self._authorization()
        async with self._http.post(url, json=wire.receipt_out(receipt), headers=headers) as answer:
            return answer.status == 200


def _scale(recounts: Recounts | None, stored: StoredJob, job: Job) -> Scale | None:
    return None if recounts is None else recounts.of(job.host, stored.model)


def _ended_by(error: Exception) -> TallystickError:
    """What a session that ends with this tells whoever waits."""
    return SessionError(str(error)) if isinstance(error, TallystickError) else fault(error)


def fault(error: Exception) -> TallystickError:
    """An error that nobody foresaw, for whoever waits: logged with its traceback, and not the host's."""
    log.error("session.failed", exc_info=error)
    told = TallystickError(f"a fault of this program: {error!r}; the job stays open, and its money is safe")
    told.__cause__ = error
    return told


def _failed(task: asyncio.Task[None]) -> bool:
    return task.done() and (task.cancelled() or task.exception() is not None)


def _text(request: RequestId, frame: Token, told: wire.Tally) -> Text:
    calls = tuple(frame.tool_calls)
    return Text(request, frame.text, frame.reasoning, calls, told.totals, told.job, told.left)
