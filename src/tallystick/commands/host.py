"""`tally host …`: a host, its node, and what it has coming."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tallystick.commands.output import AsJson, echo_json, interrupt, keep_logs
from tallystick.errors import ConfigError

if TYPE_CHECKING:
    from tallystick.chain import TxResult
    from tallystick.config import HostConfig
    from tallystick.networks import Deployment
    from tallystick.survey import Survey


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
    keep_logs(level="warning")
    asyncio.run(_register(endpoint, model, as_json))


async def _register(endpoint: str | None, models: list[str] | None, as_json: bool) -> None:
    from tallystick.chain import Chain, deployment_at
    from tallystick.config import HostConfig
    from tallystick.engines.configured import models_of

    config = HostConfig.from_env()
    if config.host_private_key is None or config.host is None:
        raise ConfigError("HOST_PRIVATE_KEY is not set: a host registers itself, with its own key")
    if not (models or config.model_path or config.engine_urls):
        raise ConfigError("set MODEL_PATH or ENGINE_URL, or name the models that are served with --model")
    deployment = await deployment_at(config.rpc_url)
    metadata = _metadata(config, deployment, endpoint, models or await models_of(config))
    async with Chain(config.rpc_url, deployment) as chain:
        known = await chain.is_registered(config.host)
        call = chain.update(metadata) if known else chain.register(config.host, metadata)
        result = await chain.transact(call, config.host_private_key.reveal())
    if as_json:
        echo_json({"host": config.host, "metadata": json.loads(metadata), **_mined(result)})
        return
    typer.echo(f"{config.host} {'has new metadata' if known else 'is registered'} at {deployment.registry}")
    typer.echo(f"metadata     {metadata}")
    typer.echo(f"transaction  {result.hash}, {result.gas_used} gas")


def _metadata(config: HostConfig, deployment: Deployment, endpoint: str | None, models: list[str]) -> str:
    """What the registry tells of a host: where it is, what it serves, and for how much."""
    from tallystick.doctor import node_url
    from tallystick.node import offer_of

    terms = offer_of(config, deployment, models).terms()
    told = {"endpoint": endpoint or node_url(config), "models": terms["models"], "assets": terms["assets"]}
    return json.dumps(told, separators=(",", ":"))


def _mined(result: TxResult) -> dict[str, Any]:
    return {"tx": result.hash, "gas": result.gas_used}


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
            await asked_to_end.wait()
    except OSError as error:
        raise ConfigError(f"HOST_LISTEN {address}:{port} cannot be listened on: {error.strerror}") from error


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
