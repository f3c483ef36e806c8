"""Who is speaking when, from the audio alone: energy with hysteresis on 10 ms hops.

One definition for everybody: reactive triggers in the simulated user and every metric and reward measure agent speech
here. `activity` reads a whole track; `OnlineActivity` reads a batch frame by frame. After any frame the online state
equals `activity` of the audio heard so far, so the only difference from the offline answer is what causality forbids:
a segment is known once `min_length` of it was voiced, and known to be over once `merge_gap` has passed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from envs.clock import CLOCK, Clock
from envs.errors import UptakeError
from envs.rows import Rows


@dataclass(frozen=True)
class ActivityConfig:
    """Thresholds of speech activity. Levels are dBFS of the RMS of one hop."""

    on_db: float = -45.0
    """A hop at least this loud starts activity."""
    off_db: float = -50.0
    """A hop quieter than this ends it; between the two the state holds."""
    merge_gap: float = 0.32
    """Seconds: a gap shorter than this does not split a segment (words of one phrase, stop closures)."""
    min_length: float = 0.08
    """Seconds of active hops that a segment needs; less is a click, and clicks are not speech."""
    hop: int = 240
    """Samples a hop (10 ms at 24 kHz): the resolution of onsets and offsets, well below one frame."""
    clock: Clock = CLOCK

    def __post_init__(self) -> None:
        if self.off_db > self.on_db:
            raise UptakeError(f"activity: off_db {self.off_db} is above on_db {self.on_db}; it must not be")
        if self.hop <= 0 or self.clock.frame % self.hop:
            raise UptakeError(f"activity: hop {self.hop} does not divide the frame of {self.clock.frame} samples")

    @property
    def gap_hops(self) -> int:
        """Hops of silence that split a segment."""
        return max(1, -(-self.clock.nearest_sample(self.merge_gap) // self.hop))

    @property
    def length_hops(self) -> int:
        """Active hops that make a segment."""
        return max(1, -(-self.clock.nearest_sample(self.min_length) // self.hop))


DEFAULT = ActivityConfig()


def _power(db: float) -> float:
    return float(10.0 ** (db / 10.0))


def levels(audio: np.ndarray, hop: int = DEFAULT.hop) -> np.ndarray:
    """Mean power of each hop. `audio` (..., N) -> (..., ceil(N / hop)) float32; a last partial hop is zero-padded."""
    rest = -audio.shape[-1] % hop
    if rest:
        audio = np.concatenate([audio, np.zeros((*audio.shape[:-1], rest), audio.dtype)], axis=-1)
    hops = audio.reshape(*audio.shape[:-1], -1, hop)
    return np.einsum("...i,...i->...", hops, hops, dtype=np.float32) / np.float32(hop)


def active_hops(power: np.ndarray, config: ActivityConfig = DEFAULT) -> np.ndarray:
    """Hysteresis along the last axis: hop powers (..., n) -> (..., n) bool. Starts inactive."""
    return hysteresis(power, _power(config.on_db), _power(config.off_db))


def hysteresis(level: np.ndarray, on: float, off: float) -> np.ndarray:
    """Active from a level of at least `on` until one below `off`, along the last axis: (..., n) -> (..., n) bool."""
    decided = (level >= on) | (level < off)
    index = np.where(decided, np.arange(level.shape[-1]), -1)
    last = np.maximum.accumulate(index, axis=-1)  # the latest level that decides
    value = np.take_along_axis(level >= on, np.maximum(last, 0), axis=-1)
    return value & (last >= 0)


def activity(audio: np.ndarray, config: ActivityConfig = DEFAULT) -> np.ndarray:
    """Segments of speech in one track.

    Args:
        audio: (N,) float, full scale 1.
        config: thresholds.

    Returns:
        (n, 2) int64 of [onset, offset) in samples, in order, on the hop grid (the last offset is at most N).
    """
    if audio.ndim != 1:
        raise UptakeError(f"activity: audio has shape {audio.shape}; give one track (N,)")
    return segments(levels(audio, config.hop), audio.size, config)


def segments(power: np.ndarray, samples: int, config: ActivityConfig = DEFAULT) -> np.ndarray:
    """`activity` of a track whose hop powers are known, for recordings too long to hold: (n,) powers -> (m, 2)."""
    active = active_hops(power, config) if power.size else np.zeros(0, bool)
    return join(active, config.hop, samples, config.gap_hops, config.length_hops)


def join(active: np.ndarray, hop: int, samples: int, gap_hops: int, length_hops: int) -> np.ndarray:
    """Segments of a track in which every hop is active or not.

    Args:
        active: (n,) bool.
        hop: samples a hop.
        samples: of the track; no offset is beyond.
        gap_hops: as many hops of silence split a segment.
        length_hops: a segment needs as many active hops.

    Returns:
        (m, 2) int64 of [onset, offset) in samples.
    """
    hops = np.flatnonzero(active)
    if not hops.size:
        return np.zeros((0, 2), np.int64)
    breaks = np.flatnonzero(np.diff(hops) - 1 >= gap_hops) + 1
    first = np.concatenate([[0], breaks])
    after = np.concatenate([breaks, [hops.size]])
    keep = after - first >= length_hops  # voiced hops, not the span: two clicks are not a word
    found = np.stack([hops[first[keep]], hops[after[keep] - 1] + 1], axis=1).astype(np.int64) * hop
    return np.minimum(found, samples)


class OnlineActivity(Rows):
    """The causal, batched `activity`: feed one frame at a time.

    After `update`, for each row: `onset` and `offset` are the latest segment so far in samples (-1 when there is
    none yet), exactly the last row of ``activity(audio so far)``; `now` is how many samples were heard. `speaking`
    means that this segment was still active within the last frame.
    """

    FIELDS = ("now", "onset", "offset", "_active", "_first", "_last", "_voiced")

    def __init__(self, batch: int, config: ActivityConfig = DEFAULT) -> None:
        self.config = config
        self.now = np.zeros(batch, np.int64)  # (B,) samples heard
        self.onset = np.full(batch, -1, np.int64)  # (B,) latest confirmed segment
        self.offset = np.full(batch, -1, np.int64)
        self._active = np.zeros(batch, bool)  # hysteresis state
        self._first = np.zeros(batch, np.int64)  # candidate segment, in hops
        self._last = np.full(batch, -(10**9), np.int64)  # its latest active hop
        self._voiced = np.zeros(batch, np.int64)  # its active hops

    def update(self, frame: np.ndarray) -> np.ndarray:
        """Hear one frame (B, F), F a multiple of the hop; return `speaking` (B,) bool."""
        config = self.config
        power = levels(frame, config.hop)  # (B, hops)
        on, off = power >= _power(config.on_db), power < _power(config.off_db)
        if not (self._active.any() or on.any()):  # the common case of a silent batch
            self.now += frame.shape[-1]
            return self.speaking
        hop = self.now // config.hop
        for i in range(power.shape[-1]):
            self._active = on[:, i] | (self._active & ~off[:, i])
            fresh = self._active & (hop - self._last - 1 >= config.gap_hops)
            self._first = np.where(fresh, hop, self._first)
            self._voiced = np.where(fresh, 0, self._voiced) + self._active
            self._last = np.where(self._active, hop, self._last)
            hop = hop + 1
        self.now += frame.shape[-1]
        confirmed = self._voiced >= config.length_hops
        self.onset = np.where(confirmed, self._first * config.hop, self.onset)
        self.offset = np.where(confirmed, (self._last + 1) * config.hop, self.offset)
        return self.speaking

    @property
    def speaking(self) -> np.ndarray:
        """(B,) bool: the latest segment was active within the last frame."""
        return (self.offset >= 0) & (self.now - self.offset < self.config.clock.frame)

    @property
    def speaking_for(self) -> np.ndarray:
        """(B,) samples since the onset of the segment being spoken; 0 when silent."""
        return np.where(self.speaking, self.now - self.onset, 0)

    def _fresh(self) -> OnlineActivity:
        return OnlineActivity(1, self.config)
