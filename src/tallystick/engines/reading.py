"""One streamed reply as it is read from a server: bytes in, pieces out. Does no I/O."""

from __future__ import annotations

from typing import Any

import msgspec
import orjson

from tallystick import plain
from tallystick.engine import Piece, Pieces, Plain
from tallystick.engines.dialect import Chunk, Dialect
from tallystick.engines.refusals import detail_of, turned_down
from tallystick.errors import EngineEmpty, EngineError, EngineFalseStart
from tallystick.plain import Shape
from tallystick.sse import SSEParser
from tallystick.transcript import delta_text
from tallystick.wire import MAX_BODY

EVENT_END = b"\n\n"


class Reading:
    """One streamed reply as it is read: bytes in, pieces out."""

    def __init__(self, dialect: Dialect) -> None:
        self.prompt_tokens = 0
        self.tokens = 0
        self.done = False
        """The reply is whole."""
        self.failure: EngineError | None = None
        """Why there is no more; raised once the pieces before it are delivered."""
        self._dialect = dialect
        self._events = SSEParser()
        self._shape: Shape | None = None
        """Of the plain chunks, once there was one."""

    def feed(self, data: bytes) -> Pieces:
        """The pieces that `data` completes; afterwards `done` or `failure` may be set."""
        pieces: Pieces = []
        try:
            if self._shape is None and self._dialect.running is not None:
                data = self._learn(data, pieces)
            if self._shape is not None and not self.done:
                data = self._plain(data, self._shape, pieces)
            self._general(data, pieces)
        except EngineError as error:
            self.failure = error
        except ValueError as error:  # also what orjson and msgspec raise
            self.failure = self.broken(f"what it sent cannot be read: {error}")
        return pieces

    def _learn(self, data: bytes, pieces: Pieces) -> bytes:
        """Reads up to the first chunk whose shape others may have; the rest."""
        end = data.find(EVENT_END) + len(EVENT_END)
        while self._shape is None and not self.done and end >= len(EVENT_END):
            self._general(data[:end], pieces)
            data = data[end:]
            end = data.find(EVENT_END) + len(EVENT_END)
        return data

    def _plain(self, data: bytes, shape: Shape, pieces: Pieces) -> bytes:
        """Reads plain chunks up to the first that is not; the rest, for the general way."""
        begun = self._events.take_back()
        if begun is None or len(begun) + len(data) > MAX_BODY:
            return data
        *events, rest = (begun + data).split(EVENT_END)
        for at, event in enumerate(events):
            read = shape.read(event)
            if read is None or not 0 < self.tokens <= read[1][1]:
                return EVENT_END.join([*events[at:], rest])
            text, (self.prompt_tokens, self.tokens), told = read
            pieces.append(Plain(text, self.prompt_tokens, self.tokens, shape, told))
        return rest

    def _general(self, data: bytes, pieces: Pieces) -> None:
        for payload in self._events.feed(data):
            if payload == b"[DONE]":
                self._finish()
                break
            raw = orjson.loads(payload)
            pieces.append(self.piece(raw))
            if self._shape is None and self._dialect.running is not None:
                self._shape = plain.learn(payload, raw, self._dialect.running)

    def piece(self, raw: dict[str, Any]) -> Piece:
        """The piece that one chunk makes. Raises EngineError; msgspec.ValidationError for a strange chunk."""
        chunk = msgspec.convert(raw, Chunk)
        if chunk.error is not None:
            raise self._failed(chunk.error)
        finish_reason = ids = None
        text = ""
        for choice in chunk.choices:
            text += choice.text or delta_text(choice.delta or {})
            finish_reason = choice.finish_reason or finish_reason
            ids = choice.token_ids or ids
        counts = self._dialect.counts(chunk)
        if counts is not None:
            self._count(*counts)
        elif text and self._dialect.provisional:
            self.tokens += 1
        return Piece(
            choices=raw.get("choices") or [],
            text=text,
            prompt_tokens=self.prompt_tokens,
            tokens=self.tokens,
            finish_reason=finish_reason,
            ids=ids,
            usage=raw.get("usage"),
            raw=raw,
        )

    def end(self) -> None:
        """The connection is at its end."""
        if not self.done and self.failure is None:
            self.failure = self._broken_off() if self.tokens else self._empty()

    def broken(self, why: str) -> EngineError:
        """The error for a reply that ends here: EngineFalseStart as long as no token has come."""
        kind = EngineError if self.tokens else EngineFalseStart
        return kind(f"The engine failed: {why}.")

    def _count(self, prompt_tokens: int, tokens: int) -> None:
        if tokens < self.tokens:
            raise self.broken(f"its count went back from {self.tokens} to {tokens}")
        self.tokens = tokens
        self.prompt_tokens = prompt_tokens if tokens else 0

    def _finish(self) -> None:
        if not self.tokens:
            raise self._empty()
        self.done = True

    def _broken_off(self) -> EngineError:
        return self.broken(f"its reply broke off after {self.tokens} tokens")

    def _empty(self) -> EngineError:
        return EngineEmpty("The engine ended its reply without a counted token.")

    def _failed(self, error: Any) -> EngineError:
        status = error.get("code") if isinstance(error, dict) else None
        detail = detail_of(error)
        if isinstance(status, int) and not self.tokens:
            return turned_down(status, detail)
        return self.broken(detail)
