"""`tally key …`: a payer's key in an encrypted file, as every wallet of Ethereum writes and reads it."""

from __future__ import annotations

import json
import os
from getpass import getpass
from pathlib import Path

from tallystick import proof
from tallystick.config import PayerConfig
from tallystick.errors import ConfigError
from tallystick.types import Address

LEAST = 8
"""Characters of a password: whoever has the file may try as often as they like."""


def write(path: Path, config: PayerConfig) -> Address:
    """A new key in a new file: its address. ConfigError if that is there already, or cannot be written."""
    from eth_account import Account

    key = proof.new_key()
    content = json.dumps(Account.encrypt(key, _password(config))).encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(file, "wb") as out:
            out.write(content)
            out.flush()
            os.fsync(out.fileno())
    except FileExistsError:
        raise ConfigError(f"{path} is there already: it may hold money; name another file") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from error
    return proof.address(key)


def _password(config: PayerConfig) -> str:
    """The settings' password, or one that is typed twice. ConfigError for one that is too short."""
    if config.keystore_password is not None:
        password = config.keystore_password.reveal()
    else:
        password = getpass("Password of the new key: ")
        if password != getpass("Once more: "):
            raise ConfigError("the passwords differ; nothing was written")
    if len(password) < LEAST:
        raise ConfigError(f"the password has {len(password)} characters, and should have {LEAST} or more")
    return password
