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
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import aiohttp

from tallystick import opening, pricing, proof, transcript, wire
from tallystick.chain import Chain
from tallystick.config import BEARER
from tallystick.countersign import Countersigner, Overcount
from tallystick.errors import SessionError, TallystickError
from tallystick.store import Store, StoredJob
from tallystick.types import Completion, Job, JobId, JobStatus, Receipt, RequestId, Standing, Totals

ACK_TIMEOUT = 10.0
"""Seconds until a receipt that nobody acknowledged is sent again."""
ACK_TRIES = 3
SILENCE = 120.0
"""Seconds without a frame until a stream is given up; a host's engine answers or fails within these."""


@dataclass(frozen=True, slots=True)
class Text:
    """One chunk of a reply, with the request's and the job's running counts."""

    request: RequestId
    text: str
    reasoning: str
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
    """The host says that it saw this settlement confirmed; amounts in base units. The chain is the proof."""

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


Event = Signed | Settled | BalanceLow | PromptAhead | Overcount
Listener = Callable[[Event], None]
_Frame = dict[str, Any]


class Session:
    """A job in use. Made by `open`, or by `resume` for a job that the store knows."""

    def __init__(self, chain: Chain, store: Store, stored: StoredJob, job: Job, *, ahead: int = 0) -> None:
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
        self._listeners: list[Listener] = []
        self._streams: dict[RequestId, asyncio.Queue[_Frame]] = {}
        self._answers: asyncio.Queue[_Frame] = asyncio.Queue()
        self._due = asyncio.Event()
        self._quiet = asyncio.Event()
        self._ending = False
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._closed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._http: aiohttp.ClientSession | None = None
        self._socket: aiohttp.ClientWebSocketResponse | None = None
        self._tasks: list[asyncio.Task[None]] = []

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
    ) -> Self:
        """Opens a job with the host at `host_url` (see `opening.open_job`, also for what it raises)."""
        stored, job = await opening.open_job(chain, store, payer_key, host_url, wishes)
        return cls(chain, store, stored, job, ahead=ahead)

    @classmethod
    async def resume(cls, chain: Chain, store: Store, job_id: JobId, *, ahead: int = 0) -> Self:
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
        return cls(chain, store, stored, job, ahead=ahead)

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
    def host_url(self) -> str:
        """Where the job's host answers."""
        return self._stored.host_url

    def on(self, listener: Listener) -> None:
        """Calls `listener` with each Signed, Settled, BalanceLow and Overcount, in the order they come."""
        self._listeners.append(listener)

    def bearer(self, expires_at: int) -> str:
        """A bearer for this job, valid until `expires_at` of the chain's clock."""
        return proof.make_bearer(self._domain, self.job.id, expires_at, self._stored.key)

    async def connect(self) -> None:
        """Connects to the host, and agrees with it on the last receipt. SessionError if that fails."""
        access = self.bearer((await self._chain.block()).timestamp + BEARER)
        headers = {"Authorization": f"Bearer {access}"}
        self._http = aiohttp.ClientSession(headers=headers)
        try:
            await self._agree()
            self._socket = await self._http.ws_connect(
                f"{self._stored.host_url}/v1/session", max_msg_size=wire.MAX_BODY, heartbeat=30.0
            )
        except (aiohttp.ClientError, TimeoutError) as error:
            await self._http.close()
            raise SessionError(f"the host at {self._stored.host_url} cannot be reached: {error}") from error
        except SessionError:
            await self._http.close()
            raise
        self._tasks = [asyncio.create_task(self._read()), asyncio.create_task(self._countersign())]

    async def close(self) -> None:
        """Signs what was received and is not signed yet, then closes the connection. The job stays open."""
        if self._socket is not None and not self._socket.closed:
            # If the host is gone, the receipts that it has are what it may claim: nothing more is owed to it.
            with contextlib.suppress(SessionError):
                await self.flush()
            await self._socket.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._http is not None:
            await self._http.close()

    async def stream(
        self, prompt: str | Sequence[Mapping[str, Any]], max_tokens: int = 512, **sampling: Any
    ) -> AsyncGenerator[Text | Done, None]:
        """Asks, and yields the reply as it comes; the last item is a Done.

        `prompt` is one user message, or a list of messages; `sampling` is passed on (temperature, seed, …).
        SessionError with the host's own words if it refuses. Leaving the iteration early cancels the request
        at the host.
        """
        request = RequestId(secrets.token_hex(16))
        asked = {"prompt": prompt} if isinstance(prompt, str) else {"messages": list(prompt)}
        body = {**asked, "max_tokens": max_tokens, **sampling}
        self._signs.begin(request, body, max_tokens)
        self._streams[request] = asyncio.Queue()
        counts = Totals()
        try:
            async for frame in self._frames(request, body):
                counts = _counts(frame)
                self._count(request, frame, counts)
                if frame["type"] == "done":
                    break
                if frame["type"] == "token":
                    yield _text(request, frame, counts)
        except BaseException:
            await self._cancel(request)
            raise
        finally:
            del self._streams[request]
            over = self._signs.end(request, counts)
            self._due.set()
        if over is not None:
            self._tell(over)
        yield Done(request, frame["finish_reason"], frame["reason"], counts, over)

    async def _frames(self, request: RequestId, body: Mapping[str, Any]) -> AsyncIterator[_Frame]:
        """The frames of one request; signs for its prompt and asks again where the host wants that first."""
        frames = self._streams[request]
        await self._send("inference", request={"job_id": self.job.id, "id": request, **body})
        while True:
            # Not wait_for: before Python 3.12 it loses a cancellation that comes together with a frame.
            try:
                async with asyncio.timeout(SILENCE):
                    frame = await frames.get()
            except TimeoutError:
                raise SessionError(f"the host was silent for {SILENCE:.0f} s") from None
            if frame["type"] != "error":
                yield frame
            elif frame["problem"]["code"] == "prompt_receipt_due":
                await self._sign_prompt(request, frame["problem"])
                await self._send("inference", request={"job_id": self.job.id, "id": request, **body})
            else:
                raise SessionError(told(frame["problem"]))

    async def _sign_prompt(self, request: RequestId, problem: Mapping[str, Any]) -> None:
        """Signs for a prompt that does not fit the credit, once a request. Raises ReceiptError."""
        prompt_tokens = int(problem["prompt_tokens"])
        cost = pricing.owed(Totals(prompt_tokens, 0), self.job.prices)
        self._signs.sign_prompt_ahead(request, prompt_tokens, int(problem["terms"]["prompt_tokens"]))
        self._tell(PromptAhead(prompt_tokens, cost))
        await self.flush()

    async def flush(self) -> None:
        """Waits until the host has acknowledged all that was received. SessionError if it does not."""
        self._due.set()
        while self.job.receipted and (self._signs.outstanding or self._signs.pending):
            self._quiet.clear()
            signing = self._tasks[1]
            waiting = asyncio.create_task(self._quiet.wait())
            await asyncio.wait({signing, waiting}, return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
            if signing.done():
                raise SessionError("the host acknowledges no receipt any more") from signing.exception()

    async def complete(self, *, seconds: float = 60.0) -> Completion:
        """Ends the session: the host settles the last checkpoint and the rest comes back, in one transaction.

        Returns what the chain says of it. SessionError if that has not happened within `seconds`: the payer
        can then ask on chain (`tally job complete --on-chain`), and reclaim after the claim window.
        """
        await self.flush()
        end = proof.sign(self._domain.end(self.job.id), self._stored.key)
        self._ending = True
        await self._send("session_end", job_id=self.job.id, end="0x" + end.hex())
        try:
            async with asyncio.timeout(seconds):
                await self._ended
                completion = await self._completion()
        except TimeoutError:
            raise SessionError(
                f"the host has not completed job {self.job.id} within {seconds:.0f} s; "
                f"ask on chain: tally job complete {self.job.id} --on-chain"
            ) from None
        await asyncio.to_thread(self._store.end, self._stored.signer)
        return completion

    async def _completion(self) -> Completion:
        """Waits for the job to be closed on chain, woken by the host's word or by a look now and then."""
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(self._closed), timeout=1.0)
            job = await self._chain.job(self.job.id)
            if job is not None and job.status is JobStatus.CLOSED:
                completion = await self._chain.completion(self.job.id)
                if completion is not None:
                    return completion

    def _count(self, request: RequestId, frame: _Frame, counts: Totals) -> None:
        """Counts what a frame brought, and has it signed for if that is due."""
        tally = frame["tally"]
        text = transcript.delta_text({**frame, "content": frame.get("text")})
        due = self._signs.receive(request, counts, text, frame.get("finish_reason"))
        if due or tally.get("due") or tally.get("waiting"):
            self._due.set()

    async def _cancel(self, request: RequestId) -> None:
        if self._socket is not None and not self._socket.closed:
            await self._send("cancel", request=request)

    async def _send(self, kind: str, **members: Any) -> None:
        if self._socket is None or self._socket.closed:
            raise SessionError("there is no connection to the host; connect again")
        try:
            await self._socket.send_str(wire.frame(kind, **members))
        except ConnectionError as error:
            raise SessionError(f"the connection to the host broke: {error}") from error

    async def _read(self) -> None:
        """Hands each frame to whom it concerns, until the connection ends; then ends every stream."""
        assert self._socket is not None
        async for message in self._socket:
            if message.type is aiohttp.WSMsgType.TEXT:
                self._hand_over(wire.parse_frame(message.data))
        self._end_streams("connection_lost", "the connection to the host ended")
        self._answers.put_nowait({"type": "error", "problem": {"code": "connection_lost"}})

    def _hand_over(self, frame: _Frame) -> None:
        kind = frame["type"]
        if kind == "settled":
            self._settled(frame)
        elif kind == "balance_low":
            self._tell(BalanceLow(int(frame["tally"]["left"])))
        elif frame.get("request") in self._streams:
            self._streams[frame["request"]].put_nowait(frame)
        elif kind == "session_end":
            self._ended.set_result(None)
        elif kind == "error" and self._ending:
            self._ended.set_exception(SessionError(told(frame["problem"])))
        elif kind in ("ack", "error"):
            self._answers.put_nowait(frame)

    def _settled(self, frame: _Frame) -> None:
        refund = int(frame["refund"]) if frame.get("completed") else None
        totals = Totals(frame["prompt_tokens"], frame["tokens"])
        self._tell(Settled(totals, int(frame["host"]), int(frame["treasury"]), frame["tx"], refund))
        if frame.get("completed") and not self._closed.done():
            self._closed.set_result(frame["tx"])

    def _tell(self, event: Event) -> None:
        for listener in self._listeners:
            listener(event)

    async def _countersign(self) -> None:
        """Signs whenever something is due; when it cannot go on, neither can the streams."""
        try:
            while True:
                await self._due.wait()
                self._due.clear()
                await self._sign_due()
                self._quiet.set()
        except TallystickError as error:
            self._end_streams("receipts_stopped", str(error))
            raise

    async def _sign_due(self) -> None:
        """One receipt at a time, each in the store before it is sent."""
        while self.job.receipted and (receipt := self._signs.next()) is not None:
            acknowledged = self._signs.pending_acknowledged
            await asyncio.to_thread(self._store.signed, self._stored.signer, receipt, acknowledged)
            await self._deliver(receipt)

    def _end_streams(self, code: str, detail: str) -> None:
        for frames in self._streams.values():
            frames.put_nowait({"type": "error", "problem": {"code": code, "detail": detail}})

    async def _deliver(self, receipt: Receipt) -> None:
        """Sends a receipt until the host has answered it: twice is harmless, an equal one is acknowledged."""
        for _ in range(ACK_TRIES):
            await self._send("receipt", receipt=wire.receipt_out(receipt))
            try:
                async with asyncio.timeout(ACK_TIMEOUT):
                    answer = await self._answers.get()
            except TimeoutError:
                continue
            await self._answered(receipt, answer)
            return
        raise SessionError(
            f"the host has not acknowledged a receipt in {ACK_TRIES} tries of {ACK_TIMEOUT:.0f} s"
        )

    async def _answered(self, receipt: Receipt, answer: _Frame) -> None:
        stored = answer.get("stored") or answer.get("problem", {}).get("stored")
        if stored is not None:
            self._signs.adopt(wire.receipt_in(stored))
            return
        if answer["type"] == "error":
            raise SessionError(told(answer["problem"]))
        ack = wire.ack_in(answer["ack"])
        self._signs.acked(ack, self.job.host)
        await asyncio.to_thread(self._store.acked, self._stored.signer, ack)
        self._tell(Signed(receipt))

    async def _agree(self) -> None:
        """Takes the host's stored receipt, if this payer signed it and has lost it, or sends its own once
        more.
        """
        assert self._http is not None
        async with self._http.get(f"{self._stored.host_url}/v1/jobs/{self.job.id}") as answer:
            view = await answer.json(content_type=None)
            if answer.status != 200:
                raise SessionError(told(view))
        stored = wire.receipt_in(view["receipt"]) if view.get("receipt") else None
        mine = self._signs.last
        if mine is not None and (stored is None or stored.totals.against(mine.totals) is Standing.STALE):
            if not await self._bring(mine):
                self._signs.rebase(stored)
        elif stored is not None and stored.totals != self._signs.receipted:
            self._signs.adopt(stored)

    async def _bring(self, receipt: Receipt) -> bool:
        """Sends the last receipt of the store, which the host has not seen. False if it does not take it any
        more.
        """
        assert self._http is not None
        url = f"{self._stored.host_url}/v1/jobs/{self.job.id}/receipts"
        async with self._http.post(url, json=wire.receipt_out(receipt)) as answer:
            return answer.status == 200


def _counts(frame: _Frame) -> Totals:
    return Totals(frame["tally"]["prompt_tokens"], frame["tally"]["tokens"])


def _text(request: RequestId, frame: _Frame, counts: Totals) -> Text:
    job = frame["tally"]["job"]
    return Text(
        request,
        frame.get("text", ""),
        frame.get("reasoning", ""),
        counts,
        Totals(job["prompt_tokens"], job["tokens"]),
        int(frame["tally"]["left"]),
    )


def told(problem: Mapping[str, Any]) -> str:
    """A problem in a line: what is wrong, whose move it is, what mends it."""
    detail = problem.get("detail") or problem.get("title") or "the host gave no reason"
    told = f"{problem.get('code', 'error')}: {detail}"
    if "mend" not in problem:
        return told
    move = {"payer": "yours", "host": "the host's"}.get(problem.get("move", ""), "nobody's")
    return f"{told.rstrip('.')}. The move is {move}: {problem['mend']}"
