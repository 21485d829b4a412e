"""What a block explorer is handed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tallystick.artifacts import artifact, blueprints, standard_json
from tallystick.devnet import account
from tallystick.errors import ConfigError
from tallystick.verification import write


def test_each_contract_has_its_file_and_what_is_typed_beside_it(tmp_path: Path) -> None:
    """A file of compiler input for each contract; its name, compiler and arguments are told."""
    written = write(tmp_path / "new" / "inputs")
    assert set(written) == {"NodeRegistry", "JobMarketplace"}
    for name, facts in written.items():
        assert Path(facts["file"]).read_text() == standard_json(name)
        assert facts["source"] == f"src/{name}.sol:{name}"
        assert facts["compiler"] == f"v{artifact(name).compiler}"
    _, marketplace = blueprints(account(3).address)
    assert written["JobMarketplace"]["arguments"]["devnet"] == "0x" + marketplace.arguments.hex()


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    """A file where the directory should be is a ConfigError with its name."""
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="file cannot be written to"):
        write(tmp_path / "file")
