#!/usr/bin/env python3
"""Write the contracts' ABI and bytecode into the package, or check that they are what the sources give.

scripts/abi.py            build, then write src/tallystick/abi/*.json
scripts/abi.py --check    build, then exit 1 if a file there is not what the build gives
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
CONTRACTS = ROOT / "contracts"
PACKAGE = ROOT / "src" / "tallystick" / "abi"
NAMES = ("JobMarketplace", "NodeRegistry", "TestDollar")


def forge() -> str:
    """The forge that npm installed, or the one on PATH where npm has none for the platform."""
    installed = ROOT / "node_modules" / ".bin" / "forge"
    found = str(installed) if installed.exists() else shutil.which("forge")
    if found is None:
        sys.exit("no forge: run `npm ci`, or put Foundry's forge on PATH")
    return found


def signature(entry: dict[str, Any]) -> tuple[str, str, str]:
    """What an ABI entry is sorted by."""
    return entry["type"], entry.get("name", ""), ",".join(i["type"] for i in entry.get("inputs", []))


def rendered(name: str) -> str:
    """The file's text for one contract, from the build."""
    artifact = json.loads((CONTRACTS / "out" / f"{name}.sol" / f"{name}.json").read_text())
    bytecode = artifact["bytecode"]["object"]
    content = {"abi": sorted(artifact["abi"], key=signature), "bytecode": bytecode}
    return json.dumps(content, indent=1, sort_keys=True) + "\n"


def stale() -> list[str]:
    """Names whose file is missing or differs from the build."""
    paths = {name: PACKAGE / f"{name}.json" for name in NAMES}
    return [name for name, path in paths.items() if not path.exists() or path.read_text() != rendered(name)]


def main(argv: list[str]) -> int:
    if argv not in ([], ["--check"]):
        print(__doc__, file=sys.stderr)
        return 2
    subprocess.run([forge(), "build", "--quiet"], cwd=CONTRACTS, check=True)
    changed = stale()
    if argv:
        for name in changed:
            print(f"src/tallystick/abi/{name}.json is not what the contracts give: run scripts/abi.py")
        return 1 if changed else 0
    PACKAGE.mkdir(parents=True, exist_ok=True)
    for name in changed:
        (PACKAGE / f"{name}.json").write_text(rendered(name))
        print(f"wrote src/tallystick/abi/{name}.json")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
