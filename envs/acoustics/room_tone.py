"""What the microphone hears when nobody speaks: room tone, never digital silence."""

from __future__ import annotations

from functools import cache

import numpy as np

from envs.clock import CLOCK, Clock
from envs.episode import to_pcm16

# A bed of 2.7 s that is periodic by construction is repeated without a seam; drawing fresh noise for the whole of every
# conversation would cost more than everything else that the environment does.
_PERIOD = 1 << 16
_LOWEST_HZ = 60.0


@cache
def _log_frequency(sample_rate: int) -> np.ndarray:
    frequency = np.fft.rfftfreq(_PERIOD, 1.0 / sample_rate)
    return np.log(np.maximum(frequency, _LOWEST_HZ) / _LOWEST_HZ).astype(np.float32)


def coloured_bed(slope: float, noise: np.random.Generator, sample_rate: int) -> np.ndarray:
    """Noise (65536,) float32 that can be repeated without a seam; its power falls as 1/f^slope above 60 Hz."""
    shape = np.exp(_log_frequency(sample_rate) * np.float32(-slope / 2))
    spectrum = noise.standard_normal(2 * shape.size, dtype=np.float32).view(np.complex64) * shape
    spectrum[0] = 0
    return np.fft.irfft(spectrum, _PERIOD)


def room_tone(
    samples: int, level_db: float, noise: np.random.Generator, room: np.random.Generator, clock: Clock = CLOCK
) -> np.ndarray:
    """Coloured noise, (samples,) int16, at `level_db` dBFS RMS.

    Its power falls as 1/f^a above 60 Hz; `room` draws a in [0.5, 1.5], `noise` draws the noise itself.
    """
    slope = float(room.uniform(0.5, 1.5))
    bed = coloured_bed(slope, noise, clock.sample_rate)
    bed *= np.float32(10.0 ** (level_db / 20.0) / np.sqrt(np.mean(np.square(bed, dtype=np.float64))))
    return np.resize(to_pcm16(bed), samples)
