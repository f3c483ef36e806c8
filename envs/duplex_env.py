"""One conversation as a `gymnasium.Env`: a view of row 0 of the batched environment, so both are the same simulator."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from envs.acoustics.config import Acoustics
from envs.clock import CLOCK
from envs.codec import Codec
from envs.duplex_vector_env import DuplexVectorEnv
from envs.episode import Episode
from envs.errors import UptakeError
from envs.event import Event, Word
from envs.pack import Pack


class DuplexEnv(gym.Env):
    """Observation: dict with `mic` (F,) float32, or as `obs` says; action: as `act` says. Time and ends are those of
    `DuplexVectorEnv`."""

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 1.0 / CLOCK.frame_seconds}

    def __init__(
        self,
        pack: Pack | str | Path = "core",
        split: str = "train",
        frames: int = 150,
        score: Callable[[Episode], float] | None = None,
        acoustics: str | Path | Mapping[str, Any] | Acoustics | None = None,
        act: str | Codec = "pcm",
        privileged: bool = False,
        users: str | Path = "",
        render_mode: str | None = None,
        obs: str | Codec = "pcm",
    ) -> None:
        """As `DuplexVectorEnv`, for one conversation."""
        self.vector = DuplexVectorEnv(
            pack, 1, split, frames, score, acoustics, act, privileged=privileged, users=users,
            render_mode=render_mode, obs=obs,
        )  # fmt: skip
        self.render_mode = render_mode
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
        return {name: value[0] for name, value in obs.items()}, _single(info)

    def step(self, action: Any) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """Play one frame and hear the next."""
        obs, reward, terminated, truncated, info = self.vector.step(np.asarray(action)[None])
        heard = {name: value[0] for name, value in obs.items()}
        return heard, float(reward[0]), bool(terminated[0]), bool(truncated[0]), _single(info)

    def render(self) -> np.ndarray | None:
        """A picture (height, width, 3) uint8 of the conversation so far; None without a `render_mode`."""
        pictures = self.vector.render()
        return None if pictures is None else pictures[0]

    def episode(self, transcript: Sequence[Word] | None = None) -> Episode:
        """The record so far."""
        return self.vector.episode(0, transcript)

    def privileged(self) -> tuple[Event, ...]:
        """What is settled about this conversation, the future included: for scripted oracles, never for a policy."""
        return self.vector.privileged(0)

    def twins(self) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        """Options for `reset` of pairs of conversations that are the same up to one moment."""
        scenarios = {scenario.id: scenario for scenario in self.vector.pack.scenarios(self.vector.split)}
        pairs = [(one.id, one.twin) for one in scenarios.values() if one.twin in scenarios and one.id < str(one.twin)]
        return [({"scenario": one, "variant": 0}, {"scenario": other, "variant": 0}) for one, other in pairs]

    def unmoved(self) -> dict[str, Any] | None:
        """Options for `reset` of a conversation that ignores the agent; None where there is none."""
        if "echo" in self.vector.acoustics.effects:
            return None
        for scenario in self.vector.pack.scenarios(self.vector.split):
            listens = any(item.trigger.agent for item in scenario.script)
            if scenario.driver == "script" and scenario.acoustics is None and not listens:
                return {"scenario": scenario.id, "variant": 0}
        return None

    def fork(self) -> DuplexEnv:
        """Another environment that continues exactly from where this one stands; each then goes its own way."""
        vector = self.vector
        twin = DuplexEnv(
            vector.pack, vector.split, vector.frames, vector.score, vector.acoustics, vector.act, vector.tells,
            render_mode=self.render_mode, obs=vector.obs,
        )  # fmt: skip
        twin.spec, twin._np_random = self.spec, copy.deepcopy(self._np_random)
        twin.set_state(self.get_state())
        return twin

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
