"""JSON-RPC over HTTP, against endpoints that fail in the ways that endpoints fail."""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer, unused_port
from web3 import AsyncWeb3
from web3.types import RPCEndpoint

from tallystick.devnet import Devnet
from tallystick.endpoint import Endpoint
from tallystick.errors import ChainError, ConfigError, RpcError
from tallystick.testing.faults import Break, Cut, Status, Truncated
from tallystick.testing.geth import Upstream
from tallystick.testing.rpc import FaultyRpc

TestServer.__test__ = False  # pytest would collect it by its name

SECRET = "a1b2c3d4"
BLOCK_NUMBER = RPCEndpoint("eth_blockNumber")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[str]:
    """The URL, with a secret in path and query, of a server that answers with `handler`."""
    app = web.Application()
    app.router.add_post("/{anything:.*}", handler)
    async with TestServer(app) as server:
        yield f"http://127.0.0.1:{server.port}/v3/{SECRET}?key={SECRET}"


@asynccontextmanager
async def endpoint(url: str, timeout: float = 10.0) -> AsyncIterator[Endpoint]:
    made = Endpoint(url, timeout)
    try:
        yield made
    finally:
        await made.disconnect()


def answering(body: str, status: int = 200) -> Handler:
    async def handler(_: web.Request) -> web.Response:
        return web.Response(text=body, status=status)

    return handler


async def failure(url: str, timeout: float = 10.0) -> ChainError:
    async with endpoint(url, timeout) as made:
        with pytest.raises(ChainError) as caught:
            await made.make_request(BLOCK_NUMBER, [])
    return caught.value


@pytest.mark.parametrize("status", [200, 400, 500])
async def test_an_error_keeps_code_message_and_data(status: int) -> None:
    """A node's JSON-RPC error is an RpcError with its code, message and data; nodes differ in the status."""
    body = '{"jsonrpc":"2.0","id":0,"error":{"code":-32005,"message":"limit exceeded","data":"0x01"}}'
    async with serving(answering(body, status=status)) as url:
        error = await failure(url)
    assert isinstance(error, RpcError)
    assert (error.code, error.message, error.data) == (-32005, "limit exceeded", "0x01")


@pytest.mark.parametrize("status", [401, 429, 503])
async def test_a_gateway_that_speaks_json_rpc_is_not_the_node(status: int) -> None:
    """Its "no" is to its caller, so it is no answer to what the node was asked."""
    body = '{"jsonrpc":"2.0","id":0,"error":{"code":-32001,"message":"Invalid API key"}}'
    async with serving(answering(body, status=status)) as url:
        error = await failure(url)
        async with endpoint(url) as made:
            with pytest.raises(ChainError, match=f"HTTP {status}"):
                await made.ask_all([(BLOCK_NUMBER, [])])
    assert not isinstance(error, RpcError)
    assert str(error).endswith(f"answered HTTP {status}: Invalid API key (-32001)")


@pytest.mark.parametrize("body", ["", "<html>Bad gateway</html>", "[]", '"no"', '{"jsonrpc":"2.0","id":0}'])
async def test_an_answer_that_is_no_json_rpc_is_told_with_its_status(body: str) -> None:
    """What a gateway says in place of the node is no result."""
    async with serving(answering(body, status=502)) as url:
        error = await failure(url)
    assert "answered HTTP 502, and no JSON-RPC" in str(error)
    assert not isinstance(error, RpcError)


async def test_null_is_no_answer_where_there_must_be_one() -> None:
    """A replica that answers null to a question that has an answer has not answered."""
    async with serving(answering('{"jsonrpc":"2.0","id":0,"result":null}')) as url:
        assert "answered null to eth_blockNumber" in str(await failure(url))
        async with endpoint(url) as made:
            receipt = await made.make_request(RPCEndpoint("eth_getTransactionReceipt"), ["0x00"])
    assert receipt["result"] is None


async def test_a_silent_endpoint_is_given_up() -> None:
    """Every call has a time limit."""
    waiting = asyncio.Event()

    async def silent(_: web.Request) -> web.Response:
        await waiting.wait()
        return web.Response()

    async with serving(silent) as url:
        error = await failure(url, timeout=0.1)
        waiting.set()
    assert "did not answer within 0.1 s" in str(error)


async def test_a_connection_that_was_closed_meanwhile_is_opened_again() -> None:
    """An endpoint that closes an idle connection costs nothing but a second request."""
    asked = 0

    async def handler(request: web.Request) -> web.Response:
        nonlocal asked
        asked += 1
        if asked == 2 and request.transport is not None:
            request.transport.close()
        return web.Response(text='{"jsonrpc":"2.0","id":0,"result":"0x7"}')

    async with serving(handler) as url, endpoint(url) as made:
        answers = [await made.make_request(BLOCK_NUMBER, []) for _ in range(2)]
    assert [answer["result"] for answer in answers] == ["0x7", "0x7"]
    assert asked == 3


@pytest.mark.parametrize("method", ["eth_sendRawTransaction", "eth_gasPrice"])
async def test_web3_does_not_repeat_a_call_by_itself(devnet: Devnet, method: str) -> None:
    """web3's own provider asks five times, for a transaction too; of ours each call is one request."""
    async with Upstream(devnet.rpc_url) as node, FaultyRpc(node) as rpc, endpoint(rpc.url) as made:
        rpc.fail(Status(503, after=True), method)
        eth = AsyncWeb3(made, middleware=[]).eth
        with pytest.raises(ChainError):
            await (eth.gas_price if method == "eth_gasPrice" else eth.send_raw_transaction(b"\2"))
        assert rpc.calls[method] == 1


@pytest.mark.parametrize("kind", ["refused", "silent", "gateway", "error"])
async def test_no_more_of_the_url_than_its_host_is_ever_shown(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A key in the URL's path or query is in no message, no traceback and no log, at any level."""
    waiting = asyncio.Event()

    async def silent(_: web.Request) -> web.Response:
        await waiting.wait()
        return web.Response()

    handler = {
        "silent": silent,
        "gateway": answering("no", status=503),
        "error": answering('{"id":0,"error":{"code":1,"message":"no"}}'),
    }.get(kind, answering(""))
    with caplog.at_level(logging.DEBUG):
        async with serving(handler) as url:
            nobody = f"http://user:{SECRET}@127.0.0.1:{unused_port()}/{SECRET}?key={SECRET}"
            error = await failure(nobody if kind == "refused" else url, timeout=0.2)
            waiting.set()
    client_log = [record.getMessage() for record in caplog.records if record.name != "aiohttp.access"]
    told = "".join(traceback.format_exception(error)) + "".join(client_log)
    assert SECRET not in told
    assert "127.0.0.1" in str(error)


@pytest.mark.parametrize(
    "url", ["", "localhost:8545", "ws://localhost", f"file:///{SECRET}", f"http:///{SECRET}"]
)
def test_what_is_no_http_url_is_refused_without_being_quoted(url: str) -> None:
    """A setting that makes no sense is a ConfigError, and may yet hold a secret."""
    with pytest.raises(ConfigError, match="has to be an http") as caught:
        Endpoint(url)
    assert SECRET not in str(caught.value)


# Many calls at once

COUNTS = [(RPCEndpoint("eth_getTransactionCount"), ["0x" + f"{n:040x}", "latest"]) for n in range(250)]


@pytest.mark.parametrize(("largest", "requests"), [(100, 3), (30, 11), (1, 251)])
async def test_many_calls_go_in_few_requests(devnet: Devnet, largest: int, requests: int) -> None:
    """As many in one request as the endpoint takes, one by one where it takes no array; none is mixed up."""
    async with Upstream(devnet.rpc_url) as node, FaultyRpc(node) as rpc, endpoint(rpc.url) as made:
        rpc.largest_array = largest
        answers = await made.ask_all([*COUNTS[:125], (BLOCK_NUMBER, []), *COUNTS[125:]])
        # What was left over of a longer array may have been answered before the others were refused.
        assert 0 <= rpc.requests - rpc.fired["array refused"] - requests <= 2
        assert answers[125] == (await made.make_request(BLOCK_NUMBER, []))["result"]
        assert answers[:125] + answers[126:] == ["0x0"] * 250


async def test_one_of_many_calls_may_fail(devnet: Devnet) -> None:
    """An error is the answer to its own call alone."""
    async with endpoint(devnet.rpc_url) as made:
        number, error = await made.ask_all([(BLOCK_NUMBER, []), (RPCEndpoint("eth_nothing"), [])])
    assert isinstance(number, str)
    assert isinstance(error, RpcError)


@pytest.mark.parametrize("fault", [Status(429), Status(503), Cut(), Truncated()])
async def test_many_calls_fail_together(devnet: Devnet, fault: Break) -> None:
    """An endpoint that gives no usable answer has answered none of them, and its arrays stay as long."""
    async with Upstream(devnet.rpc_url) as node, FaultyRpc(node) as rpc, endpoint(rpc.url) as made:
        with rpc.failing(fault), pytest.raises(ChainError):
            await made.ask_all(COUNTS[:40])
        assert await made.ask_all(COUNTS[:40]) == ["0x0"] * 40
        before = rpc.requests
        assert await made.ask_all(COUNTS[:40]) == ["0x0"] * 40
        assert rpc.requests == before + 1
