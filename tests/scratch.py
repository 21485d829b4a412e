"""Where tests that kill processes keep their files: in memory, on a machine that has such a place.

SIGKILL leaves alone what the kernel holds, on a disk as in memory; so no disk is waited for.
"""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory

MEMORY = Path("/dev/shm")


def directory() -> TemporaryDirectory[str]:
    """A directory of its own, gone at the end of its `with`."""
    usable = os.access(MEMORY, os.W_OK | os.X_OK)
    return TemporaryDirectory(prefix="tallystick-", dir=MEMORY if usable else None)
