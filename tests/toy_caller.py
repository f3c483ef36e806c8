"""A user who pauses before the turn is over, behind the part of the real interfaces that a trainer uses."""

from __future__ import annotations

import numpy as np

from envs.clock import CLOCK
from envs.episode import Episode
from rewards.compose import term_values
from rewards.verdict import Verdict

FRAMES = 40
PAUSE, TURN = (8, 14), (20, 27)
"""Frames in which to be silent, and in which to speak."""


class Caller:
    """The part of `DuplexVectorEnv` that a rollout uses: somebody speaks, pauses for 0.48 s, goes on, and is done."""

    def __init__(self, num_envs: int) -> None:
        self.num_envs = num_envs
        noise = np.random.default_rng(0).normal(0, 0.1, (FRAMES + 1, CLOCK.frame)).astype(np.float32)
        noise[PAUSE[0] : PAUSE[1]] = 0
        noise[TURN[0] - 3 :] = 0
        self._user = noise

    def reset(self, *, seed, options):
        self._agent = np.zeros((self.num_envs, FRAMES + 1, CLOCK.frame), np.float32)
        self._at = 0
        return self._mic(), {}

    def _mic(self):
        return {"mic": np.repeat(self._user[self._at][None], self.num_envs, 0)}

    def step(self, actions):
        self._at += 1
        self._agent[:, self._at] = actions
        over = np.full(self.num_envs, self._at >= FRAMES)
        return self._mic(), np.zeros(self.num_envs), np.zeros_like(over), over, {}

    def episode(self, row, transcript=()):
        user = self._user.reshape(-1)
        return Episode(user, user, self._agent[row].reshape(-1), [], transcript, {})


class Judge:
    """Silence in the pause, speech after the turn; a constant policy gets 0."""

    weights = {"patience": 1.0, "answer": 1.0}
    terms = weights
    schedules = {}

    def at(self, iteration):
        return self

    def score(self, episode):
        speaks = np.abs(episode.agent).reshape(-1, CLOCK.frame).max(1) > 1e-3
        values = {"patience": -1.0 if speaks[slice(*PAUSE)].any() else 1.0,
                  "answer": 1.0 if speaks[slice(*TURN)].any() else -1.0}  # fmt: skip
        windows = {"patience": PAUSE, "answer": TURN}
        return [
            Verdict(value, (windows[name][0] * CLOCK.frame, windows[name][1] * CLOCK.frame), {}, name, name)
            for name, value in values.items()
        ]

    def start(self, episode):
        return lambda: self.score(episode)

    def total(self, verdicts):
        values = [value for value in term_values(verdicts).values() if value is not None]
        return sum(values) / len(values)
