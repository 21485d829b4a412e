"""What a payer signs: the contract's own nonce, in the token's own domain, over what wallets show."""

from __future__ import annotations

import pytest
from eth_account import Account
from eth_account.messages import encode_typed_data
from web3 import AsyncWeb3

from tallystick import gasless, proof
from tallystick.artifacts import artifact
from tallystick.authorization import Consent, Opening, Purpose, TopUp, terms_out
from tallystick.chain import Chain
from tallystick.devnet import Devnet
from tallystick.types import JobId, Terms
from tests.paying import PRICES

SALT = b"\x07" * 32


def opening(devnet: Devnet) -> Opening:
    signer, host = proof.address(b"\x01" * 32), devnet.accounts.host.address
    terms = Terms(host, devnet.dollar, 2_000_000, PRICES, signer, 0, 3_600, 2_000_000_000, 100, b"\x05" * 32)
    return Opening(terms, 50_000, SALT)


async def test_nonces_are_the_contracts(devnet: Devnet, chain: Chain) -> None:
    """`openNonce` and `topUpNonce` of the contract make the same of the same terms."""
    domain = proof.Domain(chain.deployment.chain_id, chain.deployment.marketplace)
    w3 = AsyncWeb3(AsyncWeb3.AsyncHTTPProvider(devnet.rpc_url))
    contract = w3.eth.contract(
        address=AsyncWeb3.to_checksum_address(domain.contract), abi=artifact("JobMarketplace").abi
    )
    wanted = opening(devnet)
    told = contract.functions.openNonce(terms_out(wanted.terms), wanted.relay_fee, SALT)
    assert await told.call() == wanted.nonce(domain)
    more = TopUp(JobId(7), devnet.dollar, 1_000, SALT)
    assert await contract.functions.topUpNonce(7, 1_000, SALT).call() == more.nonce(domain)
    await w3.provider.disconnect()


@pytest.mark.parametrize("adding", [False, True])
async def test_wallets_sign_the_same(devnet: Devnet, chain: Chain, adding: bool) -> None:
    """The digest is the one that eth-account makes of the token's typed data; so is the signature."""
    purpose: Purpose = TopUp(JobId(7), devnet.dollar, 1_000, SALT) if adding else opening(devnet)
    payer = devnet.accounts.payer
    consent: Consent[Purpose] = await gasless.consent(chain, payer.address, purpose)
    fields = "address from,address to,uint256 value,uint256 validAfter,uint256 validBefore,bytes32 nonce"
    typed = encode_typed_data(
        {
            "name": "Test Dollar",
            "version": "2",
            "chainId": chain.deployment.chain_id,
            "verifyingContract": devnet.dollar,
        },
        {
            "ReceiveWithAuthorization": [
                dict(zip(("type", "name"), field.split(), strict=True)) for field in fields.split(",")
            ]
        },
        {
            "from": payer.address,
            "to": chain.deployment.marketplace,
            "value": purpose.amount,
            "validAfter": 0,
            "validBefore": consent.valid_before,
            "nonce": consent.nonce,
        },
    )
    assert (typed.header, typed.body) == (consent.token.separator, consent.message)
    signed = Account.sign_message(typed, payer.private_key)
    assert bytes(signed.message_hash) == consent.digest
    assert bytes(signed.signature) == consent.sign(payer.private_key).signature
