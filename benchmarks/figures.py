"""The figures: what each is called, what it is measured by, against what, what it aims at; and their report.

Measures come as numbers by name, once a round. A figure is the median over the rounds, and its ratio that of
the two medians. Knows nothing of how anything is measured.
"""

from __future__ import annotations

import json
import operator
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS = HERE / "results.json"
REPORT = HERE / "RESULTS.md"
_HOLDS = {">=": operator.ge, "<=": operator.le}

Runs = Mapping[str, Sequence[float]]
"""By measure: its value in each round."""


@dataclass(frozen=True)
class Figure:
    """One line of the report."""

    name: str
    unit: str
    measure: str
    against: str | None = None
    """The measure that it is compared with, or a number."""
    called: str = ""
    """What that is, for people."""
    aim: str = "reported"
    """Of the ratio: `>= x` or `<= x`."""

    def row(self, runs: Runs) -> dict[str, Any]:
        """As it lies in the results."""
        values = list(runs[self.measure])
        others = [] if self.against is None else list(runs[self.against])
        value = statistics.median(values)
        other = statistics.median(others) if others else None
        return {
            "name": self.name,
            "value": value,
            "unit": self.unit,
            "against": {"what": self.called, "value": other, "runs": others} if others else None,
            "ratio": value / other if other else None,
            "aim": self.aim,
            "runs": values,
        }


FIGURES = (
    Figure(
        *("receipts, verified and durable", "a core and second", "receipts.node", "receipts.recovery"),
        called="secp256k1 recovery alone",
        aim=">= 0.75",
    ),
    Figure(
        *("receipts, against eth-account", "a core and second", "receipts.node", "receipts.eth-account"),
        called="eth-account's signature check alone",
        aim=">= 5",
    ),
    Figure(
        *("receipts, acknowledged", "a core and second", "receipts.acks", "receipts.recovery"),
        called="secp256k1 recovery alone",
    ),
    Figure(
        *("metered tokens", "a core and second", "node.a_core", "unmetered.a_core"),
        called="the node with a counter that forgets",
        aim=">= 0.93",
    ),
    Figure("checkpoint to confirmed", "s", "settling.checkpoint"),
    Figure("transactions of one key", "a second", "settling.transactions"),
    Figure(
        *("streamed tokens, against LiteLLM", "a core and second", "node.a_core", "litellm.a_core"),
        called="LiteLLM proxy",
        aim=">= 75",
    ),
    Figure(
        *("streamed tokens, against vllm-router", "a core and second", "node.a_core", "vllm-router.a_core"),
        called="vllm-router",
        aim=">= 0.6",
    ),
    Figure(
        *("streamed tokens, against a bare Protocol", "a core and second", "node.a_core", "bare.a_core"),
        called="a bare asyncio.Protocol",
        aim=">= 0.45",
    ),
    Figure(
        *("streamed tokens, one flush each", "a core and second", "paced-node.a_core", "paced-bare.a_core"),
        called="a bare asyncio.Protocol",
    ),
    Figure("bytes a token", "bytes", "node.bytes_per_token", "bare.bytes_per_token", "the engine's"),
    Figure("reads a token", "reads", "node.reads_per_token", "bare.reads_per_token", "the engine's"),
    Figure(
        *("added time to first token, against LiteLLM", "s", "node.added_first", "litellm.added_first"),
        called="LiteLLM proxy",
        aim="<= 0.05",
    ),
    Figure(
        *("added time to first token, against vllm-router", "s", "node.added_first"),
        *("vllm-router.added_first", "vllm-router"),
        aim="<= 2",
    ),
    Figure(
        *("added delay between tokens, p99", "s", "troubled.added_gap_p99", "one.millisecond"),
        called="one millisecond",
        aim="<= 1",
    ),
    Figure(
        *("SDK, own time a token", "µs", "sdk.own", "openai.own"),
        called="the official client's own",
        aim="<= 0.1",
    ),
)


def results(
    runs: Runs, when: Mapping[str, str], facts: Mapping[str, Any], known: Mapping[str, Any]
) -> dict[str, Any]:
    """What is written down: the facts, and the figures that were measured, now or (`known`) before."""
    rows = {**known}
    for each in FIGURES:
        if each.measure in runs and (each.against or each.measure) in runs:
            rows[each.name] = {**each.row(runs), **when}
    return {**facts, "figures": [rows[each.name] for each in FIGURES if each.name in rows]}


def known() -> dict[str, Any]:
    """The figures that are written down already, by name."""
    if not RESULTS.exists():
        return {}
    return {row["name"]: row for row in json.loads(RESULTS.read_text())["figures"]}


def report(measured: Mapping[str, Any]) -> str:
    """The results, for people."""
    versions = ", ".join(f"{name} {version}" for name, version in measured["versions"].items())
    rows = [_line(row) for row in measured["figures"]]
    return "\n".join(
        [
            "# Figures",
            "",
            f"Measured on {measured['machine']}.",
            f"Each value is the median of {measured['rounds']} interleaved rounds.",
            "`make bench` writes this page and `results.json`, which has every round;",
            "[docs/benchmarks.md](../docs/benchmarks.md) says what each figure is, and where the time goes.",
            "",
            "| figure | value | unit | against | its value | ratio | aim | | date | commit | load |",
            "|---|---:|---|---|---:|---:|---|---|---|---|---|",
            *rows,
            "",
            "Load is that of the machine's last 1, 5 and 15 minutes when the figure's rounds were over:",
            "above the number of cores, something else was running too.",
            "",
            f"With {versions}.",
            "",
        ]
    )


def _line(row: Mapping[str, Any]) -> str:
    against, ratio = row["against"], row["ratio"]
    cells = [
        row["name"],
        shown(row["value"]),
        row["unit"],
        against["what"] if against else "",
        shown(against["value"]) if against else "",
        shown(ratio) if ratio is not None else "",
        row["aim"],
        verdict(ratio, row["aim"]),
        *(row["date"], row["commit"], row["load"]),
    ]
    return "| " + " | ".join(cells) + " |"


def verdict(ratio: float | None, aim: str) -> str:
    """Whether a ratio meets its aim."""
    if ratio is None or aim == "reported":
        return ""
    sign, bound = aim.split()
    return "met" if _HOLDS[sign](ratio, float(bound)) else "**missed**"


def shown(number: float) -> str:
    """A number with three digits that count."""
    if abs(number) >= 1_000:
        return f"{number:,.0f}".replace(",", " ")
    return f"{number:.3g}"


def write(measured: Mapping[str, Any]) -> None:
    """Writes both files."""
    RESULTS.write_text(json.dumps(measured, indent=2) + "\n")
    REPORT.write_text(report(measured))
