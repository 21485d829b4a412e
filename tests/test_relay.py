"""The relay: a client need not know which process of a host serves its job, nor that there are several."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest
from sqlalchemy import text

from tallystick import database, relay
from tallystick.chain import Chain
from tallystick.config import Secret
from tallystick.devnet import Devnet
from tallystick.relay import PASSED_ON
from tallystick.testing.engine import Hang, Script, ScriptedEngine, say
from tallystick.types import JobStatus, Totals
from tests.hosting import CHAT, Host, Hosting
from tests.paying import PROMPT, Signer, look_always, register, until
from tests.test_websocket import Talk

REPLY = Script(say(*"x" * 60))


@dataclass
class Pair:
    """Two nodes of one host over one ledger, and a job that the first of them serves."""

    one: Host
    two: Host
    signer: Signer
    engines: tuple[ScriptedEngine, ScriptedEngine]

    async def talk(self) -> tuple[Talk, aiohttp.ClientWebSocketResponse]:
        socket = await self.two.http.ws_connect("/v1/session", headers=self.signer.headers())
        return Talk(socket, self.signer), socket

    async def lose_first(self) -> None:
        """The first process is not heard of any more, and does not know it."""
        await self.one.node.ledger.heartbeat.stop()
        engine = database.engine(self.one.node.ledger.url, writing=True)
        with engine.begin() as connection:
            ended = text("UPDATE processes SET until = 0 WHERE id = :id")
            connection.execute(ended, {"id": self.one.node.ledger.process})
        engine.dispose()

    def served(self) -> tuple[int, int]:
        """Requests that reached the engines of either."""
        first, second = self.engines
        return len(first.asked), len(second.asked)


PairFactory = Callable[..., Awaitable[Pair]]


@pytest.fixture
async def a_pair(
    devnet: Devnet, chain: Chain, tmp_path: Path, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[PairFactory]:
    """Makes a pair; what the first node's engine replies may be given."""
    look_always(monkeypatch)
    await register(devnet, chain)
    hosting = Hosting(devnet, chain, tmp_path)

    async def serve(engine: ScriptedEngine, name: str) -> Host:
        return await hosting.serve(engine, ledger_url=Secret(postgres_url), data_dir=tmp_path / name)

    async def make(*scripts: Script) -> Pair:
        engines = [ScriptedEngine(*each) for each in (scripts or [REPLY], [REPLY])]
        one, two = [await serve(engine, name) for engine, name in zip(engines, ("one", "two"), strict=True)]
        signer = await hosting.signer()
        await one.node.desk.accounts.open(signer.job)
        return Pair(one, two, signer, (engines[0], engines[1]))

    async with hosting.parts:
        yield make


async def test_a_reply_comes_from_where_the_job_is_served(a_pair: PairFactory) -> None:
    """Streamed, signed for and looked at through the one process, it is all done by the other."""
    pair = await a_pair()
    *events, done = await pair.two.ask(pair.signer)
    assert done == {"done": True}
    assert events[-1]["tally"]["job"] == {"prompt_tokens": PROMPT, "tokens": 60}
    assert pair.served() == (1, 0)
    row = await pair.two.node.ledger.job(pair.signer.job.id)
    assert row is not None
    assert row.receipted is not None
    assert (row.owner, row.receipted.totals) == (pair.one.node.ledger.process, Totals(PROMPT, 60))
    path = f"/v1/jobs/{pair.signer.job.id}"
    async with pair.two.http.get(path, headers=pair.signer.headers()) as answer:
        view = await answer.json()
    assert (answer.status, view["counted"]) == (200, {"prompt_tokens": PROMPT, "tokens": 60})


async def test_an_answer_in_one_piece_is_passed_back_whole(a_pair: PairFactory) -> None:
    """Status, headers and body are those of the process that serves; so are those of a refusal."""
    pair = await a_pair()
    body = pair.signer.body(stream=False, max_tokens=60)
    async with pair.two.http.post(CHAT, json=body, headers=pair.signer.headers()) as answer:
        assert (answer.status, answer.content_type) == (200, "application/json")
        pair.signer.receive(await answer.json())
    status, error = await pair.two.error(pair.signer, number=2, max_tokens=9999)
    assert (status, error["code"]) == (400, "context_exceeded")
    assert pair.served() == (1, 0)


async def test_a_session_ends_where_it_is_served(a_pair: PairFactory, chain: Chain) -> None:
    """The signer's word goes to the process that has the last count, and the job is completed with it."""
    pair = await a_pair()
    await pair.two.ask(pair.signer)
    path = f"/v1/jobs/{pair.signer.job.id}/complete"
    async with pair.two.http.post(path, json={"end": "0x" + pair.signer.end().hex()}) as answer:
        assert (answer.status, (await answer.json())["ended"]) == (202, True)

    async def is_closed() -> bool:
        job = await chain.job(pair.signer.job.id)
        return job is not None and job.status is JobStatus.CLOSED

    await until(is_closed)
    job = await chain.job(pair.signer.job.id)
    assert job is not None
    assert job.settled == Totals(PROMPT, 60)


async def test_a_client_that_leaves_is_gone_at_the_other_process_too(a_pair: PairFactory) -> None:
    """Nothing is made for nobody: the reply is cut where it is made."""
    pair = await a_pair(Script((*say("a", "b"), Hang())))
    asking = pair.two.http.post(CHAT, json=pair.signer.body(), headers=pair.signer.headers())
    async with asking as answer:
        await answer.content.readany()
        answer.close()
    async with asyncio.timeout(20):
        await pair.engines[0].asked[0].over.wait()
    assert pair.engines[0].asked[0].cancelled


async def test_frames_are_passed_both_ways(a_pair: PairFactory) -> None:
    """Tokens, receipts, a cancelled reply, the end and what was settled: as on the other one's own socket."""
    pair = await a_pair(REPLY, Script((*say("a"), Hang())))
    talk, _ = await pair.talk()
    await talk.infer()
    assert (await talk.until("done"))[-1]["tally"]["tokens"] == 60
    await talk.settle_up()
    request = await talk.infer(2)
    await talk.until("token", request=request)
    await talk.send("cancel", request=request)
    assert (await talk.until("done", request=request))[-1]["reason"] == "cancelled"
    await talk.settle_up()
    await talk.send("session_end", job_id=pair.signer.job.id, end="0x" + pair.signer.end().hex())
    await talk.until("session_end")
    [*_, settled] = await talk.until("settled")
    assert (settled["completed"], settled["tokens"]) == (True, 61)
    assert pair.served() == (2, 0)


async def test_a_process_that_takes_no_connection_is_told_with_the_time_to_wait(a_pair: PairFactory) -> None:
    """Until its lease runs out nobody else may serve the job; then whoever is asked takes it over."""
    pair = await a_pair()
    await pair.one.node.ledger.reach("http://127.0.0.1:9")
    status, error = await pair.two.error(pair.signer)
    assert (status, error["code"], error["retry"]) == (503, "job_elsewhere", True)
    async with pair.two.http.get(f"/v1/jobs/{pair.signer.job.id}", headers=pair.signer.headers()) as answer:
        assert (answer.status, 1 <= int(answer.headers["retry-after"]) <= 10) == (503, True)
    talk, _ = await pair.talk()
    request = await talk.infer(2)
    [*_, frame] = await talk.until("error", request=request)
    assert frame["problem"]["code"] == "job_elsewhere"

    await pair.lose_first()
    await pair.two.ask(pair.signer, 3)
    assert pair.served() == (0, 1)
    row = await pair.two.node.ledger.job(pair.signer.job.id)
    assert row is not None
    assert row.owner == pair.two.node.ledger.process


async def test_nothing_is_passed_on_twice(a_pair: PairFactory) -> None:
    """Two processes that each take the other for the owner do not send a request round for ever."""
    pair = await a_pair()
    headers = {**pair.signer.headers(), PASSED_ON: "1"}
    async with pair.two.http.post(CHAT, json=pair.signer.body(), headers=headers) as answer:
        error = (await answer.json())["error"]
    assert (answer.status, error["code"]) == (503, "job_elsewhere")
    socket = await pair.two.http.ws_connect("/v1/session", headers=headers)
    talk = Talk(socket, pair.signer)
    request = await talk.infer(2)
    assert (await talk.until("error", request=request))[-1]["problem"]["code"] == "job_elsewhere"
    await socket.close()


async def test_a_process_that_hangs_before_it_answers_is_told_of(
    a_pair: PairFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request that nothing came of is refused, and may be sent again."""
    monkeypatch.setattr(relay, "LOOK_EVERY", 0.05)
    pair = await a_pair(Script((Hang(),)))
    asking = asyncio.create_task(pair.two.error(pair.signer))

    async def is_asked() -> bool:
        return pair.served() == (1, 0)

    await until(is_asked)
    await pair.lose_first()
    status, error = await asking
    assert (status, error["code"]) == (503, "job_elsewhere")
    await pair.two.ask(pair.signer, 2)
    assert pair.served() == (1, 1)


@pytest.mark.parametrize("over", ["http", "socket"])
async def test_a_process_that_hangs_is_given_up_with_its_lease(
    a_pair: PairFactory, monkeypatch: pytest.MonkeyPatch, over: str
) -> None:
    """A reply that stands still because its process does breaks off once another may take the job over."""
    monkeypatch.setattr(relay, "LOOK_EVERY", 0.05)
    pair = await a_pair(Script((*say("a"), Hang())))
    if over == "http":
        asking = pair.two.http.post(CHAT, json=pair.signer.body(), headers=pair.signer.headers())
        async with asking as answer:
            await answer.content.readany()
            await pair.lose_first()
            with pytest.raises(aiohttp.ClientPayloadError):
                await answer.content.read()
    else:
        talk, socket = await pair.talk()
        await talk.infer()
        await talk.until("token")
        await pair.lose_first()
        message = await socket.receive(timeout=20)
        assert (message.type, socket.close_code) == (aiohttp.WSMsgType.CLOSE, 1013)
