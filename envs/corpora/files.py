"""Which files lie in a corpus folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from envs.corpora.audio import SUFFIXES


def walk(root: Path) -> Iterator[Path]:
    """Every regular file below a folder, in order of its path; links are followed, each folder once.

    A link to a file that is not there is yielded too: whoever opens it says so.

    Raises:
        OSError: a folder cannot be listed.
    """

    def fail(error: OSError) -> None:
        raise error

    seen: set[tuple[int, int]] = set()
    for folder, below, names in os.walk(root, onerror=fail, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            below.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        below[:] = sorted(name for name in below if not name.startswith("."))
        for name in sorted(names):
            path = Path(folder, name)
            # no pipe or device: reading one may never end
            if not name.startswith(".") and (path.is_file() or not path.exists()):
                yield path


def is_audio(path: Path) -> bool:
    """Whether the name says that a file is audio."""
    return path.suffix.lower() in SUFFIXES


def relative(path: Path, root: Path) -> str:
    """Relative to the corpus folder where it lies below it."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def one_per_stem(paths: Iterator[Path]) -> dict[str, Path]:
    """Stem -> path; of several files with one stem, lossless wins over lossy, then the first in order."""
    rank = {suffix: place for place, suffix in enumerate((".wav", ".flac", ".w64", ".aiff", ".sph"))}
    chosen: dict[str, Path] = {}
    for path in paths:
        held = chosen.get(path.stem)
        if held is None or rank.get(path.suffix.lower(), 9) < rank.get(held.suffix.lower(), 9):
            chosen[path.stem] = path
    return chosen
