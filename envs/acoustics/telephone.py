"""The telephone: 300 to 3,400 Hz at 8 kHz, and G.711 mu-law.

Two linear-phase filters, one before and one after the narrow band, so everything is exactly `DELAY` samples late.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from envs.acoustics.convolution import Convolution, partition
from envs.clock import CLOCK, Clock
from envs.episode import from_pcm16, to_pcm16
from envs.errors import UptakeError

_BAND = (300.0, 3400.0)
_NARROW_RATE = 8000
_BAND_TAPS, _UP_TAPS = 241, 121  # 60 dB of stopband from 100 Hz below the lower and 600 Hz above the upper edge
_KAISER_BETA = 5.65
DELAY = (_BAND_TAPS - 1) // 2 + (_UP_TAPS - 1) // 2
"""Samples at 24 kHz: 7.5 ms."""


@dataclass(frozen=True)
class Telephone:
    """A narrow band and what it is coded with."""

    codec: str = "g711u"
    """`g711u` (mu-law, 64 kbit/s) or `none` (the band alone)."""


def _lowpass(cutoff: float, taps: int, rate: int) -> np.ndarray:
    t = np.arange(taps) - (taps - 1) / 2
    response = 2 * cutoff / rate * np.sinc(2 * cutoff / rate * t) * np.kaiser(taps, _KAISER_BETA)
    return response / response.sum()


@cache
def mu_law() -> np.ndarray:
    """What G.711 mu-law makes of each 16-bit sample: (65536,) int16, indexed by the sample's bits as uint16."""
    sample = np.arange(65536, dtype=np.uint16).view(np.int16).astype(np.int64)
    magnitude = np.minimum(np.abs(sample), 32635) + 132
    exponent = np.floor(np.log2(magnitude)).astype(np.int64) - 7
    mantissa = (magnitude >> (exponent + 3)) & 15
    decoded = (((mantissa << 3) + 132) << exponent) - 132
    table = np.where(sample < 0, -decoded, decoded).astype(np.int16)
    table.setflags(write=False)
    return table


class TelephoneLine:
    """Wideband in, what comes out of a telephone out."""

    delay_samples = DELAY

    def __init__(self, telephone: Telephone, clock: Clock = CLOCK) -> None:
        self._ratio, rest = divmod(clock.sample_rate, _NARROW_RATE)
        if rest or clock.frame % self._ratio:
            raise UptakeError(f"telephone: {clock.sample_rate} Hz in frames of {clock.frame} is no multiple of 8 kHz")
        low, high = (_lowpass(cutoff, _BAND_TAPS, clock.sample_rate) for cutoff in _BAND)
        self._band = Convolution(partition(high - low, clock.frame))
        up = _lowpass(_BAND[1] + 300.0, _UP_TAPS, clock.sample_rate) * self._ratio
        self._up = Convolution(partition(up, clock.frame))
        self._codec = telephone.codec

    def process(self, frame: np.ndarray) -> np.ndarray:
        """(F,) float32 to (F,) float32, `DELAY` samples late."""
        narrow = self._band.process(frame)[:: self._ratio]
        if self._codec == "g711u":
            narrow = from_pcm16(mu_law()[to_pcm16(narrow).view(np.uint16)])
        wide = np.zeros_like(frame)
        wide[:: self._ratio] = narrow
        return self._up.process(wide)
