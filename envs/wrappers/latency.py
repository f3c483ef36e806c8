"""A network between the policy and the world (F2 of the taxonomy): both hear each other late."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from envs.acoustics.convolution import Delay
from envs.clock import CLOCK
from envs.errors import UptakeError
from envs.wrappers.base import DuplexWrapper, add_latency

Milliseconds = float | tuple[float, float]


class Latency(DuplexWrapper):
    """Delays what the policy says, and what it hears, to the sample.

    A range is drawn anew for every conversation, from the environment's own generator. Before the first sound comes
    through, the policy hears the first frame backwards, so that a delay cannot be told from digital silence.
    """

    _KEPT = ("_says", "_hears", "_ms")

    def __init__(self, env: gym.Env, to_user_ms: Milliseconds = 0.0, to_agent_ms: Milliseconds = 0.0) -> None:
        """Delays in milliseconds, or ranges to draw them from: on the way to the user and on the way from it."""
        super().__init__(env, to_user_ms=to_user_ms, to_agent_ms=to_agent_ms)
        self._needs_audio()
        self._ranges = _range("to_user_ms", to_user_ms), _range("to_agent_ms", to_agent_ms)
        self._says, self._hears, self._ms = Delay(0), Delay(0), 0.0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start a conversation."""
        obs, info = self.env.reset(seed=seed, options=options)
        out, back = (CLOCK.nearest_sample(float(self.np_random.uniform(*ms)) / 1000.0) for ms in self._ranges)
        self._ms = 1000.0 * CLOCK.seconds(out + back)
        self._says, self._hears = Delay(out), Delay(back, np.resize(obs["mic"][::-1], back))
        return self._heard(obs), add_latency(info, "network_ms", self._ms)

    def step(self, action: Any) -> tuple[dict[str, Any], Any, bool, bool, dict[str, Any]]:
        """Send one frame on its way."""
        obs, reward, terminated, truncated, info = self.env.step(self._says.process(self._audio(action)))
        return self._heard(obs), reward, terminated, truncated, add_latency(info, "network_ms", self._ms)

    def _heard(self, obs: dict[str, Any]) -> dict[str, Any]:
        return {**obs, "mic": self._hears.process(obs["mic"]).copy()}


def _range(name: str, ms: Milliseconds) -> tuple[float, float]:
    low, high = ms if isinstance(ms, (tuple, list)) else (ms, ms)
    if not 0 <= low <= high < 10_000:
        raise UptakeError(f"Latency: {name}={ms}; give milliseconds from 0 to 10000, or (lowest, highest)")
    return float(low), float(high)
