"""PPO learns to wait through a pause and to speak after the turn; with shuffled rewards it learns nothing."""

from __future__ import annotations

import json

import pytest

from align.trainers.ppo_config import PpoConfig
from tests.toy_duplex import FRAMES, toy_run

CONFIG = {
    "iterations": 14,
    "frames": FRAMES,
    "train_batch_size": 96,
    "num_mini_batches": 3,
    "num_ppo_epochs": 2,
    "per_device_train_batch_size": 96,
    "learning_rate": 3e-2,
    "vf_coef": 0.5,
    "cliprange_value": None,
    "kl_coef": 0.0,
    "save_steps": 20,
}


def at_the_end(folder, seed, **changes):
    """Reward, explained variance, and KL where there is one, means of the last four iterations."""
    toy_run(folder, PpoConfig(**(CONFIG | changes)), seed=seed)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()][-4:]
    names = ("reward", "value/explained_variance", "kl")
    return [sum(line.get(name, float("nan")) for line in lines) / 4 for name in names]


@pytest.mark.parametrize("seed", range(3))
def test_ppo_speaks_after_the_pause_and_not_in_it_and_knows_what_to_expect(tmp_path, seed):
    reward, explained, _ = at_the_end(tmp_path, seed)
    assert reward > 0.95
    assert explained > 0.8


@pytest.fixture(scope="module")
def free(tmp_path_factory):
    """A run whose KL is measured and costs next to nothing."""
    return at_the_end(tmp_path_factory.mktemp("free"), 0, kl_coef=1e-9)


@pytest.mark.parametrize("place", [{"kl_estimator": "exact"}, {"kl_estimator": "k1", "use_kl_in_reward": True}])
def test_a_kl_keeps_a_policy_near_its_start_in_the_loss_as_in_the_reward(free, tmp_path, place):
    assert at_the_end(tmp_path, 0, kl_coef=1.0, **place)[2] < free[2] / 5


@pytest.mark.parametrize("seed", range(3))
def test_with_shuffled_rewards_nothing_is_learned(tmp_path, seed):
    assert at_the_end(tmp_path, seed, shuffle_rewards=True)[0] < 0.5
