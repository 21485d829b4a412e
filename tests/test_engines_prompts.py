"""A prompt that no engine counts is estimated by its length."""

from __future__ import annotations

from typing import Any

import pytest

from tallystick.engines.dialect import ContinuousUsage, FinalUsage
from tallystick.engines.prompts import ESTIMATED, SURE, Estimated, Told

PROBE = {"messages": [{"role": "user", "content": "Hello"}]}
"""Nine bytes of text, so three tokens of an estimate."""


async def test_an_estimate_begins_with_what_the_engine_counted() -> None:
    """The probe itself comes to what the engine counted for it; other texts differ from it by their bytes."""
    estimated = Estimated(PROBE, 11)
    assert await estimated.count(PROBE) == 11
    longer = {"messages": [{"role": "user", "content": "Hello" + "é" * ESTIMATED * 50}]}
    assert await estimated.count(longer) == 11 + 100
    assert estimated.sure(longer) < 11 + 100 * ESTIMATED // SURE + 1


async def test_tools_and_parts_count() -> None:
    """Whatever has text in it counts, wherever it stands."""
    estimated = Estimated(PROBE, 11)
    parts = {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hello" + "x" * 400}]}]}
    tools = {**PROBE, "tools": [{"type": "function", "function": {"name": "x" * 400}}]}
    assert await estimated.count(parts) >= 111
    assert await estimated.count(tools) >= 111


async def test_token_ids_need_no_estimate() -> None:
    """A prompt of token ids has as many tokens as ids, beside what the engine puts around it."""
    estimated = Estimated(PROBE, 11)
    assert await estimated.count({"prompt": [7] * 5}) - await estimated.count({"prompt": [7]}) == 4
    assert await estimated.count({"prompt": "x" * 400}) >= 100


async def test_a_prompt_has_a_token_at_least() -> None:
    """However little an engine puts around a prompt, there is one token to begin with."""
    assert await Estimated({"messages": [{"role": "user", "content": "x" * 400}]}, 3).count(PROBE) == 1


async def nobody(path: str, body: Any = None) -> Any:
    raise AssertionError(f"{path} is asked")


@pytest.mark.parametrize(
    ("body", "most"),
    [
        (PROBE, 20),
        ({**PROBE, "model": "m", "temperature": 0, "stop": ["x"]}, 20),
        ({"messages": [{"role": "system", "content": "Be brief."}, *PROBE["messages"]]}, 46),
        ({"prompt": "Once upon a time"}, 27),
    ],
)
def test_a_bound_needs_no_request(body: dict[str, Any], most: int) -> None:
    """A token for each character, and for each message what the engine puts around the probe."""
    assert Told(ContinuousUsage(), nobody, 11).most(body) == most


@pytest.mark.parametrize(
    "body",
    [
        {"messages": [{"role": "user", "content": "é"}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}]},
        {"messages": [{"role": "assistant", "content": None, "tool_calls": []}]},
        {"messages": [{"role": "user", "content": "Hello", "name": "Ann"}]},
        {**PROBE, "tools": []},
        {**PROBE, "chat_template_kwargs": {}},
        {"prompt": [1, 2, 3]},
    ],
)
def test_what_has_no_bound(body: dict[str, Any]) -> None:
    """What a template or a tokenizer may make longer than it is written is left to the engine to count."""
    assert Told(ContinuousUsage(), nobody, 11).most(body) is None


def test_no_bound_without_a_running_count() -> None:
    """Where the engine tells no count with the first token, its prompt is counted beforehand."""
    assert Told(FinalUsage(), nobody, 11).most(PROBE) is None
    assert Told(ContinuousUsage(), nobody).most(PROBE) is None
