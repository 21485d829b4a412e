"""The command line: `tally COMMAND`. Reads options and settings, does what they ask, says what came of it.

The groups of commands are in commands/. What a command does lives in the module of its name where it is more
than a few lines. Imports stand in the commands, so that `tally --help` is there at once. An error of the
package ends as one line on standard error (mends.py), with status 1.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer
from typer.core import TyperGroup

from tallystick.commands import contracts, devnet, host, job, key
from tallystick.commands.job import JOB_MAX, Deposit, Host, Interval, ModelName
from tallystick.commands.output import AsJson, echo_json, echo_note, interrupt, judge, keep_logs
from tallystick.errors import TallystickError

if TYPE_CHECKING:
    from tallystick.config import PayerConfig
    from tallystick.proxy import Wanted


class Commands(TyperGroup):
    """Commands whose expected errors are told in a line."""

    def invoke(self, ctx: Any) -> Any:
        """Runs the command that was named. What is logged leaves its output alone."""
        keep_logs(level="warning")
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
app.add_typer(host.group, name="host")
app.add_typer(job.group, name="job")
app.add_typer(key.group, name="key")
app.add_typer(contracts.group, name="contracts")
app.command()(devnet.devnet)


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
    judge(asyncio.run(examine()), as_json)


@app.command()
def reconcile(
    party: Annotated[
        Literal["host", "payer"] | None,
        typer.Option(
            "--as", help="Whose books; by default the host's where its settings are, else the payer's."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Hold a host's ledger and counts, or a payer's store and evidence, against the chain, to the unit.

    Says what mends it. Status 1 if anything differs that is not merely under way. Changes nothing, also while
    node or proxy run.
    """
    from tallystick.config import HostConfig, PayerConfig

    keep_logs(level="critical")
    payer = PayerConfig.from_env()
    pays = payer.payer_private_key is not None or payer.keystore is not None
    if party == "payer" or (party is None and pays and HostConfig.from_env().host is None):
        _reconcile_payer(payer, as_json)
    _reconcile_host(as_json)


def _reconcile_payer(config: PayerConfig, as_json: bool) -> NoReturn:
    from tallystick import paid

    found = asyncio.run(paid.reconcile(config))
    if as_json:
        echo_json(paid.out(found))
    else:
        typer.echo("\n".join(paid.lines(found)))
    raise typer.Exit(0 if found.agrees else 1)


def _reconcile_host(as_json: bool) -> NoReturn:
    from tallystick import printout, reconciliation
    from tallystick.config import HostConfig

    report = asyncio.run(reconciliation.reconcile(HostConfig.from_env()))
    if as_json:
        echo_json(printout.report_out(report))
    else:
        typer.echo("\n".join(printout.report(report)))
    raise typer.Exit(0 if report.agrees else 1)


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
def proxy(  # noqa: PLR0913, PLR0917 - each is an option of the command
    host: Annotated[
        list[str] | None,
        typer.Option(help="A host's URL; several: one of them. By default HOST_URL, or all registered ones."),
    ] = None,
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
    interval: Interval = None,
    idle: Annotated[int, typer.Option(min=1, help="Seconds until an unused job is completed.")] = 900,
    tokenizer: Annotated[
        list[str] | None,
        typer.Option(help="Holds a model's counts against its tokenizer: MODEL=FILE@sha256:DIGITS; several."),
    ] = None,
    json_logs: Annotated[bool, typer.Option("--json", help="Log JSON, for machines.")] = False,
) -> None:
    """An OpenAI API on this machine that any client can use: it pays hosts, within caps, until interrupted.

    It opens a job for the first request for a model, adds to it as it is used, and completes it when idle and
    at the end. A job that an earlier run left is gone on with. The host is chosen by price and by your own
    record of it (`tally hosts`); when it fails, the next one is asked.
    """
    from tallystick.proxy import Wanted

    keep_logs(level="info", as_json=json_logs)
    import uvloop

    wanted = Wanted(
        *(host or (), deposit, max_per_day, max_price or (), listen, api_key, idle, tokenizer or ()),
        interval=interval,
    )
    uvloop.run(_proxy(wanted))


async def _proxy(wanted: Wanted) -> None:
    from tallystick.proxy import running

    async with running(wanted) as (url, told):
        asked_to_end = interrupt()
        typer.echo(f"base_url {url}\npage     {url.removesuffix('v1')}\n{told}")
        sys.stdout.flush()
        await asked_to_end.wait()
        echo_note("completing the jobs, so that what was not spent comes back")


@app.command()
def hosts(
    model: Annotated[str | None, typer.Option(help="Only who sells this model.")] = None,
    asset: Annotated[str | None, typer.Option(help="Symbol or address; by default the dollar.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the registered hosts with what they sell, cheapest first, and what came of your own requests to
    each; and who cannot be used, and why.
    """
    from tallystick import jobs

    found = asyncio.run(jobs.hosts(model, asset))
    if as_json:
        echo_json(found)
        return
    for each in found["offers"]:
        prices = f"{each['price']} generated, {each['prompt_price']} prompt, a million"
        typer.echo(f"{each['model']:<24}  {prices}  {each['endpoint']}  {each['host']}  {each['told']}")
    for each in found["unusable"]:
        typer.echo(f"{each['host']}  {each['endpoint']}  unusable: {each['trouble']}", err=True)
    if found["offers"]:
        typer.echo("talk to them: tally proxy; to one of them alone: tally proxy --host URL")


@app.command()
def verify(
    file: Annotated[Path, typer.Argument(help="Evidence of a job: `tally job evidence` writes it.")],
    rpc_url: Annotated[str | None, typer.Option(help="Also hold it against this chain.")] = None,
    as_json: AsJson = False,
) -> None:
    """Check what a session left behind: seal, signatures, transcripts, amounts. Status 1 if anything fails.

    Needs no network and trusts nobody; that its transactions are on the chain is only seen with --rpc-url.
    """
    from tallystick import archive

    evidence = archive.read(file)
    checks = evidence.checks()
    if rpc_url is not None:
        checks += asyncio.run(archive.confirmed(evidence, rpc_url))
    if not as_json:
        typer.echo(evidence.proves())
    judge(checks, as_json)


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


if __name__ == "__main__":
    app()
