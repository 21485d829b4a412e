"""The payer's own count of what hosts deliver, with the models' tokenizers where the payer has them.

One Recounts is a payer's: it has the tokenizers, and an account of each host and model (`allowance.py`),
which lasts as long as it does. A Recount is that of one reply.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Self

from tallystick import vocabulary
from tallystick.allowance import Account, Own, countable
from tallystick.config import TokenizerFile
from tallystick.engines.provisional import TextCount
from tallystick.types import Address
from tallystick.vocabulary import Vocabulary


class Recounts:
    """A payer's tokenizers, and what each host has counted beyond them. `async with` it."""

    def __init__(self, files: Iterable[TokenizerFile] = ()) -> None:
        self._files = tuple(files)
        self._vocabularies: dict[str, Vocabulary] = {}
        self._accounts: defaultdict[tuple[Address, str], Account] = defaultdict(Account)
        self._parts = AsyncExitStack()

    async def __aenter__(self) -> Self:
        """ConfigError for a file that is not the one meant, or cannot be read."""
        async with AsyncExitStack() as parts:
            for file in self._files:
                opened = await vocabulary.opened(file)
                parts.push_async_callback(opened.close)
                self._vocabularies[file.model] = opened
            self._parts = parts.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._parts.aclose()

    def of(self, host: Address, model: str) -> Scale | None:
        """What replies of a host's model are counted with; None: there is no tokenizer of that model."""
        known = self._vocabularies.get(model)
        return None if known is None else Scale(known, self._accounts[host, model])


class Scale:
    """A model's tokenizer, and the account of a host that sells it."""

    def __init__(self, words: Vocabulary, account: Account) -> None:
        self.account = account
        self._words = words

    def begin(self, body: Mapping[str, Any], choices: int) -> Recount | None:
        """The own count of a reply to `body`; None for one that no tokenizer can count."""
        if not countable(body):
            return None
        return Recount(self._words, self.account.begin(body, choices), body)


class Recount:
    """The payer's own count of one reply, as it comes. Made by `Scale.begin`."""

    def __init__(self, words: Vocabulary, own: Own, body: Mapping[str, Any]) -> None:
        self.own = own
        self._words = words
        self._body = body
        self._texts: dict[tuple[int, str], TextCount] = {}
        """By choice and part: a token never reaches from one into another."""
        self._new: defaultdict[tuple[int, str], list[str]] = defaultdict(list)
        self._turn = asyncio.Lock()

    def hear(self, choice: int, parts: Iterable[tuple[str, str]]) -> None:
        """What a chunk brought of a choice: texts with what they are of (`transcript.delta_parts`)."""
        for part, text in parts:
            self._new[choice, part].append(text)

    async def count_prompt(self) -> None:
        """Counts the prompt, once. Raises EngineError."""
        if self.own.prompt_tokens is None:
            self.own.prompt_tokens = await self._words.most_prompt(self._body)

    async def count(self) -> None:
        """Counts all that was heard until now. Raises EngineError."""
        async with self._turn:
            await self.count_prompt()
            new, self._new = self._new, defaultdict(list)
            for (choice, part), texts in new.items():
                known = self._texts.setdefault((choice, part), TextCount(self._words))
                before = known.tokens
                self.own.tokens += await known.add("".join(texts)) - before
                if part != "content":
                    self.own.mark(f"{part} of {choice}")
