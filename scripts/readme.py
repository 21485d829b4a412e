#!/usr/bin/env python3
"""Writes the tree in README.md from the first sentence of each file; `--check` compares it, `--demo` runs the
demonstration and shows what it printed.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
PACKAGE = ROOT / "src" / "tallystick"
CONTRACTS = ROOT / "contracts" / "src"
# From vocabulary to edges to what drives them; what is lower knows nothing of what is higher.
ORDER = """
    types errors config keccak pricing meter transcript proof authorization
    receipt allowance countersign caps admission policy gas fees wire sse asking reply turns
    engine engines counter database tables leases heartbeat writer rows outbox cursors ledger store
    artifacts networks contracts outgoing state roster endpoint endpoints chain sender site
    shares line account stream work lookout accounts desk claims pauses watcher standby settlement sponsor
    node peer
    relay metrics server websocket
    listeners gasless opening frames vocabulary recount tab evidence archive paid session exchange wallet
    keystore
    discovery record blame ranking hosts tries
    stakes in_use spending gateway repeats transport client sync feed happenings overview page proxy
    devnet testing mends survey statement prospects reconciliation printout doctor registration
    inspection solvency deployment verification screen demo commands cli
""".split()
PLACES = {
    "contracts/": "Solidity: sources, interfaces that are the manual, tests",
    "tests/": "one file a module; `stories/`: whole flows, real processes; `vectors.json`: read by forge too",
    "scripts/": "what make runs; `model/` makes the demonstration model",
    "docs/": "protocol, laws, for hosts, engines, refusals, settings, metrics, several processes of one host",
}


def first_sentence(text: str) -> str:
    """Up to the first full stop or colon that ends a clause, in one line."""
    paragraph = " ".join(text.split("\n\n", maxsplit=1)[0].split())
    return re.split(r"(?<=[^.])\.(?:\s|$)", paragraph)[0]


def module_line(path: Path) -> str:
    """A module, or a package, and what lives there."""
    docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
    name = f"{path.parent.name}/" if path.name == "__init__.py" else path.name
    return f"  {name:<17} {first_sentence(docstring)}"


def contract_line(path: Path) -> str:
    """A contract and its NatSpec notice."""
    notice = re.search(r"@notice (.+?)(?:\n///\s*\n|\n(?!///))", path.read_text(), re.DOTALL)
    told = re.sub(r"\s*///\s*", " ", notice[1]) if notice else ""
    return f"  {path.name:<19} {first_sentence(told)}"


def tree() -> str:
    """The listing, in the order of the data."""
    modules = {path.stem: path for path in PACKAGE.glob("*.py") if path.stem != "__init__"}
    modules |= {path.parent.name: path for path in PACKAGE.glob("*/__init__.py")}
    ordered = [name for name in ORDER if name in modules] + sorted(modules.keys() - set(ORDER))
    lines = ["contracts/src/", *map(contract_line, sorted(CONTRACTS.glob("*.sol")))]
    lines += ["src/tallystick/", *(module_line(modules[name]) for name in ordered)]
    lines += [f"{place:<19} {told}" for place, told in PLACES.items()]
    return "\n".join(lines)


def demonstration() -> str:
    """What the demonstration prints."""
    command = [str(Path(sys.executable).parent / "tally"), "demo"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def shown(page: str, section: str, text: str) -> str:
    """The page with `text` as the section of that name."""
    block = f"<!-- {section} -->\n```\n{text}\n```\n<!-- /{section} -->"
    return re.sub(rf"<!-- {section} -->.*?<!-- /{section} -->", lambda _: block, page, flags=re.DOTALL)


def main() -> int:
    """Writes README.md, or compares it."""
    before = README.read_text()
    after = shown(before, "tree", tree())
    if "--demo" in sys.argv[1:]:
        after = shown(after, "demo", demonstration())
    if "--check" in sys.argv[1:]:
        if before != after:
            print("README.md does not show the tree as it is: run scripts/readme.py")
        return int(before != after)
    README.write_text(after)
    return 0


if __name__ == "__main__":
    sys.exit(main())
