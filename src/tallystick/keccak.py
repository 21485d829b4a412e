"""Keccak-256, from the fastest library that is installed. Knows nothing of what is hashed.

safe-pysha3 has no wheel for every machine; where it is missing eth-hash's other library computes the same,
slower.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from eth_hash.main import Keccak256

try:
    from eth_hash.backends import pysha3 as _backend
except ImportError:
    from eth_hash.backends import pycryptodome as _backend  # type: ignore[no-redef]

if TYPE_CHECKING:
    from eth_hash.abc import PreImageAPI

_hasher = Keccak256(_backend.backend)
_hasher(b"")  # eth-hash checks the library against the known hash of nothing here, and gets out of the way


def keccak(data: bytes) -> bytes:
    """The 32 bytes of Keccak-256 over `data`."""
    return _hasher.hasher(data)


def running() -> PreImageAPI:
    """A hash that text is added to: `update(bytes)`, `digest()`, `copy()`."""
    return _hasher.new(b"")
