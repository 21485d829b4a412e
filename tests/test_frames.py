"""What a host sends, as the payer reads it; and a session with a host that sends what it likes."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, get_args

import orjson
import pytest
from aiohttp import WSMsgType, web

from tallystick import asking, frames, session, wire
from tallystick.chain import Chain
from tallystick.devnet import Devnet
from tallystick.errors import SessionError
from tallystick.frames import Answer, Checkpoint, Failed, Finished, Frame, Low, Problem, Token
from tallystick.session import Done, Session, Stopped, Text
from tallystick.store import Store, StoredJob
from tallystick.types import Ack, Receipt, RequestId, Totals
from tests.paying import Signer, open_job, register

REQUEST = "ab" * 16
TALLY = {
    "request": REQUEST,
    "prompt_tokens": 5,
    "tokens": 1,
    "job": {"prompt_tokens": 5, "tokens": 1},
    "left": "100",
}
TOKEN = {"type": "token", "request": REQUEST, "text": "a", "tally": TALLY}


def raw(**members: Any) -> str:
    return orjson.dumps({**TOKEN, **members}).decode()


def test_a_token_is_read_with_its_counts() -> None:
    """A frame becomes its form, with counts as the rest of the package has them."""
    frame = frames.read(raw(reasoning="r", extra=1))
    assert isinstance(frame, Token)
    assert (frame.text, frame.delta) == ("a", "ra")
    assert frames.tally(frame.tally).totals == Totals(5, 1)


PROTOCOL = Path(__file__).parent.parent / "docs" / "protocol.md"
TO_HOST: dict[str, Callable[[dict[str, Any]], object]] = {
    "inference": lambda frame: asking.parse_inference(frame["request"]),
    "receipt": lambda frame: wire.receipt_in(frame["receipt"]),
    "cancel": lambda frame: RequestId(frame["request"]),
    "resume": asking.resume_in,
    "session_end": wire.ending_in,
}


def examples() -> tuple[list[str], list[str]]:
    """The frames of protocol §10, to and from the host, with digits in place of those left out."""
    section = PROTOCOL.read_text().partition("## 10. ")[2].partition("## 11. ")[0]
    section = re.sub(r'("signature"|"end"): "0x…"', rf'\1: "0x{"1b" * 65}"', section)
    to_host, from_host = re.findall(r"```json\n(.*?)```", section.replace("0x…", "0x" + "5a" * 32), re.DOTALL)
    return to_host.splitlines(), from_host.splitlines()


def test_the_frames_of_the_protocol_are_read() -> None:
    """The page shows one of each kind, as host and payer read them."""
    to_host, from_host = examples()
    sent = [wire.parse_frame(line) for line in to_host]
    assert [frame["type"] for frame in sent] == list(TO_HOST)
    assert all(TO_HOST[frame["type"]](frame) for frame in sent)
    read = [frames.read(line) for line in from_host]
    assert {type(frame) for frame in read} == set(get_args(Frame))
    assert all(
        frames.tally(frame.tally) for frame in read if isinstance(frame, (Token, Checkpoint, Finished, Low))
    )


def test_an_unknown_kind_of_frame_is_no_error() -> None:
    """What a later version adds is passed over, and counts for nothing."""
    assert frames.read('{"type": "noise", "text": "not counted"}') is None


@pytest.mark.parametrize(
    "text",
    [
        "not json",
        "[]",
        '{"type": 5}',
        raw(tally=None),
        raw(text=7),
        raw(tally={**TALLY, "tokens": "1"}),
        raw(tally={**TALLY, "tokens": 0.5}),
        raw(tally={**TALLY, "tokens": True}),
        raw(tally={**TALLY, "left": "x"}),
        raw(tally={k: v for k, v in TALLY.items() if k != "job"}),
        raw(request=["a"]),
        '{"type": "error", "problem": "no"}',
        '{"type": "settled", "tokens": 1}',
        '{"type": "ack"}',
        '{"type": "done", "request": "a"}',
    ],
)
def test_what_does_not_fit_is_one_clear_error(text: str) -> None:
    """Whatever a host sends in place of a frame is a SessionError."""
    with pytest.raises(SessionError, match="the host sent"):
        frames.read(text)


def test_a_problem_says_what_whose_move_and_how() -> None:
    """A refusal is told in a line."""
    told = str(Problem("job_closed", "It is closed.", move="payer", mend="Open a new job."))
    assert told == "job_closed: It is closed. The move is yours: Open a new job."
    assert str(frames.problem("<html>")) == "error: the host gave no reason"


class Liar:
    """A host that answers each request with the frames of a script, and each receipt as it is told to."""

    def __init__(self, signer: Signer) -> None:
        self.signer = signer
        self.script: list[dict[str, Any] | str] = []
        self.answer: Callable[[Receipt], list[dict[str, Any]]] = self.honest
        self.receipts: list[Receipt] = []
        self.drop_after_receipts = 0

    def honest(self, receipt: Receipt) -> list[dict[str, Any]]:
        ack = Ack(receipt.job_id, receipt.totals, receipt.transcript, None)
        return [{"type": "ack", "ack": wire.ack_out(ack)}]

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[str]:
        app = web.Application()
        app.add_routes([web.get("/v1/jobs/{id}", self._view), web.get("/v1/session", self._session)])
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        try:
            yield f"http://127.0.0.1:{runner.addresses[0][1]}"
        finally:
            await runner.cleanup()

    async def _view(self, _: web.Request) -> web.Response:
        return web.json_response({"receipt": None})

    async def _session(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        async for message in socket:
            if message.type is WSMsgType.TEXT:
                await self._take(socket, orjson.loads(message.data))
        return socket

    async def _take(self, socket: web.WebSocketResponse, frame: dict[str, Any]) -> None:
        if frame["type"] == "inference":
            for each in self.script:
                await socket.send_str(self._made_out(each, frame["request"]["id"]))
        elif frame["type"] == "receipt":
            self.receipts.append(wire.receipt_in(frame["receipt"]))
            if len(self.receipts) == self.drop_after_receipts:
                await socket.close()
                return
            for answer in self.answer(self.receipts[-1]):
                await socket.send_str(orjson.dumps(answer).decode())

    @staticmethod
    def _made_out(frame: dict[str, Any] | str, request: str) -> str:
        text = frame if isinstance(frame, str) else orjson.dumps(frame).decode()
        return text.replace(REQUEST, request)


def token(n: int, text: str = "word ") -> dict[str, Any]:
    return {**TOKEN, "text": text, "tally": {**TALLY, "tokens": n}}


def done(n: int) -> dict[str, Any]:
    tally = {**TALLY, "tokens": n, "due": True}
    return {"type": "done", "request": REQUEST, "finish_reason": "length", "reason": "length", "tally": tally}


@pytest.fixture
async def liar(devnet: Devnet, chain: Chain) -> Liar:
    await register(devnet, chain)
    return Liar(await open_job(devnet, chain))


@asynccontextmanager
async def paying(liar: Liar, directory: Path) -> AsyncIterator[tuple[Session, list[session.Event]]]:
    chain, job = liar.signer.chain, liar.signer.job
    store = Store(directory)
    deployment = chain.deployment
    async with liar.serve() as url:
        store.opening(
            StoredJob(
                job.signer,
                liar.signer.key,
                deployment.chain_id,
                deployment.marketplace,
                job.payer,
                url,
                "tally",
                None,
                False,
            )
        )
        store.opened(job.signer, job.id)
        events: list[session.Event] = []
        using = await Session.resume(chain, store, job.id)
        using.on(events.append)
        async with using:
            yield using, events
    store.close()


async def ask(using: Session) -> tuple[str, Done]:
    text = ""
    async for part in using.stream("Why?", max_tokens=300):
        if isinstance(part, Text):
            text += part.text
        else:
            return text, part
    raise AssertionError("a stream ends with Done")


async def test_junk_ends_the_stream_with_its_cause(liar: Liar, tmp_path: Path) -> None:
    """A frame that cannot be read ends the stream at once, and the listener is told why."""
    liar.script = [token(1), "not json"]
    async with paying(liar, tmp_path) as (using, events):
        with pytest.raises(SessionError, match="no frame"):
            await ask(using)
        assert [event for event in events if isinstance(event, Stopped)]


async def test_only_what_is_shown_is_signed_for(liar: Liar, tmp_path: Path) -> None:
    """Text in frames that show nothing counts for nothing: a host that hides tokens there is not paid for
    them.
    """
    hidden = {"type": "noise", "request": REQUEST, "text": "x" * 500, "tally": {**TALLY, "tokens": 200}}
    liar.script = [token(1, "a"), hidden, {**done(200), "text": "x" * 500}]
    async with paying(liar, tmp_path) as (using, _):
        text, end = await ask(using)
        await using.flush()
    assert (text, end.overcount is not None) == ("a", True)
    assert liar.receipts[-1].totals == Totals(5, 1)


async def test_a_second_answer_to_a_receipt_is_harmless(liar: Liar, tmp_path: Path) -> None:
    """An acknowledgement that comes twice is not taken for that of the next receipt."""
    liar.script = [*(token(n) for n in range(1, 121)), done(120)]
    liar.answer = lambda receipt: liar.honest(receipt) * 2
    async with paying(liar, tmp_path) as (using, _):
        await ask(using)
        await using.flush()
        assert using.receipted == Totals(5, 120)


async def test_an_acknowledgement_by_another_key_is_told(liar: Liar, tmp_path: Path) -> None:
    """Law 10: an acknowledgement that the host did not sign stops the session, and the listener hears it."""

    def forged(receipt: Receipt) -> list[dict[str, Any]]:
        [answer] = liar.honest(receipt)
        signature = "0x" + liar.signer.end().hex()
        return [{**answer, "ack": {**answer["ack"], "signature": signature}}]

    liar.script = [token(1), done(1)]
    liar.answer = forged
    async with paying(liar, tmp_path) as (using, events):
        await ask(using)
        with pytest.raises(SessionError, match="not signed by its host"):
            await using.flush()
    [stopped] = [event for event in events if isinstance(event, Stopped)]
    assert "not signed by its host" in stopped.reason


async def test_a_receipt_without_an_answer_is_sent_again_after_connecting(liar: Liar, tmp_path: Path) -> None:
    """A connection that ends with a receipt under way loses nothing: connected again, it is sent again."""
    liar.script = [token(1), done(1)]
    liar.drop_after_receipts = 1
    async with paying(liar, tmp_path) as (using, _):
        await ask(using)
        with pytest.raises(SessionError, match="connection_lost"):
            async with asyncio.timeout(10):
                await using.flush()
        await using.close()
        await using.connect()
        async with asyncio.timeout(10):
            await using.flush()
        assert using.receipted == Totals(5, 1)
    assert [receipt.totals for receipt in liar.receipts] == [Totals(5, 1)] * 2


def test_answers_and_refusals_are_read() -> None:
    """An `ack` and an `error` without a request answer a receipt."""
    answer = frames.read('{"type": "ack", "ack": {"job_id": 1}, "stored": null}')
    refusal = frames.read('{"type": "error", "problem": {"code": "receipt_forged", "more": 1}}')
    assert isinstance(answer, Answer)
    assert isinstance(refusal, Failed)
    assert refusal.problem.code == "receipt_forged"
    with pytest.raises(SessionError, match="acknowledgement"):
        frames.ack(answer.ack)
