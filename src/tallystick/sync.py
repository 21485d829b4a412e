"""The session of `client.py` for programs without an event loop: a face that has no logic of its own.

    with Session(deposit="2 USDC", model="llama-3.1-8b", max_price="0.60") as session:
        for text in session.chat("Why was the stick split?"):
            print(text, end="")

All runs in one thread of its own. What comes is handed over through a queue, so that no token waits for a
switch of threads and back.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import aclosing, suppress
from functools import wraps
from queue import SimpleQueue
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar, overload

from tallystick.client import CUT, OUTSIDE, Amount, AsyncSession, Kind, Messages, Reply
from tallystick.config import PayerConfig
from tallystick.countersign import Overcount
from tallystick.errors import ConfigError, SessionError
from tallystick.session import BalanceLow, Settled, Signed
from tallystick.spending import IDLE, HostChosen, SetAside
from tallystick.types import Completion

if TYPE_CHECKING:
    import openai

T = TypeVar("T")


class _Ended:
    """Nothing more comes; `error` says why, if it is not the end."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


class Session:
    """Pays hosts for what is asked of their models, within a deposit. `with` it.

    Entering connects to the chain; the first request opens a job, which all further ones share. Leaving
    completes it: what was not spent comes back. A program that was killed goes on with its job when it runs
    again. All errors are TallystickErrors of `tallystick.errors`, and say what mends them.

    Its methods may be called from any thread, and side by side; listeners are called in a thread of their
    own, and may call them too.
    """

    __slots__ = ("_guard", "_loop", "_session", "_thread")

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
        self._session = AsyncSession(
            deposit=deposit,
            model=model,
            max_price=max_price,
            max_per_day=max_per_day,
            host=host,
            idle=idle,
            tokenizers=tokenizers,
            config=config,
        )
        self._guard = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        """Takes work for as long as this is set: what it took, it ends."""
        self._thread: threading.Thread | None = None

    __init__.__doc__ = AsyncSession.__init__.__doc__

    def __enter__(self) -> Self:
        """Connects to the chain, in a thread of the session's. Raises what AsyncSession raises."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="tallystick", daemon=True)
        self._thread.start()
        try:
            self._wait(self._session.__aenter__())
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._wait(self._session.__aexit__(kind, error, trace))
        finally:
            self._stop()

    @property
    def reply(self) -> Reply | None:
        """What became of the last reply that ended, and what it cost."""
        return self._session.reply

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
        if inspect.iscoroutinefunction(listener):
            raise ConfigError("the listener is an `async def`, which AsyncSession awaits: give a plain `def`")

        @wraps(listener)
        async def called(event: Any) -> None:
            await asyncio.to_thread(listener, event)

        self._session.on(kind, called)

    on.__doc__ = AsyncSession.on.__doc__

    def models(self) -> list[str]:
        return self._wait(self._session.models())

    models.__doc__ = AsyncSession.models.__doc__

    def chat(self, prompt: Messages, *, max_tokens: int | None = None, **sampling: Any) -> Iterator[str]:
        return self._each(self._session.chat(prompt, max_tokens=max_tokens, **sampling))

    chat.__doc__ = AsyncSession.chat.__doc__

    def openai(self, **options: Any) -> openai.OpenAI:
        from tallystick import transport

        return transport.client(lambda: self._session.gateway, self._wait, self._each, **options)

    openai.__doc__ = AsyncSession.openai.__doc__

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        """What it brings. SessionError outside of `with`, also where that is left meanwhile."""
        doing = self._submitted(work)
        try:
            return doing.result()
        except CancelledError:
            raise SessionError(CUT) from None
        except BaseException:  # Ctrl-C: nobody waits for it any more
            doing.cancel()
            raise

    def _submitted(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        with self._guard:
            if self._loop is None:
                work.close()
                raise SessionError(OUTSIDE)
            return asyncio.run_coroutine_threadsafe(work, self._loop)

    def _each(self, items: AsyncGenerator[T, None]) -> Iterator[T]:
        """What an asynchronous iteration brings, in this thread; leaving it ends the other."""
        handed = SimpleQueue[T | _Ended]()
        handing = self._wait(_begin(items, handed))
        item: T | _Ended | None = None
        try:
            while not isinstance(item := handed.get(), _Ended):
                yield item
        finally:
            with suppress(RuntimeError):  # the loop is closed, and has ended all
                handing.get_loop().call_soon_threadsafe(handing.cancel)
            while not isinstance(item, _Ended):
                item = handed.get()
        if item.error is not None:
            raise item.error

    def _stop(self) -> None:
        with self._guard:
            loop, self._loop = self._loop, None
        assert loop is not None
        assert self._thread is not None
        asyncio.run_coroutine_threadsafe(_end_rest(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        self._thread.join()
        loop.close()


async def _end_rest() -> None:
    """Ends what is under way, so that no other thread waits for it for ever."""
    rest = asyncio.all_tasks() - {asyncio.current_task()}
    for task in rest:
        task.cancel()
    await asyncio.gather(*rest, return_exceptions=True)


async def _begin(items: AsyncGenerator[T, None], handed: SimpleQueue[T | _Ended]) -> asyncio.Task[None]:
    """Hands over what comes, in a task; whatever becomes of that, the end is handed over last."""
    handing = asyncio.create_task(_hand(items, handed))
    handing.add_done_callback(lambda done: handed.put(_Ended(_why(done))))
    return handing


async def _hand(items: AsyncGenerator[T, None], handed: SimpleQueue[T | _Ended]) -> None:
    async with aclosing(items):
        async for item in items:
            handed.put(item)


def _why(done: asyncio.Task[None]) -> BaseException | None:
    """Why it ended; None: because all of it came."""
    return SessionError(CUT) if done.cancelled() else done.exception()
