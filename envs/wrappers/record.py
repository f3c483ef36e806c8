"""Every finished conversation on disk: the record, a picture and a stereo file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym

from envs.errors import UptakeError
from envs.look import write_look
from envs.wrappers.base import DuplexWrapper


class Record(DuplexWrapper):
    """Writes `folder/000000`, ... as conversations end; one that is broken off by `reset` is not kept."""

    _KEPT = ("_over",)

    def __init__(self, env: gym.Env, folder: str | Path, every: int = 1) -> None:
        """`folder` must not exist or be empty; one conversation in `every` is kept."""
        super().__init__(env, folder=folder, every=every)
        if not hasattr(env.unwrapped, "episode"):
            raise UptakeError("Record: the environment has no episode() that gives a record")
        if every < 1:
            raise UptakeError(f"Record: every={every}; give 1 or more")
        self._folder, self._every, self._done = Path(folder), every, 0
        self._over = False
        if self._folder.exists() and (not self._folder.is_dir() or any(self._folder.iterdir())):
            raise UptakeError(f"{folder}: exists already and is not an empty folder; name a new one")

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start a conversation."""
        self._over = False
        return self.env.reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[dict[str, Any], Any, bool, bool, dict[str, Any]]:
        """Play one frame; write the conversation if it ends here."""
        obs, reward, terminated, truncated, info = self.env.step(action)
        if (terminated or truncated) and not self._over:
            self._over = True
            self._keep()
        return obs, reward, terminated, truncated, info

    def _keep(self) -> None:
        if self._done % self._every == 0:
            episode = self.env.unwrapped.episode()  # type: ignore[attr-defined]
            folder = episode.save(self._folder / f"{self._done:06d}")
            write_look(episode, folder)
        self._done += 1
