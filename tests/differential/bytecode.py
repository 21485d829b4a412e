"""Four contracts of a few instructions, for what the project's own cannot do."""

from __future__ import annotations

from tallystick.types import Address

CREATE2 = bytes.fromhex(
    "602036038060205f37"  # memory: all of the calldata but its first word
    "5f35905f5ff500"  # create2 without value, with that as the code and the first word as the salt
)
"""Deploys as the deterministic deployment proxy does, where a chain has none; put at its address."""


def wallet(owner: Address) -> bytes:
    """Calls what its owner tells it to: a word for the target, one for the wei, then the calldata.

    From anybody else it takes ETH, unless the word at its own address is set.
    """
    return bytes.fromhex(
        "3373" + owner[2:] + "14602057"  # if the caller is the owner, go to `call`
        "3054604557"  # if the word at its own address is set, go to `refuse`
        "00"
        "5b"  # call:
        "6040360360405f37"  # memory: all of the calldata but its first two words
        "5f5f604036035f6020355f355af1"  # call with that
        "3d5f5f3e"  # memory: the answer
        "604157"  # if it went well, go to `return`
        "3d5ffd"
        "5b3d5ff3"  # return:
        "5b5f5ffd"  # refuse:
    )


def listed(token: Address) -> bytes:
    """Is the token whose code is `token`'s, but transfers to nobody at whose address a word is set."""
    return bytes.fromhex(
        "365f5f37"  # memory: the calldata
        "5f3560e01c63a9059cbb14"  # is it transfer(address,uint256) ...
        "6004355416"  # ... and is the word at the first argument set?
        "604057"  # then go to `refuse`
        "5f5f365f73" + token[2:] + "5af4"  # delegate to the token
        "3d5f5f3e"  # memory: the answer
        "603c57"  # if it went well, go to `return`
        "3d5ffd"
        "5b3d5ff3"  # return:
        "5b5f5ffd"  # refuse:
    )


QUESTION = 100
"""Bytes of one of the reader's questions: a word for whom to ask, then the calldata, filled up with zeros."""
ANSWER = 576
"""Bytes of one of its answers, filled up with zeros: the longest is a job of 18 words."""
READER = bytes.fromhex(
    "5f5f"  # where the answer goes; where the question is
    "5b80361115603057"  # loop: if there is no question there, go to `return`
    "6044816020018337"  # memory: the calldata
    "6102408260448184355afa"  # ask, and let the answer take its place
    "6023575f5ffd"  # if nobody answered, revert
    "5b606401906102400190600256"  # on to the next
    "5b505ff3"  # return:
)
"""Asks many questions in one call, since a call costs more than a question."""
