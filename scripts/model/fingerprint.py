"""What the model was made from, as one hash: recorded in its file, so that a stale file is noticed."""

import hashlib
from pathlib import Path

KEY = "tallystick.sources"
"""The metadata key that holds the hash."""


def fingerprint() -> str:
    """The hash of the generator's sources."""
    here = Path(__file__).parent
    paths = sorted([*here.glob("*.py"), here / "requirements.txt"])
    text = "".join(path.name + "\0" + path.read_text("utf-8") for path in paths)
    return hashlib.sha256(text.encode()).hexdigest()
