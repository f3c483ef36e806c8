"""RTTM: one line a speaker's stretch, ten fields (NIST RT-09 evaluation plan, appendix A)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from envs.corpora.recording import Span
from envs.corpora.text import read_text
from envs.errors import UptakeError


def parse(text: str, name: str = "rttm") -> dict[str, list[Span]]:
    """Speech of every recording that an RTTM names.

    Lines of other types than SPEAKER, empty lines and comments (`;;`, `#`) are passed over. A channel counts only in a
    recording whose lines name both 1 and 2: many programs write 1 for everybody.

    Returns:
        recording -> spans in order of the file.

    Raises:
        UptakeError: with the line, for a SPEAKER line with fewer than eight fields or times that are none.
    """
    rows: dict[str, list[tuple[float, float, str, str]]] = {}
    for number, line in enumerate(text.splitlines(), 1):
        fields = line.split()
        if not fields or fields[0].upper() != "SPEAKER":
            continue
        if len(fields) < 8:
            raise UptakeError(f"{name}:{number}: {len(fields)} fields; a SPEAKER line has at least eight")
        try:
            onset, length = float(fields[3]), float(fields[4])
        except ValueError as error:
            raise UptakeError(f"{name}:{number}: onset {fields[3]!r}, length {fields[4]!r}; needs seconds") from error
        if not (math.isfinite(onset) and math.isfinite(length) and onset >= 0 and length >= 0):
            raise UptakeError(f"{name}:{number}: onset {onset}, length {length}; both must be finite, none below 0")
        rows.setdefault(fields[1], []).append((onset, onset + length, fields[7], fields[2]))
    found = {}
    for recording, lines in rows.items():
        both = {channel for *_, channel in lines} == {"1", "2"}
        found[recording] = [Span(on, off, who, int(channel) - 1 if both else None) for on, off, who, channel in lines]
    return found


def read(path: Path, recording: str | None = None) -> Sequence[Span]:
    """The spans of one recording; None: of the only one in the file.

    Raises:
        UptakeError: the file is malformed or does not name the recording.
    """
    status = path.stat() if path.is_file() else None
    found = _parsed(path, status and status.st_mtime_ns, status and status.st_size)
    if recording is None and len(found) > 1:
        shown = ", ".join(sorted(found)[:4])
        raise UptakeError(f"{path}: names {len(found)} recordings ({shown}); one is needed, named like the audio file")
    if recording is not None and recording not in found:
        raise UptakeError(f"{path}: does not name the recording {recording!r}")
    return found[recording] if recording is not None else next(iter(found.values()), [])


@lru_cache(maxsize=2)
def _parsed(path: Path, changed: int | None, size: int | None) -> dict[str, list[Span]]:
    """A file may serve a whole corpus: it is parsed once a process, and again when it has changed."""
    return parse(read_text(path), str(path))
