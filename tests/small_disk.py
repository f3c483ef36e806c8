"""A disk that can be filled to the last byte: a file system in memory, made as small as what is on it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOM = 700 * 2**20  # a run asks for 500 MiB; none of it is used before something is written


class SmallDisk:
    """A mounted file system at `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def fill(self) -> None:
        """Leave no byte: whatever needs another page from now on is told ENOSPC by the kernel."""
        found = os.statvfs(self.path)
        self._resize((found.f_blocks - found.f_bfree) * found.f_frsize)

    def make_room(self) -> None:
        """As it was."""
        self._resize(ROOM)

    def _resize(self, size: int) -> None:
        subprocess.run(["mount", "-o", f"remount,size={size}", str(self.path)], check=True, capture_output=True)


@contextmanager
def small_disk(path: Path) -> Iterator[SmallDisk]:
    """Mount one; the test is skipped where that is not allowed."""
    path.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={ROOM}", "uptake-test", str(path)], capture_output=True, text=True
    )
    if made.returncode:
        pytest.skip(f"no file system can be mounted here: {made.stderr.strip()}")
    try:
        yield SmallDisk(path)
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)
