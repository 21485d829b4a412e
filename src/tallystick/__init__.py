"""Tallystick: language-model tokens, counted by host and payer alike, and paid from an escrow on chain."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tallystick.client import AsyncSession
    from tallystick.sync import Session

__version__ = "0.1.0"
__all__ = ["AsyncSession", "Session"]


def __getattr__(name: str) -> Any:
    # What a payer imports brings the chain's libraries along, which a command line should not wait for.
    if name == "Session":
        from tallystick.sync import Session

        return Session
    if name == "AsyncSession":
        from tallystick.client import AsyncSession

        return AsyncSession
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
