#!/usr/bin/env python3
"""Proves contracts/symbolic with Halmos, on the bytecode that the package deploys.

symbolic.py [OPTION...]    options go to halmos: `--function check_topUp` proves only what begins so

Exit 1 if something is not proved, if the build is not the package's, or if a function that changes state
has no check of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
CONTRACTS = ROOT / "contracts"
BUILD = CONTRACTS / "cache" / "halmos" / "out"
CHECKED = {
    "JobMarketplace": ("Calls.t.sol", "CallsProof"),
    "NodeRegistry": ("Registry.t.sol", "RegistryProof"),
}
"""By contract: where each of its functions that change state has a check."""


def artifact(source: str, name: str) -> dict[str, Any]:
    """A contract of the build."""
    found: dict[str, Any] = json.loads((BUILD / source / f"{name}.json").read_text())
    return found


def changing(abi: list[dict[str, Any]]) -> set[str]:
    """The functions of a contract that change its state."""
    return {
        entry["name"]
        for entry in abi
        if entry["type"] == "function" and entry["stateMutability"] in ("nonpayable", "payable")
    }


def complaints(name: str) -> list[str]:
    """What would make the proof of a contract one of something else, or of less."""
    source, proof = CHECKED[name]
    built = artifact(f"{name}.sol", name)
    deployed = json.loads((ROOT / "src" / "tallystick" / "abi" / f"{name}.json").read_text())
    methods = artifact(source, proof)["methodIdentifiers"]
    checked = {method.removeprefix("check_").split("(")[0] for method in methods}
    found = [f"{function} has no check in {proof}" for function in sorted(changing(built["abi"]) - checked)]
    if built["bytecode"]["object"] != deployed["bytecode"]:
        found.append(f"the bytecode is not that of src/tallystick/abi/{name}.json: run `make abi`")
    return found


def main(argv: list[str]) -> int:
    environment = {**os.environ, "FOUNDRY_PROFILE": "halmos"}
    subprocess.run(["forge", "build", "--quiet"], cwd=CONTRACTS, env=environment, check=True)
    if found := [complaint for name in CHECKED for complaint in complaints(name)]:
        print("\n".join(f"symbolic: {complaint}" for complaint in found), file=sys.stderr)
        return 1
    halmos = Path(sys.executable).parent / "halmos"
    return subprocess.run([halmos, *argv], cwd=CONTRACTS, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
