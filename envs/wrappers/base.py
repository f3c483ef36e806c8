"""What the wrappers have in common: they ask for audio, remember how they were made, and can be copied mid-way."""

from __future__ import annotations

import copy
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.utils import RecordConstructorArgs

from envs.clock import CLOCK
from envs.errors import UptakeError


class DuplexWrapper(gym.Wrapper, RecordConstructorArgs):
    """A wrapper whose state is the attributes named in `_KEPT`."""

    _KEPT: tuple[str, ...] = ()

    def __init__(self, env: gym.Env, **arguments: Any) -> None:
        RecordConstructorArgs.__init__(self, **arguments)
        gym.Wrapper.__init__(self, env)

    def get_state(self) -> dict[str, Any]:
        """A copy of everything that `set_state` needs to continue exactly from here."""
        inner = self.env.get_wrapper_attr("get_state")()
        return {"env": inner, **{name: copy.deepcopy(getattr(self, name)) for name in self._KEPT}}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue from what `get_state` returned."""
        self.env.get_wrapper_attr("set_state")(state["env"])
        for name in self._KEPT:
            setattr(self, name, copy.deepcopy(state[name]))

    def _needs_audio(self) -> None:
        """Raise unless actions and `mic` are frames of the clock."""
        spaces = self.env.observation_space
        mic = spaces.spaces.get("mic") if isinstance(spaces, gym.spaces.Dict) else None
        for what, space in (("action", self.env.action_space), ("observation 'mic'", mic)):
            if not isinstance(space, gym.spaces.Box) or space.shape != (CLOCK.frame,):
                raise UptakeError(
                    f"{type(self).__name__}: {what} is {space}, expected a Box ({CLOCK.frame},): a frame of audio; "
                    "put this wrapper inside of those that change it, and act='pcm' below it"
                )

    def _audio(self, action: Any) -> np.ndarray:
        """An action as (n,) floats of this wrapper's space; what else is wrong with it the environment says."""
        assert self.action_space.shape is not None
        audio = np.asarray(action)
        if audio.shape != self.action_space.shape or audio.dtype.kind != "f" or not np.isfinite(audio).all():
            raise UptakeError(
                f"{type(self).__name__}: action is {audio.dtype} {audio.shape}, expected finite float32 "
                f"{self.action_space.shape}"
            )
        return audio.astype(np.float32, copy=False)


def add_latency(info: dict[str, Any], name: str, ms: float) -> dict[str, Any]:
    """Info whose latency ledger has `ms` more under this name."""
    ledger = dict(info.get("latency_ledger", {}))
    ledger[name] = float(ledger.get(name, 0.0)) + ms
    return {**info, "latency_ledger": ledger}
