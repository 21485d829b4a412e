"""What strangers, and clients that misbehave, can make a node hold: bounded in bytes and in time."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import AsyncIterator

import aiohttp
import orjson
import psutil
import pytest

from tallystick import patience, peer, websocket, wire
from tallystick.testing.engine import Hang, Script, ScriptedEngine, say
from tests.hosting import CHAT, Host, Hosting

SOCKETS = 2_000
HALF_A_HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: tally\r\nAuthorization: Bea"


async def connect(host: Host) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    name, port = host.url.removeprefix("http://").split(":")
    return await asyncio.open_connection(name, int(port))


async def closed(reader: asyncio.StreamReader) -> bool:
    """True once the other end has gone."""
    try:
        async with asyncio.timeout(20):
            return await reader.read() is not None
    except ConnectionError:
        return True


async def write(writer: asyncio.StreamWriter, *parts: bytes) -> None:
    for part in parts:
        writer.write(part)
        await writer.drain()
        await asyncio.sleep(0)  # the other end is in this process


async def served(host: Host) -> bool:
    async with host.http.get("/healthz") as answer:
        return answer.status == 200


@pytest.fixture
def many_files() -> None:
    """As many open files as the system allows."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@pytest.mark.usefixtures("many_files")
async def test_many_sockets(hosting: Hosting, monkeypatch: pytest.MonkeyPatch) -> None:
    """2 000 sockets with half a request each cost little, hold up nobody, and are closed in time."""
    host = await hosting.serve()
    monkeypatch.setattr(patience, "HEAD_LIMIT", 5.0)
    before = psutil.Process().memory_info().rss
    sockets = [await connect(host) for _ in range(SOCKETS)]
    for _, writer in sockets:
        writer.write(HALF_A_HEAD)
    assert await served(host)
    # Both ends of each are in this process.
    assert psutil.Process().memory_info().rss - before < SOCKETS * 100_000
    assert all(await asyncio.gather(*(closed(reader) for reader, _ in sockets)))
    for _, writer in sockets:
        writer.transport.abort()


async def test_a_head_without_end(hosting: Hosting) -> None:
    """A head that does not end is given up before it fills the memory."""
    host = await hosting.serve()
    reader, writer = await connect(host)
    writer.write(b"GET /healthz HTTP/1.1\r\n")
    with pytest.raises(ConnectionError):
        await write(writer, *(b"X-%d: %b\r\n" % (at, b"x" * 1_000) for at in range(6_400)))
    assert await closed(reader)
    writer.transport.abort()
    assert await served(host)


async def test_heads_of_later_requests(hosting: Hosting, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that was served has no longer for the head of its next request."""
    monkeypatch.setattr(patience, "HEAD_LIMIT", 0.2)
    host = await hosting.serve()
    reader, writer = await connect(host)
    writer.write(b"GET /healthz HTTP/1.1\r\nHost: tally\r\n\r\n")
    assert b"200 OK" in await reader.readline()
    writer.write(HALF_A_HEAD)
    assert await closed(reader)
    writer.transport.abort()


async def test_half_a_body(hosting: Hosting, monkeypatch: pytest.MonkeyPatch) -> None:
    """A body that does not arrive is refused in time."""
    monkeypatch.setattr(peer, "BODY_LIMIT", 0.1)
    host = await hosting.serve()

    async def half() -> AsyncIterator[bytes]:
        yield b'{"messages": ['
        await asyncio.Event().wait()

    async with host.http.post(CHAT, data=half()) as answer:
        error = (await answer.json())["error"]
    assert (answer.status, error["code"]) == (400, "invalid_request")


async def test_a_hundred_megabytes(hosting: Hosting) -> None:
    """Of a body that is too large nothing is kept: a stranger's ends sooner than a payer's."""
    host = await hosting.serve()
    signer = await hosting.signer()
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while sent < 100_000_000:
            yield b" " * 64_000
            sent += 64_000

    before = psutil.Process().memory_info().rss
    for headers, code in (({}, "access_missing"), (signer.headers(), "too_large")):
        sent = 0
        async with host.http.post(CHAT, data=endless(), headers=headers) as answer:
            assert (await answer.json())["error"]["code"] == code
    assert psutil.Process().memory_info().rss - before < 60_000_000


async def test_a_stranger_s_frame(hosting: Hosting) -> None:
    """Without a bearer in its upgrade a socket is closed over a frame that a payer may send."""
    host = await hosting.serve()
    signer = await hosting.signer()
    frame = wire.frame("dance", text="x" * peer.STRANGERS_BODY)
    async with host.http.ws_connect("/v1/session", headers=signer.headers()) as socket:
        await socket.send_str(frame)
        assert orjson.loads((await socket.receive()).data)["problem"]["code"] == "invalid_request"
    async with host.http.ws_connect("/v1/session") as socket:
        await socket.send_str(frame)
        assert (await socket.receive()).type is aiohttp.WSMsgType.CLOSE
        assert socket.close_code == 1009


async def test_a_flood_of_requests(hosting: Hosting, monkeypatch: pytest.MonkeyPatch) -> None:
    """A socket has so many requests under way, and hears of each one more; the others do not notice."""
    monkeypatch.setattr(websocket, "MAX_REPLIES", 8)
    host = await hosting.serve(ScriptedEngine(Script((*say("a"), Hang()))))
    signer = await hosting.signer()
    async with host.http.ws_connect("/v1/session", headers=signer.headers()) as socket:
        for number in range(100):
            body = {"prompt": "Why?", "max_tokens": 5, "id": f"{number + 1:032x}"}
            await socket.send_str(wire.frame("inference", request=body))
        codes: list[str] = []
        while len(codes) < 92:
            frame = orjson.loads((await socket.receive(timeout=20)).data)
            if frame["type"] == "error":
                codes.append(frame["problem"]["code"])
        assert set(codes) == {"too_many_replies"}
        assert await served(host)
        assert host.node.desk.accounts.streams <= 8


async def test_a_flood_that_nobody_reads(hosting: Hosting) -> None:
    """Frames whose answers are not read are not taken in any more: the sender's own buffers fill up."""
    host = await hosting.serve()
    signer = await hosting.signer()
    reader, writer = await connect(host)
    head = "GET /v1/session HTTP/1.1\r\nHost: tally\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
    writer.write(f"{head}{key}Authorization: Bearer {signer.bearer()}\r\n\r\n".encode())
    assert b"101" in await reader.readline()
    reader._transport.pause_reading()  # type: ignore[attr-defined]
    frame = b"\x81\x82\x00\x00\x00\x00{}" * 10_000
    before = psutil.Process().memory_info().rss
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(write(writer, *[frame] * 10_000), 3)
    assert psutil.Process().memory_info().rss - before < 50_000_000
    assert await served(host)
    writer.transport.abort()
