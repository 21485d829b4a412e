"""The two databases: where they differ, neither promises less than the other."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from sqlalchemy import Connection, Engine, select, text
from sqlalchemy.exc import DBAPIError

from tallystick import database
from tallystick.errors import DatabaseFailed
from tallystick.writer import Writer
from tests import postgresql


@pytest.fixture
def url(tmp_path: Path, ledger_url: str | None) -> str:
    return ledger_url or database.url_in(tmp_path)


@pytest.fixture
def engine(url: str) -> Iterator[Engine]:
    engine = database.engine(url, writing=True)
    yield engine
    engine.dispose()


def test_every_commit_is_flushed(engine: Engine) -> None:
    """Law 7: what survives a power cut is asked for on each connection, whatever the defaults are."""
    wanted: dict[str, dict[str, object]] = {
        "PostgreSQL": {"SHOW synchronous_commit": "on", "SHOW fsync": "on"},
        "SQLite": {"PRAGMA journal_mode": "wal", "PRAGMA synchronous": 2},
    }
    with engine.connect() as connection:
        name = database.version(connection).split()[0]
        assert {ask: connection.exec_driver_sql(ask).scalar() for ask in wanted[name]} == wanted[name]
        assert not database.is_unsafe(connection)


def test_the_clock_is_the_databases(engine: Engine) -> None:
    """It tells seconds since 1970, goes forward within a transaction, and is nobody's own."""
    with engine.connect() as connection:
        first = connection.scalar(select(database.now()))
        second = connection.scalar(select(database.now()))
    assert first is not None
    assert second is not None
    assert 1_700_000_000 < first <= second < first + 60


def test_who_only_looks_cannot_write(url: str, engine: Engine) -> None:
    """`tally doctor` may look into the ledger of a running node."""
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE numbers (number INTEGER)"))
    with database.looking(url) as looking:
        assert looking is not None
        assert looking.execute(text("SELECT number FROM numbers")).all() == []
        with pytest.raises(DBAPIError, match=r"read-?only"):
            looking.execute(text("DELETE FROM numbers"))


def test_who_only_looks_makes_no_ledger(tmp_path: Path) -> None:
    """Before the first start there is none, and none after a look."""
    with database.looking(database.url_in(tmp_path)) as connection:
        assert connection is None
    assert list(tmp_path.iterdir()) == []


def test_a_place_tells_no_password() -> None:
    """What is said of a ledger may be logged."""
    assert database.place("postgresql://host:secret@db:5432/tally") == "postgresql://host:***@db:5432/tally"
    assert database.place("sqlite:////var/lib/tally/ledger.db") == "/var/lib/tally/ledger.db"


async def test_transactions_that_meet_are_run_again(postgres_url: str) -> None:
    """Of two that wait for each other PostgreSQL ends one; the writer runs it again, and both are done."""
    engines = [database.engine(postgres_url, writing=True) for _ in range(2)]
    with engines[0].begin() as connection:
        connection.execute(text("CREATE TABLE numbers (number INTEGER PRIMARY KEY, times INTEGER)"))
        connection.execute(text("INSERT INTO numbers VALUES (1, 0), (2, 0)"))
    meeting = threading.Barrier(2)
    writers = [Writer(engine) for engine in engines]

    def crossing(first: int, second: int) -> Callable[[Connection], None]:
        runs = 0

        def cross(connection: Connection) -> None:
            nonlocal runs
            runs += 1
            add_to(connection, first)
            if runs == 1:
                meeting.wait()
            add_to(connection, second)

        return cross

    for writer in writers:
        writer.start()
    await asyncio.gather(writers[0].submit(crossing(1, 2)), writers[1].submit(crossing(2, 1)))
    for writer in writers:
        writer.close()
    with engines[0].connect() as connection:
        assert connection.execute(text("SELECT times FROM numbers")).scalars().all() == [2, 2]
    for engine in engines:
        engine.dispose()


def add_to(connection: Connection, number: int) -> None:
    connection.execute(
        text("UPDATE numbers SET times = times + 1 WHERE number = :number"), {"number": number}
    )


async def test_what_a_silent_server_made_of_a_commit_is_not_known(
    postgres: postgresql.Server, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law 7: it may be there, and may not, so nobody is told that it failed, and nothing is run again."""
    monkeypatch.setattr(database, "SILENCE_LIMIT", 0.5)
    engine = database.engine(postgres_url, writing=True)
    queued, runs = threading.Event(), []

    def freeze(connection: Connection, items: Sequence[int]) -> Sequence[int]:
        connection.execute(text("SELECT 1"))
        postgres.freeze()
        runs.append(list(items))
        return items

    writer = Writer(engine)
    writer.start()
    waiting = [writer.submit(lambda _: queued.wait()), writer.join(freeze, 1), writer.join(freeze, 2)]
    tasks = [asyncio.ensure_future(each) for each in waiting]
    await asyncio.sleep(0)
    queued.set()
    try:
        _, *told = await asyncio.gather(*tasks, return_exceptions=True)
    finally:
        postgres.thaw()
        await asyncio.to_thread(writer.close)
        engine.dispose()
    assert runs == [[1, 2]]
    unknown = "whether the ledger was written is not known: the server has not answered for 0.5 s"
    assert [(type(error), str(error)) for error in told] == [(DatabaseFailed, unknown)] * 2
