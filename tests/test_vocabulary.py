"""A model's tokenizer is read from the file that was meant, and counts as the model's engine does."""

from __future__ import annotations

import hashlib
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import tallystick
from tallystick import vocabulary
from tallystick.config import TokenizerFile
from tallystick.engines.tokenizer import Tokenizer
from tallystick.errors import ConfigError
from tallystick.vocabulary import MESSAGE, SLACK, TEMPLATE
from tests.tokenizing import pieces, trained, written

DEMO = Path(tallystick.__file__).parent / "models" / "tally-demo.gguf"
GGUF = TokenizerFile("tally-demo", DEMO, hashlib.sha256(DEMO.read_bytes()).hexdigest())
TEXT = "A receipt is a ceiling: what was signed is the most that can be claimed."
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": TEXT}]}


async def test_a_json_counts_as_its_library_does(tmp_path: Path) -> None:
    """A text has the tokens that the file's tokenizer splits it into; a prompt what templates add besides."""
    words = await vocabulary.opened(written(tmp_path))
    tokens = len(trained().encode(TEXT).ids)
    assert await words.count_text(TEXT) == tokens == len(pieces(TEXT))
    most = await words.most_prompt(CHAT)
    assert tokens + 1 < most <= tokens + 3 + TEMPLATE + MESSAGE
    tools = [{"type": "function", "function": {"name": "tide", "parameters": {}}}]
    assert await words.most_prompt({**CHAT, "tools": tools}) > most + 40
    await words.close()


async def test_a_json_counts_what_is_to_be_completed(tmp_path: Path) -> None:
    """A text, several of them, or token ids."""
    words = await vocabulary.opened(written(tmp_path))
    one = await words.most_prompt({"prompt": TEXT})
    assert await words.most_prompt({"prompt": [TEXT, TEXT]}) > one + 10
    assert await words.most_prompt({"prompt": [1, 2, 3]}) == 4 + TEMPLATE
    assert await words.most_prompt({"prompt": [[1, 2], [3]]}) == 4 + TEMPLATE


async def test_a_gguf_counts_with_its_own_template() -> None:
    """Prompts are what llama.cpp makes of them with the file's chat template, and a little slack."""
    words, engine = await vocabulary.opened(GGUF), Tokenizer(DEMO)
    await engine.start()
    exact = await engine.count_prompt(CHAT)
    assert exact + SLACK <= await words.most_prompt(CHAT) <= exact + exact // 50 + 1 + SLACK
    assert await words.count_text(TEXT) == await engine.count_text(TEXT)
    one = await words.most_prompt({"prompt": TEXT}) - SLACK
    assert await words.most_prompt({"prompt": [TEXT, TEXT]}) == pytest.approx(2 * one + SLACK, abs=2)
    await engine.close()
    await words.close()


async def test_another_file_is_refused(tmp_path: Path) -> None:
    """The hash pins the file: one bit more, and it is not counted with."""
    file = written(tmp_path)
    file.path.write_bytes(file.path.read_bytes() + b"\n")
    with pytest.raises(ConfigError, match="it is another file"):
        await vocabulary.opened(file)
    with pytest.raises(ConfigError, match="it is another file"):
        await vocabulary.opened(replace(GGUF, sha256="00" * 32))


async def test_what_is_no_tokenizer_is_refused(tmp_path: Path) -> None:
    """A file that is not there, or of neither kind, is named."""
    with pytest.raises(ConfigError, match="cannot be read"):
        await vocabulary.opened(TokenizerFile("m", tmp_path / "nothing.json", "00" * 32))
    for content, told in ((b'{"version": 1}', "neither a GGUF nor"), (b"GGUF", "cannot load")):
        path = tmp_path / "file"
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=told):
            await vocabulary.opened(TokenizerFile("m", path, hashlib.sha256(content).hexdigest()))


async def test_without_the_library_it_is_said_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A JSON is read by an optional library; its name and the command that installs it are told."""
    file = written(tmp_path)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ConfigError, match=r"pip install 'tallystick\[tokenizers\]'"):
        await vocabulary.opened(file)
