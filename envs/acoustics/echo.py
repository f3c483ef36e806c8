"""The agent's own voice in the user's microphone: loudspeaker, air, and what an echo canceller leaves of it.

What is played is distorted by a small loudspeaker, arrives `delay_ms` later through a room and is `return_loss_db`
quieter. A canceller takes `cancel_db` off the undistorted part once it has converged: while the agent is heard, the
attenuation in dB approaches `cancel_db` exponentially with the time constant `converge_s`, from none. It cannot take
off the distortion, which is why loud echo comes through in practice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from envs.acoustics.convolution import Convolution, Delay
from envs.clock import CLOCK, Clock

_AUDIBLE = 10.0 ** (-50.0 / 20.0)  # RMS of a frame: below it a canceller has nothing to learn from


@dataclass(frozen=True)
class Echo:
    """An echo path."""

    return_loss_db: float = 12.0
    """How much quieter than what the agent plays, before cancellation."""
    delay_ms: float = 40.0
    """From playing to the first sound in the microphone."""
    tail_ms: float = 100.0
    """Length of the response where there is no room: a decaying noise, 60 dB down at its end."""
    nonlinear: float = 0.0
    """Share of the loudspeaker's signal that is distorted (soft clipping); no canceller takes that off."""
    cancel_db: float = 0.0
    """Attenuation of the canceller when it has converged (ERLE); 0: no canceller."""
    converge_s: float = 0.0
    """Time constant of its convergence, in seconds of agent speech."""


def synthetic_path(tail_ms: float, rng: np.random.Generator, clock: Clock = CLOCK) -> np.ndarray:
    """A response (n,) of unit energy: the direct sound at sample 0, and noise that decays by 60 dB."""
    length = max(1, round(tail_ms * clock.sample_rate / 1000.0))
    noise = rng.standard_normal(length) * 10.0 ** (-3.0 * np.arange(length) / length)
    tail = noise * np.sqrt(0.5 / max(np.sum(np.square(noise)), 1e-12))
    tail[0] = math.sqrt(0.5)  # half of the energy comes straight
    return tail / np.sqrt(np.sum(np.square(tail)))


class EchoPath:
    """Played audio in, echo in the microphone out; causal, `delay_samples` late."""

    def __init__(self, echo: Echo, response: np.ndarray, clock: Clock = CLOCK) -> None:
        """`response` comes from `partition`; it has unit energy and its direct sound at sample 0."""
        self.delay_samples = round(echo.delay_ms * clock.sample_rate / 1000.0)
        self._echo = echo
        self._frame_seconds = clock.frame_seconds
        self._delay = Delay(self.delay_samples)
        self._path = Convolution(response)
        self._level = np.float32(10.0 ** (-echo.return_loss_db / 20.0))
        self._active = 0.0  # seconds for which the canceller has heard the agent

    def process(self, played: np.ndarray) -> np.ndarray:
        """(F,) float32 that the loudspeaker plays, to (F,) float32 in the microphone."""
        echo = self._echo
        if not played.any():
            return self._path.process(self._delay.process(played))
        before = self._gain()
        if math.sqrt(float(np.dot(played, played)) / len(played)) > _AUDIBLE:
            self._active += self._frame_seconds
        gain = np.linspace(before, self._gain(), len(played), endpoint=False, dtype=np.float32)
        left = played * (gain * (self._level * np.float32(1.0 - echo.nonlinear)))
        if echo.nonlinear:
            left += np.tanh(3.0 * played) * (self._level * np.float32(echo.nonlinear / 3.0))
        return self._path.process(self._delay.process(left))

    def _gain(self) -> float:
        echo = self._echo
        share = 1.0 - math.exp(-self._active / echo.converge_s) if echo.converge_s else 1.0
        return 10.0 ** (-echo.cancel_db * share / 20.0)
