#!/usr/bin/env python3
"""Checks that the contracts' interfaces say what everything in them is. Exit 1 naming what is left out.

A function, event, error or struct has a notice, each parameter, return value and field a line of its own,
each value of an enum a comment.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
CONTRACTS = ROOT / "contracts"
INTERFACES = CONTRACTS / "src" / "interfaces"
KINDS = ("FunctionDefinition", "EventDefinition", "ErrorDefinition", "StructDefinition")

Node = dict[str, Any]
"""A node of the compiler's syntax tree."""


def trees() -> dict[str, Node]:
    """By file, what the compiler has parsed. Raises RuntimeError where it cannot."""
    sources = {file.name: {"content": file.read_text()} for file in sorted(INTERFACES.glob("*.sol"))}
    request = {
        "language": "Solidity",
        "sources": sources,
        "settings": {"outputSelection": {"*": {"": ["ast"]}}},
    }
    solc = [str(ROOT / "scripts" / "solc"), "--standard-json"]
    answer = json.loads(
        subprocess.run(solc, input=json.dumps(request), capture_output=True, text=True, check=True).stdout
    )
    if errors := [error["formattedMessage"] for error in answer.get("errors", [])]:
        raise RuntimeError("\n".join(errors))
    return {name: answer["sources"][name]["ast"] for name in sources}


def said(node: Node) -> str:
    """Its comment; empty where there is none."""
    text: str = (node.get("documentation") or {}).get("text", "")
    return text


def named(node: Node) -> list[str]:
    """What its comment has to tell apart: parameters, or a struct's fields."""
    members = node["members"] if "members" in node else node["parameters"]["parameters"]
    return [member["name"] for member in members]


def returned(node: Node) -> list[str]:
    """What a function returns, by name; empty for what has none."""
    return [each["name"] for each in node.get("returnParameters", {}).get("parameters", [])]


def lacking(node: Node) -> Iterator[str]:
    """What the comment of a function, event, error or struct leaves out."""
    text = said(node)
    if not re.search(r"@notice \S", text):
        yield "a notice"
    told = set(re.findall(r"@param (\w+) \S", text))
    yield from (f"@param {name}" for name in named(node) if name not in told)
    # What has a name is told by it, what has none in its place.
    returns = returned(node)
    names = re.findall(r"@return (\w+) \S", text)
    yield from (f"@return {name}" for name in returns if name and name not in names)
    if "" in returns and len(re.findall(r"@return \S", text)) < len(returns):
        yield "a @return for each return value"


def undescribed(contract: Node) -> Iterator[str]:
    """What an interface leaves out, itself and all that is declared in it."""
    if not re.search(r"@notice \S", said(contract)):
        yield "a notice"
    for node in contract["nodes"]:
        if node["nodeType"] in KINDS:
            yield from (f"{node['name']}: {what}" for what in lacking(node))
        elif node["nodeType"] == "EnumDefinition":
            yield from (f"{node['name']}.{each['name']}" for each in node["members"] if not said(each))


def complaints() -> list[str]:
    return [
        f"src/interfaces/{file}: {what}"
        for file, tree in trees().items()
        for contract in tree["nodes"]
        if contract["nodeType"] == "ContractDefinition"
        for what in undescribed(contract)
    ]


def main() -> int:
    found = complaints()
    for complaint in found:
        print(f"natspec: {complaint}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
