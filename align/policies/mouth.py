"""The voice of one row of a policy that speaks in whole utterances: clips of a pack, or anything with sound."""

from __future__ import annotations

import copy

import numpy as np

from envs.agents import ScriptedAgent, Sound
from envs.clock import CLOCK


class Mouth(ScriptedAgent):
    """Says what it is told to, a frame a call; it stops with a fade and knows which words were said."""

    def __init__(self) -> None:
        super().__init__(1)
        self._told = 0

    def begin(self, sound: Sound, frames: int = 0) -> None:
        """Say something from the next frame on, or so many frames later."""
        now = int(self.now[0]) + CLOCK.frame
        self.say(0, sound, now + CLOCK.sample_of(frames))

    def stop(self) -> None:
        """Be silent from the next frame on, and forget what was to come."""
        self.hush(0, int(self.now[0]) + CLOCK.frame)

    @property
    def talking(self) -> bool:
        """Whether something is being said, or about to be."""
        return self.busy_until(0) > int(self.now[0]) + CLOCK.frame

    @property
    def begun(self) -> bool:
        """Whether what is being said has begun to sound."""
        return self.talking and self._said[0][-1].start < int(self.now[0]) + CLOCK.frame

    @property
    def talked(self) -> int:
        """Samples since what is being said began to sound; 0 when nothing sounds."""
        return int(self.now[0]) + CLOCK.frame - self._said[0][-1].start if self.begun else 0

    def frame(self) -> tuple[np.ndarray, str]:
        """The next frame (F,) and the words that begin in it, each with a leading space."""
        audio = self.act(np.zeros((1, CLOCK.frame), np.float32))[0]
        words = self.transcript(0)
        new, self._told = words[self._told :], len(words)
        return audio, "".join(f" {word.text}" for word in new)

    def fork(self) -> Mouth:
        """A copy that goes on by itself; sounds are shared."""
        other = copy.copy(self)
        other.now = self.now.copy()
        other._said = [[copy.copy(said) for said in self._said[0]]]
        return other
