"""What a campaign has shown: benchmarks/adversaries.json, and from it the tables of docs/adversaries.md."""

from __future__ import annotations

import json
import re
import subprocess
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from platform import python_version
from typing import Any

from tallystick.devnet import find_anvil
from tests.adversaries import clients, hosts
from tests.adversaries.oracle import Loss, Result

ROOT = Path(__file__).resolve().parents[2]
RECORD = ROOT / "benchmarks" / "adversaries.json"
PAGE = ROOT / "docs" / "adversaries.md"
WANTED = 1_000
"""Sessions of a whole campaign."""

Of = Callable[[Result], Loss | None]


def line(result: Result) -> str:
    """One session's end."""
    losses = {"host": result.host, "payer": result.payer, "stranger": result.stranger, "burnt": result.burnt}
    told = ", ".join(
        f"{who} {loss.tokens} of {loss.most}" for who, loss in losses.items() if loss is not None
    )
    answers = ", ".join(f"{count} {answer}" for answer, count in sorted(result.answers.items()))
    end = "; ".join(result.wrong) or "right"
    lie = f"{result.lie}, {result.told} times, interval {result.interval}"
    return f"seed {result.seed:5}: {lie}: {told}; {answers}: {end}"


def figures(results: Sequence[Result]) -> dict[str, Any]:
    """What benchmarks/adversaries.json holds."""
    return {
        "measured": {
            "date": datetime.now(UTC).date().isoformat(),
            "commit": _said("git", "rev-parse", "HEAD"),
            "python": python_version(),
            "anvil": _said(find_anvil(), "--version").splitlines()[0],
        },
        "wanted": WANTED,
        "sessions": len(results),
        "failed": [result.seed for result in results if result.wrong],
        "clients": {kind.name: _client(_of(results, kind.name)) for kind in clients.LIES},
        "hosts": {kind.name: _host(_of(results, kind.name)) for kind in hosts.LIES},
    }


def _of(results: Iterable[Result], name: str) -> list[Result]:
    return [result for result in results if result.lie == name]


def _client(results: Sequence[Result]) -> dict[str, Any]:
    return {
        **_told(results),
        "host": _worst(results, lambda result: result.host),
        "stranger": _worst(results, lambda result: result.stranger),
        "burnt": _worst(results, lambda result: result.burnt),
        "burnt_token_by_token": _worst(
            [result for result in results if result.at_once == 1], lambda result: result.burnt
        ),
    }


def _host(results: Sequence[Result]) -> dict[str, Any]:
    return {**_told(results), "payer": _worst(results, lambda result: result.payer)}


def _told(results: Sequence[Result]) -> dict[str, Any]:
    answers = sum((Counter(result.answers) for result in results), Counter[str]())
    return {
        "sessions": len(results),
        "told": sum(result.told for result in results),
        "answers": dict(answers.most_common()),
    }


def _worst(results: Iterable[Result], of: Of) -> dict[str, Any] | None:
    """The session of a class that lost the most, and what it may have lost."""
    losses = [(loss, result) for result in results if (loss := of(result)) is not None]
    if not losses:
        return None
    loss, result = max(losses, key=lambda each: (each[0].tokens, -each[0].most))
    return {
        "sessions": len(losses),
        "tokens": loss.tokens,
        "most": loss.most,
        "interval": result.interval,
        "seed": result.seed,
        "nearest": max((each.tokens / each.most for each, _ in losses if each.most), default=0.0),
    }


def _said(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout.strip()


# On paper


def write(found: Mapping[str, Any]) -> None:
    """Both files."""
    RECORD.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n")
    PAGE.write_text(page(PAGE.read_text(), found))


def page(before: str, found: Mapping[str, Any]) -> str:
    """docs/adversaries.md with the tables of what is recorded."""
    tables = {"run": _run, "clients": _clients, "strangers": _strangers, "engine": _engine, "hosts": _hosts}
    for name, drawn in tables.items():
        block = f"<!-- {name} -->\n{drawn(found)}\n<!-- /{name} -->"
        head, _, tail = re.split(rf"<!-- /?{name} -->", before)
        before = head + block + tail
    return before


def _run(found: Mapping[str, Any]) -> str:
    return (
        f"{found['sessions']} sessions (a whole campaign is {found['wanted']}); in {len(found['failed'])} of "
        "them somebody lost more than that, or something else was wrong."
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *([str(cell) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _rows(classes: Mapping[str, Any], of: str) -> Iterable[tuple[object, ...]]:
    for name, each in classes.items():
        if (worst := each[of]) is not None:
            yield (
                name,
                each["sessions"],
                each["told"],
                worst["tokens"],
                worst["most"],
                f"{worst['nearest']:.0%}",
            )


def _clients(found: Mapping[str, Any]) -> str:
    head = [
        "the client",
        "sessions",
        "lies",
        "host lost at most",
        "allowed there",
        "nearest to what is allowed",
    ]
    return _table(head, _rows(found["clients"], "host"))


def _strangers(found: Mapping[str, Any]) -> str:
    head = ["the stranger", "sessions", "tries", "got at most", "allowed there", "nearest to what is allowed"]
    return _table(head, _rows(found["clients"], "stranger"))


def _hosts(found: Mapping[str, Any]) -> str:
    head = [
        "the host",
        "sessions",
        "lies",
        "payer lost at most",
        "allowed there",
        "nearest to what is allowed",
    ]
    return _table(head, _rows(found["hosts"], "payer"))


def _engine(found: Mapping[str, Any]) -> str:
    """Of those that never sign: the most of all sessions, and of those whose engine brings a token a read."""
    head = ["the payer", *("sessions", "tokens made for nobody, at most", "interval there") * 2]
    return _table(head, (row for row in map(_burnt, found["clients"].items()) if row))


def _burnt(item: tuple[str, Mapping[str, Any]]) -> tuple[object, ...]:
    name, each = item
    found = [worst for worst in (each["burnt"], each["burnt_token_by_token"]) if worst is not None]
    if not name.startswith("never signs") or not found:
        return ()
    cells = [(worst["sessions"], worst["tokens"], worst["interval"]) for worst in found]
    return (name, *(cell for each in cells for cell in each), *("",) * 3 * (2 - len(cells)))
