"""GRPO moves a cascade's threshold: an endpointer that answers into a pause learns to wait until the turn is over."""

from __future__ import annotations

import json

import numpy as np
import pytest

from align.policies.cascade.head import TurnHead
from align.policies.cascade.policy import CascadePolicy
from align.trainers import grpo
from align.trainers.grpo_config import GrpoConfig
from envs.clock import CLOCK
from envs.episode import Episode
from rewards.compose import term_values
from rewards.verdict import Verdict
from tests.packs import tiny_pack

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


def run(pack, folder, **changes):
    """Rewards of the iterations, and the thresholds before and after."""
    policy = CascadePolicy(pack, TurnHead(0.25, 0.3), response_s=0.0)
    before = policy.model.thresholds_s()
    config = GrpoConfig(
        **({
            "iterations": 10, "frames": FRAMES, "num_groups": 1, "num_generations": 24, "steps_per_generation": 2,
            "per_device_train_batch_size": 24, "learning_rate": 0.15, "beta": 0.0, "save_steps": 10,
        } | changes)
    )  # fmt: skip
    grpo.train(config, policy, Caller, {"turn": ["call"]}, Judge(), folder, seed=0)
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["reward"] for line in lines], before, policy, folder


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    return tiny_pack(tmp_path_factory.mktemp("packs"))


def test_a_hasty_endpointer_learns_to_wait_and_its_threshold_rises(pack, tmp_path):
    rewards, before, policy, folder = run(pack, tmp_path)
    assert sum(rewards[:2]) / 2 < 0.4
    assert sum(rewards[-2:]) / 2 > sum(rewards[:2]) / 2 + 0.3
    after = policy.model.thresholds_s()
    assert after[0] > before[0] + 0.1
    exported = CascadePolicy.load(folder / "policy")
    assert exported.model.thresholds_s() == pytest.approx(after)


def test_with_shuffled_rewards_it_stays_hasty(pack, tmp_path):
    rewards, *_ = run(pack, tmp_path, shuffle_rewards=True)
    assert sum(rewards[-2:]) / 2 < 0.5
