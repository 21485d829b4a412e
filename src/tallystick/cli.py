"""The command line: `tally COMMAND`. Reads options and settings, does what they ask, says what came of it.

What a command does lives in the module of its name where it is more than a few lines. Imports stand in the
commands, so that `tally --help` is there at once. An error of the package ends as one line on standard error
(mends.py), with status 1.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer
from typer.core import TyperGroup

from tallystick.errors import ConfigError, TallystickError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tallystick.chain import TxResult
    from tallystick.config import DeployerConfig, HostConfig
    from tallystick.deployment import Plan
    from tallystick.devnet import Devnet
    from tallystick.networks import Deployment
    from tallystick.proxy import Wanted
    from tallystick.survey import Survey
    from tallystick.types import Check


class Commands(TyperGroup):
    """Commands whose expected errors are told in a line."""

    def invoke(self, ctx: Any) -> Any:
        """Runs the command that was named."""
        try:
            return super().invoke(ctx)
        except TallystickError as error:
            from tallystick.mends import complaint

            typer.echo(f"tally: {complaint(error)}", err=True)
            raise typer.Exit(1) from None


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Language-model tokens, counted by both sides and paid from an escrow on an EVM chain.",
    epilog="Settings come from the environment and from .env here: docs/settings.md lists them.",
)
host = typer.Typer(no_args_is_help=True, help="Sell inference: register a host, run its node.")
job = typer.Typer(no_args_is_help=True, help="A payer's jobs: open, look, add to, complete, reclaim.")
contracts = typer.Typer(no_args_is_help=True, help="The contracts on a chain: deploy, check, verify.")
app.add_typer(host, name="host")
app.add_typer(job, name="job")
app.add_typer(contracts, name="contracts")

JOB_MAX = 2**53 - 1
"""The largest job id (protocol §2), as in proof.py, which takes its time to import."""

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")]


def echo_json(content: Any) -> None:
    """Prints an answer for machines."""
    typer.echo(json.dumps(content, indent=2, default=str))


def echo_note(note: str) -> None:
    """Says something on the way, beside what the command prints."""
    typer.echo(note, err=True)


def keep_logs(*, level: str = "info", as_json: bool = False) -> None:
    """Sends the log to standard error: a line an event, `event key=value` or JSON. Level `critical`: off."""
    import logging

    import structlog

    def show(logger: Any, method: str, event: Any) -> Any:
        return render(logger, method, event)

    # Tracebacks are plain: with local variables in them, keys would be in the log.
    plain = structlog.dev.plain_traceback
    render: Any = (
        structlog.processors.JSONRenderer()
        if as_json
        else structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), pad_event_to=0, exception_formatter=plain
        )
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *([structlog.processors.format_exc_info] if as_json else []),
            show,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    logging.basicConfig(stream=sys.stderr, level=max(logging.WARNING, getattr(logging, level.upper())))


@app.command()
def demo(as_json: AsJson = False) -> None:
    """A whole paid conversation on a local chain: open, stream, settle, refund, withdraw.

    With --json one object is printed, integers in base units, all read back from the chain. In `checkpoints`,
    `tokens` and `prompt_tokens` are the job's totals so far; `owed`, `host` and `treasury` are what this
    checkpoint paid.
    """
    from rich.console import Console

    from tallystick.demo import play
    from tallystick.screen import console

    keep_logs(level="critical" if as_json else "error")
    if as_json:
        echo_json(asyncio.run(play(Console(quiet=True), pace=None)).told())
    else:
        asyncio.run(play(console()))


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Check all that has to hold for a host to be paid. Status 1 if anything fails."""
    from tallystick.doctor import examine

    keep_logs(level="critical")
    _judge(asyncio.run(examine()), as_json)


def _judge(checks: Sequence[Check], as_json: bool) -> NoReturn:
    """Prints checks, and ends with status 1 if one of them failed."""
    from dataclasses import asdict

    sound = all(check.passed for check in checks)
    if as_json:
        echo_json({"sound": sound, "checks": [asdict(check) for check in checks]})
    else:
        for check in checks:
            typer.echo(f"{'pass' if check.passed else 'FAIL'}  {check.name:<16}  {check.seen}")
            if check.mend:
                typer.echo(f"{'':22}  mend: {check.mend}")
    raise typer.Exit(0 if sound else 1)


# A chain of one's own


@app.command()
def devnet(
    port: Annotated[int, typer.Option(min=0, max=65_535, help="Port to listen on; 0: a free one.")] = 8545,
    env: Annotated[
        Path | None, typer.Option(help="Write settings with the keys of host and payer to this new file.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run a local chain with the contracts and funded accounts, until interrupted."""
    asyncio.run(_devnet(port, env, as_json))


async def _devnet(port: int, env: Path | None, as_json: bool) -> None:
    from tallystick.devnet import Devnet

    async with Devnet(port) as chain:
        asked_to_end = _interrupt()
        if env is not None:
            _write_env(env, await _env(chain))
        if as_json:
            echo_json(_devnet_facts(chain))
        else:
            typer.echo(_devnet_told(chain, env))
        sys.stdout.flush()
        await asked_to_end.wait()


def _devnet_facts(chain: Devnet) -> dict[str, Any]:
    deployment = chain.deployment
    return {
        "rpc_url": chain.rpc_url,
        "chain_id": deployment.chain_id,
        "contracts": {
            "JobMarketplace": deployment.marketplace,
            "NodeRegistry": deployment.registry,
            "TestDollar": chain.dollar,
        },
        "accounts": {
            name: getattr(chain.accounts, name).address
            for name in ("deployer", "host", "payer", "treasury", "stranger")
        },
    }


def _devnet_told(chain: Devnet, env: Path | None) -> str:
    facts = _devnet_facts(chain)
    lines = [("RPC URL", facts["rpc_url"]), ("chain id", facts["chain_id"])]
    lines += [*facts["contracts"].items(), *facts["accounts"].items()]
    told = "\n".join(f"{name:<14}  {value}" for name, value in lines)
    keys = (
        f"Settings with the keys of host and payer are in {env}."
        if env is not None
        else "`tally devnet --env .env` writes settings with the keys of host and payer to a file."
    )
    return (
        f"{told}\n\nEach account has 10 000 ETH, the payer a million tUSD. Their keys are published: put no "
        f"real money on them.\n{keys}\nCtrl-C ends the chain."
    )


async def _env(chain: Devnet) -> str:
    """Settings for a host and a payer. A new chain has new books: job numbers begin again at 1."""
    genesis = await chain.ask("eth_getBlockByNumber", "0x0", False)
    books = Path.cwd() / ".tally" / f"devnet-{genesis['hash'][2:10]}-{genesis['timestamp'][2:]}"
    settings = {
        "RPC_URL": chain.rpc_url,
        "HOST_PRIVATE_KEY": "0x" + chain.accounts.host.private_key.hex(),
        "HOST_ADDRESS": chain.accounts.host.address,
        "HOST_DATA_DIR": books / "host",
        "MODEL_PATH": _demo_model(),
        "PAYER_PRIVATE_KEY": "0x" + chain.accounts.payer.private_key.hex(),
        "PAYER_DATA_DIR": books / "payer",
        "TREASURY_PRIVATE_KEY": "0x" + chain.accounts.treasury.private_key.hex(),
    }
    return "".join(f"{name}={value}\n" for name, value in settings.items())


def _demo_model() -> Path:
    return Path(__file__).parent / "models" / "tally-demo.gguf"


def _write_env(path: Path, content: str) -> None:
    """Never over a file that is there: it may hold keys of worth."""
    import os

    try:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise ConfigError(f"{path} is there already: remove it, or name another file with --env") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from None
    with os.fdopen(file, "w") as out:
        out.write(content)


def _interrupt() -> asyncio.Event:
    """Set from now on by Ctrl-C or SIGTERM."""
    import signal

    asked = asyncio.Event()
    for each in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(each, asked.set)
    return asked


# The contracts


RpcUrl = Annotated[str | None, typer.Option("--rpc-url", help="The chain's endpoint; by default RPC_URL.")]


@contracts.command("deploy")
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


@contracts.command("check")
def contracts_check(rpc_url: RpcUrl = None, as_json: AsJson = False) -> None:
    """Hold the contracts on a chain against what was built. Status 1 if anything differs."""
    from tallystick.inspection import inspect

    _judge(asyncio.run(inspect(_deployer(rpc_url).rpc_url)), as_json)


@contracts.command("source")
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
        _show({"contract": name, **facts}, as_json=False)


def _deployer(rpc_url: str | None) -> DeployerConfig:
    """The settings, with the endpoint that was named."""
    from dataclasses import replace

    from tallystick.config import DeployerConfig, rpc_urls

    config = DeployerConfig.from_env()
    try:
        return replace(config, rpc_url=rpc_urls(rpc_url)) if rpc_url else config
    except ValueError as error:
        raise ConfigError(f"--rpc-url: {error}") from None


# The host


@host.command()
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


@host.command()
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
            asked_to_end = _interrupt()
            structlog.get_logger(__name__).info("node.listening", url=url)
            await asked_to_end.wait()
    except OSError as error:
        raise ConfigError(f"HOST_LISTEN {address}:{port} cannot be listened on: {error.strerror}") from error


@host.command("jobs")
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


@host.command("pending")
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


@app.command()
def reconcile(as_json: AsJson = False) -> None:
    """Hold the host's ledger, its counts and the chain against each other, to the unit; say what mends it.

    Status 1 if anything differs that is not merely under way. Changes nothing, also while the node runs.
    """
    from tallystick import printout, reconciliation
    from tallystick.config import HostConfig

    keep_logs(level="critical")
    report = asyncio.run(reconciliation.reconcile(HostConfig.from_env()))
    if as_json:
        echo_json(printout.report_out(report))
    else:
        typer.echo("\n".join(printout.report(report)))
    raise typer.Exit(0 if report.agrees else 1)


# The payer


Host = Annotated[str | None, typer.Option(help="The host's URL; by default HOST_URL.")]
Deposit = Annotated[str | None, typer.Option(help="Of a new job, in whole units of its asset; by default 2.")]
ModelName = Annotated[str | None, typer.Option(help="By default the first that the host names.")]


@app.command()
def chat(
    prompt: Annotated[str | None, typer.Argument(help="Without it: asked for one after another.")] = None,
    host: Host = None,
    deposit: Deposit = None,
    job: Annotated[int | None, typer.Option(help="Go on with this job.", min=1, max=JOB_MAX)] = None,
    model: ModelName = None,
    max_tokens: Annotated[int, typer.Option(min=1, max=2**31, help="Of each reply.")] = 512,
    complete: Annotated[bool, typer.Option("--complete", help="Complete the job at the end.")] = False,
    as_json: AsJson = False,
) -> None:
    """Talk to a host's model, paid from a job that is opened for it, or gone on with.

    Without --job and --deposit, the newest job with this host goes on whose deposit has enough left.
    """
    from tallystick.chat import Wanted, converse

    keep_logs(level="error")
    wanted = Wanted(prompt, host, deposit, job, model, max_tokens, complete)
    told = asyncio.run(converse(wanted, as_json=as_json))
    if as_json:
        echo_json(told)


@app.command()
def proxy(
    host: Host = None,
    deposit: Annotated[
        str | None, typer.Option(help="In escrow for a job at a time, in whole units; by default 2.")
    ] = None,
    max_per_day: Annotated[
        str | None, typer.Option(help="The most that is spent on a day (UTC); by default one deposit.")
    ] = None,
    max_price: Annotated[
        list[str] | None,
        typer.Option(help="The most per million tokens, prompt or generated: 0.60, or MODEL=0.60; several."),
    ] = None,
    listen: Annotated[str | None, typer.Option(help="ADDRESS:PORT; by default PROXY_LISTEN.")] = None,
    api_key: Annotated[
        str | None, typer.Option(help="What clients have to send. Others see it here; not in PROXY_API_KEY.")
    ] = None,
    idle: Annotated[int, typer.Option(min=1, help="Seconds until an unused job is completed.")] = 900,
    json_logs: Annotated[bool, typer.Option("--json", help="Log JSON, for machines.")] = False,
) -> None:
    """An OpenAI API on this machine that any client can use: it pays a host, within caps, until interrupted.

    It opens a job for the first request for a model, adds to it as it is used, and completes it when idle and
    at the end. A job that an earlier run left is gone on with.
    """
    from tallystick.proxy import Wanted

    keep_logs(level="info", as_json=json_logs)
    import uvloop

    wanted = Wanted(host, deposit, max_per_day, max_price or (), listen, api_key, idle)
    uvloop.run(_proxy(wanted))


async def _proxy(wanted: Wanted) -> None:
    from tallystick.proxy import running

    async with running(wanted) as (url, told):
        asked_to_end = _interrupt()
        typer.echo(f"base_url {url}\n{told}")
        sys.stdout.flush()
        await asked_to_end.wait()
        echo_note("completing the jobs, so that what was not spent comes back")


Party = Literal["host", "payer", "treasury"]


@app.command()
def withdraw(
    party: Annotated[Party, typer.Option("--as", help="Whose balance.")] = "host",
    asset: Annotated[str | None, typer.Option(help="Symbol or address; by default the dollar.")] = None,
    to: Annotated[str | None, typer.Option(help="Receiver; by default the party's own account.")] = None,
    as_json: AsJson = False,
) -> None:
    """Withdraw a host's earnings, refunds kept for a payer, or the treasury's fees."""
    asyncio.run(_withdraw(party, asset, to, as_json))


async def _withdraw(party: Party, symbol: str | None, to: str | None, as_json: bool) -> None:
    from tallystick.withdrawal import withdraw as draw

    drawn = await draw(party, symbol, to)
    if as_json:
        echo_json(drawn.told())
    else:
        typer.echo(f"{drawn.amount} to {drawn.receiver}: {drawn.tx}, {drawn.gas} gas")


# The payer's jobs


JobNumber = Annotated[int, typer.Argument(help="The job's number.", min=1, max=JOB_MAX)]


@job.command("open")
def job_open(
    host: Host = None,
    deposit: Deposit = None,
    model: ModelName = None,
    asset: Annotated[str | None, typer.Option(help="Symbol or address; by default the dollar.")] = None,
    rate: Annotated[
        int,
        typer.Option(
            min=0,
            max=2**32 - 1,
            help="Above 0: a host-attested job for a client that cannot sign. The host's word is paid, "
            "up to so many tokens a second, for an hour at most.",
        ),
    ] = 0,
    as_json: AsJson = False,
) -> None:
    """Open a job with a host: its deposit goes into escrow."""
    from tallystick import jobs

    wishes = {"deposit": deposit, "model": model, "asset": asset, "rate": rate}
    said, opened = asyncio.run(jobs.open_(host, wishes, echo_note))
    if as_json:
        echo_json(opened)
        return
    number = opened["job_id"]
    typer.echo(said)
    typer.echo(f"talk: tally chat --job {number}; a bearer for it: tally job token {number}")


@job.command("list")
def job_list(
    ended: Annotated[bool, typer.Option("--all", help="Also jobs that were completed.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the jobs of this payer's store."""
    from tallystick import jobs

    found = asyncio.run(jobs.list_(ended=ended))
    if as_json:
        echo_json(found)
        return
    for each in found:
        told = (
            f"{each['settled']['tokens']} tokens settled, {each['unsettled']} not"
            if "settled" in each
            else ""
        )
        typer.echo(f"{each['job_id']:>6}  {each['status']:<10}  {each['host_url']}  {each['model']}  {told}")
    if not found:
        typer.echo("no jobs here; open one: tally chat")


@job.command("show")
def job_show(job_id: JobNumber, as_json: AsJson = False) -> None:
    """Show a job as the chain has it, and as its host has it."""
    from tallystick import jobs

    _show(asyncio.run(jobs.show(job_id)), as_json)


@job.command("complete")
def job_complete(
    job_id: JobNumber,
    on_chain: Annotated[bool, typer.Option("--on-chain", help="Past a host that does not answer.")] = False,
    as_json: AsJson = False,
) -> None:
    """Complete a job: the host settles what is signed for, and the rest comes back."""
    from tallystick import jobs

    done = asyncio.run(jobs.complete_on_chain(job_id) if on_chain else jobs.complete(job_id, echo_note))
    _show(done, as_json)
    if on_chain and not as_json:
        typer.echo(f"from closes_at on, if the host has not completed it: tally job reclaim {job_id}")


@job.command("top-up")
def job_top_up(
    job_id: JobNumber,
    amount: Annotated[str, typer.Argument(help="In whole units of the job's asset.")],
    as_json: AsJson = False,
) -> None:
    """Add to a job's deposit."""
    from tallystick import jobs

    _show(asyncio.run(jobs.top_up(job_id, amount)), as_json)


@job.command("reclaim")
def job_reclaim(job_id: JobNumber, as_json: AsJson = False) -> None:
    """Take the rest of a job back once its host's time to claim is over."""
    from tallystick import jobs

    _show(asyncio.run(jobs.reclaim(job_id)), as_json)


@job.command("token")
def job_token(
    job_id: JobNumber,
    hours: Annotated[float | None, typer.Option(help="How long it is good for; by default 1.")] = None,
) -> None:
    """Print a bearer, which lets a client of OpenAI's API use the job."""
    from tallystick import jobs

    typer.echo(asyncio.run(jobs.token(job_id, hours)))


def _show(told: dict[str, Any], as_json: bool) -> None:
    """Prints a value a line; the parts of what has parts below it."""
    if as_json:
        echo_json(told)
        return
    for line in _lines(told):
        typer.echo(line)


def _lines(told: dict[str, Any], indent: str = "") -> Iterator[str]:
    """A value a line, the parts of a list one a line, what has parts itself indented."""
    from tallystick.mends import when

    for name, value in told.items():
        label = f"{indent}{name}:".ljust(26)
        if isinstance(value, list):
            yield from (f"{label}{_inline(part)}" for part in value)
        elif isinstance(value, dict) and any(isinstance(part, dict) for part in value.values()):
            yield f"{indent}{name}:"
            yield from _lines(value, indent + "  ")
        elif value is not None and name != "receipt":
            yield f"{label}{when(value) if name.endswith('_at') else _inline(value)}"


def _inline(value: Any) -> str:
    if isinstance(value, dict):
        return "  ".join(f"{name} {part}" for name, part in value.items())
    return str(value)


if __name__ == "__main__":
    app()
