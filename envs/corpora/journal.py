"""What was read of a corpus so far, one JSON line a recording, so that a killed run goes on where it stopped."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from envs.errors import UptakeError
from envs.files import whole

NAME = "recordings.jsonl"


def replace(path: Path, parts: Iterable[str]) -> None:
    """Write a text file whole or not at all."""
    with whole(path) as partial, partial.open("w", encoding="utf-8") as file:
        file.writelines(parts)
        file.flush()
        os.fsync(file.fileno())


def line(record: Mapping[str, Any]) -> str:
    """One line, newline included; ASCII, because the name of a file need not be text."""
    return json.dumps(record, separators=(",", ":"), allow_nan=False) + "\n"


def read(path: Path) -> Iterator[dict[str, Any]]:
    """The settings that a journal begins with, then its recordings.

    A last line that breaks off is what a killed run leaves, and is passed over.

    Raises:
        UptakeError: the file is missing or another line is malformed.
    """
    fix = "delete the file to read the corpus again"
    try:
        with path.open("rb") as file:
            for number, text in enumerate(file, 1):
                if not text.endswith(b"\n"):
                    return
                record = json.loads(text)
                if number == 1 and not (isinstance(record, dict) and isinstance(record.get("settings"), dict)):
                    raise UptakeError(f"{path}: does not begin with its settings; {fix}")
                yield record["settings"] if number == 1 else record
    except OSError as error:
        raise UptakeError(f"{path}: {error.strerror}; run `uptake segments` first") from error
    except ValueError as error:
        if isinstance(error, UptakeError):
            raise
        raise UptakeError(f"{path}:{number}: not JSON ({error}); {fix}") from error
