"""A GGUF file counts in an engine's place: the same tokens, and no other file than the one that was meant."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

import tallystick
from tallystick.engines.llama import LlamaEngine
from tallystick.engines.tokenizer import Tokenizer
from tallystick.errors import EngineError, EngineUnavailable
from tests.asking import BODY, read, text

DEMO = Path(tallystick.__file__).parent / "models" / "tally-demo.gguf"
HASH = hashlib.sha256(DEMO.read_bytes()).hexdigest()


async def test_it_counts_as_the_engine_with_that_file_does() -> None:
    """A prompt and a reply have as many tokens as llama.cpp with the same file bills for them."""
    tokenizer = Tokenizer(DEMO, HASH)
    await tokenizer.start()
    async with LlamaEngine(DEMO, context=512, slots=1, threads=1) as engine:
        pieces = await read(engine, {**BODY, "ignore_eos": True}, 40)
        assert await tokenizer.count_prompt(BODY) == pieces[-1].prompt_tokens
        assert await tokenizer.count_text(text(pieces)) == pytest.approx(40, abs=1)
        long = {"messages": [{"role": "user", "content": "word " * 5_000}]}
        assert await tokenizer.count_prompt(long) > 5_000
    await tokenizer.close()
    await tokenizer.close()
    with pytest.raises(EngineUnavailable):
        await tokenizer.count_text("x")


async def test_another_file_is_refused() -> None:
    """A file with another hash than ENGINE_TOKENIZER_HASH is not loaded."""
    with pytest.raises(EngineError, match="ENGINE_TOKENIZER_HASH"):
        await Tokenizer(DEMO, "00" * 32).start()


@pytest.mark.parametrize("sha256", [None, HASH])
async def test_a_file_that_is_no_model_is_named(tmp_path: Path, sha256: str | None) -> None:
    """The setting that named it is in the error."""
    with pytest.raises(EngineError, match="ENGINE_TOKENIZER"):
        await Tokenizer(tmp_path / "nothing.gguf", sha256).start()
    path = tmp_path / "text.gguf"
    path.write_text("import this")
    with pytest.raises(EngineError, match="ENGINE_TOKENIZER"):
        await Tokenizer(path, sha256).start()
