"""What a host sends for payers: once each, on its terms, within what a day may cost."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from eth_abi.abi import encode

from tallystick import gasless, proof, wire
from tallystick.authorization import VALID, Consent, Opening, TopUp, new_salt
from tallystick.chain import TxResult
from tallystick.config import Secret
from tallystick.contracts import Call, Created, Relayed
from tallystick.fees import GWEI
from tallystick.keccak import keccak
from tallystick.sponsor import MARGIN
from tallystick.types import ETH, ZERO_HASH, Address, Job, Prices, Terms
from tests.hosting import Host, Hosting
from tests.paying import PRICES, Signer, until

FEE = 50_000
"""Base units: 0.05 tUSD."""
DEPOSIT = 2_000_000


@dataclass
class Payer:
    """Somebody with dollars, and without ETH unless given some."""

    hosting: Hosting
    key: bytes

    @property
    def address(self) -> Address:
        return proof.address(self.key)

    async def consent(self, key: bytes | None = None, **changed: Any) -> Consent[Opening]:
        """To open a job on good terms, but for `changed`. `key`: of the session."""
        now = (await self.hosting.chain.block()).timestamp
        terms: dict[str, Any] = {
            "host": self.hosting.devnet.accounts.host.address,
            "asset": self.hosting.devnet.dollar,
            "deposit": DEPOSIT,
            "prices": PRICES,
            "signer": proof.address(key or proof.new_key()),
            "max_tokens_per_second": 0,
            "claim_window": 12 * 3600,
            "expires_at": now + 7 * 24 * 3600,
            "checkpoint_interval": 100,
            "model_id": ZERO_HASH,
        }
        fee = changed.pop("relay_fee", FEE)
        asset = changed.pop("asset", terms["asset"])
        opening = Opening(Terms(**{**terms, **changed}), fee, new_salt())
        agreed = await gasless.consent(self.hosting.chain, self.address, opening)
        return replace(agreed, purpose=replace(opening, terms=replace(opening.terms, asset=asset)))

    async def top_up(self, job: Job, amount: int) -> dict[str, Any]:
        more = TopUp(job.id, self.hosting.devnet.dollar, amount, new_salt())
        consent = await gasless.consent(self.hosting.chain, self.address, more)
        return wire.top_up_out(more, consent.sign(self.key))

    async def body(self, **changed: Any) -> dict[str, Any]:
        consent = await self.consent(**changed)
        return wire.opening_out(consent.purpose, consent.sign(self.key))


async def payer(hosting: Hosting, dollars: int = DEPOSIT) -> Payer:
    """A new one."""
    poor = Payer(hosting, proof.new_key())
    mint = hosting.chain.mint(hosting.devnet.dollar, poor.address, dollars)
    await hosting.chain.transact(mint, hosting.devnet.accounts.stranger.private_key)
    return poor


async def sent(host: Host, body: dict[str, Any], path: str = "/v1/jobs") -> dict[str, Any]:
    async with host.http.post(path, json=body) as answer:
        told: dict[str, Any] = await answer.json(content_type=None)
        assert answer.status == 202, told
        return told


async def refused(host: Host, body: dict[str, Any], path: str = "/v1/jobs") -> str:
    """The code that it is refused with."""
    return str((await host.problem("POST", path, json=body))["code"])


async def relaying(hosting: Hosting, **settings: Any) -> Host:
    return await hosting.serve(**{"relay_fee": "0.05", **settings})


async def result(hosting: Hosting, tx: str) -> TxResult:
    """The receipt of a transaction, once it is in a block."""
    return await hosting.chain.included(tx)


async def test_an_opening_is_sent_for_its_fee(hosting: Hosting) -> None:
    """The payer signs and has no ETH; the job is its own, the host has its fee and pays the gas."""
    host, poor = await relaying(hosting), await payer(hosting)
    body = await poor.body()
    told = await sent(host, body)
    mined = await result(hosting, told["tx"])
    created = next(event for event in mined.events if isinstance(event, Created))
    relayed = next(event for event in mined.events if isinstance(event, Relayed))
    job = await hosting.chain.job(created.job_id)
    assert job is not None
    assert (job.payer, job.signer, job.deposit) == (poor.address, body["terms"]["signer"], DEPOSIT - FEE)
    assert (relayed.relayer, relayed.relay_fee) == (hosting.devnet.accounts.host.address, FEE)
    assert await hosting.chain.eth_balance(poor.address) == 0


async def test_the_same_again_is_answered_with_what_was_sent(hosting: Hosting) -> None:
    """An authorization is sent once, whoever asks how often, at once or after a restart."""
    host, poor = await relaying(hosting), await payer(hosting, 2 * DEPOSIT)
    body = await poor.body()
    first, second = await asyncio.gather(sent(host, body), sent(host, body))
    assert first["tx"] == second["tx"]
    await hosting.parts.aclose()
    again = await sent(await relaying(hosting), body)
    assert again["tx"] == first["tx"]
    [created] = await hosting.chain.jobs(payer=poor.address)
    assert again["job_id"] == created.job_id


OFF_TERMS: list[tuple[dict[str, Any], str]] = [
    ({"host": Address("0x" + "11" * 20)}, "job_of_another_host"),
    ({"asset": ETH}, "not_relayed"),
    ({"relay_fee": FEE - 1}, "relay_fee_too_low"),
    ({"prices": replace(PRICES, per_million=PRICES.per_million - 1)}, "price_too_low"),
    ({"checkpoint_interval": 100_000}, "interval_too_large"),
    ({"checkpoint_interval": 3}, "interval_too_small"),
    ({"claim_window": 3_599}, "claim_window_too_short"),
    ({"expires_at": 1}, "expiry_too_near"),
    ({"model_id": b"\x01" * 32}, "model_mismatch"),
    ({"deposit": FEE + 89}, "deposit_too_low"),
    ({"deposit": DEPOSIT + 1}, "authorization_reverts"),
]


async def test_what_is_not_on_the_hosts_terms_is_not_sent(hosting: Hosting) -> None:
    """Another host, asset, fee or price, an interval, window or expiry out of bounds: named, nothing sent."""
    host, poor = await relaying(hosting), await payer(hosting)
    found = [await refused(host, await poor.body(**changed)) for changed, _ in OFF_TERMS]
    assert found == [code for _, code in OFF_TERMS]
    assert await hosting.chain.jobs(payer=poor.address) == []


async def test_what_the_payer_did_not_sign_is_not_sent(hosting: Hosting) -> None:
    """Other terms, another fee, another's signature, one that runs out: nothing is sent."""
    host, poor = await relaying(hosting), await payer(hosting)
    body = await poor.body()
    changed = {**body, "terms": {**body["terms"], "signer": poor.address}}
    dearer = {**body, "relay_fee": str(FEE + 1)}
    others = await Payer(hosting, proof.new_key()).body()
    forged = {**others, "authorization": {**others["authorization"], "payer": poor.address}}
    brief = await poor.consent()
    ending = replace(brief, valid_before=brief.valid_before - VALID + MARGIN - 1)
    late = wire.opening_out(ending.purpose, ending.sign(poor.key))
    codes = [await refused(host, each) for each in (changed, dearer, forged, late)]
    assert codes == [*["authorization_reverts"] * 3, "authorization_runs_out"]
    problem = await host.problem("POST", "/v1/jobs", json=forged)
    assert problem["error"] == "ERC3009InvalidSignature"
    assert await host.node.ledger.errands_since(0) == []


async def test_a_host_that_names_no_fee_sends_nothing(hosting: Hosting) -> None:
    """`relay_fee` "0" in the quote is a host that sends nothing for payers; nor does one without a key."""
    host, poor = await hosting.serve(), await payer(hosting)
    assert await refused(host, await poor.body()) == "not_relayed"
    await hosting.parts.aclose()
    keyless = {"host_private_key": None, "host_address": hosting.devnet.accounts.host.address}
    host = await relaying(hosting, **keyless)
    assert await refused(host, await poor.body()) == "not_relayed"


async def test_a_quoted_fee_holds_as_long_as_the_quote(hosting: Hosting) -> None:
    """A host that comes back dearer sends for the fee of a quote that is still good."""
    cheap = await relaying(hosting)
    async with cheap.http.get("/v1/host") as answer:
        assert (await answer.json())["relay_fee"] == str(FEE)
    await hosting.parts.aclose()
    dear, poor = await relaying(hosting, relay_fee="0.06"), await payer(hosting)
    await sent(dear, await poor.body())


async def test_no_payer_is_sent_for_without_end(hosting: Hosting) -> None:
    """A payer has so many a day, counted over restarts; others, and the next day, have their own."""
    host = await relaying(hosting, relay_per_payer=1)
    greedy, other = await payer(hosting, 2 * DEPOSIT), await payer(hosting)
    await sent(host, await greedy.body())
    await hosting.parts.aclose()
    host = await relaying(hosting, relay_per_payer=1)
    problem = await host.problem("POST", "/v1/jobs", json=await greedy.body())
    assert (problem["code"], problem["retry"]) == ("relay_limit", True)
    await sent(host, await other.body())
    await hosting.devnet.increase_time(24 * 3600)
    await sent(host, await greedy.body())


async def test_a_day_has_a_budget(hosting: Hosting) -> None:
    """What a day may cost is never promised twice: what was sent counts by its receipt, once there is one."""
    host = await relaying(hosting, relay_budget="0.0000000001")
    problem = await host.problem("POST", "/v1/jobs", json=await (await payer(hosting)).body())
    assert (problem["code"], problem["move"]) == ("relay_budget_spent", "host")
    await hosting.parts.aclose()
    host = await relaying(hosting)
    told = await sent(host, await (await payer(hosting)).body())
    cost = (await result(hosting, told["tx"])).cost

    async def final() -> bool:
        [each] = await host.node.ledger.errands_since(0)
        return each.transaction.state == "confirmed"

    await until(final)
    await sent(host, await (await payer(hosting)).body())
    first, second = await host.node.ledger.errands_since(0)
    assert (first.cost, first.at_most, second.cost) == (cost, cost, None)
    attempt = second.transaction.newest
    assert second.at_most == second.transaction.draft.gas * attempt.fees.max_fee


async def test_a_host_without_eth_says_so(hosting: Hosting) -> None:
    """Its payers are told whose move it is, and nothing is written down that could not be sent."""
    host, poor = await relaying(hosting), await payer(hosting)
    await hosting.devnet.ask("anvil_setBalance", hosting.devnet.accounts.host.address, "0x1")
    problem = await host.problem("POST", "/v1/jobs", json=await poor.body())
    assert (problem["code"], problem["move"]) == ("relay_no_gas", "host")
    assert await host.node.ledger.errands_since(0) == []


async def test_a_top_up_is_sent_once_the_job_has_earned_it(hosting: Hosting) -> None:
    """Nobody pays for sending a top-up, so it is sent for a job that has earned its host the relay fee."""
    host, poor = await relaying(hosting), await payer(hosting, 2 * DEPOSIT)
    key = proof.new_key()
    opening = await poor.consent(key=key, prices=Prices(10**9, 200_000))
    told = await sent(host, wire.opening_out(opening.purpose, opening.sign(poor.key)))
    created = next(each for each in (await result(hosting, told["tx"])).events if isinstance(each, Created))
    job = await hosting.chain.job(created.job_id)
    assert job is not None
    path = f"/v1/jobs/{job.id}/top-up"
    body = await poor.top_up(job, 1_000_000)
    assert await refused(host, body, path) == "top_up_not_earned"
    await host.ask(Signer(hosting.chain, job, key))
    again = await sent(host, body, path)
    assert (again["job_id"], (await sent(host, body, path))["tx"]) == (job.id, again["tx"])
    await result(hosting, again["tx"])
    topped = await hosting.chain.job(job.id)
    assert topped is not None
    assert topped.deposit == DEPOSIT - FEE + 1_000_000
    assert await refused(host, await poor.top_up(job, 500_000), path) == "top_up_not_earned"


async def test_a_job_that_cannot_be_topped_up_is_not(hosting: Hosting) -> None:
    """None, another asset, less than an interval, one that is completing: each is named."""
    host, poor = await relaying(hosting), await payer(hosting)
    job = (await hosting.signer()).job
    assert await refused(host, await poor.top_up(job, 1), f"/v1/jobs/{job.id + 1}/top-up") == "job_unknown"
    assert await refused(host, await poor.top_up(job, 1), f"/v1/jobs/{job.id}/top-up") == "deposit_too_low"
    asking = hosting.chain.complete_session(job.id)
    await hosting.chain.transact(asking, hosting.devnet.accounts.payer.private_key)
    assert await refused(host, await poor.top_up(job, 1), f"/v1/jobs/{job.id}/top-up") == "job_completing"


async def test_any_process_of_a_host_may_be_asked(
    hosting: Hosting, tmp_path: Path, postgres_url: str
) -> None:
    """The one that sends for the key sends it, whichever was asked; either knows what was sent."""
    url = Secret(postgres_url)
    one = await relaying(hosting, ledger_url=url, data_dir=tmp_path / "one")
    assert one.node.sender is not None
    await one.node.sender.lead()
    two = await relaying(hosting, ledger_url=url, data_dir=tmp_path / "two")
    poor = await payer(hosting)
    body = await poor.body()
    told = await sent(two, body)
    assert (await sent(one, body))["tx"] == (await sent(two, body))["tx"] == told["tx"]
    await result(hosting, told["tx"])
    assert len(await hosting.chain.jobs(payer=poor.address)) == 1


# Who wants to drain it


PAGE = (Path(__file__).parents[1] / "docs" / "host.md").read_text()


def is_told(of: str, gas: int) -> bool:
    """True for what docs/host.md has, rounded up: it depends a little on the zeros in the calldata."""
    [found] = re.findall(rf"{of} *\| *([0-9 ]+) \|", PAGE)
    most = int(found.replace(" ", ""))
    return most - 1_000 < gas <= most


async def test_what_the_chain_would_not_take_costs_the_host_nothing(hosting: Hosting) -> None:
    """Empty accounts and forged signatures, as often as one likes: no wei and no nonce is spent."""
    host, poor = await relaying(hosting), await payer(hosting)
    address = hosting.devnet.accounts.host.address
    before = [await hosting.chain.eth_balance(address), await hosting.chain.nonce(address)]
    empty = Payer(hosting, proof.new_key())
    for _ in range(3):
        assert await refused(host, await empty.body()) == "authorization_reverts"
        stolen = await poor.body()
        stolen["authorization"]["payer"] = empty.address
        assert await refused(host, stolen) == "authorization_reverts"
    assert [await hosting.chain.eth_balance(address), await hosting.chain.nonce(address)] == before


async def test_an_opening_pays_for_its_gas(hosting: Hosting) -> None:
    """Who opens jobs to drain the host pays its fee for each, and gets none of it back."""
    host, rich = await relaying(hosting), await payer(hosting, 3 * DEPOSIT)
    dollar, address = hosting.devnet.dollar, hosting.devnet.accounts.host.address
    told = [await sent(host, await rich.body()) for _ in range(3)]
    # The first opening of a host makes room for what it and the treasury will earn.
    _, *gas = [(await result(hosting, each["tx"])).gas_used for each in told]
    assert await refused(host, await rich.body()) == "relay_limit"
    assert await hosting.chain.token_balance(dollar, address) == 3 * FEE
    assert is_told("an opening that is sent", max(gas))


async def test_a_payer_that_undoes_its_opening_pays_for_it_too(hosting: Hosting) -> None:
    """Moving the money away between asking and block costs the host a revert, and the payer a transaction.

    It can do so as often as its limit allows, and all such payers together until the budget is spent.
    """
    host, mean = await relaying(hosting, relay_per_payer=1), await payer(hosting)
    await result(hosting, (await sent(host, await (await payer(hosting)).body()))["tx"])
    await hosting.devnet.ask("anvil_setBalance", mean.address, hex(10**18))
    address, accomplice = hosting.devnet.accounts.host.address, hosting.devnet.accounts.stranger.address
    balance = await hosting.chain.eth_balance(address)
    await hosting.devnet.set_automine(False)
    told = await sent(host, await mean.body())
    away = transfer(hosting.devnet.dollar, accomplice, DEPOSIT)
    tip = 100 * GWEI
    signed = hosting.chain.sign(away, mean.key, nonce=0, gas=100_000, tip=tip, max_fee=2 * tip)
    await hosting.chain.send(signed.raw)
    await hosting.devnet.mine()
    undone, reverted = await result(hosting, signed.hash), await result(hosting, told["tx"])
    assert (undone.succeeded, reverted.succeeded) == (True, False)
    assert balance - await hosting.chain.eth_balance(address) == reverted.cost
    assert await hosting.chain.eth_balance(mean.address) == 10**18 - undone.cost
    assert is_told("an opening that its payer undoes", reverted.gas_used)
    assert is_told("what it takes the payer to undo it", undone.gas_used)
    assert await refused(host, await mean.body()) == "relay_limit"


def transfer(token: Address, to: Address, amount: int) -> Call:
    """Moves an ERC-20 of the sender's."""
    return Call(
        token, keccak(b"transfer(address,uint256)")[:4] + encode(["address", "uint256"], [to, amount])
    )
