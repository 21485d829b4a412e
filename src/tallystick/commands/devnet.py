"""`tally devnet`: a chain of one's own, with settings for a host and a payer on it."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tallystick.commands.output import AsJson, echo_json, interrupt
from tallystick.errors import ConfigError

if TYPE_CHECKING:
    from tallystick.devnet import Devnet


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
        asked_to_end = interrupt()
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
    return Path(__file__).parents[1] / "models" / "tally-demo.gguf"


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
