"""A mock engine: a bare asyncio.Protocol that streams 200 distinct tokens a reply, as vLLM words them.

    python -m benchmarks.mock PORT [--pace TOKENS_A_SECOND]

Each token is a write of its own, one turn of the event loop after the one before; with `--pace` each stream
makes so many a second. Every chunk has the running usage, for whoever asks for it or not. It does nothing
else, so it is also what the figures call a bare asyncio.Protocol.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from typing import Any, ClassVar, cast

import uvloop

MODEL = "mock"
PROMPT_TOKENS = 11
TOKENS = 200
DONE = b"data: [DONE]\n\n"


def text(number: int) -> str:
    """The text of the token of that number, from 1."""
    return f" word{number}"


def _event(number: int, choice: dict[str, Any] | None) -> bytes:
    usage = {
        "prompt_tokens": PROMPT_TOKENS,
        "total_tokens": PROMPT_TOKENS + number,
        "completion_tokens": number,
    }
    chunk = {
        "id": "chatcmpl-0f0e0d0c0b0a09080706050403020100",
        "object": "chat.completion.chunk",
        "created": 1_700_000_000,
        "model": MODEL,
        "choices": [] if choice is None else [choice],
        "usage": usage,
    }
    return b"data: " + json.dumps(chunk, separators=(",", ":")).encode() + b"\n\n"


def _said(number: int, delta: dict[str, str], reason: str | None = None) -> bytes:
    return _event(number, {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason})


def _framed(body: bytes) -> bytes:
    """One chunk of a chunked body."""
    return b"%x\r\n%b\r\n" % (len(body), body)


WORDS = [_framed(_said(number, {"content": text(number)})) for number in range(1, TOKENS + 1)]
STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)


def _ending(tokens: int) -> bytes:
    reason = "stop" if tokens == TOKENS else "length"
    return _framed(_said(tokens, {}, reason) + _event(tokens, None) + DONE) + b"0\r\n\r\n"


ENDINGS = [_ending(tokens) for tokens in range(TOKENS + 1)]
MODELS = {"object": "list", "data": [{"id": MODEL, "object": "model", "max_model_len": 8192}]}


def _answer(body: object) -> bytes:
    content = json.dumps(body).encode()
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    return head % len(content) + content


class Engine(asyncio.Protocol):
    """One connection, request after request."""

    pace: ClassVar[float] = 0.0
    _transport: asyncio.Transport

    def __init__(self) -> None:
        self._received = b""
        self._at = self._tokens = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._loop = asyncio.get_running_loop()

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, found, rest = self._received.partition(b"\r\n\r\n")
        if not found:
            return
        length = _length(head)
        if len(rest) >= length:
            self._received = rest[length:]
            self._serve(head, rest[:length])

    def _serve(self, head: bytes, body: bytes) -> None:
        path = head.split(b" ", 2)[1]
        if path == b"/v1/chat/completions":
            self._begin(json.loads(body))
        elif path == b"/tokenize":
            self._transport.write(_answer({"count": PROMPT_TOKENS, "tokens": [0] * PROMPT_TOKENS}))
        elif path == b"/v1/models":
            self._transport.write(_answer(MODELS))
        elif path == b"/health":
            self._transport.write(_answer({}))
        else:
            self._transport.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")

    def _begin(self, asked: dict[str, Any]) -> None:
        self._at = 0
        self._tokens = min(TOKENS, asked.get("max_tokens") or asked.get("max_completion_tokens") or TOKENS)
        self._transport.write(STREAM_HEAD)
        self._loop.call_soon(self._say)

    def _say(self) -> None:
        if self._transport.is_closing():
            return
        if self._at == self._tokens:
            self._transport.write(ENDINGS[self._tokens])
            return
        self._transport.write(WORDS[self._at])
        self._at += 1
        if self.pace:
            self._loop.call_later(1 / self.pace, self._say)
        else:
            self._loop.call_soon(self._say)


def _length(head: bytes) -> int:
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    return 0


async def serve(port: int) -> None:
    """Serves until it is killed."""
    server = await asyncio.get_running_loop().create_server(Engine, "127.0.0.1", port)
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("--pace", type=float, default=0.0)
    asked = parser.parse_args()
    Engine.pace = asked.pace
    uvloop.run(serve(asked.port))


if __name__ == "__main__":
    main()
