"""Settings: every default is the protocol's, every bound holds, and no secret is shown."""

from __future__ import annotations

import copy
import dataclasses
import logging
import os
import re
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from tallystick import asking, config, peer, pricing, proof, websocket, wire
from tallystick.config import (
    Amounts,
    AssetPrice,
    HostConfig,
    PayerConfig,
    Secret,
    TokenizerFile,
    TreasuryConfig,
)
from tallystick.errors import ConfigError
from tallystick.keccak import keccak
from tallystick.meter import LOW_DIVISOR
from tallystick.policy import Policy
from tallystick.types import ETH, Address

PROTOCOL = Path(__file__).parents[1] / "docs" / "protocol.md"
KEY = keccak(b"tallystick tests: a host")
OWN = proof.address(KEY)
OTHER = proof.address(keccak(b"tallystick tests: another host"))
DOLLAR = proof.address(keccak(b"tallystick tests: an asset"))


def host(**env: str) -> HostConfig:
    return HostConfig.from_env(env, dotenv=None)


def payer(**env: str) -> PayerConfig:
    return PayerConfig.from_env(env, dotenv=None)


def variables(of: type) -> dict[str, str]:
    """The environment variable of each field."""
    return {name: hint.__metadata__[0].name for name, hint in get_type_hints(of, include_extras=True).items()}


# Defaults


def defaults() -> dict[str, tuple[str, str]]:
    """The rows of protocol §13: name, default, bounds."""
    table = PROTOCOL.read_text().partition("## 13. Defaults and bounds")[2]
    rows = [line.split("|")[1:-1] for line in table.splitlines() if line.startswith("|")][2:]
    return {name.strip(): (default.strip(), bounds.strip()) for name, default, bounds in rows}


def test_the_protocols_defaults_are_the_programs() -> None:
    """What docs/protocol.md §13 says of defaults and bounds is what the code does."""
    ours, theirs = host(), payer()
    low, high = config.CLAIM_WINDOW_BOUNDS
    hour, day, megabyte = config.HOUR, config.DAY, 1_000_000
    assert defaults() == {
        "interval": (
            f"{theirs.interval} tokens",
            f"{config.INTERVAL_MIN} … what the host's quote allows ({ours.interval_max:_})".replace("_", " "),
        ),
        "checkpoint offered": ("every quarter interval", ""),
        "ahead": (str(theirs.ahead), "0 … one interval"),
        "receipt_timeout": (f"{ours.receipt_timeout} s", "1 … 300 s"),
        "grace": (f"{ours.grace} s", "1 s … 1 h"),
        "claim window": (
            f"{theirs.claim_window // hour} h",
            f"{low // hour} h … {high // day} d (contract); host's minimum {ours.claim_window_min // hour} h",
        ),
        "expiry": (
            f"{theirs.expiry // day} d",
            f"at most {config.EXPIRY_MAX // day} d (contract); reply margin 10 min",
        ),
        "bearer": (f"{theirs.bearer // hour} h", f"at most {config.BEARER_MAX // day} d"),
        "confirmations": ("1 on chain 31337, 10 elsewhere", "1 … 100"),
        "balance low": ({5: "a fifth of the deposit"}[LOW_DIVISOR], ""),
        "choices": ("1", f"{asking.MAX_CHOICES}, prompts × `n`"),
        "quote": (f"{ours.quote_valid // hour} h", "1 min … 30 d"),
        "max_tokens, of each choice": (
            f"{ours.max_tokens} when absent, null or \u22121",
            "what the context holds; 0 and a fraction are refused",
        ),
        "request body": ("", f"{wire.MAX_BODY // megabyte} MB"),
        "body or frame without a good bearer": ("", f"{peer.STRANGERS_BODY // 1000} kB"),
        "replies under way on a socket": ("", str(websocket.MAX_REPLIES)),
        "WebSocket frame": ("", f"{wire.MAX_BODY // megabyte} MB"),
        "receipt": ("", f"{wire.MAX_POSITIONS} positions"),
    }
    assert theirs.interval == pricing.INTERVAL


def test_a_host_needs_to_set_nothing() -> None:
    """Without a variable a host is whole, serves on loopback, and has nobody to be paid."""
    ours = host()
    assert ours == HostConfig()
    assert (ours.host_private_key, ours.host_address) == (None, None)
    assert ours.listen == ("127.0.0.1", 8402)
    assert (ours.price, ours.prompt_price, ours.assets) == ("0.90", "0.20", ())


@pytest.mark.parametrize("of", [HostConfig, PayerConfig])
def test_an_empty_variable_is_not_set(of: type[HostConfig | PayerConfig]) -> None:
    """`HOST_PRIVATE_KEY=` in a file is the same as no line."""
    assert of.from_env(dict.fromkeys(variables(of).values(), " "), dotenv=None) == of()


# Reading


def test_every_variable_of_a_host_is_read() -> None:
    """The largest example: each variable ends up in its field."""
    env = {
        "HOST_PRIVATE_KEY": "0x" + KEY.hex(),
        "HOST_ADDRESS": OWN,
        "RPC_URL": "https://chain.example/key/",
        "MODEL_NAME": "tally-8b",
        "MODEL_CONTEXT": "8192",
        "MODEL_SLOTS": "2",
        "MODEL_THREADS": "6",
        "MODEL_GPU_LAYERS": "0",
        "ENGINE_URL": "http://127.0.0.1:8000/v1/, http://127.0.0.1:8001",
        "ENGINE_API_KEY": "engine secret",
        "ENGINE_TOKENIZER": "/models/vocabulary.gguf",
        "ENGINE_TOKENIZER_HASH": "AB" * 32,
        "ENGINE_FIRST_TOKEN": "30",
        "ENGINE_NEXT_TOKEN": "5",
        "HOST_LISTEN": "[::1]:0",
        "HOST_TRUSTED_PROXIES": "10.0.0.7, fd00::/8",
        "HOST_DATA_DIR": "/var/lib/tally",
        "LEDGER_URL": "postgresql://host:word@db.example/tally",
        "HOST_PEER_URL": "http://10.0.0.8:8402/",
        "HOST_PRICE": "2",
        "HOST_PROMPT_PRICE": "0.5",
        "HOST_ASSETS": f"{DOLLAR}, {ETH}=0.0004/0.0001",
        "HOST_MAX_TOKENS": "256",
        "HOST_INTERVAL_MAX": "400",
        "HOST_CLAIM_WINDOW_MIN": "7200",
        "HOST_RECEIPT_TIMEOUT": "20",
        "HOST_GRACE": "90",
        "HOST_CONFIRMATIONS": "5",
        "HOST_EARLY": "true",
        "HOST_PUBLIC_URL": "https://host.example/",
        "HOST_QUOTE_VALID": "7200",
        "HOST_EXPOSURE_PER_PAYER": "0.5",
        "HOST_EXPOSURE_MAX": "50",
        "HOST_POLICY": "economic",
        "HOST_UNSETTLED_MAX": f"2.5, {ETH}=0.001",
        "HOST_GAS_SHARE": "3",
        "HOST_MAX_FEE": "250",
        "HOST_ETH_PRICE": "3000",
        "HOST_RELAY_FEE": "0.02",
        "HOST_RELAY_BUDGET": "0.05",
        "HOST_RELAY_PER_PAYER": "7",
    }
    ours = host(**env)
    assert ours == HostConfig(
        host_private_key=Secret(KEY),
        host_address=OWN,
        rpc_url="https://chain.example/key",
        model_name="tally-8b",
        model_context=8192,
        model_slots=2,
        model_threads=6,
        model_gpu_layers=0,
        engine_urls=("http://127.0.0.1:8000/v1", "http://127.0.0.1:8001"),
        engine_api_key=Secret("engine secret"),
        engine_tokenizer=Path("/models/vocabulary.gguf"),
        engine_tokenizer_hash="ab" * 32,
        engine_first_token=30,
        engine_next_token=5,
        listen=("::1", 0),
        trusted_proxies=("10.0.0.7/32", "fd00::/8"),
        data_dir=Path("/var/lib/tally"),
        ledger_url=Secret("postgresql://host:word@db.example/tally"),
        peer_url="http://10.0.0.8:8402",
        price="2",
        prompt_price="0.5",
        assets=(AssetPrice(DOLLAR), AssetPrice(ETH, "0.0004", "0.0001")),
        max_tokens=256,
        interval_max=400,
        claim_window_min=7200,
        receipt_timeout=20,
        grace=90,
        confirmations=5,
        early=True,
        public_url="https://host.example",
        quote_valid=7200,
        exposure_per_payer=Amounts("0.5"),
        exposure_max=Amounts("50"),
        policy=Policy.ECONOMIC,
        unsettled_max=Amounts("2.5", {ETH: "0.001"}),
        gas_share=3,
        max_fee=250,
        eth_price=Amounts("3000"),
        relay_fee="0.02",
        relay_budget="0.05",
        relay_per_payer=7,
    )
    assert host(MODEL_PATH="/models/a.gguf").model_path == Path("/models/a.gguf")
    assert set(env) | {"MODEL_PATH"} == set(variables(HostConfig).values())


def test_a_ledger_may_be_named_as_others_name_it() -> None:
    """`postgres://` is what many providers hand out."""
    assert host(LEDGER_URL="postgres://h:word@db/tally").ledger_url == Secret("postgresql://h:word@db/tally")


def test_a_general_amount_is_in_dollars() -> None:
    """It is each asset's that has none of its own, and not ETH's."""
    amounts = host(HOST_UNSETTLED_MAX=f"2, {DOLLAR}=3").unsettled_max
    assert [amounts.of(asset) for asset in (DOLLAR, OTHER, ETH)] == ["3", "2", None]
    assert str(amounts) == f"2,{DOLLAR}=3"
    assert host().eth_price.of(DOLLAR) is None


@pytest.mark.parametrize("url", ["mysql://h:word@db/tally", "postgresql://h:word@db", "word"])
def test_a_ledger_is_in_a_database_that_it_knows(url: str) -> None:
    """Another database, or none named, is refused, and the password in it not repeated."""
    with pytest.raises(ConfigError, match=r"LEDGER_URL: .*postgresql://USER") as caught:
        host(LEDGER_URL=url)
    assert "word" not in str(caught.value)


def test_every_variable_of_a_payer_is_read() -> None:
    """The largest example: each variable ends up in its field."""
    env = {
        "PAYER_KEYSTORE": "/keys/payer.json",
        "PAYER_KEYSTORE_PASSWORD": " a password ",
        "RPC_URL": "http://127.0.0.1:9545",
        "HOST_URL": "https://host.example",
        "PAYER_FIRST_TOKEN": "7",
        "PAYER_SET_ASIDE": "90",
        "PAYER_DATA_DIR": "/var/lib/payer",
        "PAYER_DEPOSIT": "0.5",
        "PAYER_ASSET": DOLLAR.lower(),
        "PAYER_INTERVAL": "200",
        "PAYER_AHEAD": "200",
        "PAYER_TOKENIZERS": f"m=/models/m.gguf@sha256:{'AB' * 32}, n=~/n=1.json@sha256:{'00' * 32}",
        "PAYER_CLAIM_WINDOW": "3600",
        "PAYER_EXPIRY": "86400",
        "PAYER_BEARER": "60",
        "PAYER_MAX_TOKENS": "64",
        "PAYER_RELAY_FEE_MAX": "0.03",
        "PROXY_LISTEN": "[::1]:0",
        "PROXY_API_KEY": "a key",
    }
    assert payer(**env) == PayerConfig(
        keystore=Path("/keys/payer.json"),
        keystore_password=Secret(" a password "),
        rpc_url="http://127.0.0.1:9545",
        host_url="https://host.example",
        first_token=7,
        set_aside=90,
        data_dir=Path("/var/lib/payer"),
        deposit="0.5",
        asset=DOLLAR,
        interval=200,
        ahead=200,
        tokenizers=(
            TokenizerFile("m", Path("/models/m.gguf"), "ab" * 32),
            TokenizerFile("n", Path.home() / "n=1.json", "00" * 32),
        ),
        claim_window=3600,
        expiry=86_400,
        bearer=60,
        max_tokens=64,
        relay_fee_max="0.03",
        proxy_listen=("::1", 0),
        proxy_api_key=Secret("a key"),
    )
    assert payer(PAYER_PRIVATE_KEY=KEY.hex()).payer_private_key == Secret(KEY)
    assert set(env) | {"PAYER_PRIVATE_KEY"} == set(variables(PayerConfig).values())


@pytest.mark.parametrize(
    "text",
    [
        "m=/m.gguf",
        "/m.gguf@sha256:" + "00" * 32,
        "m=@sha256:" + "00" * 32,
        "m=/m.gguf@sha256:00",
        f"m=/a@sha256:{'00' * 32},m=/b@sha256:{'00' * 32}",
    ],
)
def test_a_tokenizer_is_a_model_a_file_and_its_hash(text: str) -> None:
    """Without all three, or twice for one model, the setting is refused by name."""
    with pytest.raises(ConfigError, match="PAYER_TOKENIZERS"):
        payer(PAYER_TOKENIZERS=text)


def test_the_environment_wins_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable is read from the process's environment, else from `.env`."""
    dotenv = tmp_path / ".env"
    dotenv.write_text("HOST_PRICE=1.5\nHOST_GRACE='70'\n")
    for name in set(variables(HostConfig).values()) & set(os.environ):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOST_PRICE", "1.25")
    ours = HostConfig.from_env(dotenv=dotenv)
    assert (ours.price, ours.grace) == ("1.25", 70)
    assert HostConfig.from_env({}, dotenv=tmp_path / "none") == HostConfig()


def test_several_endpoints_are_named_with_commas() -> None:
    """With spaces or without, each as one alone would be read."""
    several = "https://one.example/key/, http://127.0.0.1:8545 ,https://other.example?key=1"
    ours = host(RPC_URL=several)
    assert ours.rpc_url == "https://one.example/key,http://127.0.0.1:8545,https://other.example?key=1"
    assert payer(RPC_URL=several).rpc_url == TreasuryConfig.from_env({"RPC_URL": several}, None).rpc_url
    assert "example" not in repr(ours)


def test_the_key_says_who_the_host_is() -> None:
    """With a key the host is the key's address, and whether HOST_ADDRESS agrees is told."""
    ours = host(HOST_PRIVATE_KEY=KEY.hex())
    assert (ours.host, ours.mismatched) == (OWN, False)
    assert not host(HOST_PRIVATE_KEY=KEY.hex(), HOST_ADDRESS=OWN).mismatched
    theirs = host(HOST_PRIVATE_KEY=KEY.hex(), HOST_ADDRESS=OTHER)
    assert (theirs.host, theirs.host_address, theirs.mismatched) == (OWN, OTHER, True)


def test_a_host_may_run_without_its_key() -> None:
    """With an address alone the node runs for that host, unpaid; with neither there is no host."""
    ours = host(HOST_ADDRESS=OWN.lower())
    assert (ours.host_private_key, ours.host, ours.mismatched) == (None, OWN, False)
    assert (host().host, host().mismatched) == (None, False)


def test_a_home_directory_is_filled_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`~` in a path is the user's home, in a default and in a variable alike."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert host().data_dir == tmp_path / ".tally" / "host"
    assert payer(PAYER_DATA_DIR="~/p").data_dir == tmp_path / "p"
    with pytest.raises(ConfigError, match="no-such-user"):
        host(HOST_DATA_DIR="~no-such-user/p")


# Refusing


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("HOST_ADDRESS", "0x123", "not an address"),
        ("HOST_ADDRESS", OWN.swapcase().replace("0X", "0x"), "capitals"),
        ("RPC_URL", "127.0.0.1:8545", "http://"),
        ("RPC_URL", "ws://127.0.0.1:8545", "http://"),
        ("RPC_URL", "http://127.0.0.1:8545, ws://127.0.0.1:8546", "http://"),
        ("RPC_URL", ",", "names no endpoint"),
        ("RPC_URL", "http://127.0.0.1:8545,http://127.0.0.1:8545/", "named twice"),
        ("ENGINE_URL", "http://", "http://"),
        ("ENGINE_URL", "http://[::1", "."),
        ("MODEL_NAME", "two words", "white space"),
        ("MODEL_SLOTS", "0", "1 to 256"),
        ("ENGINE_TOKENIZER_HASH", "ab", "64 hexadecimal digits"),
        ("HOST_LISTEN", "8402", "127.0.0.1:8402"),
        ("HOST_LISTEN", "127.0.0.1:65536", "127.0.0.1:8402"),
        ("HOST_LISTEN", "127.0.0.1:-1", "127.0.0.1:8402"),
        ("HOST_TRUSTED_PROXIES", "proxy.example", "'proxy.example'"),
        ("HOST_TRUSTED_PROXIES", "10.0.0.7/8", "10.0.0.7/8"),
        ("HOST_PRICE", "0,90", "not an amount"),
        ("HOST_PRICE", "-1", "not an amount"),
        ("HOST_PROMPT_PRICE", "1e-6", "not an amount"),
        ("HOST_ASSETS", ETH, "ETH needs prices of its own"),
        ("HOST_ASSETS", f"{DOLLAR}=1", "not an amount"),
        ("HOST_ASSETS", f"{DOLLAR} {DOLLAR.lower()}", "named twice"),
        ("HOST_ASSETS", "USDC", "not an address"),
        ("HOST_MAX_TOKENS", "0", "from 1 to"),
        ("HOST_INTERVAL_MAX", "3", "from 4 to"),
        ("HOST_INTERVAL_MAX", "100.0", "whole number"),
        ("HOST_CLAIM_WINDOW_MIN", "3599", "from 3600 to 2592000"),
        ("HOST_RECEIPT_TIMEOUT", "301", "from 1 to 300"),
        ("HOST_GRACE", "0", "from 1 to 3600"),
        ("HOST_CONFIRMATIONS", "0", "from 1 to 100"),
        ("HOST_EARLY", "yes", "neither true nor false"),
        ("HOST_POLICY", "thrifty", "neither checkpoint nor economic"),
        ("HOST_UNSETTLED_MAX", "2 3", "more than one amount"),
        ("HOST_UNSETTLED_MAX", f"{DOLLAR}=2 {DOLLAR.lower()}=3", "more than one amount"),
        ("HOST_UNSETTLED_MAX", "0,90", "more than one amount"),
        ("HOST_GAS_SHARE", "0", "from 1 to 100"),
        ("HOST_MAX_FEE", "0.5", "whole number"),
        ("HOST_ETH_PRICE", f"{DOLLAR}", "not an amount"),
        ("HOST_ETH_PRICE", "USDC=1", "not an address"),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused_by_name(name: str, text: str, said: str) -> None:
    """A wrong setting stops the program with the variable's name and what was expected."""
    with pytest.raises(ConfigError, match=rf"^{name}: .*{re.escape(said)}"):
        host(**{name: text})


@pytest.mark.parametrize(
    "env",
    [
        {"PAYER_AHEAD": "101"},
        {"PAYER_PRIVATE_KEY": KEY.hex(), "PAYER_KEYSTORE": "/keys/payer.json"},
        {"PAYER_EXPIRY": str(366 * 86_400)},
        {"PAYER_INTERVAL": "3"},
        {"PAYER_DEPOSIT": "two"},
    ],
)
def test_a_payers_settings_have_to_fit_each_other(env: dict[str, str]) -> None:
    """More than one interval ahead, two accounts, or a value out of bounds is refused."""
    with pytest.raises(ConfigError, match="PAYER_"):
        payer(**env)


def test_one_engine_serves_a_node() -> None:
    """A model in the process and an engine elsewhere are a contradiction."""
    with pytest.raises(ConfigError, match="MODEL_PATH and ENGINE_URL"):
        host(MODEL_PATH="a.gguf", ENGINE_URL="http://127.0.0.1:8000")


# Secrets


@pytest.mark.parametrize("of", [(host, "HOST_PRIVATE_KEY"), (payer, "PAYER_PRIVATE_KEY")])
@pytest.mark.parametrize("text", ["c0ffee", "c0ffee" * 11, "zz" + "c0ffee" * 10 + "zz", "f" * 64, "0" * 64])
def test_a_wrong_key_is_refused_without_showing_it(of: tuple[Any, str], text: str) -> None:
    """A key that is too short, too long, no number or no key of the curve is refused, and stays untold."""
    read, name = of
    with pytest.raises(ConfigError, match=f"^{name}: ") as error:
        read(**{name: text})
    assert "c0ffee" not in str(error.value)
    assert text not in repr(error.value)
    assert error.value.__cause__ is None
    assert error.value.__suppress_context__


def test_no_secret_is_shown(caplog: pytest.LogCaptureFixture) -> None:
    """Neither repr, str, format, a log line nor `asdict` shows a key, a password or the RPC's URL."""
    ours = host(HOST_PRIVATE_KEY=KEY.hex(), ENGINE_API_KEY="c0ffee", RPC_URL="https://chain.example/c0ffee")
    theirs = payer(PAYER_PRIVATE_KEY=KEY.hex(), PAYER_KEYSTORE_PASSWORD="c0ffee")
    logging.getLogger("test").warning("%s %r %s", ours, theirs, ours.host_private_key)
    shown = [repr(ours), str(theirs), f"{ours.host_private_key}", caplog.text]
    shown += [repr(dataclasses.astuple(theirs)), repr(dataclasses.asdict(theirs))]
    for text in shown:
        assert "c0ffee" not in text
        assert KEY.hex() not in text
        assert repr(KEY) not in text
    assert ours.host_private_key is not None
    assert ours.host_private_key.reveal() == KEY


def test_secrets_are_equal_by_value() -> None:
    """Two readings of the same variable are the same setting."""
    assert Secret(KEY) == Secret(KEY) == copy.copy(Secret(KEY))
    assert Secret(KEY) != Secret(KEY[:-1])
    assert Secret("x") != "x"
    assert hash(Secret(KEY)) == hash(Secret(KEY))


def test_addresses_are_written_with_their_checksum() -> None:
    """An address is read in any one case and written in EIP-55."""
    assert payer(PAYER_ASSET=DOLLAR.lower()).asset == DOLLAR
    assert payer(PAYER_ASSET="0x" + DOLLAR[2:].upper()).asset == Address(DOLLAR)
