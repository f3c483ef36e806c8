"""Two clocks that do not agree: the user's device counts a few samples a minute more, or fewer, than the agent's.

Sample n of the output is the input at n · (1 + ppm / 10⁶) − delay, interpolated with a windowed sinc. The delay is just
long enough that the faster of the two never asks for what has not been said yet.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np

from envs.clock import CLOCK

_HALF = 8  # samples on each side that an interpolated one is made of
_PHASES = 4096  # places between two samples in the table: the nearest is wrong by -80 dB at 4 kHz


@cache
def _table() -> np.ndarray:
    """(phases + 1, taps) float32: weights of the samples -7 ... 8 round a place between sample 0 and 1."""
    t = np.arange(-_HALF + 1, _HALF + 1) - np.arange(_PHASES + 1)[:, None] / _PHASES
    window = np.i0(8.0 * np.sqrt(np.maximum(0.0, 1.0 - np.square(t / _HALF)))) / np.i0(8.0)
    weights = np.sinc(t) * window
    weights /= weights.sum(axis=1, keepdims=True)
    return weights.astype(np.float32)


class ClockDrift:
    """A stream on another clock. `delay_at(n)` says how many samples late the output is at its sample n."""

    def __init__(self, ppm: float, samples: int, frame: int = CLOCK.frame) -> None:
        """`samples` is the length of the longest stream, for which the delay must suffice."""
        self._rate = 1.0 + ppm * 1e-6
        slip = math.ceil(abs(ppm) * 1e-6 * samples)
        self.delay_samples = _HALF + (slip if ppm > 0 else 0)
        """At the start; it grows or shrinks from there."""
        self._done = 0
        self._frame = frame
        self._held = np.zeros(self.delay_samples + _HALF + (slip if ppm < 0 else 0), np.float32)

    def delay_at(self, sample: int) -> float:
        """Samples by which the output is late at its sample `sample`."""
        return self.delay_samples - sample * (self._rate - 1.0)

    def process(self, frame: np.ndarray) -> np.ndarray:
        """(F,) float32 to (F,) float32."""
        joined = np.concatenate([self._held, frame])
        n = self._done + np.arange(len(frame))
        place = n * self._rate - self.delay_samples
        whole = np.floor(place)
        phase = np.rint((place - whole) * _PHASES).astype(np.int64)
        index = whole.astype(np.int64) - (self._done - len(self._held))
        window = joined[index[:, None] + np.arange(-_HALF + 1, _HALF + 1)]  # (F, taps)
        self._held = joined[len(frame) :]
        self._done += len(frame)
        return np.einsum("ij,ij->i", window, _table()[phase])
