"""A payer's key in an encrypted file."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from tallystick import proof
from tallystick.config import PayerConfig, Secret
from tallystick.errors import ConfigError
from tallystick.keystore import write
from tallystick.wallet import key_of

PASSWORD = Secret("a long password")


def test_a_key_is_written_once_and_opened_with_its_password(tmp_path: Path) -> None:
    """The file is the owner's alone, the key is its address's, and no other password opens it."""
    path = tmp_path / "keys" / "payer.key"
    address = write(path, PayerConfig(keystore_password=PASSWORD))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert proof.address(key_of(PayerConfig(keystore=path, keystore_password=PASSWORD))) == address
    with pytest.raises(ConfigError, match="cannot be opened"):
        key_of(PayerConfig(keystore=path, keystore_password=Secret("another password")))


def test_no_key_is_ever_overwritten(tmp_path: Path) -> None:
    """A file that is there may hold money."""
    path = tmp_path / "payer.key"
    path.write_text("money")
    with pytest.raises(ConfigError, match="may hold money"):
        write(path, PayerConfig(keystore_password=PASSWORD))
    assert path.read_text() == "money"


def test_a_password_is_typed_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a setting it is asked for; two that differ write nothing."""
    typed = iter(["a long password", "a long passwort"])
    monkeypatch.setattr("tallystick.keystore.getpass", lambda _prompt: next(typed))
    with pytest.raises(ConfigError, match="differ"):
        write(tmp_path / "payer.key", PayerConfig())
    assert list(tmp_path.iterdir()) == []


def test_a_short_password_is_refused(tmp_path: Path) -> None:
    """Whoever has the file may try as often as they like."""
    with pytest.raises(ConfigError, match="8 or more"):
        write(tmp_path / "payer.key", PayerConfig(keystore_password=Secret("short")))
