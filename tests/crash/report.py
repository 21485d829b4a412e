"""What a sweep has shown, in figures: benchmarks/crash.json, and from it the tables of docs/crash.md."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from platform import python_version
from typing import Any

from benchmarks.gas import shown
from tests.crash.sweep import FAULTS, KILL, Result

ROOT = Path(__file__).resolve().parents[2]
RECORD = ROOT / "benchmarks" / "crash.json"
PAGE = ROOT / "docs" / "crash.md"
MEANINGS = {KILL: "kill -9", "error=EIO": "EIO", "error=ENOSPC": "ENOSPC"}


def figures(results: Sequence[Result], wanted: int) -> dict[str, Any]:
    """What benchmarks/crash.json holds of one program."""
    hits = [result for result in results if result.hit]
    counted, thrown = _by_kind(hits), _by_kind([result for result in results if not result.hit])
    assert len({result.point for result in hits}) == len(hits)
    return {
        "wanted": wanted,
        "points": len(hits),
        "thrown_away": len(results) - len(hits),
        "seeds": len({result.point.seed for result in hits}),
        "wrong": [{**asdict(result.point), "told": result.wrong} for result in hits if result.wrong],
        "kinds": [
            {
                "fault": MEANINGS[fault],
                "call": call,
                "points": counted[fault, call],
                "thrown_away": thrown[fault, call],
            }
            for fault, calls in FAULTS.items()
            for call in calls
        ],
    }


def _by_kind(results: Sequence[Result]) -> Counter[tuple[str, str]]:
    return Counter((result.point.fault, result.point.call) for result in results)


def _said(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout.strip()


# On paper


def write(found: Mapping[str, Any]) -> None:
    """Both files, of what was found of the driver and of the node."""
    measured = {
        "date": datetime.now(UTC).date().isoformat(),
        "commit": _said("git", "rev-parse", "HEAD"),
        "python": python_version(),
        "strace": _said("strace", "--version").splitlines()[0],
    }
    RECORD.write_text(json.dumps({"measured": measured, **found}, indent=2, ensure_ascii=False) + "\n")
    page = PAGE.read_text()
    for of, figures_of in found.items():
        page = shown(page, of, table(figures_of))
    PAGE.write_text(page)


def table(found: Mapping[str, Any]) -> str:
    """What was swept, kind by kind."""
    said = (
        f"{found['points']} points of {found['seeds']} seeds counted (the whole sweep is {found['wanted']}), "
        f"{found['thrown_away']} were thrown away; {len(found['wrong'])} ended wrong."
    )
    rows = [
        f"| {each['fault']} | `{each['call']}` | {each['points']} | {each['thrown_away']} |"
        for each in found["kinds"]
    ]
    return "\n".join([said, "", "| fault | at | points | thrown away |", "|---|---|--:|--:|", *rows])
