"""Whether a sound moves as speech does: between loud and soft, and from one timbre to the next.

Measured on hops of 20 ms that sound: the standard deviation in dB of their level, and of how steep they are (energy of
the second difference over that of the first: low in a vowel, high in an "s"). A hum has neither, a hum that swells has
no timbres, and noise has one, whatever its colour.

| sound | level | timbre |
|---|---|---|
| answers of the packs that ship | 5.5 to 9 | 3.3 to 6 |
| answers of pocket, through its codec | 3.8 to 9 | 2.8 to 6 |
| tones, buzzes; white, pink and brown noise | 0 to 6 | 0 to 0.5 |
| the same, swelling or gated four times a second | 1.7 to 8 | 0 to 0.5 (a gated sine: 10, with a level of 1.7) |
| vibrato, trill, chirp | 0 to 0.1 | 1.2 to 5 |
| a codec that is fed random codes (untrained Mimi) | 1.1 to 1.7 | 0.4 to 0.7 |
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from envs.activity import DEFAULT, levels

HOP_SECONDS = 0.02
FEWEST_HOPS = 3
LEVEL_DB = 2.5
TIMBRE_DB = 1.5
"""What moves less is no speech. Both are two thirds or less of the least that pocket's answers have."""
_NOTHING = 1e-12


@dataclass(frozen=True)
class Modulation:
    """How much a sound moves, in dB (standard deviations)."""

    level: float
    timbre: float

    @property
    def missing(self) -> float:
        """How far it is from moving enough, in [0, 1]: 0 for speech, 1 for a steady tone."""
        return max(0.0, 1.0 - self.level / LEVEL_DB, 1.0 - self.timbre / TIMBRE_DB)


def modulation(audio: np.ndarray, rate: int) -> Modulation:
    """How a sound (N,) float32 moves; not at all if it is shorter than three hops, or broken (NaN, infinite)."""
    hop = round(HOP_SECONDS * rate)
    with np.errstate(invalid="ignore", over="ignore"):  # what is broken gives NaN
        slope = np.diff(audio)
        bend = np.diff(slope)
        hops = bend.size // hop
        power, first, second = (levels(track[: hops * hop], hop) for track in (audio, slope, bend))
        on = power >= 10.0 ** (DEFAULT.off_db / 10.0)
        if np.count_nonzero(on) < FEWEST_HOPS:
            return Modulation(0.0, 0.0)
        level = np.std(10.0 * np.log10(power[on]))
        timbre = np.std(10.0 * np.log10((second[on] + _NOTHING) / (first[on] + _NOTHING)))
    if not (np.isfinite(level) and np.isfinite(timbre)):
        return Modulation(0.0, 0.0)
    return Modulation(float(level), float(timbre))
