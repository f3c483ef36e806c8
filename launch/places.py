"""Where a command is to write: refused before the work whose result would be lost."""

from __future__ import annotations

import tempfile
from pathlib import Path

from envs.errors import UptakeError


def check_out_file(path: Path, option: str) -> None:
    """Make the folder of a file to write; raises UptakeError if that cannot be done, or the file is a folder."""
    if path.is_dir():
        raise UptakeError(f"{path}: a folder; give the name of a file with {option}")
    _check(path, path.parent, option)


def check_out_folder(path: Path, option: str) -> None:
    """Make a folder that will be written; raises UptakeError if that cannot be done."""
    _check(path, path, option)


def _check(path: Path, folder: Path, option: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UptakeError(f"{path}: cannot be written ({error.strerror}); give another place with {option}") from error
