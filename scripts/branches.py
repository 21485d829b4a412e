#!/usr/bin/env python3
"""Compares the branches of contracts/src that no test takes with those that docs/proof.md gives a reason for.

branches.py    exit 1 if one is on one side only
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONTRACTS = ROOT / "contracts"
PAGE = ROOT / "docs" / "proof.md"


def measured(report: Path) -> str:
    """Forge's report, which needs a build of its own."""
    command = ["forge", "coverage", "--ir-minimum", "--report", "lcov", "--report-file", str(report)]
    environment = {**os.environ, "FOUNDRY_PROFILE": "coverage"}
    subprocess.run(command, cwd=CONTRACTS, env=environment, check=True, stdout=sys.stderr)
    return report.read_text()


def branches(report: str) -> tuple[int, list[str]]:
    """How many branches of the sources there are, and those that no test takes, each with its line's text."""
    count, missed, source, lines = 0, [], "", []
    for entry in report.splitlines():
        kind, _, value = entry.partition(":")
        if kind == "SF":
            source = value
            lines = (CONTRACTS / source).read_text().splitlines()
        elif kind == "BRDA" and source.startswith("src/"):
            line, _block, branch, taken = value.split(",")
            count += 1
            if taken in ("-", "0"):
                missed.append(f"{source.removeprefix('src/')} | {branch} | `{lines[int(line) - 1].strip()}`")
    return count, missed


def explained(page: str) -> list[str]:
    """The branches that the page has a reason for."""
    table = re.search(r"<!-- unreached -->\n(.*?)<!-- /unreached -->", page, re.DOTALL)
    rows = [line.strip("| ").split(" | ") for line in table[1].splitlines()[2:]] if table else []
    return [" | ".join(row[:3]) for row in rows if len(row) == 4]


def main() -> int:
    with tempfile.TemporaryDirectory() as scratch:
        count, missed = branches(measured(Path(scratch) / "lcov"))
    if count == 0:
        print("coverage: the report has no branch of src/", file=sys.stderr)
        return 1
    known = explained(PAGE.read_text())
    for branch in sorted(set(missed) - set(known)):
        print(f"coverage: no test takes, and docs/proof.md has no reason for: {branch}")
    for branch in sorted(set(known) - set(missed)):
        print(f"coverage: docs/proof.md explains what is taken, or is not there: {branch}")
    print(f"coverage: {count - len(missed)} of {count} branches taken")
    return 0 if sorted(missed) == sorted(known) else 1


if __name__ == "__main__":
    sys.exit(main())
