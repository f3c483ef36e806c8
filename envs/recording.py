"""One side of a two-party recording, as a scenario names it: the audio of both channels and who spoke when.

    user:
      driver: replay
      recording: {file: call.flac, channel: 0, words: call.json, from: 12.5, to: 40}

`words` is a JSON list of `[text, onset, offset]` in seconds of the file, one entry a word or a whole segment. Without
it, speech is where the channel's energy says so (`envs.activity`), and nobody knows what was said.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from envs.activity import activity
from envs.clock import CLOCK
from envs.corpora.audio import CLIPPED, opened
from envs.corpora.recording import Rejected
from envs.corpora.utterances import UNIT_GAP_SECONDS, units
from envs.errors import UptakeError
from envs.event import Word

MAX_SECONDS = 600.0
"""Of one window: a conversation's microphone is held in memory."""
LOUDEST = 2.0
"""Times full scale. Lossy formats overshoot a little, which is clipped and counted; more is another unit."""


@dataclass(frozen=True)
class Recording:
    """A window of a file, checked when its scenario is loaded."""

    file: Path
    channel: int = 0
    """The user's."""
    words: Path | None = None
    start: float = 0.0
    """Seconds of the file."""
    stop: float | None = None

    @cached_property
    def tracks(self) -> np.ndarray:
        """(channels, N) float32 of the window at the clock's rate; raises `UptakeError` naming the file."""
        return _decode(self.file, self.start, self.stop, CLOCK.sample_rate)

    @cached_property
    def clipped(self) -> float:
        """Share of the user's samples that are clipped."""
        return float((np.abs(self.user) >= CLIPPED).mean())

    @property
    def user(self) -> np.ndarray:
        """(N,) float32: the user's channel."""
        return self.tracks[self.channel]

    @cached_property
    def spans(self) -> tuple[Word, ...]:
        """What the user says and when, in samples of the window; entries without text where there is no words file."""
        if self.words is None:
            return tuple(Word("", int(on), int(off)) for on, off in activity(self.user))
        return _read_words(self.words, self.start, self.user.size)

    @cached_property
    def units(self) -> tuple[tuple[int, int], ...]:
        """The user's inter-pausal units, in samples of the window."""
        sounds = [(span.onset, span.offset) for span in self.spans]
        return tuple(units(sounds, CLOCK.nearest_sample(UNIT_GAP_SECONDS)))

    @cached_property
    def partner(self) -> tuple[tuple[int, int], ...]:
        """When the other one speaks; nothing for a recording of one channel."""
        others = [i for i in range(len(self.tracks)) if i != self.channel]
        return tuple((int(on), int(off)) for on, off in activity(self.tracks[others[0]])) if others else ()

    def check(self) -> None:
        """Decode everything; raises `UptakeError` naming the file for whatever is wrong with it."""
        if not 0 <= self.channel < len(self.tracks):
            raise UptakeError(f"{self.file}: has {len(self.tracks)} channels, so there is no channel {self.channel}")
        if len(self.tracks) > 2:
            raise UptakeError(f"{self.file}: has {len(self.tracks)} channels, expected one for each of two speakers")
        if len(self.tracks) == 2 and self.user.any() and np.array_equal(*self.tracks):
            raise UptakeError(f"{self.file}: both channels are the same; give each speaker one, or a file with one")
        if not self.units:
            raise UptakeError(f"{self.file}: nobody speaks on channel {self.channel} in this window; check from and to")


@lru_cache(maxsize=8)
def _decode(file: Path, start: float, stop: float | None, rate: int) -> np.ndarray:
    if not file.is_file():
        raise UptakeError(f"{file}: no such recording; check the path, which counts from the scenario's folder")
    try:
        with opened(file) as recording:
            own, length = recording.samplerate, recording.frames / recording.samplerate
            if not length:
                raise UptakeError(f"{file}: holds no audio; record or export it again")
            end = length if stop is None else min(stop, length)
            if not 0 <= start < end or end - start > MAX_SECONDS:
                raise UptakeError(
                    f"{file}: the window from {start:g} s to {end:g} s of {length:g} s is empty or longer than "
                    f"{MAX_SECONDS:g} s; set from and to in the scenario, or give a shorter file"
                )
            recording.seek(round(start * own))
            audio = recording.read(round((end - start) * own), dtype="float32", always_2d=True)
    except Rejected as why:
        raise UptakeError(f"{why.detail} ({why.reason}): cannot be replayed; restore or re-encode the file") from why
    if not np.isfinite(audio).all():
        raise UptakeError(f"{file}: holds NaN or infinite samples; export it again")
    if (peak := float(np.abs(audio).max(initial=0.0))) > LOUDEST:
        raise UptakeError(f"{file}: holds samples of {peak:.3g} times full scale; export it at a lower level")
    if own != rate:
        import soxr  # only where it is needed: most recordings that are replayed often are converted once

        audio = soxr.resample(audio, own, rate)
    tracks = np.ascontiguousarray(np.clip(audio, -1.0, 1.0).T)
    tracks.setflags(write=False)
    return tracks


def _read_words(path: Path, start: float, samples: int) -> tuple[Word, ...]:
    try:
        entries: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UptakeError(f"{path}: cannot be read as JSON ({error}); give a list of [text, onset, offset]") from error
    words, last = [], -np.inf
    for number, entry in enumerate(entries if isinstance(entries, list) else [entries]):
        try:
            text, onset, offset = str(entry[0]), float(entry[1]), float(entry[2])
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise UptakeError(f"{path}: entry {number} is {entry!r:.60}; expected [text, onset, offset]") from error
        if not 0 <= onset < offset < np.inf or onset < last:
            raise UptakeError(
                f"{path}: entry {number} lasts from {onset:g} s to {offset:g} s; sort and correct the times"
            )
        last = onset
        first, end = (CLOCK.nearest_sample(t - start) for t in (onset, offset))
        if first >= 0 and end <= samples:
            words.append(Word(text, first, end))
    return tuple(words)
