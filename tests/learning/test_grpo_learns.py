"""GRPO learns to wait through a pause and to speak after the turn; with shuffled rewards it learns nothing."""

from __future__ import annotations

import json

import pytest

from align.trainers.grpo import GrpoConfig
from tests.toy_duplex import FRAMES, toy_run

CONFIG = {
    "iterations": 20,
    "frames": FRAMES,
    "num_groups": 6,
    "num_generations": 16,
    "steps_per_generation": 2,
    "per_device_train_batch_size": 64,
    "learning_rate": 2e-2,
    "beta": 0.001,
    "save_steps": 20,
}


def reward_at_the_end(folder, seed, **changes):
    toy_run(folder, GrpoConfig(**(CONFIG | changes)), seed=seed)
    rewards = [json.loads(line)["reward"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return sum(rewards[-4:]) / 4


@pytest.mark.parametrize("seed", range(3))
def test_grpo_speaks_after_the_pause_and_not_in_it(tmp_path, seed):
    assert reward_at_the_end(tmp_path, seed) > 0.9


def test_uniform_credit_learns_as_well(tmp_path):
    assert reward_at_the_end(tmp_path, 0, credit="uniform", iterations=40) > 0.9


@pytest.mark.parametrize("seed", range(3))
def test_with_shuffled_rewards_nothing_is_learned(tmp_path, seed):
    assert reward_at_the_end(tmp_path, seed, shuffle_rewards=True) < 0.5
