"""What a campaign has shown, in figures: benchmarks/faults.json, and from it the tables of docs/faults.md."""

from __future__ import annotations

import json
import re
import subprocess
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from platform import python_version
from typing import Any

from tallystick.devnet import find_anvil
from tests.faults.campaign import fired
from tests.faults.classes import CLASSES
from tests.faults.storm import BLOCKS, Result

ROOT = Path(__file__).resolve().parents[2]
RECORD = ROOT / "benchmarks" / "faults.json"
PAGE = ROOT / "docs" / "faults.md"
WANTED = 1_056
"""Seeds of a whole storm: 44 for each class to begin with."""


def silent(results: Iterable[Result]) -> list[str]:
    """The classes of which nothing has fired."""
    counts = fired(results)
    return [each.name for each in CLASSES if not counts[each.name]]


def figures(ours: Sequence[Result], plain: Sequence[Result]) -> dict[str, Any]:
    """What benchmarks/faults.json holds."""
    counts = fired(ours)
    return {
        "measured": {
            "date": datetime.now(UTC).date().isoformat(),
            "commit": _said("git", "rev-parse", "HEAD"),
            "python": python_version(),
            "web3": version("web3"),
            "anvil": _said(find_anvil(), "--version").splitlines()[0],
        },
        "wanted": WANTED,
        "seeds": len(ours),
        "combined": sum(len(result.faults) > 1 for result in ours),
        "failed": [result.seed for result in ours if result.wrong],
        "fired": {
            each.name: {
                "seeds": sum(each.name in result.faults for result in ours),
                "times": counts[each.name],
            }
            for each in CLASSES
        },
        "blocks_after_quiet": _blocks(ours),
        "tallystick": _ends(ours),
        "plain": _ends(plain),
        "tallystick_on_the_seeds_of_plain": _ends(
            [result for result in ours if result.seed in {each.seed for each in plain}]
        ),
    }


def _blocks(results: Iterable[Result]) -> dict[str, dict[str, int]]:
    """By confirmations: how many seeds took how many blocks."""
    found: dict[str, Counter[str]] = {}
    for result in results:
        found.setdefault(str(result.confirmations), Counter())[str(result.blocks)] += 1
    return {depth: dict(sorted(counts.items())) for depth, counts in sorted(found.items())}


def _ends(results: Sequence[Result]) -> dict[str, int]:
    return {
        "seeds": len(results),
        "transactions": sum(result.transactions for result in results),
        "wasted": sum(result.wasted for result in results),
        "seeds_with_waste": sum(result.wasted > 0 for result in results),
        "late": sum(result.late for result in results),
        "lost": sum(result.lost for result in results),
        "stuck": sum(result.stuck for result in results),
    }


def _said(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout.strip()


# On paper


def write(found: Mapping[str, Any]) -> None:
    """Both files."""
    RECORD.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n")
    PAGE.write_text(page(PAGE.read_text(), found))


def page(before: str, found: Mapping[str, Any]) -> str:
    """docs/faults.md with the tables of what is recorded."""
    for name, drawn in (("fired", _fired_table), ("blocks", _blocks_table), ("plain", _plain_table)):
        block = f"<!-- {name} -->\n{drawn(found)}\n<!-- /{name} -->"
        head, _, tail = re.split(rf"<!-- /?{name} -->", before)
        before = head + block + tail
    return before


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *([str(cell) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _fired_table(found: Mapping[str, Any]) -> str:
    said = (
        f"{found['seeds']} seeds (a whole storm is {found['wanted']}), "
        f"{found['combined']} of them with several classes at once; "
        f"{len(found['failed'])} ended wrong."
    )
    rows = [(name, each["seeds"], each["times"]) for name, each in found["fired"].items()]
    return said + "\n\n" + _table(["class", "seeds with it", "times it fired"], rows)


def _blocks_table(found: Mapping[str, Any]) -> str:
    widest = BLOCKS + max(map(int, found["blocks_after_quiet"])) - 1
    head = ["blocks that make a fact final", *(str(number) for number in range(widest + 1))]
    rows = [
        (depth, *(counts.get(str(number), 0) for number in range(widest + 1)))
        for depth, counts in found["blocks_after_quiet"].items()
    ]
    return _table(head, rows)


def _plain_table(found: Mapping[str, Any]) -> str:
    senders = {"Tallystick": "tallystick_on_the_seeds_of_plain", "plain web3.py": "plain"}
    rows = [
        (name, *(found[key][what] for what in ("seeds", "late", "lost", "stuck", "transactions", "wasted")))
        for name, key in senders.items()
    ]
    head = ["sender", "seeds", "late", "lost", "stuck", "transactions", "of them settled nothing"]
    return _table(head, rows)
