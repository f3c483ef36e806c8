"""What the user says in words, for cascades and debugging. It is the truth of the scenario, not recognition."""

from __future__ import annotations

import string
from typing import Any

import gymnasium as gym

from envs.clock import CLOCK
from envs.errors import UptakeError
from envs.wrappers.base import DuplexWrapper

_LONGEST = 200  # characters a frame


class Transcript(DuplexWrapper):
    """Adds `text` to the observation: the user's words that were over within the frame, `delay_s` later."""

    _KEPT = ("_frame",)

    def __init__(self, env: gym.Env, delay_s: float = 0.0) -> None:
        """`delay_s`: how much later than the end of a word a recogniser would have it."""
        super().__init__(env, delay_s=delay_s)
        if not hasattr(env.unwrapped, "privileged"):
            raise UptakeError("Transcript: the environment has no privileged(); only a simulated user knows its words")
        if delay_s < 0:
            raise UptakeError(f"Transcript: delay_s={delay_s}; nobody knows a word before it is over")
        self._delay = CLOCK.nearest_sample(delay_s)
        self._frame = 0
        pack = getattr(getattr(env.unwrapped, "vector", None), "pack", None)
        texts = "".join(clip.text for clip in pack.clips()) if pack else ""
        self._known = frozenset(string.printable + texts)
        text = gym.spaces.Text(_LONGEST, min_length=0, charset="".join(sorted(self._known)))
        self.observation_space = gym.spaces.Dict({**self.env.observation_space.spaces, "text": text})  # type: ignore[attr-defined]

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start a conversation."""
        obs, info = self.env.reset(seed=seed, options=options)
        self._frame = 0
        return {**obs, "text": self._text()}, info

    def step(self, action: Any) -> tuple[dict[str, Any], Any, bool, bool, dict[str, Any]]:
        """Play one frame."""
        obs, reward, terminated, truncated, info = self.env.step(action)
        self._frame += 1
        return {**obs, "text": self._text()}, reward, terminated, truncated, info

    def _text(self) -> str:
        """Words, each once, whose end lies in the present frame; a character that no clip has becomes a `?`."""
        first = self._frame * CLOCK.frame - self._delay
        events = self.env.unwrapped.privileged()  # type: ignore[attr-defined]
        words = {word for event in events if event.source == "user" for word in event.words}
        over = [word for word in words if first < word.offset <= first + CLOCK.frame]
        text = " ".join(word.text for word in sorted(over, key=lambda word: (word.offset, word.onset)))
        return "".join(c if c in self._known else "?" for c in text)[:_LONGEST]
