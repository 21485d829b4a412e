"""The writer: group commit in which nobody pays for another's failure."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest
from sqlalchemy import Connection, Engine, create_engine, event, text

from tallystick.errors import LedgerError
from tallystick.writer import Writer


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = create_engine(f"sqlite:///{tmp_path}/database")
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE numbers (number INTEGER PRIMARY KEY)"))
    yield engine
    engine.dispose()


@pytest.fixture
def writer(engine: Engine) -> Iterator[Writer]:
    writer = Writer(engine)
    writer.start()
    yield writer
    writer.close()


def put(connection: Connection, number: int) -> int:
    connection.execute(text("INSERT INTO numbers VALUES (:number)"), {"number": number})
    return number


def putting(number: int) -> Callable[[Connection], int]:
    return partial(put, number=number)


def numbers(engine: Engine) -> list[int]:
    with engine.connect() as connection:
        return list(connection.execute(text("SELECT number FROM numbers ORDER BY number")).scalars())


class Gate:
    """Holds the writer until the test has queued what is to be one group."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.open = threading.Event()

    def __call__(self, _: Connection) -> None:
        self.entered.set()
        self.open.wait()


async def queued(writer: Writer, *numbers: int) -> list[int | BaseException]:
    """What became of inserts that were queued while the writer was held."""
    gate = Gate()
    held = asyncio.ensure_future(writer.submit(gate))
    waiting = [asyncio.ensure_future(writer.submit(putting(n))) for n in numbers]
    await asyncio.sleep(0)
    gate.open.set()
    await held
    return await asyncio.gather(*waiting, return_exceptions=True)


async def test_what_is_queued_together_is_committed_together(engine: Engine, writer: Writer) -> None:
    """One commit serves all that waited for it."""
    commits = 0

    @event.listens_for(engine, "commit")
    def count(_: Connection) -> None:
        nonlocal commits
        commits += 1

    assert await queued(writer, *range(100)) == list(range(100))
    assert numbers(engine) == list(range(100))
    assert commits <= 3  # what was held, perhaps the first one alone, and the rest


async def test_one_failure_leaves_the_others_alone(engine: Engine, writer: Writer) -> None:
    """An operation that fails undoes itself and nothing else of its group."""
    one, two, again, three = await queued(writer, 1, 2, 2, 3)
    assert (one, two, three) == (1, 2, 3)
    assert isinstance(again, LedgerError)
    assert "UNIQUE" in str(again)
    assert numbers(engine) == [1, 2, 3]


async def test_an_operations_own_exception_comes_back_as_it_is(engine: Engine, writer: Writer) -> None:
    """What the operation did before it raised is undone."""

    def refuse(connection: Connection) -> None:
        put(connection, 1)
        raise KeyError("its own")

    with pytest.raises(KeyError, match="its own"):
        await writer.submit(refuse)
    assert numbers(engine) == []


async def test_it_has_been_committed_when_the_caller_goes_on(engine: Engine, writer: Writer) -> None:
    """Law 7: another connection sees it by then."""
    for number in range(20):
        await writer.submit(putting(number))
        assert numbers(engine) == list(range(number + 1))


async def test_who_has_stopped_waiting_is_left_out(engine: Engine, writer: Writer) -> None:
    """A cancelled caller's operation does not run, if it had not begun: not even in a group that had."""
    first, second = Gate(), Gate()
    held = [asyncio.ensure_future(writer.submit(first))]
    await asyncio.to_thread(first.entered.wait)
    held.append(asyncio.ensure_future(writer.submit(second)))
    given_up = asyncio.ensure_future(writer.submit(putting(1)))
    await asyncio.sleep(0)
    first.open.set()
    await asyncio.to_thread(second.entered.wait)
    given_up.cancel()
    with pytest.raises(asyncio.CancelledError):
        await given_up
    second.open.set()
    await asyncio.gather(*held)
    assert await writer.submit(putting(2)) == 2
    assert numbers(engine) == [2]


async def test_what_is_joined_is_done_in_one_call(engine: Engine, writer: Writer) -> None:
    """Items that wait for the same commit come to their operation together, and each gets its own result."""
    calls: list[list[int]] = []

    def double(connection: Connection, items: Sequence[int]) -> list[int]:
        calls.append(list(items))
        return [put(connection, item) * 2 for item in items]

    gate = Gate()
    held = asyncio.ensure_future(writer.submit(gate))
    await asyncio.to_thread(gate.entered.wait)
    waiting = [asyncio.ensure_future(writer.join(double, number)) for number in range(5)]
    await asyncio.sleep(0)
    gate.open.set()
    await held
    assert await asyncio.gather(*waiting) == [0, 2, 4, 6, 8]
    assert calls == [[0, 1, 2, 3, 4]]
    assert numbers(engine) == [0, 1, 2, 3, 4]


async def test_one_of_many_that_are_joined_fails_alone(engine: Engine, writer: Writer) -> None:
    """Whoever is joined to an item that fails is written all the same."""

    def put_all(connection: Connection, items: Sequence[int]) -> list[int]:
        return [put(connection, item) for item in items]

    joined = [writer.join(put_all, number) for number in (1, 2, 3, 2, 4, 5)]
    *others, again = sorted(await asyncio.gather(*joined, return_exceptions=True), key=is_error)
    assert others == [1, 2, 3, 4, 5]
    assert isinstance(again, LedgerError)
    assert numbers(engine) == [1, 2, 3, 4, 5]


def is_error(outcome: object) -> bool:
    return isinstance(outcome, Exception)


async def test_who_does_not_pass_is_not_written(engine: Engine, writer: Writer) -> None:
    """A check is run in the writer's thread; what it raises comes back, and nothing else is held up."""
    threads: list[str] = []

    def check(number: int) -> None:
        threads.append(threading.current_thread().name)
        if number == 2:
            raise KeyError("not this one")

    def put_all(connection: Connection, items: Sequence[int]) -> list[int]:
        return [put(connection, item) for item in items]

    joined = [writer.join(put_all, number, partial(check, number)) for number in (1, 2, 3)]
    one, two, three = await asyncio.gather(*joined, return_exceptions=True)
    assert (one, three) == (1, 3)
    assert isinstance(two, KeyError)
    assert numbers(engine) == [1, 3]
    assert set(threads) == {"tallystick-writer"}


async def test_an_event_loop_that_is_gone_is_not_missed(writer: Writer) -> None:
    """The writer goes on when whoever waited has closed its event loop meanwhile."""
    gate = Gate()

    async def leave() -> None:
        waiting = asyncio.ensure_future(writer.submit(gate))
        await asyncio.to_thread(gate.entered.wait)
        waiting.cancel()

    await asyncio.to_thread(asyncio.run, leave())
    gate.open.set()
    assert await writer.submit(putting(1)) == 1


async def test_closing_writes_what_is_queued(engine: Engine, writer: Writer) -> None:
    """Whoever was let in is answered; whoever comes later is told."""
    waiting = [asyncio.ensure_future(writer.submit(putting(n))) for n in range(50)]
    await asyncio.sleep(0)
    await asyncio.to_thread(writer.close)
    assert await asyncio.gather(*waiting) == list(range(50))
    with pytest.raises(LedgerError, match="closed"):
        await writer.submit(putting(51))
    assert numbers(engine) == list(range(50))
