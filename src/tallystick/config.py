"""What an operator may set: every variable with its type, bounds and default, read once into a frozen value.

A variable in the environment wins over the same one in `.env`; an empty one is not set. Nothing else in the
package reads the environment. Knows no chain: a price is in whole units of an asset, whose decimals the chain
knows.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from io import StringIO
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, Generic, Self, TypeVar, get_type_hints
from urllib.parse import urlsplit

from dotenv import dotenv_values
from dotenv.parser import parse_stream
from eth_utils.address import to_checksum_address

from tallystick import proof
from tallystick.errors import ConfigError
from tallystick.fees import MAX_FEE
from tallystick.policy import Policy
from tallystick.pricing import INTERVAL, to_units
from tallystick.types import ETH, Address

INTERVAL_MIN = 4
"""Tokens: the smallest interval that still has a quarter."""
HOUR = 3_600
DAY = 24 * HOUR
CLAIM_WINDOW_BOUNDS = (HOUR, 30 * DAY)
"""Seconds, the contract's."""
EXPIRY_MAX = 365 * DAY
"""Seconds, the contract's."""
CLAIM_WINDOW = 12 * HOUR
"""Seconds that a payer grants its host for the last claim."""
LIFETIME = 7 * DAY
"""Seconds from a job's opening to its expiry."""
BEARER = HOUR
"""Seconds that a bearer is good for."""
BEARER_MAX = 30 * DAY
"""Seconds: the longest that a bearer may be good for."""
CONTEXT = 4_096
"""Tokens of context of a request to llama.cpp in the process, prompt and reply together."""
SLOTS = 4
"""Requests that llama.cpp in the process serves at a time; more wait."""
FIRST_TOKEN = 120
"""Seconds within which a reply's first token comes: the engine's queue and the reading of the prompt."""
NEXT_TOKEN = 60
"""Seconds within which each further token comes."""

MAX_TOKENS = 512
"""Tokens of a reply where nobody names a number."""

_T = TypeVar("_T")


class Secret(Generic[_T]):
    """Something that no log, repr, error or `dataclasses.asdict` may show."""

    __slots__ = ("_value",)

    def __init__(self, value: _T) -> None:
        self._value = value

    def reveal(self) -> _T:
        """The thing itself."""
        return self._value

    def __repr__(self) -> str:
        return "***"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._value == other._value

    def __hash__(self) -> int:
        return hash(self._value)


@dataclass(frozen=True, slots=True)
class AssetPrice:
    """An asset that a host takes, at prices of its own or (None) at the host's general ones."""

    asset: Address
    price: str | None = None
    """In whole units of the asset per million generated tokens, like "0.90"."""
    prompt_price: str | None = None


@dataclass(frozen=True, slots=True)
class Amounts:
    """An amount in whole units of each asset but ETH, and those of single assets."""

    general: str | None = None
    own: Mapping[Address, str] = field(default_factory=dict)

    def of(self, asset: Address) -> str | None:
        """The amount of an asset; None: there is none."""
        # A general amount is in dollars.
        return self.own.get(asset, None if asset == ETH else self.general)

    def __str__(self) -> str:
        own = [f"{asset}={amount}" for asset, amount in self.own.items()]
        return ",".join([*filter(None, [self.general]), *own])


@dataclass(frozen=True, slots=True)
class TokenizerFile:
    """A file with the tokenizer of a model, and its SHA-256 in hexadecimal digits: it is to be no other."""

    model: str
    path: Path
    sha256: str

    def __str__(self) -> str:
        return f"{self.model}={self.path}@sha256:{self.sha256}"


# How each kind of setting is read: text in, value out, ValueError for what makes no sense.


def _private_key(text: str) -> Secret[bytes]:
    """Never says what it read."""
    if not re.fullmatch(r"(0x)?[0-9a-fA-F]{64}", text):
        raise ValueError("a private key is 64 hexadecimal digits, with or without 0x in front")
    key = bytes.fromhex(text.removeprefix("0x"))
    try:
        proof.address(key)
    except ValueError:
        raise ValueError("the number is no private key of secp256k1") from None
    return Secret(key)


def checked_address(text: str) -> Address:
    """An address as people type or paste it. ValueError for none, or one whose capitals do not add up."""
    if not re.fullmatch(r"0x[0-9a-fA-F]{40}", text):
        raise ValueError(f"{text!r} is not an address: 0x and 40 hexadecimal digits")
    address = to_checksum_address(text)
    digits = text[2:]
    if text != address and digits not in (digits.lower(), digits.upper()):
        raise ValueError(f"the capitals of {text} do not add up: a digit of it is probably wrong")
    return Address(address)


def _entries(text: str) -> list[str]:
    """What stands between commas or white space."""
    return text.replace(",", " ").split()


def _assets(text: str) -> tuple[AssetPrice, ...]:
    assets = tuple(map(_asset_price, _entries(text)))
    if len({entry.asset for entry in assets}) < len(assets):
        raise ValueError("an asset is named twice")
    return assets


def _asset_price(entry: str) -> AssetPrice:
    address, priced, prices = entry.partition("=")
    asset = checked_address(address)
    if not priced:
        if asset == ETH:  # a general price is in dollars
            raise ValueError(f"ETH needs prices of its own: {address}=<price>/<prompt price>")
        return AssetPrice(asset)
    price, _, prompt_price = prices.partition("/")
    return AssetPrice(asset, _amount(price), _amount(prompt_price))


def _amounts(text: str) -> Amounts:
    entries = [entry.rpartition("=") for entry in _entries(text)]
    general = [_amount(amount) for asset, _, amount in entries if not asset]
    own = {checked_address(asset): _amount(amount) for asset, _, amount in entries if asset}
    if len(general) > 1 or len(general) + len(own) < len(entries):
        raise ValueError("there is more than one amount for an asset")
    return Amounts(general[0] if general else None, own)


def _amount(text: str) -> str:
    # More decimals than any asset has: whether this one's suffice is seen when it is known.
    to_units(text, decimals=36)
    return text


def http_url(text: str) -> str:
    """A URL without a slash at its end. ValueError, which never says what it read: it may hold a key."""
    try:
        parts = urlsplit(text)
        sound = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # a port above 65535, half an IPv6 address
        sound = False
    if not sound:
        raise ValueError("it is not of the form http://HOST:PORT or https://HOST:PORT")
    return text.rstrip("/")


def _ledger_url(text: str) -> Secret[str]:
    """Never says what it read: it may hold a password. `postgres` is another name that many use."""
    url = urlsplit(text)
    if url.scheme not in {"postgresql", "postgres"} or not url.path.strip("/"):
        raise ValueError("it is not of the form postgresql://USER:PASSWORD@HOST:PORT/DATABASE")
    return Secret("postgresql" + text[text.index(":") :])


def rpc_urls(text: str) -> str:
    """URLs as `http_url` reads them, with commas and nothing else in between."""
    return ",".join(_urls(text))


def _urls(text: str) -> tuple[str, ...]:
    urls = tuple(map(http_url, _entries(text)))
    if not urls or len(set(urls)) < len(urls):
        raise ValueError("an endpoint is named twice" if urls else "it names no endpoint")
    return urls


def _model_name(text: str) -> str:
    if not re.fullmatch(r"\S{1,200}", text):
        raise ValueError(f"{text!r} is not a name without white space, of up to 200 characters")
    return text


def _sha256(text: str) -> str:
    if not re.fullmatch(r"[0-9a-fA-F]{64}", text):
        raise ValueError("a SHA-256 is 64 hexadecimal digits")
    return text.lower()


def tokenizer_files(text: str) -> tuple[TokenizerFile, ...]:
    """Files as `MODEL=FILE@sha256:…`, with commas between several. ValueError for anything else."""
    files = tuple(_tokenizer_file(entry.strip()) for entry in text.split(",") if entry.strip())
    if len({file.model for file in files}) < len(files):
        raise ValueError("a model is named twice")
    return files


def _tokenizer_file(entry: str) -> TokenizerFile:
    model, _, pinned = entry.partition("=")
    path, _, sha256 = pinned.rpartition("@sha256:")
    if not path:
        raise ValueError(f"{entry!r} is not of the form MODEL=FILE@sha256:DIGITS")
    try:
        expanded = Path(path).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{path}: {error}") from None
    return TokenizerFile(_model_name(model), expanded, _sha256(sha256))


def _networks(text: str) -> tuple[str, ...]:
    return tuple(str(ip_network(entry)) for entry in _entries(text))


def address_and_port(text: str) -> tuple[str, int]:
    """Where to listen, as `127.0.0.1:8402` or `[::1]:8402`. ValueError for anything else."""
    host, _, port = text.rpartition(":")
    if not host or not port.isascii() or not port.isdecimal() or int(port) > 65_535:
        raise ValueError(f"{text!r} is not of the form 127.0.0.1:8402")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _path(text: str) -> Path:
    return Path(text)


def _secret(text: str) -> Secret[str]:
    return Secret(text)


def _switch(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError(f"{text!r} is neither true nor false")
    return text == "true"


def _policy(text: str) -> Policy:
    try:
        return Policy(text)
    except ValueError:
        raise ValueError(f"{text!r} is neither checkpoint nor economic") from None


@dataclass(frozen=True, slots=True)
class Number:
    """Reads a whole number within bounds, both included."""

    low: int
    high: int

    def __call__(self, text: str) -> int:
        """ValueError for anything else."""
        if not text.isascii() or not text.isdecimal() or not self.low <= int(text) <= self.high:
            raise ValueError(f"{text!r} is not a whole number from {self.low} to {self.high}")
        return int(text)


@dataclass(frozen=True, slots=True)
class Variable:
    """Where a setting comes from: the variable, and what reads it (ValueError: it makes no sense)."""

    name: str
    read: Callable[[str], object]

    @property
    def form(self) -> str:
        """What a value looks like, in a few words."""
        return f"{self.read.low} to {self.read.high}" if isinstance(self.read, Number) else _FORMS[self.read]


_FORMS: Mapping[Callable[[str], object], str] = {
    _private_key: "64 hexadecimal digits",
    checked_address: "0x and 40 hexadecimal digits",
    _assets: "addresses, with prices or without",
    _amount: "an amount like `2` or `0.90`",
    _amounts: "an amount like `2` or `0.90`, or `ADDRESS=AMOUNT`, with commas",
    _switch: "`true` or `false`",
    _policy: " or ".join(f"`{policy}`" for policy in Policy),
    http_url: "http://… or https://…",
    rpc_urls: "http://… or https://…, with commas between several",
    _ledger_url: "postgresql://…",
    _urls: "http://… or https://…, with commas between several",
    _model_name: "a name",
    _sha256: "64 hexadecimal digits",
    tokenizer_files: "MODEL=FILE@sha256:DIGITS, with commas between several",
    _networks: "networks",
    address_and_port: "HOST:PORT",
    _path: "a path; `~` is the home directory",
    _secret: "text",
}


def _variables(config: type) -> dict[str, Variable]:
    """By field: its variable."""
    hints = get_type_hints(config, include_extras=True)
    return {name: hint.__metadata__[0] for name, hint in hints.items()}


def _settings(config: type, env: Mapping[str, str] | None, dotenv: Path | None) -> dict[str, Any]:
    """The fields of a config that are set in `env` or `dotenv`. ConfigError names the variable."""
    inherited = dotenv_values(dotenv) if dotenv is not None else {}
    values = {**inherited, **(os.environ if env is None else env)}
    settings = {}
    for name, variable in _variables(config).items():
        text = values.get(variable.name) or ""
        if text.strip():
            try:
                settings[name] = variable.read(text)
            except ValueError as error:
                raise ConfigError(f"{variable.name}: {error}.") from None
    return settings


def _expand(config: HostConfig | PayerConfig) -> None:
    """Turns `~` in the paths of a config into the home directory. ConfigError if there is none."""
    for setting in fields(config):
        path = getattr(config, setting.name)
        if isinstance(path, Path):
            try:
                object.__setattr__(config, setting.name, path.expanduser())
            except RuntimeError as error:
                name = _variables(type(config))[setting.name].name
                raise ConfigError(f"{name}: {path}: {error}") from None


@dataclass(frozen=True, slots=True)
class HostConfig:
    """What a host sets. Times are in seconds."""

    host_private_key: Annotated[Secret[bytes] | None, Variable("HOST_PRIVATE_KEY", _private_key)] = None
    """The key that settles. Without it the node serves for `HOST_ADDRESS` and is not paid."""
    host_address: Annotated[Address | None, Variable("HOST_ADDRESS", checked_address)] = None
    """What the operator expects the key's address to be; without a key, the host that is served unpaid."""
    rpc_url: Annotated[str, Variable("RPC_URL", rpc_urls)] = field(
        default="http://127.0.0.1:8545", repr=False
    )
    """The chain's JSON-RPC endpoint, or several: one that fails or lags is then set aside."""
    model_path: Annotated[Path | None, Variable("MODEL_PATH", _path)] = None
    """A GGUF file for llama.cpp in the process."""
    model_name: Annotated[str | None, Variable("MODEL_NAME", _model_name)] = None
    """What the model of `MODEL_PATH` is called. Not set: its file's name, without `.gguf`."""
    model_context: Annotated[int, Variable("MODEL_CONTEXT", Number(128, 2**24))] = CONTEXT
    """Tokens that a request to it may fill, prompt and reply together."""
    model_slots: Annotated[int, Variable("MODEL_SLOTS", Number(1, 256))] = SLOTS
    """Requests that it serves at a time, each with a context of its own in memory; more wait."""
    model_threads: Annotated[int | None, Variable("MODEL_THREADS", Number(1, 1_024))] = None
    """Threads that it computes with. Not set: half of the processors."""
    model_gpu_layers: Annotated[int | None, Variable("MODEL_GPU_LAYERS", Number(0, 10_000))] = None
    """Layers of it that go to the GPU. Not set: as many as llama.cpp finds room for."""
    engine_urls: Annotated[tuple[str, ...], Variable("ENGINE_URL", _urls)] = field(default=(), repr=False)
    """An OpenAI-compatible server, in the place of `MODEL_PATH`, or several of the same models: the least
    busy one is asked, and one that fails is set aside."""
    engine_api_key: Annotated[Secret[str] | None, Variable("ENGINE_API_KEY", _secret)] = None
    """The bearer that the engines at `ENGINE_URL` want, if they want one."""
    engine_tokenizer: Annotated[Path | None, Variable("ENGINE_TOKENIZER", _path)] = None
    """A GGUF file with the vocabulary and the template of the model at `ENGINE_URL`, to count with what that
    engine does not count. Its weights are mapped into memory and never computed with."""
    engine_tokenizer_hash: Annotated[str | None, Variable("ENGINE_TOKENIZER_HASH", _sha256)] = None
    """The SHA-256 of that file, if it is to be no other."""
    engine_first_token: Annotated[int, Variable("ENGINE_FIRST_TOKEN", Number(1, HOUR))] = FIRST_TOKEN
    """Within which an engine's first token comes: its queue, and the reading of the prompt."""
    engine_next_token: Annotated[int, Variable("ENGINE_NEXT_TOKEN", Number(1, HOUR))] = NEXT_TOKEN
    """Within which each further token comes."""
    listen: Annotated[tuple[str, int], Variable("HOST_LISTEN", address_and_port)] = ("127.0.0.1", 8402)
    """Where the node listens. Port 0: any free one."""
    trusted_proxies: Annotated[tuple[str, ...], Variable("HOST_TRUSTED_PROXIES", _networks)] = ()
    """Networks, like "10.0.0.7/32", whose `X-Forwarded-Proto` counts: a proxy there ends the TLS."""
    data_dir: Annotated[Path, Variable("HOST_DATA_DIR", _path)] = Path("~/.tally/host")
    """The ledger and the counters: what is owed is here."""
    ledger_url: Annotated[Secret[str] | None, Variable("LEDGER_URL", _ledger_url)] = None
    """A PostgreSQL database for the ledger. Not set: SQLite in `HOST_DATA_DIR`."""
    peer_url: Annotated[str | None, Variable("HOST_PEER_URL", http_url)] = None
    """Where other nodes with the same ledger reach this one. Not set: at `HOST_LISTEN`."""
    price: Annotated[str, Variable("HOST_PRICE", _amount)] = "0.90"
    """The price per million generated tokens, in whole units of each asset that has no price of its own."""
    prompt_price: Annotated[str, Variable("HOST_PROMPT_PRICE", _amount)] = "0.20"
    """The price per million prompt tokens, likewise."""
    assets: Annotated[tuple[AssetPrice, ...], Variable("HOST_ASSETS", _assets)] = ()
    """`ADDRESS` or `ADDRESS=PRICE/PROMPT_PRICE`, with commas. Not set: the deployment's dollar token."""
    max_tokens: Annotated[int, Variable("HOST_MAX_TOKENS", Number(1, 2**31))] = MAX_TOKENS
    """The most tokens of a reply to a request that names no number."""
    interval_max: Annotated[int, Variable("HOST_INTERVAL_MAX", Number(INTERVAL_MIN, 1_000_000))] = 1_000
    """The largest interval that a job may have, in tokens."""
    claim_window_min: Annotated[int, Variable("HOST_CLAIM_WINDOW_MIN", Number(*CLAIM_WINDOW_BOUNDS))] = HOUR
    """The shortest time for the last claim that a job may leave the host."""
    receipt_timeout: Annotated[int, Variable("HOST_RECEIPT_TIMEOUT", Number(1, 300))] = 10
    """How long a stream without credit waits."""
    grace: Annotated[int, Variable("HOST_GRACE", Number(1, HOUR))] = 60
    """How long delivered tokens that nobody acknowledged stay in the count."""
    confirmations: Annotated[int | None, Variable("HOST_CONFIRMATIONS", Number(1, 100))] = None
    """Blocks until a transaction counts, its own included. Not set: the deployment's number."""
    public_url: Annotated[str | None, Variable("HOST_PUBLIC_URL", http_url)] = None
    """Where payers reach the node, as its quote says. Not set: where it listens."""
    quote_valid: Annotated[int, Variable("HOST_QUOTE_VALID", Number(60, 30 * DAY))] = HOUR
    """How long a quote is good: jobs on its terms are served until then, whatever is set meanwhile."""
    exposure_per_payer: Annotated[Amounts, Variable("HOST_EXPOSURE_PER_PAYER", _amounts)] = Amounts("0.1")
    """The most that one payer's jobs together may owe unsigned, in whole units of each asset but ETH, or of
    single ones. An asset without an amount has no limit."""
    exposure_max: Annotated[Amounts, Variable("HOST_EXPOSURE_MAX", _amounts)] = Amounts("10")
    """The most that all jobs together may owe unsigned, likewise."""
    relay_fee: Annotated[str, Variable("HOST_RELAY_FEE", _amount)] = "0"
    """What a payer without ETH pays to have its opening sent, in whole units of the deployment's dollar. 0:
    the host sends nothing for payers."""
    max_fee: Annotated[int, Variable("HOST_MAX_FEE", Number(1, 1_000_000))] = MAX_FEE
    """The most that the node pays for a unit of gas, in gwei. While the chain asks for more, it waits."""
    relay_budget: Annotated[str, Variable("HOST_RELAY_BUDGET", _amount)] = "0.01"
    """The most ETH that goes into payers' gas on a day (UTC)."""
    relay_per_payer: Annotated[int, Variable("HOST_RELAY_PER_PAYER", Number(1, 1_000))] = 3
    """How many openings and top-ups are sent for one payer on a day."""
    early: Annotated[bool, Variable("HOST_EARLY", _switch)] = False
    """Serve a job before it is as deep as that, one interval in all: a reorganisation may take it back."""
    policy: Annotated[Policy | None, Variable("HOST_POLICY", _policy)] = None
    """`checkpoint`: settle each whole interval at once. `economic`: when it is worth the gas, or too much is
    unsettled. With either the rest is settled when a job ends or expires, and when the node stops. Not set:
    `checkpoint` on a devnet, `economic` where gas costs money."""
    unsettled_max: Annotated[Amounts, Variable("HOST_UNSETTLED_MAX", _amounts)] = Amounts("1")
    """Economic: the most that may be unsettled over all jobs, in whole units of each asset but ETH, or of
    single ones. An asset without an amount has no limit."""
    gas_share: Annotated[int, Variable("HOST_GAS_SHARE", Number(1, 100))] = 5
    """Economic: the largest part of what is settled that may go into gas, in percent."""
    eth_price: Annotated[Amounts, Variable("HOST_ETH_PRICE", _amounts)] = Amounts()
    """Economic: what one ETH costs, in whole units of each asset, or of single ones. Not set: nobody knows
    what gas is worth, and `HOST_UNSETTLED_MAX` alone decides; ETH needs none."""

    def __post_init__(self) -> None:
        _expand(self)
        if self.model_path is not None and self.engine_urls:
            raise ConfigError("MODEL_PATH and ENGINE_URL are both set: one engine serves a node.")

    @property
    def host(self) -> Address | None:
        """Whose jobs are served: the key's address, or without a key `host_address`."""
        key = self.host_private_key
        return self.host_address if key is None else proof.address(key.reveal())

    @property
    def mismatched(self) -> bool:
        """True if the key is not `host_address`'s: the node says so, and serves the key's jobs alone."""
        return self.host_address is not None and self.host != self.host_address

    @classmethod
    def from_env(cls, env: Mapping[str, str] | None = None, dotenv: Path | None = Path(".env")) -> Self:
        """Read from `env` (None: the process's) and, for what that leaves out, from `dotenv`. ConfigError."""
        return cls(**_settings(cls, env, dotenv))


@dataclass(frozen=True, slots=True)
class PayerConfig:
    """What a payer sets. Times are in seconds."""

    payer_private_key: Annotated[Secret[bytes] | None, Variable("PAYER_PRIVATE_KEY", _private_key)] = None
    """The account that pays deposits and gas, and gets the rest back."""
    keystore: Annotated[Path | None, Variable("PAYER_KEYSTORE", _path)] = None
    """An encrypted key file, in the place of `PAYER_PRIVATE_KEY`."""
    keystore_password: Annotated[Secret[str] | None, Variable("PAYER_KEYSTORE_PASSWORD", _secret)] = None
    """The keystore's password. Not set: it is asked for."""
    rpc_url: Annotated[str, Variable("RPC_URL", rpc_urls)] = field(
        default="http://127.0.0.1:8545", repr=False
    )
    """The chain's JSON-RPC endpoint, or several: one that fails or lags is then set aside."""
    host_url: Annotated[str | None, Variable("HOST_URL", http_url)] = None
    """The host that is asked where none is named with `--host`. Not set: the proxy and the SDK choose among
    the registered ones; the other commands ask this machine's, `http://127.0.0.1:8402`.
    """
    first_token: Annotated[int, Variable("PAYER_FIRST_TOKEN", Number(1, HOUR))] = 30
    """How long the proxy and the SDK wait for the first token of a reply before they ask another host."""
    set_aside: Annotated[int, Variable("PAYER_SET_ASIDE", Number(0, 24 * HOUR))] = 600
    """How long the proxy and the SDK ask others before a host that failed; twice as long for each further
    time in a row, a day at the most.
    """
    data_dir: Annotated[Path, Variable("PAYER_DATA_DIR", _path)] = Path("~/.tally/payer")
    """The session keys and receipts."""
    deposit: Annotated[str, Variable("PAYER_DEPOSIT", _amount)] = "2"
    """The deposit of a new job, in whole units of its asset."""
    asset: Annotated[Address | None, Variable("PAYER_ASSET", checked_address)] = None
    """What new jobs are paid in. Not set: the deployment's dollar token."""
    relay_fee_max: Annotated[str, Variable("PAYER_RELAY_FEE_MAX", _amount)] = "0.10"
    """The most that is paid to have an opening sent by its host, for want of ETH, in whole units of the
    deployment's dollar."""
    interval: Annotated[int, Variable("PAYER_INTERVAL", Number(INTERVAL_MIN, 1_000_000))] = INTERVAL
    """The interval of a new job: tokens that may be delivered beyond the last receipt."""
    ahead: Annotated[int, Variable("PAYER_AHEAD", Number(0, 1_000_000))] = 0
    """Tokens signed for before they came, one interval at most."""
    tokenizers: Annotated[tuple[TokenizerFile, ...], Variable("PAYER_TOKENIZERS", tokenizer_files)] = ()
    """Tokenizers of models, each a GGUF or a `tokenizers` JSON, to hold the hosts' counts against. A model
    without one is held to bounds (docs/payer.md, "Counting")."""
    claim_window: Annotated[int, Variable("PAYER_CLAIM_WINDOW", Number(*CLAIM_WINDOW_BOUNDS))] = CLAIM_WINDOW
    """How long the host may still claim once a job's end was asked for on chain, or it expired."""
    expiry: Annotated[int, Variable("PAYER_EXPIRY", Number(HOUR, EXPIRY_MAX))] = LIFETIME
    """The time from the opening of a job until it ends by itself."""
    bearer: Annotated[int, Variable("PAYER_BEARER", Number(1, BEARER_MAX))] = BEARER
    """How long a bearer is good for."""
    max_tokens: Annotated[int, Variable("PAYER_MAX_TOKENS", Number(1, 2**31))] = MAX_TOKENS
    """The tokens that the proxy and the SDK ask for where a request names no number."""
    proxy_listen: Annotated[tuple[str, int], Variable("PROXY_LISTEN", address_and_port)] = ("127.0.0.1", 4402)
    """Where `tally proxy` listens. Port 0: any free one. Elsewhere than loopback it needs a key."""
    proxy_api_key: Annotated[Secret[str] | None, Variable("PROXY_API_KEY", _secret)] = None
    """What clients of the proxy send as their API key. Not set: whoever reaches its port may spend."""

    def __post_init__(self) -> None:
        _expand(self)
        if self.payer_private_key is not None and self.keystore is not None:
            raise ConfigError("PAYER_PRIVATE_KEY and PAYER_KEYSTORE are both set: one account pays.")
        if self.ahead > self.interval:
            raise ConfigError(f"PAYER_AHEAD is {self.ahead}, more than the interval of {self.interval}.")

    @classmethod
    def from_env(cls, env: Mapping[str, str] | None = None, dotenv: Path | None = Path(".env")) -> Self:
        """Read from `env` (None: the process's) and, for what that leaves out, from `dotenv`. ConfigError."""
        return cls(**_settings(cls, env, dotenv))


@dataclass(frozen=True, slots=True)
class TreasuryConfig:
    """What the treasury sets, to withdraw its fees."""

    treasury_private_key: Annotated[Secret[bytes] | None, Variable("TREASURY_PRIVATE_KEY", _private_key)] = (
        None
    )
    """The key of the deployment's treasury."""
    rpc_url: Annotated[str, Variable("RPC_URL", rpc_urls)] = field(
        default="http://127.0.0.1:8545", repr=False
    )
    """The chain's JSON-RPC endpoint, or several: one that fails or lags is then set aside."""

    @classmethod
    def from_env(cls, env: Mapping[str, str] | None = None, dotenv: Path | None = Path(".env")) -> Self:
        """Read from `env` (None: the process's) and, for what that leaves out, from `dotenv`. ConfigError."""
        return cls(**_settings(cls, env, dotenv))


@dataclass(frozen=True, slots=True)
class DeployerConfig:
    """What whoever deploys the contracts sets."""

    deployer_private_key: Annotated[Secret[bytes] | None, Variable("DEPLOYER_PRIVATE_KEY", _private_key)] = (
        None
    )
    """The account that pays for `tally contracts deploy`. It has no right to anything afterwards."""
    rpc_url: Annotated[str, Variable("RPC_URL", rpc_urls)] = field(
        default="http://127.0.0.1:8545", repr=False
    )
    """The chain's JSON-RPC endpoint, or several: one that fails or lags is then set aside."""

    @classmethod
    def from_env(cls, env: Mapping[str, str] | None = None, dotenv: Path | None = Path(".env")) -> Self:
        """Read from `env` (None: the process's) and, for what that leaves out, from `dotenv`. ConfigError."""
        return cls(**_settings(cls, env, dotenv))


def readable(
    env: Mapping[str, str] | None = None, dotenv: Path | None = Path(".env")
) -> tuple[HostConfig, dict[str, str]]:
    """A host's config without the variables that make no sense, and by their names what is wrong with them.

    For looking into what a host is set up like; what serves takes `HostConfig.from_env`, which refuses.
    """
    values = dict(os.environ if env is None else env)
    wrong: dict[str, str] = {}
    names = {variable.name for variable in _variables(HostConfig).values()}
    while True:
        try:
            return HostConfig.from_env(values, dotenv), wrong
        except ConfigError as error:
            named = names.intersection(re.findall(r"\w+", str(error))) - wrong.keys()
            if not named:
                raise
            wrong.update(dict.fromkeys(named, str(error)))
            values.update(dict.fromkeys(named, ""))


def unread(dotenv: Path = Path(".env")) -> list[str]:
    """What stands in `dotenv` and sets nothing, a sentence a line. ConfigError if it cannot be read."""
    try:
        text = dotenv.read_text()
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise ConfigError(f"{dotenv} cannot be read: {error}") from None
    return [
        f"Line {binding.original.line} of {dotenv} sets nothing."
        for binding in parse_stream(StringIO(text))
        if binding.error or (binding.key is not None and binding.value is None)
    ]
