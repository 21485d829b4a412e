"""`tally host …`: a host, its node, and what it has coming."""

from __future__ import annotations

import asyncio
import gc
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from tallystick.commands.output import AsJson, echo_json, interrupt, keep_logs
from tallystick.errors import ConfigError

if TYPE_CHECKING:
    from tallystick.config import HostConfig
    from tallystick.survey import Survey

COLLECT_AFTER = 50_000
"""Objects that the node makes and keeps between two searches for garbage: a few megabytes."""
SWITCH = 0.0005
"""Seconds for which a thread may keep Python's lock while another waits for it: a token's way takes less."""

group = typer.Typer(no_args_is_help=True, help="Sell inference: register a host, run its node.")


@group.command()
def register(
    endpoint: Annotated[
        str | None, typer.Option(help="Where payers reach the node; by default HOST_LISTEN.")
    ] = None,
    model: Annotated[
        list[str] | None, typer.Option(help="A model that it serves; by default what the engine has.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Register the host of HOST_PRIVATE_KEY by registerNode(host, metadata), or update its metadata.

    Models are named by MODEL_NAME or MODEL_PATH's file, or by the servers at ENGINE_URL, which have to run.
    """
    from tallystick import registration

    done = asyncio.run(registration.register(endpoint, model))
    if as_json:
        echo_json(done.told())
        return
    typer.echo(f"{done.host} {'is registered' if done.new else 'has new metadata'} at {done.registry}")
    typer.echo(f"metadata     {done.metadata}")
    typer.echo(f"transaction  {done.tx}, {done.gas} gas")


@group.command()
def unregister(as_json: AsJson = False) -> None:
    """Take the host off the registry: no new job can be opened with it. Those that there are go on."""
    from tallystick import registration

    host, tx = asyncio.run(registration.unregister())
    if as_json:
        echo_json({"host": host, "tx": tx})
    else:
        typer.echo(f"{host} takes no new jobs: {tx}")


@group.command()
def payout(
    to: Annotated[str | None, typer.Argument(help="Where they go from now on; without it: shown.")] = None,
    host: Annotated[
        str | None, typer.Option(help="Whose, if HOST_PRIVATE_KEY is its payout address's key.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before it is changed.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show or change where a host's earnings go: a cold address, which the node's key cannot touch.

    Only the present payout address can change it, at first the host itself.
    """
    from tallystick import registration

    def agree(wanted: registration.Payout) -> None:
        typer.echo(f"All that {wanted.host} earns, and has not withdrawn, goes to {wanted.to}.", err=as_json)
        typer.echo("From then on only the key of that address can change it.", err=as_json)
        if not yes:
            typer.confirm("Change it?", abort=True, err=as_json)

    told = asyncio.run(registration.payout(to, host, agree))
    if as_json:
        echo_json(told.told())
    else:
        typer.echo(f"earnings of {told.host} go to {told.to}" + (f": {told.tx}" if told.tx else ""))


@group.command()
def run(
    json_logs: Annotated[bool, typer.Option("--json", help="Log JSON, for machines.")] = False,
    level: Annotated[str, typer.Option(help="debug, info, warning or error.")] = "info",
) -> None:
    """Run the host's node until interrupted; then let replies end, and settle what is due."""
    from tallystick.config import HostConfig

    if level not in ("debug", "info", "warning", "error"):
        raise ConfigError(f"--level is {level!r}: it is debug, info, warning or error")
    keep_logs(level=level, as_json=json_logs)
    import uvloop

    uvloop.run(_run(HostConfig.from_env()))


async def _run(config: HostConfig) -> None:
    import structlog

    from tallystick.node import Node
    from tallystick.server import running

    address, port = config.listen
    try:
        async with running(Node(config), address, port) as url:
            asked_to_end = interrupt()
            structlog.get_logger(__name__).info("node.listening", url=url)
            favour_streams()
            await asked_to_end.wait()
    except OSError as error:
        raise ConfigError(f"HOST_LISTEN {address}:{port} cannot be listened on: {error.strerror}") from error


def favour_streams() -> None:
    """Has neither searches for garbage nor other threads hold up a node's event loop for long."""
    sys.setswitchinterval(SWITCH)
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER)


@group.command("jobs")
def host_jobs(
    ended: Annotated[bool, typer.Option("--all", help="Also jobs that are over.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the host's jobs: served, signed for, settled, confirmed and at risk, in tokens and in money.

    Changes nothing, also while the node runs. With --json amounts are in base units, the host's part.
    """
    from tallystick import printout, statement

    survey = _surveyed()
    lines = statement.lines(survey)
    sums = statement.by_asset(survey, lines)
    if as_json:
        shown = [line for line in lines if ended or not line.life.over]
        echo_json(printout.survey_out(survey, sums, shown))
    else:
        typer.echo("\n".join(printout.jobs(survey, sums, ended=ended)))


@group.command("pending")
def host_pending(as_json: AsJson = False) -> None:
    """List what the host is owed and the chain has not confirmed, and why; what you have to mend comes first.

    Changes nothing, also while the node runs. With --json as `tally host jobs`, with these jobs alone.
    """
    from tallystick import printout, statement

    survey = _surveyed()
    waiting = [line for line in statement.lines(survey) if line.wait is not None]
    if as_json:
        echo_json(printout.survey_out(survey, statement.by_asset(survey, waiting), waiting))
    else:
        typer.echo("\n".join(printout.pending(survey, waiting)))


def _surveyed() -> Survey:
    from tallystick.config import HostConfig
    from tallystick.survey import survey

    keep_logs(level="critical")
    return asyncio.run(survey(HostConfig.from_env()))
