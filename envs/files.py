"""A file that is written whole or not at all: nobody ever reads half of one, whenever the process is killed."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Say which file an error of the system inside is about, where it does not: a full disk is met by a write, not by
    `open`, and a write does not know its file.
    """
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to; what lies there takes the place of `path` when the block ends.

    If the block raises, `path` stays as it was and what was written is gone. Its folder is made where it is missing.
    Threads and processes may write the same file at once: one of them wins. It can be read by whom the umask says, also
    where a library that wrote it made a file for its owner alone, as safetensors does.

    Raises:
        OSError: the disk is full, or the folder cannot be made or written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.partial")
    try:
        with named(path):
            partial.touch()
            mode = partial.stat().st_mode
            yield partial
            partial.chmod(mode)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
