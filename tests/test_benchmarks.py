"""The benchmarks' report: names, aims and numbers hold together. Nothing is measured here."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from benchmarks import figures
from benchmarks.figures import FIGURES, Figure

ROOT = Path(__file__).parent.parent
MEASURED = json.loads(figures.RESULTS.read_text())
PAGE = (ROOT / "docs" / "benchmarks.md").read_text()
TABLE = PAGE.partition("## The figures")[2].partition("\n## ")[0]
DOCUMENTED = re.findall(r"^\| (.+?) \|", TABLE, re.MULTILINE)[1:]


def test_every_figure_is_explained() -> None:
    """docs/benchmarks.md has a line for each figure that is measured, and for no other, in their order."""
    assert [figure.name for figure in FIGURES] == DOCUMENTED


def test_results_are_of_the_figures() -> None:
    """What was measured has the names, units and aims of the figures, in their order, and all rounds."""
    known = {figure.name: (figure.unit, figure.aim) for figure in FIGURES}
    names = [row["name"] for row in MEASURED["figures"]]
    assert names == [name for name in known if name in names]
    for row in MEASURED["figures"]:
        assert (row["unit"], row["aim"]) == known[row["name"]]
        assert len(row["runs"]) == MEASURED["rounds"]


def test_the_page_shows_the_results() -> None:
    """RESULTS.md is made of results.json."""
    assert figures.REPORT.read_text() == figures.report(MEASURED)


def test_a_figure_is_the_median_of_its_rounds() -> None:
    """The ratio is that of the two medians."""
    row = Figure("x", "a second", "mine", "theirs", "them", ">= 2").row(
        {"mine": [9, 1, 6], "theirs": [3, 2, 9]}
    )
    assert (row["value"], row["against"], row["ratio"]) == (
        6,
        {"what": "them", "value": 3, "runs": [3, 2, 9]},
        2,
    )


@pytest.mark.parametrize(
    ("ratio", "aim", "told"),
    [
        (0.75, ">= 0.75", "met"),
        (0.74, ">= 0.75", "**missed**"),
        (1.1, "<= 1", "**missed**"),
        (3, "reported", ""),
    ],
)
def test_an_aim_is_met_or_missed(ratio: float, aim: str, told: str) -> None:
    """A miss is shown as one."""
    assert figures.verdict(ratio, aim) == told
