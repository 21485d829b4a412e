"""`tally key …`: a payer's key, in a file that a password opens."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tallystick.commands.output import AsJson, echo_json

group = typer.Typer(no_args_is_help=True, help="A payer's key, in an encrypted file.")


@group.command("new")
def key_new(
    file: Annotated[Path, typer.Argument(help="A new file.")] = Path("~/.tally/payer.key"),
    as_json: AsJson = False,
) -> None:
    """Make a key, and write it encrypted to a file that is not there yet.

    The password is PAYER_KEYSTORE_PASSWORD, or is asked for. Without it nobody gets at the money, nor you.
    """
    from tallystick.config import PayerConfig
    from tallystick.keystore import write

    path = file.expanduser().absolute()
    address = write(path, PayerConfig.from_env())
    if as_json:
        echo_json({"address": address, "keystore": str(path)})
        return
    typer.echo(f"address  {address}")
    typer.echo(f"use it   PAYER_KEYSTORE={path}")
    typer.echo("send it what you want to spend, and some ETH for gas")
