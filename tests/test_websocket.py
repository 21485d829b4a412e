"""A payer's WebSocket (protocol §10), over a real socket."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import aiohttp
import orjson
import pytest

from tallystick import wire
from tallystick.errors import EngineError
from tallystick.node import Node
from tallystick.testing.engine import Hang, Script, ScriptedEngine, Step, say
from tallystick.types import RequestId
from tests.hosting import Hosting
from tests.paying import PROMPT, Signer, until

Frame = Mapping[str, Any]
END = "0x" + "11" * 65
NO_JOBS = ("-1", "0", str(2**53), str(2**257), "true", "1.0", '"1"', "null")
"""What no job can be called."""


class Talk:
    """One WebSocket of a payer."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, signer: Signer) -> None:
        self.socket = socket
        self.signer = signer

    async def send(self, kind: str, **members: Any) -> None:
        await self.socket.send_str(wire.frame(kind, **members))

    async def infer(self, number: int = 1, **members: Any) -> RequestId:
        """Asks as the brief has it: a prompt, a job id and a bound."""
        request = RequestId(f"{number:032x}")
        body = {"prompt": "Why was the stick split?", "max_tokens": 100, **members}
        self.signer.signs.begin(request, body, body["max_tokens"])
        await self.send("inference", request={"job_id": self.signer.job.id, "id": request, **body})
        return request

    async def next(self) -> Frame:
        message = await self.socket.receive(timeout=20)
        assert message.type is aiohttp.WSMsgType.TEXT, message
        frame: Frame = orjson.loads(message.data)
        return frame

    async def until(self, kind: str, **members: Any) -> list[Frame]:
        """All frames up to the first of that kind with these members, signing for what is due on the way."""
        frames: list[Frame] = []
        while not frames or frames[-1]["type"] != kind or not members.items() <= frames[-1].items():
            frames.append(await self.next())
            await self.take(frames[-1])
        return frames

    async def take(self, frame: Frame) -> None:
        if frame["type"] == "ack":
            self.signer.acked(frame)
        elif frame["type"] in ("token", "done"):
            text = {"content": frame.get("text", ""), "reasoning": frame.get("reasoning")}
            choice = {"delta": text, "finish_reason": frame.get("finish_reason")}
            self.signer.receive({"choices": [choice], "tally": frame["tally"]})
        if frame["type"] in ("ack", "checkpoint", "done") and (receipt := self.signer.receipt()) is not None:
            await self.send("receipt", receipt=wire.receipt_out(receipt))

    async def settle_up(self) -> None:
        """Signs until all that came is acknowledged."""
        while self.signer.signs.outstanding or self.signer.signs.pending:
            await self.take(await self.next())


class Sockets:
    """One served node, and a payer's sockets to it."""

    def __init__(self, hosting: Hosting) -> None:
        self.hosting = hosting

    async def serve(self, *reads: Any) -> Node:
        self.engine = ScriptedEngine(Script(reads or say(*"x" * 60)))
        host = await self.hosting.serve(self.engine)
        self.http = host.http
        return host.node

    async def talk(self, *, signed: bool = True, **terms: Any) -> Talk:
        """A socket for a new job, with a bearer in its upgrade or without."""
        signer = await self.hosting.signer(**terms)
        headers = signer.headers() if signed else {}
        socket = await self.http.ws_connect("/v1/session", headers=headers)
        self.hosting.parts.push_async_callback(socket.close)
        return Talk(socket, signer)

    async def talk_again(self, talk: Talk) -> Talk:
        """Another socket for the job of one."""
        socket = await self.http.ws_connect("/v1/session", headers=talk.signer.headers())
        self.hosting.parts.push_async_callback(socket.close)
        return Talk(socket, talk.signer)


@pytest.fixture
def sockets(hosting: Hosting) -> Sockets:
    return Sockets(hosting)


async def test_reply(sockets: Sockets) -> None:
    """A request is answered by tokens with their counts, checkpoints between them, and `done`."""
    await sockets.serve(*say(*"x" * 59), Step(delta={"reasoning_content": "Hm."}))
    talk = await sockets.talk()
    request = await talk.infer()
    frames = await talk.until("done")
    tokens = [frame for frame in frames if frame["type"] == "token"]
    assert "".join(frame["text"] for frame in tokens) == "x" * 59
    assert [frame["reasoning"] for frame in tokens if "reasoning" in frame] == ["Hm."]
    assert {frame["request"] for frame in frames if frame["type"] != "ack"} == {request}
    assert sum(frame["type"] == "checkpoint" for frame in frames) >= 2
    done = frames[-1]
    assert (done["finish_reason"], done["reason"], done["tally"]["due"]) == ("stop", "stop", True)
    assert done["usage"]["completion_tokens"] == done["tally"]["tokens"] == 60


async def test_several_at_once(sockets: Sockets) -> None:
    """Requests over one socket run beside each other, each with its own frames."""
    await sockets.serve()
    talk = await sockets.talk()
    requests = {await talk.infer(number) for number in (1, 2, 3)}
    ended: list[Frame] = []
    while len(ended) < 3:
        ended.append((await talk.until("done"))[-1])
    assert {frame["request"] for frame in ended} == requests
    assert {frame["reason"] for frame in ended} == {"stop"}
    await talk.settle_up()
    assert talk.signer.signs.receipted.tokens == 180


async def test_cancel(sockets: Sockets) -> None:
    """A request that is cancelled ends as such, and frees the engine; others go on."""
    await sockets.serve(*say("a"), Hang())
    talk = await sockets.talk()
    request = await talk.infer()
    await talk.until("token")
    await talk.send("cancel", request=request)
    await talk.send("cancel", request="f" * 32)  # one that is over, or never was
    done = (await talk.until("done"))[-1]
    assert (done["reason"], done["finish_reason"]) == ("cancelled", "length")
    assert sockets.engine.asked[0].cancelled


async def test_leaving_cancels(sockets: Sockets) -> None:
    """A socket that closes takes its requests with it."""
    await sockets.serve(*say("a"), Hang())
    talk = await sockets.talk()
    await talk.infer()
    await talk.until("token")
    await talk.socket.close()
    await asyncio.wait_for(sockets.engine.asked[0].over.wait(), 10)
    assert sockets.engine.asked[0].cancelled


async def test_coming_back(sockets: Sockets) -> None:
    """A reply whose socket broke is resumed on another: the frames that did not come, paid once."""
    node = await sockets.serve(*say(*"abc"), Hang())
    talk = await sockets.talk()
    request = await talk.infer()
    first = await talk.until("token", text="a")
    await talk.socket.close()
    await asyncio.wait_for(sockets.engine.asked[0].over.wait(), 10)
    again = await sockets.talk_again(talk)
    await again.send("resume", request=request, after=len(first))
    rest = await again.until("done")
    tokens = [frame["text"] for frame in [*first, *rest] if frame["type"] == "token"]
    assert "".join(tokens) in ("a", "ab", "abc")
    assert rest[-1]["reason"] == "cancelled"
    await again.settle_up()
    view = await node.desk.view(talk.signer.job.id, talk.signer.access())
    assert view["counted"] == view["acknowledged"] == rest[-1]["tally"]["job"]
    assert len(sockets.engine.asked) == 1


async def test_coming_back_in_time(sockets: Sockets) -> None:
    """A reply that is followed on a second socket goes on there when the first one breaks."""
    go_on = asyncio.Event()
    await sockets.serve(*say("a"), go_on, *say("b"))
    talk = await sockets.talk()
    request = await talk.infer()
    first = await talk.until("token")
    again = await sockets.talk_again(talk)
    await again.send("resume", request=request)
    assert [await again.next() for _ in first] == first
    await talk.socket.close()
    go_on.set()
    rest = await again.until("done")
    assert (rest[-1]["reason"], rest[-1]["tally"]["tokens"]) == ("stop", 2)


async def test_nothing_to_come_back_to(sockets: Sockets) -> None:
    """What was never begun, or is another job's, is not there to be resumed."""
    await sockets.serve()
    talk, stranger = await sockets.talk(), await sockets.talk()
    request = await talk.infer()
    await talk.until("done")
    await stranger.send("resume", request=request)
    frame = await stranger.next()
    assert (frame["type"], frame["request"], frame["problem"]["code"]) == ("error", request, "reply_gone")


@pytest.mark.parametrize(
    "raw",
    [
        "{",
        "[]",
        "{}",
        '{"type": "dance"}',
        '{"type": "inference"}',
        '{"type": "inference", "request": {"prompt": 7}}',
        '{"type": "inference", "request": {"prompt": "p", "x": ' + "[" * 900 + "]" * 900 + "}}",
        '{"type": "receipt", "receipt": {}}',
        '{"type": "resume", "request": "one"}',
        '{"type": "cancel"}',
        '{"type": "session_end", "job_id": 1}',
        *(f'{{"type": "session_end", "job_id": {job_id}, "end": "{END}"}}' for job_id in NO_JOBS),
    ],
)
async def test_malformed_frames(sockets: Sockets, raw: str) -> None:
    """A frame that cannot be read is answered with the problem, and the socket stays open."""
    await sockets.serve()
    talk = await sockets.talk()
    await talk.socket.send_str(raw)
    error = await talk.next()
    assert (error["type"], error["problem"]["code"]) == ("error", "invalid_request")
    await talk.infer()
    assert (await talk.until("done"))[-1]["reason"] == "stop"


async def test_access(sockets: Sockets) -> None:
    """Access comes with the upgrade or with the request; without any, the request is refused by a frame."""
    await sockets.serve()
    talk = await sockets.talk(signed=False)
    request = await talk.infer()
    refused = await talk.next()
    assert (refused["type"], refused["request"]) == ("error", request)
    assert refused["problem"]["code"] == "access_missing"
    await talk.infer(2, access=talk.signer.bearer())
    assert (await talk.until("done"))[-1]["reason"] == "stop"
    await talk.settle_up()


async def test_a_bad_upgrade(sockets: Sockets) -> None:
    """A bearer that does not hold is refused before the upgrade, with the problem as the answer."""
    await sockets.serve()
    signer = await sockets.hosting.signer()
    for headers, status in (
        ({"Authorization": "Bearer sk-1"}, 401),
        (signer.headers(expires_at=1), 401),
        (signer.headers() | {"X-Forwarded-Proto": "http"}, 403),
    ):
        with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
            await sockets.http.ws_connect("/v1/session", headers=headers)
        assert caught.value.status == status


async def test_engine_failure(sockets: Sockets) -> None:
    """A reply that breaks off ends in the problem, with the tally to sign for."""
    await sockets.serve(*say("a", "b"), EngineError("broken"))
    talk = await sockets.talk()
    request = await talk.infer()
    error = (await talk.until("error"))[-1]
    assert (error["request"], error["problem"]["code"]) == (request, "engine_failed")
    assert (error["tally"]["tokens"], error["tally"]["due"]) == (2, True)


async def test_balance_low(sockets: Sockets) -> None:
    """At a fifth of the deposit a frame says so, once."""
    await sockets.serve()
    talk = await sockets.talk(deposit=60)
    await talk.infer()
    frames = await talk.until("done")
    [low] = [frame for frame in frames if frame["type"] == "balance_low"]
    assert int(low["tally"]["left"]) <= 12


async def test_end_and_settled(sockets: Sockets) -> None:
    """The end is acknowledged once it is on disk; what the chain then confirms is told, with the refund."""
    await sockets.serve()
    talk = await sockets.talk()
    for number in (1, 2):
        await talk.infer(number)
        await talk.until("done")
        await talk.settle_up()
    await talk.send("session_end", job_id=talk.signer.job.id, end="0x" + talk.signer.end().hex())
    frames = await talk.until("settled", completed=True)
    ended = next(frame for frame in frames if frame["type"] == "session_end")
    assert (ended["job_id"], ended["job"]["ended"]) == (talk.signer.job.id, True)
    closed = frames[-1]
    job = await sockets.hosting.chain.job(talk.signer.job.id)
    assert job is not None
    assert (closed["prompt_tokens"], closed["tokens"]) == (2 * PROMPT, 120)
    assert int(closed["refund"]) == job.deposit - job.owed
    await talk.infer(3)
    assert (await talk.next())["problem"]["code"] in ("job_ended", "job_closed")


async def test_asks_for_nothing(sockets: Sockets) -> None:
    """A frame that asks without a request is told which member it lacks."""
    await sockets.serve()
    talk = await sockets.talk()
    await talk.send("inference")
    assert (await talk.next())["problem"]["param"] == "request"


async def waiting(sockets: Sockets, node: Node) -> Talk:
    """A socket whose second prompt waits for receipts of the first reply."""
    talk = await sockets.talk(checkpoint_interval=20)
    await talk.infer()
    while not (await talk.next()).get("tally", {}).get("waiting"):
        pass
    access = talk.signer.access()
    await talk.infer(2)
    account = node.desk.accounts.get(await node.desk.identify(access))
    assert account is not None

    async def in_line() -> bool:
        return account.line.prompts == 1

    await until(in_line)
    return talk


async def test_stopping_while_a_prompt_waits(sockets: Sockets) -> None:
    """A node that stops tells a request that waits for admission so, before its socket is closed."""
    node = await sockets.serve()
    talk = await waiting(sockets, node)
    await node.desk.stop(5.0)
    frames = [await talk.next(), await talk.next()]
    told = {frame["type"]: frame.get("reason") or frame["problem"]["code"] for frame in frames}
    assert told == {"done": "node_stopping", "error": "node_stopping"}


async def test_leaving_while_a_prompt_waits(sockets: Sockets, caplog: pytest.LogCaptureFixture) -> None:
    """A request that is refused after its client has left is no fault of the node's."""
    node = await sockets.serve()
    talk = await waiting(sockets, node)
    await talk.socket.close()
    await node.desk.stop(5.0)
    await sockets.hosting.parts.aclose()
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []
