"""GRPO and every member of its family learn to wait through a pause and to speak after the turn, which earns 1; with
shuffled rewards, or with a voice that is left out of the objective, that is not learned."""

from __future__ import annotations

import json

import pytest

from align.trainers.grpo import GrpoConfig
from tests.toy_duplex import FRAMES, ToyPolicy, toy_run

CONFIG = {
    "iterations": 16,
    "frames": FRAMES,
    "num_groups": 6,
    "num_generations": 16,
    "steps_per_generation": 2,
    "per_device_train_batch_size": 64,
    "learning_rate": 4e-2,
    "beta": 0.001,
    "save_steps": 20,
}
# As docs/training.md has them.
GSPO = {"importance_sampling_level": "sequence", "loss_type": "grpo", "epsilon": 3e-4, "epsilon_high": 4e-4}
FAMILY = {
    "as published for speech": {"credit": "uniform", "loss_type": "grpo"},
    "Dr. GRPO": {"loss_type": "dr_grpo", "scale_rewards": "none"},
    "DAPO": {"loss_type": "dapo", "epsilon_high": 0.28, "beta": 0.0, "max_num_gen_batches": 4},
    "GSPO": GSPO,
    "RLOO": {
        "baseline": "leave_one_out", "scale_rewards": "none", "loss_type": "dr_grpo", "use_kl_in_reward": True,
        "kl_estimator": "k1",
    },
    "REINFORCE++": {
        "baseline": "none", "scale_rewards": "none", "credit": "uniform", "normalize_advantages": True,
        "use_kl_in_reward": True, "kl_estimator": "k1",
    },
    "CISPO": {"loss_type": "cispo", "epsilon_high": 5.0},
    "whether to speak": {"streams": "speak"},
}  # fmt: skip


def reward_at_the_end(folder, seed, voice=False, **changes):
    toy_run(folder, GrpoConfig(**(CONFIG | changes)), seed=seed, policy=ToyPolicy(seed, voice))
    rewards = [json.loads(line)["reward"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return sum(rewards[-4:]) / 4


@pytest.mark.parametrize("seed", range(3))
def test_grpo_speaks_after_the_pause_and_not_in_it(tmp_path, seed):
    assert reward_at_the_end(tmp_path, seed) > 0.95


@pytest.mark.parametrize("seed", range(3))
def test_with_shuffled_rewards_nothing_is_learned(tmp_path, seed):
    assert reward_at_the_end(tmp_path, seed, shuffle_rewards=True) < 0.5


@pytest.mark.parametrize("member", FAMILY)
def test_every_member_of_the_family_learns_it_as_well(tmp_path, member):
    assert reward_at_the_end(tmp_path, 0, **FAMILY[member]) > 0.95


@pytest.mark.parametrize("level", ["token", "frame", "stream", "sequence"])
def test_words_and_voice_are_learned_together_whatever_shares_a_ratio(tmp_path, level):
    narrow = {"epsilon": 3e-4, "epsilon_high": 4e-4} if level in ("stream", "sequence") else {}
    ends = reward_at_the_end(tmp_path, 0, voice=True, streams="all", importance_sampling_level=level, **narrow)
    assert ends > 0.95


def test_a_voice_that_is_left_out_of_the_objective_is_not_learned(tmp_path):
    assert reward_at_the_end(tmp_path, 0, voice=True, streams="text") < 0.6
