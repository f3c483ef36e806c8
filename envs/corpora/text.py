"""Text files of corpora, in the encodings that occur."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from envs.errors import UptakeError


def read_text(path: Path) -> str:
    """A whole text file: UTF-8, or UTF-16 with its mark as Praat writes it.

    Raises:
        UptakeError: it cannot be read or is not text.
    """
    try:
        data = path.read_bytes()
        return data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except OSError as error:
        raise UptakeError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UptakeError(f"{path}: neither UTF-8 nor UTF-16 ({error.reason} at byte {error.start})") from error


def read_json(path: Path) -> Any:
    """A JSON file; raises `UptakeError` naming one that cannot be read or is not JSON."""
    try:
        return json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        if isinstance(error, UptakeError):
            raise
        raise UptakeError(f"{path}: not JSON ({error})") from error


def read_json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number and object of each line of a JSON Lines file, which may be gzipped.

    Raises:
        UptakeError: with the line, for one that is no JSON object, and for a file that breaks off.
    """
    number = 0
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    record = json.loads(line)
                    if not isinstance(record, dict):
                        raise UptakeError(f"{path}:{number}: a {type(record).__name__}, not an object")
                    yield number, record
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise UptakeError(f"{path}: cannot be read after line {number} ({error})") from error
    except (ValueError, RecursionError) as error:
        if isinstance(error, UptakeError):
            raise
        raise UptakeError(f"{path}:{number}: not JSON ({error})") from error
