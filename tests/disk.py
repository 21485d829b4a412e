"""A disk of a few megabytes that tests fill, free and write-protect: a real one, in memory."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

SIZE = 2 << 20
_ROOM = 1 << 16


@dataclass(frozen=True)
class SmallDisk:
    """A file system of its own, mounted at `path`."""

    path: Path

    def fill(self) -> None:
        """Leaves no byte free."""
        with (self.path / "filler").open("ab", buffering=0) as filler:
            room = _ROOM
            while room:
                try:
                    filler.write(bytes(room))
                except OSError:
                    room //= 2
        assert os.statvfs(self.path).f_bavail == 0

    def free(self) -> None:
        """As before it was filled."""
        (self.path / "filler").unlink()

    def protect(self) -> None:
        """Lets nothing be written. No file may be open for writing."""
        subprocess.run(["mount", "-o", "remount,ro", self.path], check=True)


@contextmanager
def mounted(path: Path) -> Iterator[SmallDisk | None]:
    """A small disk at `path`; None if this user may mount none."""
    path.mkdir()
    wanted = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(path)]
    if subprocess.run(wanted, check=False, stderr=subprocess.DEVNULL).returncode:
        yield None
        return
    try:
        yield SmallDisk(path)
    finally:
        subprocess.run(["umount", "--lazy", path], check=True)
