"""The one clock. Time is counted in samples; seconds and frames are views of it, and only this file converts."""

from __future__ import annotations

import math
from dataclasses import dataclass

from envs.errors import UptakeError

# Seconds that come out of decimal text (0.08, 1.2) are this close to a whole sample when they are meant to be on one.
_GRID_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Clock:
    """A sample rate and a frame length. Nothing here rounds unless its name says so."""

    sample_rate: int = 24000
    """Samples a second."""
    frame: int = 1920
    """Samples a frame: the step of every environment and policy (80 ms at the default rate)."""

    def __post_init__(self) -> None:
        if self.sample_rate <= 0 or self.frame <= 0:
            raise UptakeError(f"clock: sample_rate={self.sample_rate}, frame={self.frame}; both must be positive")

    @property
    def frame_seconds(self) -> float:
        """Seconds a frame."""
        return self.frame / self.sample_rate

    def seconds(self, samples: int) -> float:
        """Seconds of a number of samples."""
        return float(samples) / self.sample_rate

    def samples(self, seconds: float) -> int:
        """Samples of a duration that lies on the sample grid; raises `UptakeError` if it does not."""
        exact = seconds * self.sample_rate
        nearest = round(exact) if math.isfinite(exact) else 0
        if not math.isfinite(exact) or abs(exact - nearest) > _GRID_TOLERANCE * max(1.0, abs(exact)):
            raise UptakeError(
                f"{seconds} s is {exact:.6f} samples at {self.sample_rate} Hz, not a whole number; "
                "use nearest_sample() to round"
            )
        return nearest

    def nearest_sample(self, seconds: float) -> int:
        """The sample nearest to a time in seconds: the explicit rounding."""
        if not math.isfinite(seconds):
            raise UptakeError(f"{seconds} s is not a time; give a finite number of seconds")
        return round(seconds * self.sample_rate)

    def frames(self, samples: int) -> int:
        """Frames of a number of samples that is a multiple of the frame; raises `UptakeError` if it is not."""
        whole, rest = divmod(int(samples), self.frame)
        if rest:
            raise UptakeError(
                f"{samples} samples is not a multiple of the frame ({self.frame}); use frames_covering() or frame_of()"
            )
        return whole

    def frame_of(self, sample: int) -> int:
        """The frame that contains a sample."""
        return int(sample) // self.frame

    def frames_covering(self, samples: int) -> int:
        """The least number of frames that hold so many samples."""
        return -(-int(samples) // self.frame)

    def sample_of(self, frame: int) -> int:
        """The first sample of a frame."""
        return int(frame) * self.frame


CLOCK = Clock()
"""24 kHz, 80 ms frames: the clock of Mimi, Moshi and every pack in this repository."""
