#!/usr/bin/env python3
"""Writes tests/vectors.json, which Python's tests and forge's both read; with --check, compares it instead.

An outside witness: it imports nothing of the package. Digests and signatures are eth-account's own, money is
worked out in plain integers, transcripts are packed byte by byte from docs/protocol.md. Private keys are the
Keccak-256 of a label, so that nobody mistakes one for a key in use. All integers are decimal strings, for
forge to read.
"""

from __future__ import annotations

import base64
import json
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from eth_account import Account
from eth_account.messages import SignableMessage, encode_typed_data
from eth_utils.address import to_checksum_address
from eth_utils.crypto import keccak

PATH = Path(__file__).parents[1] / "tests" / "vectors.json"

CHAIN_ID = 31337
CONTRACT = to_checksum_address(keccak(text="tallystick vectors: marketplace")[-20:])
DOMAIN = {"name": "Tallystick", "version": "1", "chainId": CHAIN_ID, "verifyingContract": CONTRACT}
TYPES = {
    "Receipt": [
        ("uint256", "jobId"),
        ("uint64", "promptTokens"),
        ("uint64", "tokens"),
        ("bytes32", "transcript"),
    ],
    "Access": [("uint256", "jobId"), ("uint64", "expiresAt")],
    "End": [("uint256", "jobId")],
}

MAX_TOKENS = 2**48 - 1
MAX_PRICE = 2**80 - 1
MAX_DEPOSIT = 2**96 - 1
MAX_JOB = 2**53 - 1
ZERO = bytes(32)
ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
"""Of secp256k1 (SEC 2)."""


def hexed(data: bytes) -> str:
    return "0x" + data.hex()


def key(label: str) -> bytes:
    return keccak(text=f"tallystick vectors: {label}")


def typed(kind: str, message: dict[str, Any], **domain: Any) -> SignableMessage:
    members = [{"type": type_, "name": name} for type_, name in TYPES[kind]]
    return encode_typed_data({**DOMAIN, **domain}, {kind: members}, message)


def type_hash(kind: str) -> str:
    return hexed(keccak(text=f"{kind}({','.join(f'{type_} {name}' for type_, name in TYPES[kind])})"))


def eip2098(signature: bytes) -> bytes:
    """The last byte, 27 or 28, moves into the free top bit of s."""
    r, s = signature[:32], int.from_bytes(signature[32:64], "big")
    return r + (s | (signature[64] - 27) << 255).to_bytes(32, "big")


def signed(name: str, signer: str, kind: str, message: dict[str, Any]) -> dict[str, str]:
    """One signed message: the members that all three kinds share, in the order of the file."""
    account = Account.from_key(key(signer))
    signable = typed(kind, message)
    digest = keccak(b"\x19" + signable.version + signable.header + signable.body)
    signature = bytes(account.sign_message(signable).signature)
    shown = {name: hexed(v) if isinstance(v, bytes) else str(v) for name, v in message.items()}
    return {
        "name": name,
        "privateKey": hexed(key(signer)),
        "signer": account.address,
        **shown,
        "digest": hexed(digest),
        "signature": hexed(signature),
        "compact": hexed(eip2098(signature)),
    }


# Receipts, access and end


def receipts() -> list[dict[str, str]]:
    rows = [
        ("one interval of a first reply", "alice", 121, 12, 100, keccak(text="a transcript")),
        ("a tail of seventeen tokens", "bob", 122, 5, 17, keccak(text="another transcript")),
        (
            "a prompt signed ahead, nothing generated",
            "carol",
            123,
            90_000,
            0,
            keccak(text="a third transcript"),
        ),
        ("nothing at all", "dave", 1, 0, 0, ZERO),
        ("the largest totals of the largest job", "erin", MAX_JOB, MAX_TOKENS, MAX_TOKENS, b"\xff" * 32),
    ]
    # Enough keys that both values of v occur.
    rows += [
        (f"job {job}", f"signer {job}", job, job * 3, job * 100, keccak(text=str(job)))
        for job in range(2, 10)
    ]
    return [
        signed(
            name,
            signer,
            "Receipt",
            {"jobId": job, "promptTokens": prompt_tokens, "tokens": tokens, "transcript": transcript},
        )
        for name, signer, job, prompt_tokens, tokens, transcript in rows
    ]


def access() -> list[dict[str, str]]:
    rows = [
        ("an hour", "alice", 121, 1_760_003_600),
        ("thirty days", "bob", 122, 1_762_592_000),
        ("the largest job", "erin", MAX_JOB, 4_102_444_800),
        ("the first job", "frank", 1, 1),
    ]
    out = []
    for name, signer, job, expires_at in rows:
        row = signed(name, signer, "Access", {"jobId": job, "expiresAt": expires_at})
        signature = base64.urlsafe_b64encode(bytes.fromhex(row["compact"][2:])).decode().rstrip("=")
        out.append({**row, "bearer": f"tally-{job}-{expires_at}-{signature}"})
    return out


def end() -> list[dict[str, str]]:
    rows = [("a job", "alice", 121), ("the largest job", "erin", MAX_JOB)]
    return [signed(name, signer, "End", {"jobId": job}) for name, signer, job in rows]


# What is no receipt of alice's

Message = dict[str, Any]
Forgery = Callable[[Message], bytes]


def by(signer: str, kind: str, message: Message, **domain: Any) -> bytes:
    signable = typed(kind, message, **domain)
    return bytes(Account.from_key(key(signer)).sign_message(signable).signature)


def elsewhere(**domain: Any) -> Forgery:
    """Alice's signature over the same message, in a domain that is another."""
    return lambda message: by("alice", "Receipt", message, **domain)


def instead(**other: Any) -> Forgery:
    """Her signature over another message, in the same domain."""
    return lambda message: by("alice", "Receipt", {**message, **other})


def reshaped(reshape: Callable[[bytes], bytes]) -> Forgery:
    """Her signature over the very message, changed."""
    return lambda message: reshape(by("alice", "Receipt", message))


def with_v(v: int) -> Forgery:
    return reshaped(lambda signature: signature[:64] + bytes([v]))


def other_v(signature: bytes) -> bytes:
    return signature[:64] + bytes([27 + 28 - signature[64]])


def mirrored(signature: bytes) -> bytes:
    """The other signature that anybody can make of one: s in the upper half."""
    s = ORDER - int.from_bytes(signature[32:64], "big")
    return signature[:32] + s.to_bytes(32, "big") + other_v(signature)[64:]


FORGERIES: dict[str, Forgery] = {
    "for another chain": elsewhere(chainId=CHAIN_ID + 1),
    "for another contract": elsewhere(
        verifyingContract=to_checksum_address(keccak(text="tallystick vectors: another marketplace")[-20:])
    ),
    "for another version": elsewhere(version="2"),
    "for another job": instead(jobId=121),
    "for fewer tokens": instead(tokens=99),
    "for fewer prompt tokens": instead(promptTokens=11),
    "for another transcript": instead(transcript=ZERO),
    "by another key": lambda message: by("bob", "Receipt", message),
    "an access token's": lambda message: by("alice", "Access", {"jobId": message["jobId"], "expiresAt": 100}),
    "an end's": lambda message: by("alice", "End", {"jobId": message["jobId"]}),
    "s in the upper half": reshaped(mirrored),
    "v is 0": with_v(0),
    "v is 1": with_v(1),
    "v is 26": with_v(26),
    "v is 29": with_v(29),
    "the other v": reshaped(other_v),
    "the other v, short form": reshaped(lambda signature: eip2098(other_v(signature))),
    "r and s exchanged": reshaped(lambda signature: signature[32:64] + signature[:32] + signature[64:]),
    "r is the order": reshaped(lambda signature: ORDER.to_bytes(32, "big") + signature[32:]),
    "r is zero": reshaped(lambda signature: ZERO + signature[32:]),
    "s is zero": reshaped(lambda signature: signature[:32] + ZERO + signature[64:]),
    "zeros": lambda _: bytes(65),
    "zeros, short form": lambda _: bytes(64),
    "nothing": lambda _: b"",
    "a byte too few": reshaped(lambda signature: eip2098(signature)[:63]),
    "a byte too many": reshaped(lambda signature: signature + b"\0"),
}


def refused() -> list[dict[str, str]]:
    """Signatures with which nobody gets anything: one for each job from 1 on, alice being the signer."""
    signer = Account.from_key(key("alice")).address
    rows = []
    for job, (name, forge) in enumerate(FORGERIES.items(), 1):
        message = {"jobId": job, "promptTokens": 12, "tokens": 100, "transcript": keccak(text="a transcript")}
        shown = {member: hexed(v) if isinstance(v, bytes) else str(v) for member, v in message.items()}
        rows.append({"name": name, "signer": signer, **shown, "signature": hexed(forge(message))})
    return rows


# Money and the rule of totals


def money() -> list[dict[str, str]]:
    most_tokens = (2**96 * 10**6 - 1) // MAX_PRICE
    most_price = (2**96 * 10**6 - 1) // MAX_TOKENS
    half_price = (2**96 * 10**6 - 1) // (2 * MAX_TOKENS)
    rows = [
        # name, deposit, price and prompt price per million, tokens, prompt tokens
        ("golden", 500_000, 904_000, 0, 47_580, 0),
        ("two dollars, one reply", 2_000_000, 900_000, 200_000, 150, 12),
        ("seventeen tokens", 2_000_000, 2_000_000, 0, 17, 0),
        ("under one base unit", 2_000_000, 900_000, 0, 1, 0),
        ("just under ten base units: no fee", 100, 1_000_000, 0, 9, 0),
        ("ten base units: the first fee", 100, 1_000_000, 0, 10, 0),
        ("prompt and reply together make the unit that neither makes", 100, 500_000, 500_000, 1, 1),
        ("prompts alone", 2_000_000, 900_000, 200_000, 0, 90_000),
        ("free prompts", 2_000_000, 900_000, 0, 1_000, 90_000),
        ("free tokens", 2_000_000, 0, 200_000, 1_000_000, 90_000),
        ("all free", 2_000_000, 0, 0, MAX_TOKENS, MAX_TOKENS),
        ("nothing used", 2_000_000, 900_000, 200_000, 0, 0),
        ("nothing deposited, nothing used", 0, 900_000, 200_000, 0, 0),
        ("the whole deposit", 90, 900_000, 0, 100, 0),
        ("the whole deposit, with a value of almost one unit more", 90, 999_999, 0, 91, 0),
        ("18 decimals", 10**17, 10**15, 2 * 10**14, 123_457, 76_543),
        ("the largest deposit, untouched", MAX_DEPOSIT, MAX_PRICE, MAX_PRICE, 0, 0),
        ("the largest price, as far as the largest deposit goes", MAX_DEPOSIT, MAX_PRICE, 0, most_tokens, 0),
        ("the largest prompt price, likewise", MAX_DEPOSIT, 0, MAX_PRICE, 0, most_tokens),
        ("the largest total at the highest price that fits", MAX_DEPOSIT, most_price, 0, MAX_TOKENS, 0),
        ("both totals the largest", MAX_DEPOSIT, half_price, half_price, MAX_TOKENS, MAX_TOKENS),
        ("one token at the largest price", MAX_DEPOSIT, MAX_PRICE, 1, 1, 1),
    ]
    return [money_row(*row) for row in rows]


def money_row(
    name: str, deposit: int, price: int, prompt_price: int, tokens: int, prompt_tokens: int
) -> dict[str, str]:
    owed = (tokens * price + prompt_tokens * prompt_price) // 10**6
    fee = owed // 10
    if owed > deposit:
        raise SystemExit(f"money: {name} owes {owed} of {deposit}")
    return {
        "name": name,
        "deposit": str(deposit),
        "pricePerMillion": str(price),
        "promptPricePerMillion": str(prompt_price),
        "tokens": str(tokens),
        "promptTokens": str(prompt_tokens),
        "owed": str(owed),
        "fee": str(fee),
        "host": str(owed - fee),
        "refund": str(deposit - owed),
    }


def law1() -> list[dict[str, str]]:
    rows = [
        # name, settled prompt tokens and tokens, claimed prompt tokens and tokens, verdict
        ("a first claim", 0, 0, 12, 100, "ahead"),
        ("a first claim of prompts alone", 0, 0, 12, 0, "ahead"),
        ("nothing yet, nothing claimed", 0, 0, 0, 0, "equal"),
        ("more tokens", 12, 100, 12, 200, "ahead"),
        ("more prompt tokens", 12, 100, 24, 100, "ahead"),
        ("more of both", 12, 100, 24, 200, "ahead"),
        ("one token more", 12, 100, 12, 101, "ahead"),
        ("the same again", 12, 100, 12, 100, "equal"),
        ("the largest, the same again", MAX_TOKENS, MAX_TOKENS, MAX_TOKENS, MAX_TOKENS, "equal"),
        ("fewer tokens", 12, 100, 12, 99, "stale"),
        ("fewer prompt tokens", 12, 100, 11, 100, "stale"),
        ("fewer of both", 12, 100, 11, 99, "stale"),
        ("more tokens, fewer prompt tokens", 12, 100, 11, 200, "stale"),
        ("more prompt tokens, fewer tokens", 12, 100, 24, 99, "stale"),
        ("back to nothing", 12, 100, 0, 0, "stale"),
        ("up to the largest", 12, 100, MAX_TOKENS, MAX_TOKENS, "ahead"),
    ]
    names = ["settledPromptTokens", "settledTokens", "promptTokens", "tokens"]
    return [
        {"name": name, **dict(zip(names, map(str, numbers), strict=True)), "verdict": verdict}
        for name, *numbers, verdict in rows
    ]


# Prompts and transcripts


def request(label: str) -> bytes:
    return keccak(text=f"tallystick vectors: request {label}")[:16]


def position(label: str, prompt: str, prompt_tokens: int, tokens: int, text: str) -> dict[str, str]:
    prompt_hash, text_hash = keccak(text=prompt), keccak(text=text)
    link = request(label) + struct.pack(">QQ", prompt_tokens, tokens) + prompt_hash + text_hash
    return {
        "request": request(label).hex(),
        "promptTokens": str(prompt_tokens),
        "tokens": str(tokens),
        "prompt": prompt,
        "promptHash": hexed(prompt_hash),
        "text": text,
        "textHash": hexed(text_hash),
        "link": hexed(link),
    }


def transcript(
    name: str, job: int, previous: bytes, totals: tuple[int, int], positions: list[dict[str, str]]
) -> dict[str, Any]:
    ordered = sorted(positions, key=lambda position: bytes.fromhex(position["request"]))
    positions_hash = keccak(b"".join(bytes.fromhex(position["link"][2:]) for position in ordered))
    packed = previous + job.to_bytes(32, "big") + struct.pack(">QQ", *totals) + positions_hash
    return {
        "name": name,
        "jobId": str(job),
        "previous": hexed(previous),
        "promptTokens": str(totals[0]),
        "tokens": str(totals[1]),
        "positions": ordered,
        "positionsHash": hexed(positions_hash),
        "transcript": hexed(keccak(packed)),
    }


def transcripts() -> list[dict[str, Any]]:
    hello = '{"messages":[{"content":"Tell me of tally sticks.","role":"user"}],"model":"tally-demo"}'
    first_text = "A tally stick was split in two"
    whole_text = first_text + ", so that each held half: été, 木, \U0001d11e."
    first = transcript(
        "one stream, first receipt", 121, ZERO, (12, 100), [position("a", hello, 12, 100, first_text)]
    )
    second = transcript(
        "one stream, second receipt",
        121,
        bytes.fromhex(first["transcript"][2:]),
        (12, 150),
        [position("a", hello, 12, 150, whole_text)],
    )
    three = transcript(
        "three streams",
        122,
        ZERO,
        (12 + 9 + 7, 40 + 35 + 25),
        [
            position("b", hello, 12, 40, "The first of three."),
            position(
                "c", '{"messages":[{"content":"Second?","role":"user"}]}', 9, 35, "The second, with\na line."
            ),
            position("d", '{"messages":[{"content":"","role":"user"}]}', 7, 25, ""),
        ],
    )
    ahead = transcript("no position: a prompt signed ahead", 123, ZERO, (90_000, 0), [])
    largest = transcript(
        "the largest numbers",
        MAX_JOB,
        b"\xff" * 32,
        (MAX_TOKENS, MAX_TOKENS),
        [position("e", "{}", MAX_TOKENS, MAX_TOKENS, "~")],
    )
    return [first, second, three, ahead, largest]


def prompts() -> list[dict[str, Any]]:
    """Request objects and their prompts, the canonical form written out by hand."""
    user = {"role": "user", "content": "Hi"}
    rows: list[tuple[str, dict[str, Any], str]] = [
        (
            "members about the carrying are left out",
            {
                "model": "tally-demo",
                "messages": [user],
                "stream": True,
                "stream_options": {"include_usage": True},
                "job_id": 121,
                "tally": {"request": request("a").hex()},
                "id": "x",
                "access": "y",
                "max_tokens": 150,
            },
            '{"max_tokens":150,"messages":[{"content":"Hi","role":"user"}],"model":"tally-demo"}',
        ),
        (
            "a WebSocket request's prompt stays a prompt",
            {"job_id": 121, "prompt": "Hi", "max_tokens": 150},
            '{"max_tokens":150,"prompt":"Hi"}',
        ),
        (
            "numbers",
            {"a": 1.0, "b": 0.7, "c": 1e21, "d": 1e-7, "e": -0.0, "f": 9007199254740991, "g": 100},
            '{"a":1,"b":0.7,"c":1e+21,"d":1e-7,"e":0,"f":9007199254740991,"g":100}',
        ),
        (
            "characters and escapes",
            {"é": "木\U0001d11e", "e": "\"\\\n\u0007/", "\u20ac": None, "A": [True, False, {}, []]},
            '{"A":[true,false,{},[]],"e":"\\"\\\\\\n\\u0007/","é":"木\U0001d11e","\u20ac":null}',
        ),
    ]  # fmt: skip
    return [
        {"name": name, "body": body, "prompt": prompt, "promptHash": hexed(keccak(text=prompt))}
        for name, body, prompt in rows
    ]


def vectors() -> dict[str, Any]:
    separator = typed("End", {"jobId": 1}).header
    return {
        "domain": {**DOMAIN, "chainId": str(CHAIN_ID), "separator": hexed(separator)},
        "typehashes": {kind: type_hash(kind) for kind in TYPES},
        "receipts": receipts(),
        "access": access(),
        "end": end(),
        "refused": refused(),
        "money": money(),
        "law1": law1(),
        "transcripts": transcripts(),
        "prompts": prompts(),
    }


def main() -> None:
    text = json.dumps(vectors(), indent=2, ensure_ascii=False) + "\n"
    if "--check" not in sys.argv[1:]:
        PATH.write_text(text, encoding="utf-8")
    elif not PATH.exists() or PATH.read_text(encoding="utf-8") != text:
        raise SystemExit(f"{PATH.name} is not what {Path(__file__).name} writes: run it without --check")


if __name__ == "__main__":
    main()
