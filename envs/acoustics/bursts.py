"""Bursts: cups, doors, keys. Short noises at random times, each with a sharp onset and a tail."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from envs.acoustics.noise import SPEECH_DB, amplitude
from envs.clock import CLOCK, Clock

_ATTACK = 0.002  # seconds
_SHORTEST, _LONGEST = 0.03, 0.4  # seconds
_LOWEST_HZ, _HIGHEST_HZ = 250.0, 5000.0


@dataclass(frozen=True)
class Bursts:
    """A Poisson process of short noises."""

    per_min: float = 4.0
    snr_db: float = 5.0
    """Speech to burst, over the length of the burst."""


def render_bursts(
    bursts: Bursts, samples: int, rng: np.random.Generator, clock: Clock = CLOCK
) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """(samples,) float32 and the bursts' [onset, offset) in samples."""
    sound = np.zeros(samples, np.float32)
    spans = []
    mean_gap = 60.0 * clock.sample_rate / bursts.per_min
    onset = int(rng.exponential(mean_gap))
    while onset < samples:
        burst = _burst(rng, clock) * amplitude(SPEECH_DB - bursts.snr_db)
        offset = min(samples, onset + len(burst))
        sound[onset:offset] += burst[: offset - onset]
        spans.append((onset, offset))
        onset += max(1, int(rng.exponential(mean_gap)))
    return sound, spans


def _burst(rng: np.random.Generator, clock: Clock) -> np.ndarray:
    """One noise (n,) float32 of unit RMS: a band an octave wide, a fast attack, a decay by 40 dB."""
    length = clock.nearest_sample(float(rng.uniform(_SHORTEST, _LONGEST)))
    centre = float(np.exp(rng.uniform(np.log(_LOWEST_HZ), np.log(_HIGHEST_HZ))))
    spectrum = np.fft.rfft(rng.standard_normal(length, dtype=np.float32))
    octaves = np.log2(np.maximum(np.fft.rfftfreq(length, 1.0 / clock.sample_rate), 1.0) / centre)
    noise = np.fft.irfft(spectrum * np.exp(-0.5 * np.square(octaves / 0.5)).astype(np.float32), length)
    t = np.arange(length, dtype=np.float32)
    envelope = np.minimum(1.0, t / (_ATTACK * clock.sample_rate)) * np.exp(-4.6 * t / length)
    shaped = noise * envelope.astype(np.float32)
    return shaped / np.float32(np.sqrt(np.mean(np.square(shaped, dtype=np.float64))))
