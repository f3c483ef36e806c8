"""The user's own voice in one conversation, kept as the pieces that were said: a track of it would be mostly zeros."""

from __future__ import annotations

import numpy as np


class Voice:
    """Pieces of sound on one time axis. The sum saturates piece by piece, in the order in which they were added."""

    def __init__(self) -> None:
        self._pieces: list[tuple[int, np.ndarray]] = []

    def add(self, onset: int, pcm: np.ndarray) -> None:
        """Say (n,) int16 from the sample `onset` on; an array that somebody may still write to is copied."""
        self._pieces.append((onset, pcm.copy() if pcm.flags.writeable else pcm))

    def between(self, start: int, stop: int) -> np.ndarray:
        """What sounds in the samples [start, stop): (stop - start,) int16."""
        sound = np.zeros(stop - start, np.int16)
        for onset, pcm in self._pieces:
            first, last = max(onset, start), min(onset + len(pcm), stop)
            if first < last:
                mix(sound[first - start : last - start], pcm[first - onset : last - onset])
        return sound

    def fork(self) -> Voice:
        """A voice that goes on from here by itself; what was said is shared and never changes."""
        twin = Voice()
        twin._pieces = list(self._pieces)
        return twin


def mix(track: np.ndarray, pcm: np.ndarray) -> None:
    """Add `pcm` (m,) int16 to the beginning of `track` (n,) int16 in place, saturating; what lies beyond n is lost."""
    part = track[: len(pcm)]
    part[:] = np.clip(part.astype(np.int32) + pcm[: len(part)], -32768, 32767)
