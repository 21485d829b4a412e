"""The exceptions are the tree that is drawn; the table of refusals promises nothing that it cannot keep."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tallystick import errors
from tallystick.errors import REFUSALS, ContractError, Refusal, TallystickError

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "tallystick"
REPEATED_BY_CLIENTS = {408, 409, 429, *range(500, 600)}
"""Statuses on which OpenAI's client, among others, sends the same request again."""


def drawn() -> dict[str, str | None]:
    """Each class of the drawing at the top of errors.py, with the one it hangs from."""
    parents: dict[str, str | None] = {}
    branch: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"    ((?:│   |    )*)(├── |└── )?([A-Z]\w+)\b", line)
        if match:
            depth = len(match[1]) // 4 + (1 if match[2] else 0)
            branch[depth:] = [match[3]]
            parents[match[3]] = branch[depth - 1] if depth else None
    return parents


def defined() -> dict[str, type[TallystickError]]:
    """Each exception class of errors.py, but for the contracts' errors, which are too many to draw."""
    return {
        name: one
        for name, one in vars(errors).items()
        if isinstance(one, type)
        and issubclass(one, TallystickError)
        and (one is ContractError or not issubclass(one, ContractError))
    }


def test_the_tree_is_as_it_is_drawn() -> None:
    """The drawing at the top of errors.py is the tree of the classes below it."""
    bases = {name: one.__bases__[0].__name__ for name, one in defined().items()}
    assert drawn() == {**bases, "TallystickError": None}


@pytest.mark.parametrize("name", defined())
def test_every_exception_has_a_sentence(name: str) -> None:
    """Each class says what happened."""
    assert (defined()[name].__doc__ or "").rstrip().endswith(".")


@pytest.mark.parametrize("code", REFUSALS)
def test_every_refusal_tells_the_whole_story(code: str) -> None:
    """A refusal has a code, a meaning, whose move it is and what mends it, each a sentence."""
    row = REFUSALS[code]
    assert re.fullmatch(r"[a-z]+(_[a-z]+)*", code)
    assert row.move in {"payer", "host", "nobody"}
    assert row.meaning.endswith(".")
    assert row.mend.endswith(".")
    assert 400 <= row.status < 600


@pytest.mark.parametrize("code", REFUSALS)
def test_clients_repeat_only_what_can_succeed(code: str) -> None:
    """A refusal that is final never has a status that clients repeat by themselves."""
    row = REFUSALS[code]
    assert row.retry == (row.status in REPEATED_BY_CLIENTS)


def test_a_refusal_is_a_problem_object() -> None:
    """A refusal on the wire has the members of RFC 9457 and ours, and what was said of the case."""
    assert Refusal("receipt_due", "30 tokens wait.", prompt_tokens=12).problem() == {
        "type": "urn:tallystick:error:receipt_due",
        "title": REFUSALS["receipt_due"].meaning,
        "status": 402,
        "detail": "30 tokens wait.",
        "code": "receipt_due",
        "move": "payer",
        "mend": REFUSALS["receipt_due"].mend,
        "retry": False,
        "prompt_tokens": 12,
    }


def test_a_refusal_without_a_detail_says_what_it_means() -> None:
    """The meaning stands in for a detail, so no refusal is empty."""
    refusal = Refusal("job_closed")
    assert refusal.detail == REFUSALS["job_closed"].meaning
    assert str(refusal) == f"job_closed: {refusal.detail}"


def test_an_unknown_code_is_a_mistake() -> None:
    """A refusal has a row in the table, or it cannot be made."""
    with pytest.raises(KeyError):
        Refusal("no_such_code")


@pytest.mark.parametrize("module", sorted(SOURCE.glob("*.py")), ids=lambda path: path.stem)
def test_every_refusal_that_is_raised_is_in_the_table(module: Path) -> None:
    """A code written anywhere in the package has its row, on paths that no test takes too."""
    raised = set(re.findall(r"\bRefusal\(\s*\"([^\"]+)\"", module.read_text()))
    assert raised <= set(REFUSALS)


@pytest.mark.parametrize("script", ["errors.py", "vectors.py"])
def test_generated_files_are_current(script: str) -> None:
    """docs/errors.md and tests/vectors.json are what their scripts write."""
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / script, "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
