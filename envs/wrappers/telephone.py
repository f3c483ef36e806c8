"""A telephone between the policy and the world, both ways: 300 to 3,400 Hz, mu-law (`envs.acoustics.telephone`)."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from envs.acoustics.telephone import Telephone, TelephoneLine
from envs.clock import CLOCK
from envs.errors import UptakeError
from envs.wrappers.base import DuplexWrapper, add_latency

_CODECS = ("g711u", "none")


class TelephoneCall(DuplexWrapper):
    """What is heard and what is said is narrow and 7.5 ms late each way. The record has what the user's side sent."""

    _KEPT = ("_says", "_hears")

    def __init__(self, env: gym.Env, codec: str = "g711u") -> None:
        """`codec`: `g711u`, or `none` for the band alone."""
        super().__init__(env, codec=codec)
        self._needs_audio()
        if codec not in _CODECS:
            raise UptakeError(f"TelephoneCall: codec {codec!r} is none of {', '.join(_CODECS)}")
        self._codec = codec
        self._begin()

    def _begin(self) -> None:
        self._says, self._hears = (TelephoneLine(Telephone(self._codec)) for _ in range(2))
        self._ms = 1000.0 * CLOCK.seconds(self._says.delay_samples + self._hears.delay_samples)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start a conversation."""
        obs, info = self.env.reset(seed=seed, options=options)
        self._begin()
        return self._heard(obs), add_latency(info, "telephone_ms", self._ms)

    def step(self, action: Any) -> tuple[dict[str, Any], Any, bool, bool, dict[str, Any]]:
        """Say one frame into the telephone."""
        said = np.clip(self._says.process(self._audio(action)), -1.0, 1.0).astype(np.float32)
        obs, reward, terminated, truncated, info = self.env.step(said)
        return self._heard(obs), reward, terminated, truncated, add_latency(info, "telephone_ms", self._ms)

    def _heard(self, obs: dict[str, Any]) -> dict[str, Any]:
        return {**obs, "mic": np.clip(self._hears.process(obs["mic"]), -1.0, 1.0).astype(np.float32)}
