"""`tally contracts …`: the contracts on a chain."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tallystick.commands.output import AsJson, echo_json, echo_note, judge, show
from tallystick.errors import ConfigError

if TYPE_CHECKING:
    from tallystick.config import DeployerConfig
    from tallystick.deployment import Plan


group = typer.Typer(no_args_is_help=True, help="The contracts on a chain: deploy, check, verify.")


RpcUrl = Annotated[str | None, typer.Option("--rpc-url", help="The chain's endpoint; by default RPC_URL.")]


@group.command("deploy")
def contracts_deploy(
    rpc_url: RpcUrl = None,
    treasury: Annotated[
        str | None, typer.Option(help="Who gets the fees, for ever; by default the one that is recorded.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before anything is sent.")] = False,
    as_json: AsJson = False,
) -> None:
    """Put the contracts on a chain, at the cost of DEPLOYER_PRIVATE_KEY, and record where they are.

    What is there already is left alone. The addresses follow from code and treasury, on every chain the same.
    """
    from tallystick.deployment import deploy

    def agree(plan: Plan) -> None:
        for line in plan.lines():
            typer.echo(line, err=as_json)
        if plan.missing and not (yes or plan.network.is_devnet):
            typer.confirm("Create them?", abort=True, err=as_json)

    deployed = asyncio.run(deploy(_deployer(rpc_url), treasury, agree, echo_note))
    if as_json:
        echo_json(deployed.told())
    else:
        for line in deployed.lines():
            typer.echo(line)


@group.command("check")
def contracts_check(rpc_url: RpcUrl = None, as_json: AsJson = False) -> None:
    """Hold the contracts on a chain against what was built. Status 1 if anything differs."""
    from tallystick.inspection import inspect

    judge(asyncio.run(inspect(_deployer(rpc_url).rpc_url)), as_json)


@group.command("books")
def contracts_books(rpc_url: RpcUrl = None, as_json: AsJson = False) -> None:
    """Add up what the marketplace owes to everybody, against what it holds. Status 1 if it does not balance.

    Every job that was ever opened is read: it takes a while where there are many.
    """
    from tallystick import solvency

    judge(solvency.judge(asyncio.run(solvency.audit(_deployer(rpc_url).rpc_url))), as_json)


@group.command("source")
def contracts_source(
    directory: Annotated[Path, typer.Argument(help="Where to write; made if it is not there.")],
    as_json: AsJson = False,
) -> None:
    """Write the compiler's input that block explorers verify with, a file a contract (standard JSON)."""
    from tallystick.verification import write

    written = write(directory)
    if as_json:
        echo_json(written)
        return
    for name, facts in written.items():
        show({"contract": name, **facts}, as_json=False)


def _deployer(rpc_url: str | None) -> DeployerConfig:
    """The settings, with the endpoint that was named."""
    from dataclasses import replace

    from tallystick.config import DeployerConfig, rpc_urls

    config = DeployerConfig.from_env()
    try:
        return replace(config, rpc_url=rpc_urls(rpc_url)) if rpc_url else config
    except ValueError as error:
        raise ConfigError(f"--rpc-url: {error}") from None
