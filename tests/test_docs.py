"""The documentation holds to the code: tests, files, links and commands that it names exist."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

from tallystick.cli import app

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])


def sources(*patterns: str) -> str:
    return "\n".join(path.read_text() for pattern in patterns for path in sorted(ROOT.glob(pattern)))


def test_every_test_that_the_laws_name_exists() -> None:
    """docs/laws.md names tests that are there, some for each of the ten, and all of the contracts."""
    page = (ROOT / "docs" / "laws.md").read_text()
    named = set(re.findall(r"`((?:test|law|invariant)_\w+)`", page))
    written = sources("tests/**/*.py", "contracts/test/*.sol")
    known = set(re.findall(r"(?:def|function) ((?:test|law|invariant)\w+)", written))
    assert re.findall(r"\*\*(\d+)\.", page) == [str(n) for n in range(1, 11)]
    assert named - known == set()
    assert [name for name in known - named if re.match("law_[A-Z]", name)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    """Every relative link of a page is to a file of the repository."""
    targets = re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text())
    assert [target for target in targets if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_exist(page: Path) -> None:
    """Every `tally …` command of a page is one; what the demonstration says of tally sticks is none."""
    root = get_command(app)
    for words in re.findall(r"[`/]tally ((?:[a-z]+ ?)+)", page.read_text()):
        command, path = root, words.split()
        while path and hasattr(command, "commands") and path[0] in command.commands:
            command = command.commands[path.pop(0)]
        assert command is not root, f"{page.name}: tally {words}"


def test_every_line_of_the_log_that_the_hosts_page_explains_is_logged() -> None:
    """What docs/host.md says of a line is of one that there is."""
    page = (ROOT / "docs" / "host.md").read_text()
    table = page.split("## In the log")[1].split("## ")[0]
    named = set(re.findall(r"`([a-z]+\.[a-z_]+)`", table))
    logged = set(re.findall(r'"([a-z]+\.[a-z_]+)"', sources("src/**/*.py")))
    assert len(named) > 40
    assert named - logged == set()


@pytest.mark.parametrize("script", ["readme", "errors", "settings", "vectors", "host"])
def test_generated_pages_are_up_to_date(script: str) -> None:
    """What a script writes is what stands there."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / f"{script}.py"), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
