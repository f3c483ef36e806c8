"""One conversation as a `gymnasium.Env`: a view of row 0 of the batched environment, so both are the same simulator."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from envs.acoustics.config import Acoustics
from envs.duplex_vector_env import DuplexVectorEnv
from envs.episode import Episode
from envs.errors import UptakeError
from envs.event import Event, Word
from envs.pack import Pack


class DuplexEnv(gym.Env):
    """Observation: dict with `mic` (F,) float32; action: (F,) float32. See `DuplexVectorEnv` for time and ends."""

    metadata: dict[str, Any] = {"render_modes": []}

    def __init__(
        self,
        pack: Pack | str | Path = "core",
        split: str = "train",
        frames: int = 150,
        score: Callable[[Episode], float] | None = None,
        acoustics: str | Path | Mapping[str, Any] | Acoustics | None = None,
    ) -> None:
        """As `DuplexVectorEnv`, for one conversation."""
        self.vector = DuplexVectorEnv(pack, 1, split, frames, score, acoustics)
        self.observation_space = self.vector.single_observation_space
        self.action_space = self.vector.single_action_space

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Start a conversation; `options` may hold `scenario` (id) and `variant` (int)."""
        super().reset(seed=seed)
        if options and "reset_mask" in options:
            raise UptakeError("reset: 'reset_mask' belongs to the batched environment; leave it out here")
        obs, info = self.vector.reset(seed=seed, options=options)
        return {"mic": obs["mic"][0]}, _single(info)

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """Play one frame (F,) and hear the next."""
        obs, reward, terminated, truncated, info = self.vector.step(np.asarray(action, np.float32)[None])
        return {"mic": obs["mic"][0]}, float(reward[0]), bool(terminated[0]), bool(truncated[0]), _single(info)

    def episode(self, transcript: Sequence[Word] = ()) -> Episode:
        """The record so far."""
        return self.vector.episode(0, transcript)

    def privileged(self) -> tuple[Event, ...]:
        """What is settled about this conversation, the future included: for scripted oracles, never for a policy."""
        return self.vector.privileged(0)

    def get_state(self) -> dict[str, Any]:
        """A copy of everything that `set_state` needs to continue exactly from here."""
        return self.vector.get_state()

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue from what `get_state` returned."""
        self.vector.set_state(state)


def _single(info: dict[str, Any]) -> dict[str, Any]:
    """What a batch of one says about its only row."""
    single = {key: value[0] if isinstance(value, np.ndarray) else value for key, value in info.items()}
    return {key: _single(value) if isinstance(value, dict) else value for key, value in single.items()}
