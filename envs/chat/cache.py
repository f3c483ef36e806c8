"""Answers on disk, by the content of the question: one small JSON file each, whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from envs.files import whole

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
        text = json.dumps({"v": VERSION, "key": key, **record}, ensure_ascii=False, indent=1)
        with whole(self.path(key)) as partial:
            partial.write_text(text, encoding="utf-8")
