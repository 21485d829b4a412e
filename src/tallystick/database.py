"""SQLite and PostgreSQL: where a ledger may be, and all in which the two differ.

Both flush every commit to the disk before it is told (law 7). SQLite has one process at a time, which a lock
file beside it sees to; PostgreSQL has as many as like, and is held to locking the rows that it is about to
change. Knows no table.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Any, TypeVar

import orjson
import psycopg
from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    Engine,
    Float,
    FromClause,
    String,
    Table,
    bindparam,
    cast,
    create_engine,
    event,
    func,
    make_url,
    select,
    text,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError, InterfaceError, InternalError, OperationalError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from tallystick.errors import LedgerError

DATABASE = "ledger.db"
LOCK = "ledger.lock"

CONNECT_LIMIT = 5
"""Seconds in which a PostgreSQL server has to answer."""
STATEMENT_LIMIT = 10
"""Seconds that one statement may take, waiting for a row included."""
SILENCE_LIMIT = 12.0
"""Seconds for which a server may keep silent that has not said itself that a statement took too long."""
PAUSE_LIMIT = 5
"""Seconds for which a transaction may stand still: a process that was stopped in it frees what it locked."""

T = TypeVar("T")

_MIGRATING = 0x7A11_7571
"""The number of PostgreSQL's advisory lock that is held while the tables are brought up to date."""
_SESSION = (
    "SET synchronous_commit = on",
    f"SET statement_timeout = '{STATEMENT_LIMIT}s'",
    f"SET idle_in_transaction_session_timeout = '{PAUSE_LIMIT}s'",
)
_READ_ONLY = "SET default_transaction_read_only = on"
_DEAD_PEER = {
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}
"""How a connection is noticed whose other end is gone: in seconds, but for the last one, in milliseconds."""
_COLLISIONS = {"40001", "40P01"}
"""PostgreSQL's codes for a transaction that met another one and would succeed if it were run again."""


def url_in(directory: Path) -> str:
    """Where a ledger is that is nowhere else."""
    return f"sqlite:///{directory / DATABASE}"


def place(url: str) -> str:
    """Where a ledger is, for people: without a password."""
    parts = make_url(url)
    return parts.render_as_string() if is_shared(url) else str(parts.database)


def is_shared(url: str) -> bool:
    """True if several processes may have the ledger open."""
    return make_url(url).get_backend_name() != "sqlite"


def engine(url: str, *, writing: bool) -> Engine:
    """Connections for one thread. ArgumentError, or ImportError, for a URL of neither database."""
    if is_shared(url):
        return _postgresql(url)
    # A transaction that is to write takes the lock at once: it could not be had in the middle of it.
    return _sqlite(url, "BEGIN IMMEDIATE" if writing else "BEGIN")


@contextmanager
def looking(url: str) -> Iterator[Connection | None]:
    """A connection for one who only looks, so that a running node is not disturbed; None: there is no ledger.

    All that is read through it was there at one moment. Raises SQLAlchemy's errors.
    """
    path = make_url(url).database
    if not is_shared(url) and not (path and Path(path).exists()):
        yield None
        return
    made = _looking_postgresql(url) if is_shared(url) else _looking_sqlite(path)
    try:
        with made.connect() as connection:
            yield connection
    finally:
        made.dispose()


def lock(directory: Path) -> int:
    """The file that keeps others out of an SQLite ledger, until it is closed. LedgerError if one is in."""
    path = directory / LOCK
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(file, 20, 0).decode(errors="replace").strip() or "another one"
        os.close(file)
        raise LedgerError(f"process {holder} has the ledger in {directory} open; stop it first") from None
    os.ftruncate(file, 0)
    os.pwrite(file, f"{os.getpid()}\n".encode(), 0)
    return file


def migrate(connection: Connection, scripts: Path, revision: str, name: str) -> None:
    """Brings a database up to a revision of those scripts.

    LedgerError, with its `name`, if it is at one that this program does not know.
    """
    # Imported here: it takes longer than all the rest of opening.
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(scripts).replace("%", "%%"))
    try:
        command.upgrade(config, revision)
    except CommandError as error:
        raise LedgerError(f"{name} was written by another version of this program: {error}") from error


def begin_migrating(connection: Connection) -> None:
    """Has other processes that start now wait until this transaction is over, however long that takes."""
    if connection.dialect.name == "postgresql":
        _server(connection).silence_limit = float("inf")
        connection.execute(text("SET LOCAL statement_timeout = 0"))
        connection.execute(text("SELECT pg_advisory_xact_lock(:number)"), {"number": _MIGRATING})


def is_unsafe(connection: Connection) -> bool:
    """True if the server is set up to lose what it said was written: `fsync` is off."""
    return connection.dialect.name == "postgresql" and connection.scalar(text("SHOW fsync")) == "off"


def version(connection: Connection) -> str:
    """The database's name and version."""
    if connection.dialect.name == "postgresql":
        return f"PostgreSQL {connection.scalar(text('SHOW server_version'))}"
    return f"SQLite {connection.scalar(text('SELECT sqlite_version()'))}"


def put(table: Table, dialect: str) -> Any:
    """An insert that can say what to do about a row that is there: each database writes it in its own way."""
    return (postgresql if dialect == "postgresql" else sqlite).insert(table)


def rows(name: str, columns: Sequence[Column[Any]], dialect: str) -> FromClause:
    """A table of integers and texts out of the parameter `name`, which is `packed` rows.

    One statement over it is one call of the database, where one a row has the thread that makes them wait for
    the others at each.
    """
    parameter = bindparam(name, type_=String)
    cells: list[ColumnElement[Any]]
    if dialect == "postgresql":
        array = func.jsonb_array_elements(cast(parameter, postgresql.JSONB))
        row = array.table_valued(Column("value", postgresql.JSONB), name=f"{name}_packed").c.value
        cells = [cast(row[at].astext, column.type) for at, column in enumerate(columns)]
    else:
        row = func.json_each(parameter).table_valued("value", name=f"{name}_packed").c.value
        cells = [func.json_extract(row, f"$[{at}]") for at in range(len(columns))]
    named = [cell.label(column.name) for cell, column in zip(cells, columns, strict=True)]
    return select(*named).subquery(name)


def packed(rows: Sequence[Sequence[int | str | None]]) -> str:
    """The parameter of `rows`."""
    return orjson.dumps(rows).decode()


class now(FunctionElement[float]):  # noqa: N801 - a function of SQL
    """The database's clock, in seconds since 1970: the one clock that all processes share."""

    type = Float()
    inherit_cache = True


@compiles(now, "sqlite")
def _now_in_sqlite(*_: Any, **__: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(now, "postgresql")
def _now_in_postgresql(*_: Any, **__: Any) -> str:
    return "extract(epoch FROM clock_timestamp())::double precision"


def connect_anew(engine: Engine) -> None:
    """After a failure: another server may have taken its place, or the same one may take writes again."""
    if engine.dialect.name == "postgresql":
        engine.dispose()


def has_failed(error: Exception) -> bool:
    """True if it is the database that failed, or its disk, and not what was asked of it."""
    return isinstance(error, (OperationalError, InterfaceError, InternalError)) and not has_collided(error)


def is_away(error: Exception) -> bool:
    """True if no server answers, or the connection broke: then the transaction may have been committed."""
    if not isinstance(error, DBAPIError):
        return False
    return error.connection_invalidated or _is_unexplained(error.orig)


def _is_unexplained(error: BaseException | None) -> bool:
    """What a PostgreSQL server itself says has a code."""
    return isinstance(error, psycopg.OperationalError) and error.sqlstate is None


def has_collided(error: Exception) -> bool:
    """True if the transaction met another one, and may be run again."""
    return isinstance(error, DBAPIError) and getattr(error.orig, "sqlstate", None) in _COLLISIONS


def _looking_sqlite(path: str | None) -> Engine:
    """Read-only: not even a lock is taken that the node could meet."""
    made = create_engine(f"sqlite:///file:{path}?mode=ro&uri=true")
    event.listen(made, "connect", _leave_transactions_alone)
    event.listen(made, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
    return made


def _looking_postgresql(url: str) -> Engine:
    return _postgresql(url, _READ_ONLY).execution_options(isolation_level="REPEATABLE READ")


def _json(value: Any) -> str:
    return orjson.dumps(value).decode()


def _sqlite(url: str, begin: str) -> Engine:
    made = create_engine(url, json_serializer=_json, json_deserializer=orjson.loads)
    event.listen(made, "connect", _prepare_sqlite)
    event.listen(made, "begin", lambda connection: connection.exec_driver_sql(begin))
    return made


def _leave_transactions_alone(connection: Any, _: object) -> None:
    # Python's sqlite3 begins them by itself, and not before reading or DDL: `begin` does it instead.
    connection.isolation_level = None


def _prepare_sqlite(connection: Any, _: object) -> None:
    _leave_transactions_alone(connection, _)
    # fullfsync: macOS's fsync leaves data in the drive's cache.
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "fullfsync=ON", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


class _Server(psycopg.Connection[Any]):
    """A connection that is given up once its server has kept silent for too long.

    A machine whose programs stand still acknowledges all that it is sent, so neither the kernel nor the
    server's own limits would end the wait.
    """

    silence_limit = 0.0
    """Seconds; set when it is taken from the pool."""

    def wait(self, gen: Generator[Any, Any, T], *args: Any, **kwargs: Any) -> T:
        return super().wait(self._bounded(gen), *args, **kwargs)

    def _bounded(self, generator: Generator[Any, Any, T]) -> Generator[Any, Any, T]:
        """The same waits. psycopg goes on with a generator every tenth of a second, ready or not."""
        until = monotonic() + self.silence_limit
        try:
            wanted = next(generator)
            while True:
                ready = yield wanted
                if not ready and monotonic() > until:
                    self.pgconn.finish()
                    raise psycopg.OperationalError(
                        f"the server has not answered for {self.silence_limit:g} s"
                    )
                wanted = generator.send(ready)
        except StopIteration as done:
            result: T = done.value
            return result


def _server(connection: Connection) -> _Server:
    server = connection.connection.driver_connection
    assert isinstance(server, _Server)
    return server


def _postgresql(url: str, *further: str) -> Engine:
    made = create_engine(
        make_url(url).set(drivername="postgresql+psycopg"),
        isolation_level="READ COMMITTED",
        json_serializer=_json,
        json_deserializer=orjson.loads,
        pool_size=1,
        max_overflow=1,
        # A server that was restarted costs a look, and not a caller's write.
        pool_pre_ping=True,
        connect_args={"connect_timeout": CONNECT_LIMIT, "application_name": "tallystick", **_DEAD_PEER},
    )

    def connect(_: object, __: object, args: Sequence[Any], settings: dict[str, Any]) -> _Server:
        return _Server.connect(*args, **settings)

    def prepare(connection: _Server, _: object) -> None:
        connection.silence_limit = SILENCE_LIMIT
        connection.autocommit = True
        for statement in (*_SESSION, *further):
            connection.execute(statement)
        connection.autocommit = False

    event.listen(made, "do_connect", connect)
    event.listen(made, "connect", prepare)
    event.listen(made, "checkin", _be_impatient)
    return made


def _be_impatient(connection: _Server | None, _: object) -> None:
    if connection is not None:
        connection.silence_limit = SILENCE_LIMIT
