"""Server-sent events: written, and cut out of a stream as it arrives.

The form is that of the HTML standard, section 9.2; only `data` and comments are made use of.
"""

from __future__ import annotations

from typing import Any

import orjson

from tallystick.wire import MAX_BODY

DONE = b"data: [DONE]\n\n"
"""The end of a stream, as OpenAI's API has it."""


def event(obj: Any) -> bytes:
    """One event with `obj` as its JSON."""
    return b"data: " + orjson.dumps(obj) + b"\n\n"


class SSEParser:
    """Cuts a stream of server-sent events, as it arrives, into the payloads of their `data`."""

    def __init__(self, limit: int = MAX_BODY) -> None:
        self._limit = limit
        self._rest = bytearray()
        """The line that has not ended yet."""
        self._data: list[bytes] = []
        self._held = 0
        """Bytes in `_data`."""

    def feed(self, data: bytes) -> list[bytes]:
        """The payloads of the events that `data` completes. ValueError for an event beyond the limit."""
        if not self._rest and not self._data and (payloads := self._whole(data)):
            return payloads
        self._rest += data
        if b"\n" not in data:
            self._check(len(self._rest))
            return []
        *lines, rest = bytes(self._rest).split(b"\n")
        self._rest = bytearray(rest)
        payloads = [payload for line in lines if (payload := self._line(line.removesuffix(b"\r")))]
        self._check(len(self._rest))
        return payloads

    def take_back(self) -> bytes | None:
        """What was fed of an event that has not ended, as if it had not been; None: a line of it is read."""
        if self._data:
            return None
        begun, self._rest = bytes(self._rest), bytearray()
        return begun

    def _whole(self, data: bytes) -> list[bytes]:
        """The payloads of a read that is whole events of one `data` line each, as most are; else none."""
        if not data.startswith(b"data: ") or not data.endswith(b"\n\n") or len(data) > self._limit:
            return []
        payloads = data[6:-2].split(b"\n\ndata: ")
        plain = data.count(b"\n") == 2 * len(payloads) and b"\r" not in data and b"" not in payloads
        return payloads if plain else []

    def _line(self, line: bytes) -> bytes:
        """Takes one line; the payload of the event that it ends, or nothing."""
        if not line:
            payload = b"\n".join(self._data)
            self._data.clear()
            self._held = 0
            return payload
        name, _, value = line.partition(b":")  # a comment is a line without a name
        if name == b"data":
            self._data.append(value.removeprefix(b" "))
            self._held += len(value)
            self._check(0)
        return b""

    def _check(self, more: int) -> None:
        if self._held + more > self._limit:
            raise ValueError(f"a server-sent event is longer than {self._limit} bytes")
