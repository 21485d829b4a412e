"""One request of a payer while it is under way: what comes of it is counted, and due to be signed for.

Whoever carries the request, over WebSocket or HTTP, hands each chunk to its Tab. Knows neither.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Mapping
from typing import Any

from tallystick.countersign import Countersigner, Overcount
from tallystick.recount import Scale
from tallystick.transcript import delta_parts
from tallystick.types import RequestId, Totals


class Tab:
    """What one request has brought so far. Close it when nothing more can come."""

    def __init__(
        self,
        signs: Countersigner,
        due: asyncio.Event,
        tell: Callable[[Overcount], None],
        body: Mapping[str, Any],
        max_tokens: int,
        choices: int = 1,
        scale: Scale | None = None,
    ) -> None:
        """`body` as it will be sent; `max_tokens` of all `choices` together. `due` is set when a receipt is.

        `scale`: what the payer counts with in its own right. Refusal `invalid_request` for a body that has no
        canonical form.
        """
        self.request = RequestId(secrets.token_hex(16))
        self.totals = Totals()
        """As the host counts them."""
        self.overcount: Overcount | None = None
        """What it counted too much; known once the tab is closed."""
        self.prompt_signed = False
        """The host wanted its prompt signed for before it serves it."""
        self._signs = signs
        self._due = due
        self._tell = tell
        self._open = True
        signs.begin(self.request, body, max_tokens, choices)
        self._recount = None if scale is None else scale.begin(body, choices)
        if self._recount is not None:
            signs.weigh(self.request, self._recount.own)

    @property
    def is_open(self) -> bool:
        """More may come."""
        return self._open

    def take(
        self, totals: Totals, text: str = "", finish_reason: str | None = None, *, due: bool = False
    ) -> None:
        """Counts what one chunk brought; `due`: the host asks for a receipt with it.

        ReceiptError for counts that nobody can sign.
        """
        if self._signs.receive(self.request, totals, text, finish_reason) or due:
            self._due.set()
        self.totals = totals

    @property
    def recounts(self) -> bool:
        """The payer has a count of its own of this reply: it wants to `hear` it."""
        return self._recount is not None

    def hear(self, choice: int, delta: Mapping[str, Any]) -> None:
        """What a chunk brings of a choice, as OpenAI's deltas have it. Before the chunk is taken."""
        if self._recount is not None:
            self._recount.hear(choice, delta_parts(delta))

    async def recount(self) -> None:
        """Vouches for what came until now by the payer's own count. Raises EngineError."""
        if self._recount is not None and self._open:
            chunks = self._signs.chunks(self.request)
            await self._recount.count()
            self._vouch(chunks)

    def _vouch(self, chunks: int) -> None:
        if self._open and self._signs.vouch(self.request, chunks):
            self._due.set()

    @property
    def may_sign_prompt(self) -> bool:
        """The host may want the prompt signed for, as `Countersigner.may_sign_ahead` has it."""
        return self._signs.may_sign_ahead(self.request)

    async def sign_prompt(self, prompt_tokens: int, least: int) -> None:
        """The next receipt covers the prompt, as `Countersigner.sign_prompt_ahead` has it. ReceiptError."""
        if self._recount is not None:
            await self._recount.count_prompt()
        self._signs.sign_prompt_ahead(self.request, prompt_tokens, least)
        self.prompt_signed = True

    async def close(self) -> None:
        """Nothing more comes: all of it is due, and an overcount is told. Twice is harmless.

        Raises EngineError if the payer's own count fails: what it did not vouch for is not signed then.
        """
        try:
            await self.recount()
        finally:
            self._end()

    def _end(self) -> None:
        if not self._open:
            return
        self._open = False
        self.overcount = self._signs.end(self.request, self.totals)
        self._due.set()
        if self.overcount is not None:
            self._tell(self.overcount)
