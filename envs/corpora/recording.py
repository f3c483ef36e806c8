"""What every reader of a corpus yields: where two speakers' channels lie, or why a recording cannot be used."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

READ_REASONS = {
    "unreadable": "no decoder opens the file, or the file cannot be read",
    "compressed_sphere": "a SPHERE file with shorten compression: run sph2pipe -f wav on it",
    "damaged": "the file breaks off early or its decoding fails on the way",
    "empty": "shorter than one frame of 80 ms",
    "mono": "one channel where two speakers are expected",
    "channels": "more channels than speakers",
    "sample_rate": "a rate outside 8 to 192 kHz",
    "not_finite": "NaN or infinite samples",
    "identical_channels": "both speakers have the same audio, so that nobody can be told apart",
    "length_mismatch": "the two speakers' files differ by more than a second",
    "silent": "nobody speaks",
    "words": "no word times, or some that do not fit the audio",
    "segment_file": "the file that says who speaks when cannot be read or does not fit",
    "no_partner": "only one of the two speakers has a file",
    "speakers": "another number of speakers than two",
    "metadata": "the corpus' own description is missing or malformed",
    "source_type": "audio that does not lie in a file (a command, an address)",
    "reader_died": "the process that read it died twice (out of memory, a crash in a decoder)",
}
"""Every reason for which a whole recording is left out."""


class Rejected(Exception):
    """A recording that cannot be used: a fault of the data, contained and counted, never the end of a run."""

    def __init__(self, reason: str, detail: str) -> None:
        if reason not in READ_REASONS:
            raise ValueError(f"{reason!r} is none of {', '.join(READ_REASONS)}")
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


class Span(NamedTuple):
    """A stretch of speech out of a segment file."""

    onset: float
    """Seconds."""
    offset: float
    speaker: str
    channel: int | None = None
    """0 or 1 where the file names the channel."""


class Track(NamedTuple):
    """Where one speaker's voice lies."""

    path: str
    """Relative to the corpus folder, or absolute."""
    channel: int | None
    """None: the file has this one channel."""


@dataclass(frozen=True)
class Recording:
    """One conversation of two people."""

    id: str
    tracks: tuple[Track, Track]
    speakers: tuple[str, str]
    """Their names in the corpus, in the order of the tracks."""
    spans: Callable[[], Sequence[Span]] | None = None
    """Reads who speaks when; None: to be measured on the audio. Pickles, because it is called in another process."""
    kind: str = "energy"
    """What `spans` reads: rttm, textgrid, vad, supervisions."""
    files: tuple[str, ...] = ()
    """Other files than the audio that the result depends on."""


@dataclass(frozen=True)
class Refusal:
    """A recording that the reader found and can do nothing with."""

    id: str
    reason: str
    detail: str
