"""`tally contracts source`: what a block explorer verifies the contracts with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from eth_utils.conversions import to_hex

from tallystick.artifacts import artifact, blueprints, standard_json
from tallystick.errors import ConfigError
from tallystick.networks import networks

CONTRACTS = ("NodeRegistry", "JobMarketplace")


def write(directory: Path) -> dict[str, dict[str, Any]]:
    """Writes the compiler's input of each contract; by contract, the file and what is asked for beside it.

    ConfigError if it cannot be written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name in CONTRACTS:
            _file(directory, name).write_text(standard_json(name))
    except OSError as error:
        raise ConfigError(f"{directory} cannot be written to: {error.strerror}") from error
    return {name: _facts(_file(directory, name), name) for name in CONTRACTS}


def _file(directory: Path, name: str) -> Path:
    return directory / f"{name}.input.json"


def _facts(file: Path, name: str) -> dict[str, Any]:
    compiled = artifact(name)
    return {
        "file": str(file),
        "source": compiled.source,
        "compiler": f"v{compiled.compiler}",
        "arguments": _arguments(name),
    }


def _arguments(name: str) -> dict[str, str]:
    """By network with a treasury: the constructor's arguments, ABI-encoded."""
    return {
        network.name: to_hex(each.arguments)
        for network in networks().values()
        if network.treasury is not None
        for each in blueprints(network.treasury)
        if each.name == name
    }
