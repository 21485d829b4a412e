"""The hash chain of what was delivered (protocol §4): prompts, texts, positions, links.

Host and payer run the same code over what went over the wire, so both hold the same evidence. Knows nothing
of signatures, money or sockets.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import rfc8785

from tallystick.errors import ReceiptError, Refusal
from tallystick.keccak import keccak, running
from tallystick.types import JobId, Position, RequestId, Totals

if TYPE_CHECKING:
    from eth_hash.abc import PreImageAPI

OUTSIDE_PROMPT = frozenset({"job_id", "stream", "stream_options", "tally", "id", "access"})
"""Members of a request that say how to carry it, not what is asked."""


def prompt_form(body: Mapping[str, Any]) -> bytes:
    """The RFC 8785 form of a request. Refusal `invalid_request` if it has none: integers beyond 2^53."""
    try:
        return rfc8785.dumps({name: member for name, member in body.items() if name not in OUTSIDE_PROMPT})
    except rfc8785.CanonicalizationError as error:
        told = f"The request has no canonical form (RFC 8785): {error}. Whole numbers go up to 2^53 - 1."
        raise Refusal("invalid_request", told) from error
    except RecursionError:
        raise Refusal("invalid_request", "The request is nested too deeply.") from None


def prompt_hash(body: Mapping[str, Any]) -> bytes:
    """The 32 bytes of the hash of a request's prompt. Raises what `prompt_form` raises."""
    return keccak(prompt_form(body))


def delta_text(delta: Mapping[str, Any]) -> str:
    """The text of one chunk's delta: reasoning, content, then each tool call's name and arguments.

    What is not a string there has no text: the other side wrote the delta, and may have written anything.
    """
    content = delta.get("content")
    if len(delta) == 1 and isinstance(content, str):
        return content  # nearly every chunk of a reply
    return "".join(text for _, text in delta_parts(delta))


def delta_parts(delta: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The same text in parts, each with what it is of: `reasoning`, `content`, or `call` and its index."""
    # An engine that sends both names of the reasoning sends the same text twice.
    reasoning = delta.get("reasoning_content") or delta.get("reasoning")
    parts = [("reasoning", reasoning), ("content", delta.get("content"))]
    for call in map(_object, _sequence(delta.get("tool_calls"))):
        function, part = _object(call.get("function")), f"call {call.get('index')}"
        parts += [(part, function.get("name")), (part, function.get("arguments"))]
    return [(part, text) for part, text in parts if isinstance(text, str) and text]


def _sequence(member: Any) -> list[Any]:
    return member if isinstance(member, list) else []


def _object(member: Any) -> dict[str, Any]:
    return member if isinstance(member, dict) else {}


def link(position: Position) -> bytes:
    """The 96 bytes of one position in a transcript."""
    return (
        bytes.fromhex(position.request)
        + position.prompt_tokens.to_bytes(8, "big")
        + position.tokens.to_bytes(8, "big")
        + position.prompt_hash
        + position.text_hash
    )


def positions_hash(positions: Iterable[Position]) -> bytes:
    """The hash of the links of all positions that moved, ascending by request."""
    return keccak(b"".join(map(link, sorted(positions, key=attrgetter("request")))))


def transcript(previous: bytes, job_id: JobId, totals: Totals, positions: Iterable[Position]) -> bytes:
    """The transcript of a receipt that follows `previous` (32 bytes) and signs `totals`."""
    return keccak(
        previous
        + job_id.to_bytes(32, "big")
        + totals.prompt_tokens.to_bytes(8, "big")
        + totals.tokens.to_bytes(8, "big")
        + positions_hash(positions)
    )


@dataclass(frozen=True, slots=True)
class _Found:
    """Where a position lies: after so many of the kept chunks."""

    position: Position
    chunks: int
    hash: PreImageAPI
    """Over all text up to there."""


class Delivery:
    """What one request has delivered (to the host) or received (to the payer), chunk by chunk.

    Text is kept from the last settled position on, since any chunk's end may still be asked for; it is hashed
    when it is.
    """

    def __init__(self, request: RequestId, prompt_hash: bytes) -> None:
        self.request = request
        self.prompt_hash = prompt_hash
        self.totals = Totals()
        """The running counts of the newest chunk."""
        self._settled = Totals()
        self._hash = running()
        """Over all text up to the settled position."""
        self._ends: list[Totals] = []
        """By chunk, from the settled position on: the running counts with it."""
        self._texts: list[bytes] = []
        self._passed = 0
        """Chunks up to the settled position."""
        self._matched: _Found | None = None

    def add(self, prompt_tokens: int, tokens: int, text: str) -> None:
        """One chunk: the running counts with it, and its text. ReceiptError if a count goes down."""
        self.take(Totals(prompt_tokens, tokens), text)

    def take(self, totals: Totals, text: str) -> int:
        """The same of totals that are at hand; how many bytes the text has."""
        known = self.totals
        if totals.tokens < known.tokens or totals.prompt_tokens < known.prompt_tokens:
            raise ReceiptError(f"request {self.request} is counted down from {known} to {totals}")
        self.totals = totals
        self._ends.append(totals)
        self._texts.append(data := text.encode())
        return len(data)

    def add_each(self, chunks: Iterable[tuple[int, str]]) -> None:
        """Chunks with their running counts of generated tokens, none of which goes down, and their texts."""
        prompt_tokens = self.totals.prompt_tokens
        for tokens, text in chunks:
            self._ends.append(Totals(prompt_tokens, tokens))
            self._texts.append(text.encode())
        self.totals = self._ends[-1] if self._ends else self.totals

    def position(self) -> Position:
        """The newest position."""
        return self._position(len(self._ends))

    @property
    def chunks(self) -> int:
        """How many there were, kept or not."""
        return self._passed + len(self._ends)

    def position_after(self, chunks: int) -> Position:
        """The position after so many chunks, not fewer than are settled."""
        return self._position(chunks - self._passed)

    def position_at(self, tokens: int) -> Position:
        """The position at the last chunk's end with a running count of at most `tokens`.

        ReceiptError if that is before the settled one.
        """
        if tokens < self._settled.tokens:
            raise ReceiptError(f"request {self.request} is settled up to {self._settled.tokens} tokens")
        return self._position(bisect_right(self._ends, tokens, key=_tokens))

    def matches(self, position: Position) -> bool:
        """True if `position` is at a chunk's end, not before the settled one, and its hashes are right."""
        self._matched = self._find(position)
        return self._matched is not None

    def settle(self, position: Position) -> None:
        """Forgets the text before `position`, which is acknowledged. ReceiptError if it does not match."""
        matched = self._matched
        found = matched if matched and matched.position is position else self._find(position)
        if found is None:
            raise ReceiptError(f"request {self.request} has no such position at {position.totals}")
        self._settled, self._hash, self._matched = position.totals, found.hash, None
        self._passed += found.chunks
        del self._ends[: found.chunks], self._texts[: found.chunks]

    def _position(self, chunks: int) -> Position:
        """The position after so many of the kept chunks."""
        totals = self._ends[chunks - 1] if chunks else self._settled
        text_hash = self._hash_after(chunks).digest()
        return Position(self.request, totals.prompt_tokens, totals.tokens, self.prompt_hash, text_hash)

    def _hash_after(self, chunks: int) -> PreImageAPI:
        hash_ = self._hash.copy()
        hash_.update(b"".join(self._texts[:chunks]))
        return hash_

    def _find(self, position: Position) -> _Found | None:
        """None if `position` is of another request, or at no chunk's end.

        Chunks without a token end at the same count with another text, so several may have to be compared.
        """
        if (position.request, position.prompt_hash) != (self.request, self.prompt_hash):
            return None
        chunks = bisect_right(self._ends, position.tokens, key=_tokens)
        while (self._ends[chunks - 1] if chunks else self._settled) == position.totals:
            hash_ = self._hash_after(chunks)
            if hash_.digest() == position.text_hash:
                return _Found(position, chunks, hash_)
            if not chunks:
                return None
            chunks -= 1
        return None


_tokens = attrgetter("tokens")
