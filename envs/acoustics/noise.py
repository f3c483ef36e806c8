"""Steady noise of the surroundings: an engine, a ventilator, a street. Its level drifts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from envs.acoustics.room_tone import coloured_bed
from envs.clock import CLOCK, Clock

SPEECH_DB = -22.0
"""dBFS RMS of the user's words, to which packs are levelled: what a ratio of speech to noise refers to."""
_KNOT_SECONDS = 2.0


@dataclass(frozen=True)
class Noise:
    """Stationary coloured noise."""

    snr_db: float = 20.0
    """Speech to noise."""
    slope: float = 1.0
    """Power falls as 1/f^slope: 0 hisses, 1 rushes, 2 rumbles."""
    drift_db: float = 0.0
    """The level wanders within plus or minus this, over seconds."""


def amplitude(level_db: float) -> np.float32:
    """dBFS to RMS amplitude."""
    return np.float32(10.0 ** (level_db / 20.0))


def render_noise(noise: Noise, samples: int, rng: np.random.Generator, clock: Clock = CLOCK) -> np.ndarray:
    """(samples,) float32."""
    bed = coloured_bed(noise.slope, rng, clock.sample_rate)
    bed *= amplitude(SPEECH_DB - noise.snr_db) / np.float32(np.sqrt(np.mean(np.square(bed, dtype=np.float64))))
    sound = np.resize(bed, samples)
    if noise.drift_db:
        step = clock.nearest_sample(_KNOT_SECONDS)
        knots = rng.uniform(-noise.drift_db, noise.drift_db, samples // step + 2)
        drift = np.interp(np.arange(samples, dtype=np.float32), np.arange(len(knots)) * step, knots)
        sound *= np.power(10.0, drift / 20.0, dtype=np.float32)
    return sound
