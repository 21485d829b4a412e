"""`tally job …`: a payer's jobs."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from tallystick.commands.output import AsJson, echo_json, echo_note, show
from tallystick.errors import ConfigError

group = typer.Typer(no_args_is_help=True, help="A payer's jobs: open, look, add to, complete, reclaim.")

JOB_MAX = 2**53 - 1
"""The largest job id (protocol §2), as in proof.py, which takes its time to import."""
INTERVALS = (4, 1_000_000)
"""The smallest and the largest interval, as in config.py, which does too."""

Host = Annotated[str | None, typer.Option(help="The host's URL; by default HOST_URL.")]
Deposit = Annotated[str | None, typer.Option(help="Of a new job, in whole units of its asset; by default 2.")]
ModelName = Annotated[str | None, typer.Option(help="By default the first that the host names.")]
Interval = Annotated[
    int | None,
    typer.Option(
        min=INTERVALS[0],
        max=INTERVALS[1],
        help="Tokens that the host may deliver beyond what is signed for; more for fast or distant hosts, "
        "within its quote. By default PAYER_INTERVAL.",
    ),
]


JobNumber = Annotated[int, typer.Argument(help="The job's number.", min=1, max=JOB_MAX)]


@group.command("open")
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
    interval: Interval = None,
    gasless: Annotated[
        bool,
        typer.Option(
            "--gasless",
            help="Sign alone, and have the host send it for its relay fee, as it does by itself where the "
            "account has no ETH for gas.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Open a job with a host: its deposit goes into escrow."""
    from tallystick import jobs

    wishes = {"deposit": deposit, "model": model, "asset": asset, "rate": rate, "gasless": gasless}
    said, opened = asyncio.run(jobs.open_(host, wishes, echo_note, interval))
    if as_json:
        echo_json(opened)
        return
    number = opened["job_id"]
    typer.echo(said)
    typer.echo(f"talk: tally chat --job {number}; a bearer for it: tally job token {number}")


@group.command("list")
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


@group.command("show")
def jobshow(job_id: JobNumber, as_json: AsJson = False) -> None:
    """Show a job as the chain has it, and as its host has it."""
    from tallystick import jobs

    show(asyncio.run(jobs.show(job_id)), as_json)


@group.command("complete")
def job_complete(
    job_id: JobNumber,
    on_chain: Annotated[bool, typer.Option("--on-chain", help="Past a host that does not answer.")] = False,
    as_json: AsJson = False,
) -> None:
    """Complete a job: the host settles what is signed for, and the rest comes back."""
    from tallystick import jobs

    done = asyncio.run(jobs.complete_on_chain(job_id) if on_chain else jobs.complete(job_id, echo_note))
    show(done, as_json)
    if on_chain and not as_json:
        typer.echo(f"from closes_at on, if the host has not completed it: tally job reclaim {job_id}")


@group.command("top-up")
def job_top_up(
    job_id: JobNumber,
    amount: Annotated[str, typer.Argument(help="In whole units of the job's asset.")],
    as_json: AsJson = False,
) -> None:
    """Add to a job's deposit."""
    from tallystick import jobs

    show(asyncio.run(jobs.top_up(job_id, amount)), as_json)


@group.command("reclaim")
def job_reclaim(job_id: JobNumber, as_json: AsJson = False) -> None:
    """Take the rest of a job back once its host's time to claim is over."""
    from tallystick import jobs

    show(asyncio.run(jobs.reclaim(job_id)), as_json)


@group.command("evidence")
def job_evidence(
    job_id: JobNumber,
    file: Annotated[Path | None, typer.Argument(help="Where to write it; by default it is printed.")] = None,
) -> None:
    """Write what was signed, acknowledged, settled and refunded, for `tally verify`.

    A job that is complete has left its evidence in PAYER_DATA_DIR already.
    """
    from tallystick import jobs

    content = asyncio.run(jobs.evidence(job_id))
    if file is None:
        typer.echo(content.decode(), nl=False)
        return
    try:
        file.write_bytes(content)
    except OSError as error:
        raise ConfigError(f"{file} cannot be written: {error.strerror}") from error


@group.command("token")
def job_token(
    job_id: JobNumber,
    hours: Annotated[float | None, typer.Option(help="How long it is good for; by default 1.")] = None,
) -> None:
    """Print a bearer, which lets a client of OpenAI's API use the job."""
    from tallystick import jobs

    typer.echo(asyncio.run(jobs.token(job_id, hours)))
