#!/usr/bin/env python3
"""Write the contracts' ABI, bytecode and compiler input into the package, or check that they are as built.

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
# Those that an explorer of a public chain is to verify.
PUBLIC = ("JobMarketplace", "NodeRegistry")
OUTPUT = ["abi", "evm.bytecode", "evm.deployedBytecode", "metadata"]


def forge() -> str:
    """The forge that npm installed, or the one on PATH where npm has none for the platform."""
    installed = ROOT / "node_modules" / ".bin" / "forge"
    found = str(installed) if installed.exists() else shutil.which("forge")
    if found is None:
        sys.exit("no forge: run `npm ci`, or put Foundry's forge on PATH")
    return found


def built(name: str) -> dict[str, Any]:
    """What forge keeps of one contract."""
    artifact: dict[str, Any] = json.loads((CONTRACTS / "out" / f"{name}.sol" / f"{name}.json").read_text())
    return artifact


def signature(entry: dict[str, Any]) -> tuple[str, str, str]:
    """What an ABI entry is sorted by."""
    return entry["type"], entry.get("name", ""), ",".join(i["type"] for i in entry.get("inputs", []))


def interface(name: str) -> dict[str, Any]:
    """What the package needs to talk to a contract and to create it."""
    artifact = built(name)
    metadata = artifact["metadata"]
    [(path, contract)] = metadata["settings"]["compilationTarget"].items()
    return {
        "abi": sorted(artifact["abi"], key=signature),
        "bytecode": artifact["bytecode"]["object"],
        "compiler": metadata["compiler"]["version"],
        "source": f"{path}:{contract}",
    }


def compiler_input(name: str) -> dict[str, Any]:
    """The standard-JSON input that gives this bytecode, from no more sources than the contract has."""
    metadata = built(name)["metadata"]
    settings = {key: value for key, value in metadata["settings"].items() if key != "compilationTarget"}
    return {
        "language": metadata["language"],
        "sources": {path: {"content": (CONTRACTS / path).read_text()} for path in metadata["sources"]},
        "settings": {**settings, "outputSelection": {"*": {"*": OUTPUT}}},
    }


def generated() -> dict[str, str]:
    """By file name: the text that the build gives."""
    contents = {f"{name}.json": interface(name) for name in NAMES}
    contents |= {f"{name}.input.json": compiler_input(name) for name in PUBLIC}
    return {file: json.dumps(content, indent=1, sort_keys=True) + "\n" for file, content in contents.items()}


def stale(texts: dict[str, str]) -> list[str]:
    """Files that are missing, or are not what the build gives."""
    paths = {file: PACKAGE / file for file in texts}
    return [file for file, path in paths.items() if not path.exists() or path.read_text() != texts[file]]


def main(argv: list[str]) -> int:
    if argv not in ([], ["--check"]):
        print(__doc__, file=sys.stderr)
        return 2
    subprocess.run([forge(), "build", "--quiet"], cwd=CONTRACTS, check=True)
    texts = generated()
    changed = stale(texts)
    if argv:
        for file in changed:
            print(f"src/tallystick/abi/{file} is not what the contracts give: run scripts/abi.py")
        return 1 if changed else 0
    PACKAGE.mkdir(parents=True, exist_ok=True)
    for file in changed:
        (PACKAGE / file).write_text(texts[file])
        print(f"wrote src/tallystick/abi/{file}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
