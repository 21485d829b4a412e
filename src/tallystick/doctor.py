"""Why is this host not paid? All that it takes: whether it holds, what was seen, and what mends it.

First the facts are gathered, from settings, chain, running node and ledger; then each check is a pure
function of them. Changes nothing: the ledger is opened for reading only, so the node may run meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import ParamSpec, TypeVar

import aiohttp

from tallystick import outgoing, proof
from tallystick.chain import Chain, deployment_at
from tallystick.config import HostConfig, readable, unread
from tallystick.errors import ChainError, ConfigError, LedgerError
from tallystick.networks import Deployment
from tallystick.pricing import from_units
from tallystick.roster import Status
from tallystick.survey import Entry, read_ledger
from tallystick.types import Address, Check, JobId, Totals

SETTLEMENT_GAS = 80_000
"""Gas of the dearest settlement, a last checkpoint with completion and refund (contracts' gas snapshot)."""
PATIENCE = 5.0
"""Seconds that a node has to answer in."""

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ChainFacts:
    """What the chain says. `fee` in wei per gas, `balance` in wei."""

    endpoint: str
    deployment: Deployment
    code: bool
    registered: bool = False
    balance: int = 0
    fee: int = 0
    endpoints: tuple[Status, ...] = ()
    """Each of RPC_URL's."""


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """What the running node says."""

    url: str
    host: Address | None
    paid: bool
    models: tuple[str, ...]
    reasons: tuple[str, ...]
    """Why it is not ready; none: it is."""


@dataclass(frozen=True, slots=True)
class JobFacts:
    """What the host has on disk of one job, in tokens."""

    id: JobId
    interval: int
    attested: bool
    closed: bool
    counted: Totals
    receipted: Totals
    due: Totals
    confirmed: Totals

    @property
    def reached(self) -> bool:
        """A whole interval was counted, or the session ended, and what is due was signed for."""
        return self.due != Totals() or self.confirmed != Totals()


@dataclass(frozen=True, slots=True)
class Facts:
    """All that could be found out; an error in the place of what could not, None for what was not asked."""

    config: HostConfig
    """Without the variables in `wrong`."""
    chain: ChainFacts | ChainError | ConfigError | None = None
    node: NodeFacts | str | None = None
    jobs: tuple[JobFacts, ...] | LedgerError | None = None
    wrong: Mapping[str, str] = field(default_factory=dict)
    """By variable: why it makes no sense."""
    unread: tuple[str, ...] = ()
    """What stands in `.env` and sets nothing."""
    model: bool = True
    """The file at MODEL_PATH is there."""


# Gathering


async def examine() -> list[Check]:
    """Reads the settings, gathers the facts and judges them."""
    config, wrong = readable()
    chain, node, jobs = await asyncio.gather(
        _unless("RPC_URL" in wrong, _ask_chain, config),
        _unless("HOST_LISTEN" in wrong, _ask_node, config),
        _unless(bool({"HOST_DATA_DIR", "LEDGER_URL"} & wrong.keys()), asyncio.to_thread, _read_jobs, config),
    )
    model = config.model_path is None or config.model_path.is_file()
    return judge(Facts(config, chain, node, jobs, wrong, tuple(unread()), model))


async def _unless(wrong: bool, ask: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T | None:
    """What `ask` finds out, if the setting that it goes by is not wrong."""
    return None if wrong else await ask(*args, **kwargs)


async def _ask_chain(config: HostConfig) -> ChainFacts | ChainError | ConfigError:
    try:
        deployment = await deployment_at(config.rpc_url)
        async with Chain(config.rpc_url, deployment) as chain:
            found = await _ask_contracts(chain, config.host)
            return replace(found, endpoints=tuple(await chain.endpoints()))
    except (ChainError, ConfigError) as error:
        return error


async def _ask_contracts(chain: Chain, host: Address | None) -> ChainFacts:
    code = await chain.code_ok()
    if host is None or not code:
        return ChainFacts(chain.endpoint, chain.deployment, code)
    fee = 2 * (await chain.block()).base_fee + await chain.priority_fee()
    return ChainFacts(
        chain.endpoint,
        chain.deployment,
        code,
        registered=await chain.is_registered(host),
        balance=await chain.eth_balance(host),
        fee=fee,
    )


async def _ask_node(config: HostConfig) -> NodeFacts | str:
    url = node_url(config)
    try:
        limit = aiohttp.ClientTimeout(total=PATIENCE)
        async with outgoing.client(limit) as http:
            async with http.get(f"{url}/readyz") as answer:
                ready = await answer.json()
            async with http.get(f"{url}/v1/host") as answer:
                quote = await answer.json()
        return NodeFacts(
            url,
            quote["host"],
            quote["paid"],
            tuple(model["name"] for model in quote["models"]),
            tuple(ready["reasons"]),
        )
    except (aiohttp.ClientError, TimeoutError, OSError):
        return f"nothing answers at {url}"
    except (KeyError, TypeError, ValueError):
        return f"what answers at {url} is no node of this program"


def node_url(config: HostConfig) -> str:
    """Where the node of this config is reached from its own machine."""
    host, port = config.listen
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _read_jobs(config: HostConfig) -> tuple[JobFacts, ...] | LedgerError:
    """From the ledger and the counters' files, which running nodes write meanwhile."""
    try:
        return tuple(map(_job_facts, read_ledger(config, now=0).entries))
    except LedgerError as error:
        return error


def _job_facts(entry: Entry) -> JobFacts:
    row = entry.row
    return JobFacts(
        id=row.job.id,
        interval=row.job.interval,
        attested=row.counts.attested,
        closed=row.closed,
        counted=entry.counted,
        receipted=row.counts.receipted,
        due=row.due,
        confirmed=row.confirmed,
    )


# Judging


def judge(facts: Facts) -> list[Check]:
    """Every check, in the order in which to mend what fails."""
    return [check(facts) for check in CHECKS]


def settings(facts: Facts) -> Check:
    """Environment and `.env` make sense."""
    wrong = [*dict.fromkeys(facts.wrong.values()), *facts.unread]
    if wrong:
        return Check("settings", False, " ".join(wrong), "correct it in the environment or in .env")
    return Check("settings", True, "read from the environment and .env")


def private_key(facts: Facts) -> Check:
    """HOST_PRIVATE_KEY is set: without it the node serves and is never paid."""
    name = "HOST_PRIVATE_KEY"
    if name in facts.wrong:
        return _unseen(name, facts, name)
    key = facts.config.host_private_key
    if key is None:
        mend = "set HOST_PRIVATE_KEY in the environment or in .env, and restart the node"
        return Check(name, False, "not set: the node settles nothing and is not paid", mend)
    return Check(name, True, f"set; its address is {proof.address(key.reveal())}")


def host_address(facts: Facts) -> Check:
    """The key is HOST_ADDRESS's: only a job's host can submit its checkpoints."""
    name = "HOST_ADDRESS"
    config = facts.config
    if facts.wrong.keys() & {name, "HOST_PRIVATE_KEY"}:
        return _unseen(name, facts, name, "HOST_PRIVATE_KEY")
    if config.mismatched:
        seen = f"HOST_ADDRESS is {config.host_address}, and the key's address is {config.host}"
        mend = f"set HOST_ADDRESS={config.host}, or HOST_PRIVATE_KEY to the key of {config.host_address}"
        return Check(name, False, seen, mend)
    if config.host is None:
        return Check(name, False, "no host: neither key nor address is set", "set HOST_PRIVATE_KEY")
    return Check(name, True, f"{config.host} is the host")


def rpc_url(facts: Facts) -> Check:
    """RPC_URL answers; of several endpoints, one at least."""
    if isinstance(facts.chain, ChainError):
        mend = "set RPC_URL to an endpoint that answers; `tally devnet` is one"
        return Check("RPC_URL", False, str(facts.chain), mend)
    if facts.chain is None:
        return _unseen("RPC_URL", facts, "RPC_URL")
    told = [status.told for status in facts.chain.endpoints] if isinstance(facts.chain, ChainFacts) else []
    return Check("RPC_URL", True, "; ".join(told) or "it answers")


def right_chain(facts: Facts) -> Check:
    """The endpoint is on a chain that the contracts are on."""
    if isinstance(facts.chain, ConfigError):
        mend = "set RPC_URL to an endpoint of a chain that has them; `tally devnet` is one"
        return Check("chain", False, str(facts.chain), mend)
    if not isinstance(facts.chain, ChainFacts):
        return _unseen("chain", facts, "RPC_URL")
    deployment = facts.chain.deployment
    return Check("chain", True, f"chain {deployment.chain_id} ({deployment.name}) at {facts.chain.endpoint}")


def contracts(facts: Facts) -> Check:
    """The contracts' code is there."""
    if not isinstance(facts.chain, ChainFacts):
        return _unseen("contracts", facts, "RPC_URL")
    deployment = facts.chain.deployment
    where = f"JobMarketplace {deployment.marketplace}, NodeRegistry {deployment.registry}"
    if not facts.chain.code:
        mend = "set RPC_URL to the chain that they are on; `tally devnet` has them"
        return Check("contracts", False, f"no code at {where}", mend)
    return Check("contracts", True, where)


def registered(facts: Facts) -> Check:
    """The host is in the NodeRegistry: no job can be opened with another."""
    if not _has_contracts(facts) or facts.config.host is None:
        return _unseen("registered", facts, "RPC_URL", "HOST_PRIVATE_KEY", "HOST_ADDRESS")
    assert isinstance(facts.chain, ChainFacts)
    if not facts.chain.registered:
        return Check("registered", False, f"{facts.config.host} is not registered", "tally host register")
    return Check("registered", True, f"{facts.config.host} is registered")


def gas(facts: Facts) -> Check:
    """The host has ETH to settle with."""
    if not _has_contracts(facts) or facts.config.host is None:
        return _unseen("gas", facts, "RPC_URL", "HOST_PRIVATE_KEY", "HOST_ADDRESS")
    assert isinstance(facts.chain, ChainFacts)
    settlements = facts.chain.balance // max(1, SETTLEMENT_GAS * facts.chain.fee)
    seen = f"{from_units(facts.chain.balance, 18)} ETH: enough for {settlements} settlements at present fees"
    mend = "" if settlements else f"send ETH for gas to {facts.config.host}"
    return Check("gas", settlements > 0, seen, mend)


def node(facts: Facts) -> Check:
    """The node runs, for this host, and is ready."""
    if facts.wrong.keys() & {"HOST_LISTEN", "HOST_PRIVATE_KEY"}:
        return _unseen("node", facts, "HOST_LISTEN", "HOST_PRIVATE_KEY")
    if not isinstance(facts.node, NodeFacts):
        return Check("node", False, facts.node or "not looked for", "tally host run")
    if facts.node.host != facts.config.host or facts.node.paid != bool(facts.config.host_private_key):
        seen = f"the one at {facts.node.url} runs for {facts.node.host} with other settings"
        return Check("node", False, seen, "stop it, and start it with these: tally host run")
    if facts.node.reasons:
        return Check("node", False, "; ".join(facts.node.reasons), "mend that, and see its log")
    return Check("node", True, f"ready at {facts.node.url}, serving {', '.join(facts.node.models)}")


def engine(facts: Facts) -> Check:
    """There is an engine to sell tokens of: a model's file, or a server."""
    config = facts.config
    if facts.wrong.keys() & {"MODEL_PATH", "ENGINE_URL"}:
        return _unseen("engine", facts, "MODEL_PATH", "ENGINE_URL")
    if config.model_path is None and not config.engine_urls:
        mend = "set MODEL_PATH to a GGUF file, or ENGINE_URL to a server"
        return Check("engine", False, "neither MODEL_PATH nor ENGINE_URL is set", mend)
    if not facts.model:
        seen = f"MODEL_PATH is {config.model_path}, where no file is"
        return Check("engine", False, seen, "set MODEL_PATH to a GGUF file that is there")
    return Check("engine", True, f"llama.cpp with {config.model_path}" if config.model_path else "ENGINE_URL")


def requests(facts: Facts) -> Check:
    """Requests arrive that name a job: others are turned down before anything is counted."""
    if not isinstance(facts.jobs, tuple):
        return _unseen("requests", facts, "HOST_DATA_DIR", "LEDGER_URL")
    if not facts.jobs:
        seen = "not yet: no request with a job_id was taken"
        return Check("requests", False, seen, f"send one: tally chat{_at_node(facts)}")
    newest = facts.jobs[-1].id
    return Check(
        "requests", True, f"{_count(len(facts.jobs), 'job')} asked for replies, at last job {newest}"
    )


def tokens(facts: Facts) -> Check:
    """What is delivered is counted."""
    if not isinstance(facts.jobs, tuple):
        return _unseen("tokens", facts, "HOST_DATA_DIR", "LEDGER_URL")
    counted = sum((job.counted for job in facts.jobs), Totals())
    if counted.tokens == 0:
        seen = "not yet: no token was delivered to a job"
        return Check("tokens", False, seen, f"ask for some: tally chat{_at_node(facts)}")
    return Check("tokens", True, f"{counted.tokens} tokens and {counted.prompt_tokens} prompt tokens counted")


def threshold(facts: Facts) -> Check:
    """A job has come to its interval (by default 100 tokens), and its payer has signed for it."""
    if not isinstance(facts.jobs, tuple):
        return _unseen("threshold", facts, "HOST_DATA_DIR", "LEDGER_URL")
    reached = [job for job in facts.jobs if job.reached]
    if reached:
        return Check(
            "threshold", True, f"reached by {_count(len(reached), 'job')}, at last job {reached[-1].id}"
        )
    if not facts.jobs:
        return Check("threshold", False, "not yet: there is no job", f"tally chat{_at_node(facts)}")
    best = max(facts.jobs, key=lambda job: job.counted.tokens)
    if best.counted.tokens >= best.interval and not best.attested:
        seen = f"job {best.id} had {best.counted.tokens} tokens; its payer signed for {best.receipted.tokens}"
        return Check("threshold", False, seen, "ask with a client that signs: tally chat, tally proxy")
    seen = f"not yet: job {best.id} has {best.counted.tokens} of {best.interval} tokens"
    mend = f"ask for more, or settle what there is: tally job complete {best.id}"
    return Check("threshold", False, seen, mend)


def settled(facts: Facts) -> Check:
    """What is due is on the chain, confirmed."""
    if not isinstance(facts.jobs, tuple):
        return _unseen("settled", facts, "HOST_DATA_DIR", "LEDGER_URL")
    owing = [job for job in facts.jobs if not job.closed and not job.confirmed.covers(job.due)]
    if owing:
        job = owing[0]
        seen = f"job {job.id}: {job.due.tokens} tokens are due, {job.confirmed.tokens} are confirmed"
        mend = (
            "keep the node running, with gas and RPC_URL; what it waits for says: tally host pending"
            if facts.config.host_private_key is not None
            else "set HOST_PRIVATE_KEY, and restart the node: without it nothing is submitted"
        )
        return Check("settled", False, seen, mend)
    confirmed = sum((job.confirmed for job in facts.jobs), Totals())
    return Check("settled", True, f"nothing is due; {confirmed.tokens} tokens are confirmed on chain")


CHECKS: tuple[Callable[[Facts], Check], ...] = (
    settings,
    private_key,
    host_address,
    rpc_url,
    right_chain,
    contracts,
    registered,
    gas,
    engine,
    node,
    requests,
    tokens,
    threshold,
    settled,
)


def _unseen(name: str, facts: Facts, *variables: str) -> Check:
    """A check that cannot be made before another one holds; `variables` are those that it goes by."""
    for variable in variables:
        if variable in facts.wrong:
            return Check(name, False, "cannot be told", f"mend {variable} first")
    if isinstance(facts.jobs, LedgerError) and name in ("requests", "tokens", "threshold", "settled"):
        return Check(
            name, False, str(facts.jobs), "check HOST_DATA_DIR and its disk, or LEDGER_URL and its server"
        )
    if not _has_contracts(facts):
        return Check(name, False, "cannot be told", "mend RPC_URL first")
    return Check(name, False, "cannot be told: there is no host", "set HOST_PRIVATE_KEY")


def _has_contracts(facts: Facts) -> bool:
    return isinstance(facts.chain, ChainFacts) and facts.chain.code


def _at_node(facts: Facts) -> str:
    """The option that leads `tally chat` to this node, if it is known where it is."""
    if "HOST_LISTEN" in facts.wrong:
        return ""
    return f" --host {node_url(facts.config)}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
