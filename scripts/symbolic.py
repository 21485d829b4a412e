#!/usr/bin/env python3
"""Proves contracts/symbolic with Halmos, on the bytecode that the package deploys.

symbolic.py [OPTION...]    options go to halmos: `--function check_topUp` proves only what begins so

Exit 1 if something is not proved, if the build is not the package's, or if a function that changes state
has no check of its own, or not one of each case.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from halmos import sevm
from halmos.__main__ import _main as halmos
from z3.z3util import get_vars

ROOT = Path(__file__).resolve().parent.parent
CONTRACTS = ROOT / "contracts"
BUILD = CONTRACTS / "cache" / "halmos" / "out"
CHECKED = {
    "JobMarketplace": ("Calls", "Claims"),
    "NodeRegistry": ("Registry",),
}
"""By contract: the proofs in which each of its functions that change state has a check."""
CASES = ("OfAToken", "OfETH", "OfNoJob", "OfAClosedJob", "TooHigh", "ByAnother")
"""What a function's check may be divided into."""
ALL_CASES = "check_EveryClaimIsOneOfTheCases"
"""Shows that nothing is left out of them."""


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


def checks(proof: str) -> set[str]:
    """The names of a proof's checks."""
    return {
        method.split("(")[0] for method in artifact(f"{proof}.t.sol", f"{proof}Proof")["methodIdentifiers"]
    }


def is_checked(function: str, found: set[str]) -> bool:
    """Whether a function has a check, or one of each case."""
    check = f"check_{function}"
    return check in found or {ALL_CASES, *(f"{check}_{case}" for case in CASES)} <= found


def complaints(name: str) -> list[str]:
    """What would make the proof of a contract one of something else, or of less."""
    proved = set().union(*map(checks, CHECKED[name]))
    built = artifact(f"{name}.sol", name)
    deployed = json.loads((ROOT / "src" / "tallystick" / "abi" / f"{name}.json").read_text())
    found = [
        f"{function} of {name} has no check, or not of all cases"
        for function in sorted(changing(built["abi"]))
        if not is_checked(function, proved)
    ]
    if built["bytecode"]["object"] != deployed["bytecode"]:
        found.append(f"the bytecode is not that of src/tallystick/abi/{name}.json: run `make abi`")
    return found


def commutative(function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """A function of two terms that takes them in one order, whichever they are given in, and however they are
    written: by the first name in each."""
    return lambda left, right: function(*sorted((left, right), key=order))


def order(term: Any) -> tuple[str, int]:
    """The first in the alphabet of the names in a term, and what tells apart terms that have the same."""
    return min((str(name) for name in get_vars(term)), default=""), term.hash()


def prove(argv: list[str]) -> int:
    """Runs Halmos, to which a product is a function that it knows nothing of, and lets it know that factors
    commute.

    Without it, the products of the contract and those of a law are different terms wherever the compiler has
    swapped their factors.
    """
    sevm.f_mul[256] = commutative(sevm.f_mul[256])
    exitcode: int = halmos(["--root", str(CONTRACTS), *argv]).exitcode
    return exitcode


def main(argv: list[str]) -> int:
    os.environ["FOUNDRY_PROFILE"] = "halmos"
    os.chdir(CONTRACTS)
    subprocess.run(["forge", "build", "--quiet"], check=True)
    if found := [complaint for name in CHECKED for complaint in complaints(name)]:
        print("\n".join(f"symbolic: {complaint}" for complaint in found), file=sys.stderr)
        return 1
    return prove(argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
