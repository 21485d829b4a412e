#!/usr/bin/env python3
"""Mutates the contracts with slither-mutate and writes what the tests let live into docs/mutation.md.

campaign.py [CONTRACT...]          those contracts, or all; exit 1 if too many live, or one without a reason
campaign.py --one DIR CONTRACT     one contract in a scratch directory that the first form has prepared

Each mutant is compiled without the tests, which were compiled before, and they run on its bytecode. Only what
lives through that is compiled with the tests too, for those that call a library directly.
"""

from __future__ import annotations

import os
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
PAGE = ROOT / "docs" / "mutation.md"
FILES = {
    "JobMarketplace": "JobMarketplace.sol",
    "ProofSystem": "ProofSystem.sol",
    "Transfers": "libraries/Transfers.sol",
    "Proof": "libraries/Proof.sol",
    "TallyFields": "libraries/Tally.sol",
    "NodeRegistry": "NodeRegistry.sol",
    "LimitsFields": "libraries/Limits.sol",
    "PricesFields": "libraries/Prices.sol",
    "Pricing": "libraries/Pricing.sol",
    "Fit": "libraries/Fit.sol",
}
DEPLOYED = ("JobMarketplace", "NodeRegistry")
WORKERS = 2
# Of the mutants that are not the same program by other words, per cent.
LEAST = 95.0
# Far beyond what a run takes: what needs longer is counted as killed, and the page says how many did.
SECONDS_A_MUTANT = 300
UNEXPLAINED = "unexplained"
# How the reason begins of a mutant that does what the contract does.
EQUIVALENT = "Nothing can"

ENTRY = "INFO:Slither-Mutate:"
LIVES = re.compile(r"\[(\w+)\] Line (\d+): '(.*)' ==> '(.*)' --> UNCAUGHT", re.DOTALL)
COUNTED = re.compile(r"(Revert|Comment|Tweak) mutants: (\d+) caught of (\d+)")
COLOUR = re.compile(r"\x1b\[\d*m")


@dataclass(frozen=True)
class Survivor:
    """A mutant that no test noticed."""

    contract: str
    line: int
    operator: str
    change: str


@dataclass(frozen=True)
class Outcome:
    """What the tool counted in one contract, and what it let live."""

    contract: str
    mutants: int
    killed: int
    late: int
    survivors: tuple[Survivor, ...]


def share(part: int, whole: int) -> str:
    """A part in percent."""
    return f"{100 * part / whole:.1f} %"


def code(text: str) -> str:
    """Source in one line, as a cell of a table may hold it."""
    return "`" + " ".join(text.split()).replace("|", "\\|") + "`"


def outcome(contract: str, log: str) -> Outcome:
    """Reads the tool's own log."""
    log = COLOUR.sub("", log)
    counts = [(int(caught), int(tried)) for _, caught, tried in COUNTED.findall(log)]
    if not counts:
        raise SystemExit(f"slither-mutate counted nothing in {contract}:\n{log[-2000:]}")
    survivors = tuple(
        Survivor(contract, int(line), operator, f"{code(old)} → {code(new)}")
        for entry in log.split(ENTRY)
        for operator, line, old, new in LIVES.findall(entry)
    )
    killed, mutants = sum(caught for caught, _ in counts), sum(tried for _, tried in counts)
    return Outcome(contract, mutants, killed, log.count("Tests took too long"), survivors)


# The scratch directory: `mutated` is what the tool changes, `tests` runs compiled tests on its bytecode.


def copy_tree(place: Path) -> None:
    """The contracts, and what forge reads to build and test them."""
    place.mkdir(parents=True)
    ignored = shutil.ignore_patterns("out", "cache")
    shutil.copytree(ROOT / "contracts", place / "contracts", symlinks=True, ignore=ignored)
    shutil.copytree(ROOT / "scripts", place / "scripts")
    (place / "tests").mkdir()
    shutil.copy(ROOT / "tests" / "vectors.json", place / "tests")
    shutil.copytree(ROOT / "src" / "tallystick" / "abi", place / "src" / "tallystick" / "abi")
    (place / "node_modules").symlink_to(ROOT / "node_modules")


def surroundings(scratch: Path) -> dict[str, str]:
    """The environment in which forge builds mutants with the warm compiler."""
    return {
        **os.environ,
        "FOUNDRY_PROFILE": "mutation",
        "FOUNDRY_SOLC": str(scratch / "mutated" / "scripts" / "mutate" / "solc"),
        "SOLC_SOCKET": str(scratch / "solc.sock"),
    }


def forge(scratch: Path, tree: str, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    """Forge on one of the two trees."""
    place = scratch / tree / "contracts"
    return subprocess.run(
        ["forge", *arguments], cwd=place, env=surroundings(scratch), capture_output=True, check=False
    )


def build(scratch: Path, tree: str) -> None:
    """One of the two trees, built as it is now."""
    built = forge(scratch, tree, "build")
    if built.returncode != 0:
        raise SystemExit(built.stderr.decode())


def prepare(scratch: Path) -> subprocess.Popen[bytes]:
    """Both trees, built, and the compiler, which the caller ends."""
    for tree in ("mutated", "tests"):
        copy_tree(scratch / tree)
    environment = surroundings(scratch)
    compiler = subprocess.Popen([environment["FOUNDRY_SOLC"], "--serve"], env=environment)
    while not (scratch / "solc.sock").exists():
        time.sleep(0.1)
    build(scratch, "tests")
    return compiler


def judgement(scratch: Path) -> str:
    """The command that succeeds if a mutant lives."""
    mutated, tests = scratch / "mutated" / "contracts", scratch / "tests" / "contracts"
    built = "cache/mutation/out"
    copies = [f"cp {mutated}/{built}/{name}.sol/{name}.json {tests}/{built}/{name}.sol/" for name in DEPLOYED]
    runs = [f"forge test --root {tests} --fail-fast", f"forge test --root {mutated}"]
    return " && ".join(copies + runs)


def mutate(scratch: Path, contract: str) -> None:
    """Runs the tool, with an incremental build in the place of its own, which compiles everything anew."""
    from slither.tools.mutator import __main__ as tool
    from slither.tools.mutator.utils import testing_generated_mutant

    def compiles(_file: str, _remappings: str | None) -> bool:
        return forge(scratch, "mutated", "build", "src").returncode == 0

    testing_generated_mutant.compile_generated_mutant = compiles
    file = scratch / "mutated" / "contracts" / "src" / FILES[contract]
    os.environ.update(surroundings(scratch), FOUNDRY_PROFILE="slither")
    sys.argv = ["slither-mutate", str(file), "--contract-names", contract, "--verbose"]
    sys.argv += ["--test-cmd", f"export FOUNDRY_PROFILE=mutation; {judgement(scratch)}"]
    sys.argv += ["--timeout", str(SECONDS_A_MUTANT), "--output-dir", str(scratch / "campaign")]
    tool.main()


def campaign(scratch: Path, contract: str) -> Outcome:
    """One contract, in a process of its own: the tool keeps what it knows in globals.

    The build comes first: the tool puts a contract's source back but leaves the bytecode of its last mutant,
    and the next contract would begin with it.
    """
    build(scratch, "mutated")
    command = [sys.executable, __file__, "--one", str(scratch), contract]
    log = scratch.parent / f"{contract}.log"
    with log.open("wb") as output:
        subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, check=False)
    return outcome(contract, log.read_text())


def work(scratch: Path, waiting: queue.SimpleQueue[str], outcomes: list[Outcome]) -> None:
    """Takes contracts until there are none."""
    compiler = prepare(scratch)
    try:
        while True:
            found = campaign(scratch, waiting.get_nowait())
            print(f"{found.contract}: {found.killed} of {found.mutants} killed", flush=True)
            outcomes.append(found)
    except queue.Empty:
        return
    finally:
        compiler.terminate()
        compiler.wait()


def run(contracts: list[str], logs: Path) -> list[Outcome]:
    """All contracts, on as many cores as WORKERS."""
    waiting: queue.SimpleQueue[str] = queue.SimpleQueue()
    for contract in contracts:
        waiting.put(contract)
    outcomes: list[Outcome] = []
    workers = [
        threading.Thread(target=work, args=(logs / str(n), waiting, outcomes))
        for n in range(min(WORKERS, len(contracts)))
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if len(outcomes) != len(contracts):
        raise SystemExit(f"a campaign did not finish; its log is in {logs}")
    return sorted(outcomes, key=lambda found: list(FILES).index(found.contract))


# The page: counts and survivors are written, the reason of a survivor that was there before is kept.


def section(page: str, name: str) -> str:
    """What stands between the two marks of a section."""
    found = re.search(rf"<!-- {name} -->\n(.*?)<!-- /{name} -->", page, re.DOTALL)
    return found[1] if found else ""


def replaced(page: str, name: str, text: str) -> str:
    """The page with another text in a section."""
    block = f"<!-- {name} -->\n{text}\n<!-- /{name} -->"
    return re.sub(rf"<!-- {name} -->.*?<!-- /{name} -->", lambda _: block, page, flags=re.DOTALL)


def rows(text: str) -> list[list[str]]:
    """The cells of a table's rows, without its head."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines[2:]]


def counts(outcomes: list[Outcome], before: str) -> str:
    """The table of counts; a contract that was not mutated this time keeps its row."""
    kept = {row[0]: row for row in rows(before)}
    for found in outcomes:
        numbers = [str(found.mutants), str(found.killed), str(len(found.survivors))]
        kept[found.contract] = [found.contract, *numbers, share(found.killed, found.mutants), str(found.late)]
    ordered = [kept[name] for name in FILES if name in kept]
    tried, killed = (sum(int(row[column]) for row in ordered) for column in (1, 2))
    late = sum(int(row[5]) for row in ordered)
    ordered.append(["all", str(tried), str(killed), str(tried - killed), share(killed, tried), str(late)])
    head = ["| contract | mutants | killed | survivors | killed | by time |", "|---|--:|--:|--:|--:|--:|"]
    return "\n".join(head + ["| " + " | ".join(row) + " |" for row in ordered])


def survivors(outcomes: list[Outcome], before: str) -> str:
    """The table of survivors, with the reasons that stand on the page."""
    reasons = {(row[0], row[2], row[3]): row[4] for row in rows(before)}
    mutated = {found.contract for found in outcomes}
    listed = [row for row in rows(before) if row[0] not in mutated]
    for found in outcomes:
        for one in found.survivors:
            why = reasons.get((one.contract, one.operator, one.change), UNEXPLAINED)
            listed.append([one.contract, str(one.line), one.operator, one.change, why])
    listed.sort(key=lambda row: (list(FILES).index(row[0]), int(row[1])))
    head = ["| contract | line | operator | change | why it lives |", "|---|--:|---|---|---|"]
    return "\n".join(head + ["| " + " | ".join(row) + " |" for row in listed])


@dataclass(frozen=True)
class Standing:
    """How all stands. An equivalent mutant does what the contract does, so that no input shows it."""

    mutants: int
    killed: int
    equivalent: int

    @property
    def score(self) -> float:
        """Killed of those that are not equivalent, per cent (DeMillo, Lipton, Sayward, 1978)."""
        return 100 * self.killed / (self.mutants - self.equivalent)

    def __str__(self) -> str:
        met = "which meets" if self.score >= LEAST else "which falls short of"
        alive = self.mutants - self.killed
        return (
            f"{self.killed} of {self.mutants} are killed, {share(self.killed, self.mutants)}. "
            f"{self.equivalent} of the {alive} that live are equivalent: nothing can show them.\n"
            f"Of the others {self.score:.1f} % are killed, {met} the {LEAST:.0f} % that the target asks for."
        )


def standing(counted: str, listed: str) -> Standing:
    """By the two tables of the page."""
    _, mutants, killed, *_ = rows(counted)[-1]
    equivalent = sum(row[4].startswith(EQUIVALENT) for row in rows(listed))
    return Standing(int(mutants), int(killed), equivalent)


def rewrite(outcomes: list[Outcome]) -> str:
    """The page with these outcomes."""
    page = PAGE.read_text()
    page = replaced(page, "version", f"slither-mutate of slither-analyzer {version('slither-analyzer')}.")
    counted = counts(outcomes, section(page, "counts"))
    listed = survivors(outcomes, section(page, "survivors"))
    for name, text in (
        ("counts", counted),
        ("survivors", listed),
        ("standing", str(standing(counted, listed))),
    ):
        page = replaced(page, name, text)
    return page


def main(argv: list[str]) -> int:
    if argv[:1] == ["--one"]:
        mutate(Path(argv[1]), argv[2])
        return 0
    contracts = argv or list(FILES)
    if unknown := [name for name in contracts if name not in FILES]:
        print(f"not among {', '.join(FILES)}: {', '.join(unknown)}", file=sys.stderr)
        return 2
    os.nice(10)
    logs = Path(tempfile.mkdtemp(prefix="mutation-"))
    print(f"logs in {logs}", flush=True)
    page = rewrite(run(contracts, logs))
    PAGE.write_text(page)
    listed = section(page, "survivors")
    reached, unexplained = standing(section(page, "counts"), listed), listed.count(UNEXPLAINED)
    print(f"{reached}\n{unexplained} survivors have no reason")
    return 1 if unexplained or reached.score < LEAST else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
