"""Seamless Interaction (CC BY-NC 4.0): one file a participant, `V<vendor>_S<session>_I<interaction>_P<participant>`.

Two files of one interaction are a recording. Who speaks when comes with the corpus: `metadata:vad` in the JSON beside
the audio (downloads), or `vad/<name>.jsonl` beside the folder `audio/` (the tree of the release).
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from envs.corpora.files import is_audio, one_per_stem, relative, walk
from envs.corpora.recording import Recording, Refusal, Span, Track
from envs.corpora.text import read_json, read_json_lines
from envs.errors import UptakeError

NAME = re.compile(r"(V\d+_S\d+_I\d+)_P(\w+)")


def find(root: Path) -> Iterator[Recording | Refusal]:
    """Every interaction; one with another number of participants than two is refused."""
    sides: dict[str, dict[str, Path]] = defaultdict(dict)
    for stem, path in one_per_stem(p for p in walk(root) if is_audio(p) and NAME.fullmatch(p.stem)).items():
        interaction, participant = stem.rsplit("_P", 1)
        sides[interaction][f"P{participant}"] = path
    for interaction, paths in sorted(sides.items()):
        names = sorted(paths)
        if len(names) == 1:
            yield Refusal(interaction, "no_partner", f"only {names[0]} has audio")
        elif len(names) > 2:
            yield Refusal(interaction, "speakers", f"{len(names)} participants: {', '.join(names)}")
        else:
            first, second = names
            tracks = (Track(relative(paths[first], root), None), Track(relative(paths[second], root), None))
            said = [_vad_file(paths[name]) for name in names]
            if None in said:
                yield Recording(interaction, tracks, (first, second))
            else:
                files = tuple(str(path) for path in said)
                yield Recording(interaction, tracks, (first, second), partial(read, files), "vad", files)


def _vad_file(audio: Path) -> Path | None:
    tree = audio.parent.parent / "vad" / f"{audio.stem}.jsonl"
    return next((path for path in (audio.with_suffix(".json"), tree) if path.is_file()), None)


def read(files: Sequence[str]) -> list[Span]:
    """The speech of both participants.

    Raises:
        UptakeError: a file is malformed or has no `metadata:vad`.
    """
    spans = []
    for channel, name in enumerate(files):
        path = Path(name)
        if path.suffix == ".jsonl":
            rows: Any = [record for _, record in read_json_lines(path)]
        else:
            content = read_json(path)
            rows = content.get("metadata:vad") if isinstance(content, dict) else None
        if not isinstance(rows, list):
            raise UptakeError(f"{path}: no list 'metadata:vad' in it")
        for row in rows:
            try:
                onset, offset = float(row["start"]), float(row["end"])
            except (KeyError, TypeError, ValueError) as error:
                raise UptakeError(f"{path}: {row!r} has no start and end in seconds") from error
            if not (math.isfinite(onset) and math.isfinite(offset) and 0 <= onset <= offset):
                raise UptakeError(f"{path}: {onset} to {offset} s is no stretch of speech")
            spans.append(Span(onset, offset, path.stem, channel))
    return spans
