"""Tallystick: language-model tokens, counted by host and payer alike, and paid from an escrow on chain."""

__version__ = "0.1.0"
