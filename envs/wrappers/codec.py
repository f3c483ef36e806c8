"""A policy that hears and speaks codes: observation `codes`, action codes."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from envs.actions import Tokens, find_codec
from envs.codec import Codec
from envs.wrappers.base import DuplexWrapper


class CodecTokens(DuplexWrapper):
    """Observation: dict with `codes` (Q,) in place of `mic`; action: codes (Q,) of the same codec."""

    _KEPT = ("_ear",)

    def __init__(self, env: gym.Env, codec: str | Codec) -> None:
        """`codec` has the methods of `envs.codec.Codec`, or is ``package.module:function`` that gives one."""
        super().__init__(env, codec=codec)
        self._needs_audio()
        self.codec = find_codec(codec, "codec")
        self._mouth = Tokens(self.codec, 1)
        self._ear = self.codec.init_state(1)
        self.action_space = self._mouth.single_space
        spaces = dict(self.env.observation_space.spaces)  # type: ignore[attr-defined]
        del spaces["mic"]
        codes = gym.spaces.MultiDiscrete([self.codec.card] * self.codec.codebooks)
        self.observation_space = gym.spaces.Dict({**spaces, "codes": codes})

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start a conversation."""
        obs, info = self.env.reset(seed=seed, options=options)
        self.codec.reset(self._ear, np.array([0]))
        self._mouth.reset([0])
        return self._heard(obs), info

    def step(self, action: Any) -> tuple[dict[str, Any], Any, bool, bool, dict[str, Any]]:
        """Say one frame of codes."""
        audio = self._mouth.speak(self._mouth.check(np.asarray(action)[None]))[0]
        obs, reward, terminated, truncated, info = self.env.step(audio)
        return self._heard(obs), reward, terminated, truncated, info

    def _heard(self, obs: dict[str, Any]) -> dict[str, Any]:
        rest = {name: value for name, value in obs.items() if name != "mic"}
        return {**rest, "codes": self.codec.encode(self._ear, obs["mic"][None])[0]}

    def get_state(self) -> dict[str, Any]:
        """A copy of everything that `set_state` needs to continue exactly from here."""
        return {**super().get_state(), "mouth": self._mouth.get_state()}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue from what `get_state` returned."""
        super().set_state(state)
        self._mouth.set_state(state["mouth"])
