"""What a sweep has shown, in figures: benchmarks/crash.json, and from it the table of docs/crash.md."""

from __future__ import annotations

import json
import re
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from platform import python_version
from typing import Any

from tests.crash.sweep import FAULTS, KILL, Result

ROOT = Path(__file__).resolve().parents[2]
RECORD = ROOT / "benchmarks" / "crash.json"
PAGE = ROOT / "docs" / "crash.md"
MEANINGS = {KILL: "kill -9", "error=EIO": "EIO", "error=ENOSPC": "ENOSPC"}


def figures(results: Sequence[Result], wanted: int) -> dict[str, Any]:
    """What benchmarks/crash.json holds."""
    hits = [result for result in results if result.hit]
    counted, thrown = _by_kind(hits), _by_kind([result for result in results if not result.hit])
    assert len({result.point for result in hits}) == len(hits)
    return {
        "measured": {
            "date": datetime.now(UTC).date().isoformat(),
            "commit": _said("git", "rev-parse", "HEAD"),
            "python": python_version(),
            "strace": _said("strace", "--version").splitlines()[0],
        },
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
    """Both files."""
    RECORD.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n")
    head, _, tail = re.split("<!-- /?swept -->", PAGE.read_text())
    PAGE.write_text(f"{head}<!-- swept -->\n{table(found)}\n<!-- /swept -->{tail}")


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
