"""What was said when, word by word: TextGrids and the JSON of aligners and recognisers.

Times are in seconds. Who said a word is a speaker's name, a channel, or not said at all; `dialogues` finds the track.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from envs.corpora import textgrid
from envs.corpora.text import read_json, read_text
from envs.errors import UptakeError

SUFFIXES = (".json", ".TextGrid")
"""Of a file of word times beside the audio."""
_LISTS = ("alignments", "words", "word_segments", "chunks", "segments", "metadata:transcript")
_EXPECTED = (
    'a list of {"word", "start", "end"}, or an object with "words", "segments" of them, "chunks" (text, timestamp) or '
    '"alignments" ([word, [start, end], speaker])'
)


class SpokenWord(NamedTuple):
    """One word of a transcript."""

    text: str
    onset: float
    """Seconds."""
    offset: float
    speaker: str = ""
    """Empty where the file names nobody."""
    channel: int | None = None
    """0 or 1 where the file names the channel."""


def read(path: Path) -> list[SpokenWord]:
    """The words of a file, in order of their onsets.

    `.TextGrid`: one interval tier a speaker; of tiers called "NAME - words" (Montreal Forced Aligner) the others are
    left out. JSON: what Whisper, WhisperX and moshi-finetune write, and the transcripts of Seamless Interaction.

    Raises:
        UptakeError: it cannot be read, holds no word times, or times that cannot be.
    """
    if path.suffix.lower() == ".rttm":
        raise UptakeError(f"{path}: an RTTM says who speaks when, not what is said; word times are needed, {_names()}")
    said = _from_textgrid(path) if path.suffix.lower() == ".textgrid" else list(_from_json(path))
    for word in said:
        if not (math.isfinite(word.onset) and math.isfinite(word.offset) and 0 <= word.onset <= word.offset):
            raise UptakeError(f"{path}: {word.text!r} from {word.onset} to {word.offset} s cannot be; mend its times")
    return sorted(said, key=lambda word: word.onset)


def beside(audio: Path) -> Path | None:
    """The file of word times of an audio file: the same name with another suffix."""
    return next((path for suffix in SUFFIXES if (path := audio.with_suffix(suffix)).is_file()), None)


def _names() -> str:
    return " or ".join(SUFFIXES)


def _from_textgrid(path: Path) -> list[SpokenWord]:
    tiers = textgrid.parse(read_text(path), str(path))
    said = []
    for speaker, rows in textgrid.spoken(tiers).items():
        for onset, offset, label in rows:
            if len(label.split()) > 1:
                raise UptakeError(
                    f"{path}: tier {speaker!r} has {label.strip()[:40]!r} in one interval; a word has one of its own: "
                    "align the words first"
                )
            said.append(SpokenWord(label.strip(), onset, offset, speaker))
    return said


def _from_json(path: Path) -> Iterator[SpokenWord]:
    content = read_json(path)
    try:
        yield from _rows(content)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise UptakeError(f"{path}: no word times in it ({error!r}); expected {_EXPECTED}") from error


def _rows(content: Any, speaker: Any = None, channel: Any = None) -> Iterator[SpokenWord]:
    """The words of a list of words, or of any object that holds such lists."""
    if isinstance(content, Mapping):
        speaker, channel = content.get("speaker", speaker), content.get("channel", channel)
        known = [name for name in _LISTS if name in content]
        if not known:
            raise ValueError(f"keys {', '.join(map(str, content))[:60] or 'none'}")
        content = content[known[0]]
    if isinstance(content, str) or not isinstance(content, Sequence):
        raise ValueError(f"{str(content)[:40]!r}")
    for row in content:
        if isinstance(row, Mapping) and ("words" in row or "segments" in row):
            yield from _rows(row, speaker, channel)
        else:
            yield _word(row, speaker, channel)


def _word(row: Any, speaker: Any, channel: Any) -> SpokenWord:
    if not isinstance(row, Mapping):
        text, (onset, offset), *rest = row
        return SpokenWord(str(text).strip(), float(onset), float(offset), str(rest[0]) if rest else "")
    text = row["word"] if "word" in row else row["text"]
    onset, offset = row["timestamp"] if "timestamp" in row else (row["start"], row["end"])
    speaker, channel = row.get("speaker", speaker), row.get("channel", channel)
    if channel not in (None, 0, 1):
        raise ValueError(f"channel {channel!r} of {text!r}, which is 0 or 1")
    return SpokenWord(
        str(text).strip(), float(onset), float(offset), "" if speaker is None else str(speaker),
        None if channel is None else int(channel),
    )  # fmt: skip
