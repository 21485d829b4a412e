"""A JSON-RPC endpoint that fails on purpose, in front of a node: which calls, when and how, a test says.

    async with Devnet() as devnet, Geth(devnet.rpc_url) as geth, FaultyRpc(geth) as rpc:
        rpc.fail(Hang(after=True), "eth_sendRawTransaction", when=nth(1))    # taken; its answer is lost
        with rpc.failing(Lag(5)):                                           # a replica that is behind
            ...                                          # here the program under test talks to rpc.url
        assert rpc.fired["hang after"] == 1

Several of them may stand in front of one node, each with faults of its own, as several providers do.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from types import TracebackType
from typing import Any

import orjson
from aiohttp import web

from tallystick.testing.faults import Break, Onward, Rule, View, When, always
from tallystick.testing.geth import Answer, Node, Request

TOO_MANY = b'{"jsonrpc":"2.0","id":null,"error":{"code":-32600,"message":"batch too large"}}'


class FaultyRpc:
    """An endpoint on a free port of loopback. `async with` opens and closes it.

    A request is one call or, up to `largest_array` of them, an array; its answers come in no order.

    All rules that fire at a call befall it together: views from the first to the last one, of which the last
    is next to the node, then the first break. `fired` counts the faults by name; endpoints may share it.
    """

    def __init__(self, node: Node, *, fired: Counter[str] | None = None) -> None:
        self.rules: list[Rule] = []
        self.fired: Counter[str] = Counter() if fired is None else fired
        self.calls: Counter[str] = Counter()
        """By method: the calls that arrived here."""
        self.reached: Counter[str] = Counter()
        """By method: those that the node got."""
        self.requests = 0
        """What arrived over HTTP, whatever it asked."""
        self.largest_array = 100
        self._node = node
        self._port = 0
        self._runner: web.AppRunner | None = None
        self._tasks: set[asyncio.Task[list[Any]]] = set()

    @property
    def url(self) -> str:
        """Where it listens, once it is open. Any path below it will do."""
        return f"http://127.0.0.1:{self._port}"

    async def __aenter__(self) -> FaultyRpc:
        await self._open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def fail(self, fault: View | Break, *methods: str, when: When = always) -> Rule:
        """From now on calls of these methods (none: all that it concerns) fail when `when` says so."""
        rule = Rule(fault, frozenset(methods), when)
        self.rules.append(rule)
        return rule

    @contextmanager
    def failing(self, fault: View | Break, *methods: str, when: When = always) -> Iterator[Rule]:
        """The same inside of a `with`."""
        rule = self.fail(fault, *methods, when=when)
        try:
            yield rule
        finally:
            self.rules.remove(rule)

    @asynccontextmanager
    async def down(self) -> AsyncIterator[None]:
        """Nobody listens, inside of an `async with`; open connections are closed."""
        self.fired["down"] += 1
        await self._close()
        try:
            yield
        finally:
            await self._open()

    async def _open(self) -> None:
        app = web.Application(client_max_size=2**24)
        app.router.add_post("/{path:.*}", self._handle)
        # Whoever gives up waiting is noticed, and what hangs for him ends.
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self._port, reuse_address=True).start()
        self._port = self._runner.addresses[0][1]

    async def _close(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def _handle(self, http: web.Request) -> web.StreamResponse:
        asked = orjson.loads(await http.read())
        self.requests += 1
        calls = asked if isinstance(asked, list) else [asked]
        if len(calls) > self.largest_array:
            self.fired["array refused"] += 1
            return web.Response(body=TOO_MANY, content_type="application/json")
        faults = [self._faults(call["method"]) for call in calls]
        broken = next((fault for each in faults for fault in each if isinstance(fault, Break)), None)
        answer = b""
        if broken is None or broken.after:
            # Not given up when the client leaves: what is on its way to the node arrives there.
            told = await asyncio.shield(self._spawn(self._answers(calls, faults)))
            answer = orjson.dumps(told if isinstance(asked, list) else told[0])
        if broken is None:
            return web.Response(body=answer, content_type="application/json")
        self.fired[broken.name] += 1
        return await broken.respond(http, answer)

    def _faults(self, method: str) -> list[View | Break]:
        self.calls[method] += 1
        return [rule.fault for rule in list(self.rules) if rule.fires(method)]

    async def _answers(self, calls: list[Any], faults: list[list[View | Break]]) -> list[Any]:
        answers = [
            self._answer(call, [fault for fault in each if isinstance(fault, View)])
            for call, each in zip(calls, faults, strict=True)
        ]
        return list(reversed(await asyncio.gather(*answers)))

    async def _answer(self, call: Any, views: list[View]) -> dict[str, Any]:
        request = Request(call["method"], call.get("params") or [])
        return {"jsonrpc": "2.0", "id": call.get("id"), **await self._through(views)(request)}

    def _through(self, views: list[View]) -> Onward:
        if not views:
            return self._reach
        view, onward = views[0], self._through(views[1:])

        async def ask(request: Request) -> Answer:
            # Another view may ask for something else on the way.
            concerned = not view.concerns or request.method in view.concerns
            answer = await view.ask(request, onward) if concerned else None
            if answer is None:
                return await onward(request)
            self.fired[view.name] += 1
            return answer

        return ask

    async def _reach(self, request: Request) -> Answer:
        self.reached[request.method] += 1
        return await self._node.answer(request)

    def _spawn(self, work: Coroutine[Any, Any, list[Any]]) -> asyncio.Task[list[Any]]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
