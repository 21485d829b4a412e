"""Connections of uvicorn's with an end to their patience: for who does not read, and for who does not ask.

What a stranger may make a node hold is bounded here in bytes and time, before anybody knows whose job it is.
"""

from __future__ import annotations

import asyncio

import structlog
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.http11 import Request

from tallystick.peer import STRANGERS_BODY

SEND_LIMIT = 30.0
"""Seconds for which a connection may be full before it counts as broken."""
HEAD_LIMIT = 30.0
"""Seconds in which the head of a request has to arrive."""
HEAD_BYTES = 64_000
"""Bytes of a head that has not ended, with what one read brought past it."""

log = structlog.get_logger(__name__)


class Patient(asyncio.Protocol):
    """Gives a connection up whose other end takes nothing: nobody holds a reply by not reading it."""

    transport: asyncio.Transport
    _given_up: asyncio.TimerHandle | None = None

    def pause_writing(self) -> None:
        self._given_up = asyncio.get_running_loop().call_later(SEND_LIMIT, self._give_up)
        super().pause_writing()

    def resume_writing(self) -> None:
        self._keep()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._keep()
        super().connection_lost(exc)

    def _keep(self) -> None:
        if self._given_up is not None:
            self._given_up.cancel()

    def _give_up(self) -> None:
        log.info("client.not_reading", seconds=SEND_LIMIT)
        self.transport.abort()


class PatientHttp(Patient, HttpToolsProtocol):
    """uvicorn's HTTP. The head of a request has to arrive in time, and to end."""

    _head = 0
    """Bytes that came of a head that has not ended."""
    _head_due: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._take_head()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._head_due is not None:
            self._head += len(data)
            if self._head > HEAD_BYTES:
                self._refuse_head()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self._head_due is None:
            self._await_head()

    def on_headers_complete(self) -> None:
        self._take_head()
        super().on_headers_complete()

    def _await_head(self) -> None:
        self._head = 0
        self._head_due = asyncio.get_running_loop().call_later(HEAD_LIMIT, self._refuse_head)

    def _take_head(self) -> None:
        if self._head_due is not None:
            self._head_due.cancel()
            self._head_due = None

    def _refuse_head(self) -> None:
        log.info("client.not_asking", bytes=self._head)
        self.transport.abort()


class PatientWebSocket(Patient, WebSocketsSansIOProtocol):
    """uvicorn's WebSocket. Who shows no bearer with the upgrade sends a stranger's frames: short ones."""

    def handle_connect(self, event: Request) -> None:
        if "authorization" not in event.headers:
            self.conn.max_message_size = STRANGERS_BODY
        super().handle_connect(event)
