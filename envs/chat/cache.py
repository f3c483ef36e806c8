"""Answers on disk, by the content of the question: one small JSON file each, whole or not at all."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

VERSION = 1


class Cache:
    """Several processes may share a folder: a file appears at once, and its name says what is in it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, key: str) -> Path:
        """Where the answer of a key lies; 256 folders, since some file systems slow down with many files in one."""
        return self._folder / key[:2] / f"{key}.json"

    def get(self, key: str) -> dict[str, Any] | None:
        """What `put` wrote; None where there is nothing, or nothing that can be read: it is asked again then."""
        try:
            record = json.loads(self.path(key).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return record if isinstance(record, dict) and record.get("v") == VERSION and record.get("key") == key else None

    def put(self, key: str, record: Mapping[str, Any]) -> None:
        """Write an answer.

        Raises:
            OSError: the disk is full or the folder cannot be written.
        """
        path = self.path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, partial = tempfile.mkstemp(prefix=".", suffix=".partial", dir=path.parent)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump({"v": VERSION, "key": key, **record}, file, ensure_ascii=False, indent=1)
            os.replace(partial, path)
        except OSError:
            Path(partial).unlink(missing_ok=True)
            raise
