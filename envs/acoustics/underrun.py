"""An agent that is slower than its frames: what it has not computed in time is not played, and the user hears a gap.

Only what the user hears is concerned, and the agent's echo: the agent's own track stays what it sent.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from envs.acoustics.packets import gilbert_elliott
from envs.clock import CLOCK, Clock

LATE_IN_BURST = 0.9


@dataclass(frozen=True)
class Underrun:
    """How often the agent misses its deadline."""

    share: float = 0.1
    """Share of its frames that come too late to be played."""
    burst_ms: float = 160.0
    """Mean length of the spells in which they do: one slow step delays the next."""


class Deadline:
    """The way from the agent to the loudspeaker, which waits for nobody."""

    def __init__(self, underrun: Underrun, samples: int, rng: np.random.Generator, clock: Clock = CLOCK) -> None:
        frames = samples // clock.frame
        burst = underrun.burst_ms / 1000.0 / clock.frame_seconds
        self._late = gilbert_elliott(frames, underrun.share, burst, LATE_IN_BURST, rng)
        self._late.setflags(write=False)
        self._next = 0

    @property
    def missed(self) -> float:
        """Share of the conversation's frames that are late."""
        return float(np.mean(self._late))

    def process(self, frame: np.ndarray) -> np.ndarray:
        """(F,) float32: the frame, or silence where it is late."""
        late = bool(self._late[self._next]) if self._next < len(self._late) else False
        self._next += 1
        return np.zeros_like(frame) if late else frame
