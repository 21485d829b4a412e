"""A tokenizer for tests of the payer's own count: byte-level BPE, trained on this project's own pages."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from tallystick.config import TokenizerFile

ROOT = Path(__file__).parents[1]
PAGES = [(ROOT / "docs" / name).read_text() for name in ("protocol.md", "payer.md", "host.md")]
MODEL = "scripted"


@cache
def trained() -> Tokenizer:
    """Some 2 000 tokens, as models in use have 100 000 of."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=2_000, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(PAGES, trainer)
    return tokenizer


def written(directory: Path, model: str = MODEL) -> TokenizerFile:
    """Its file, and the hash that pins it."""
    path = directory / "tokenizer.json"
    trained().save(str(path))
    return TokenizerFile(model, path, hashlib.sha256(path.read_bytes()).hexdigest())


def pieces(text: str) -> list[str]:
    """A text as a model would say it, token by token. Of ASCII only: no token is a part of a character."""
    tokenizer = trained()
    return [tokenizer.decode([each]) for each in tokenizer.encode(text).ids]
