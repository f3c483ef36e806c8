"""PPO from start to end on a toy conversation: resume, the value head, both places of the KL, faults."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from align import curriculum
from align.alarms import AlarmConfig
from align.trainers import ppo
from align.trainers.ppo_config import PpoConfig
from envs.errors import UptakeError
from tests.toy_duplex import FRAMES, SCENARIOS, ToyEnv, ToyJudge, ToyPolicy, toy_run

CONFIG = PpoConfig(
    iterations=4,
    frames=FRAMES,
    train_batch_size=12,
    num_mini_batches=2,
    num_ppo_epochs=2,
    per_device_train_batch_size=6,
    learning_rate=5e-3,
    value_learning_rate=1e-2,
    save_steps=2,
)
CLOCKS = {
    "step_time",
    "rollout/real_time_factor",
    "time/rollout",
    "time/judge",
    "time/update",
    "rollout/frames_per_second",
}


def metrics(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in CLOCKS} for line in lines]


def same_weights(a, b):
    assert a.weights.keys() == b.weights.keys()
    return all(torch.equal(a.weights[name], b.weights[name]) for name in a.weights)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    folder = tmp_path_factory.mktemp("straight")
    return folder, toy_run(folder, CONFIG, seed=3)


def test_a_run_says_what_ppo_is_watched_by(straight):
    names = {"loss", "loss/policy", "loss/value", "reward", "rewards/patience/mean", "axis/pause", "kl", "entropy"}
    names |= {"value/explained_variance", "value/clip_ratio", "value/mean", "value/returns_mean", "advantages_std"}
    names |= {"ratio/mean", "approx_kl", "clip_ratio/low_mean", "clip_ratio/high_mean", "grad_norm", "learning_rate"}
    names |= {"sampling/sampling_logp_difference/max", "skipped_updates", "time/rollout", "time/update"}
    lines = [json.loads(line) for line in (straight[0] / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 4
    assert all(names <= line.keys() for line in lines)
    assert lines[0]["value/mean"] == 0.0  # before it is trained the head expects nothing
    assert lines[-1]["value/mean"] != 0.0


def test_the_value_head_is_in_the_checkpoint_and_not_in_the_exported_policy(straight):
    folder, run = straight
    saved = load_file(folder / "checkpoints" / "iteration-000004" / "model.safetensors")
    assert saved["value_head.out.weight"].abs().max() > 0
    exported = load_file(folder / "policy" / "model.safetensors")
    assert exported.keys() == ToyPolicy().model.state_dict().keys()
    assert all(torch.equal(exported[name], value) for name, value in run.weights.items())


def test_a_resumed_run_is_bit_identical_to_one_that_was_not_interrupted(straight, tmp_path):
    folder, whole = straight
    toy_run(tmp_path, replace(CONFIG, iterations=2), seed=3)
    rest = toy_run(tmp_path, CONFIG, seed=3, resume=True)
    assert same_weights(whole, rest)
    assert metrics(folder) == metrics(tmp_path)  # the value head's figures with them
    ours, theirs = (load_file(f / "checkpoints" / "iteration-000004" / "model.safetensors") for f in (folder, tmp_path))
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_in_the_first_update_every_ratio_is_exactly_one(tmp_path):
    once = replace(CONFIG, iterations=1, num_mini_batches=1, num_ppo_epochs=1)
    run = toy_run(tmp_path, once, seed=3)
    assert run.metrics["ratio/mean"] == run.metrics["ratio/max"] == 1.0
    assert run.metrics["approx_kl"] == run.metrics["clip_ratio/low_mean"] == run.metrics["clip_ratio/high_mean"] == 0.0
    assert run.metrics["kl"] == 0.0
    assert run.metrics["grad_norm"] > 0


def test_several_epochs_move_the_policy_away_from_the_one_that_played(straight):
    assert all(line["approx_kl"] > 0 and line["ratio/max"] > 1 for line in metrics(straight[0]))


def test_micro_batches_do_not_matter(straight, tmp_path):
    other = toy_run(tmp_path, replace(CONFIG, per_device_train_batch_size=2), seed=3)
    for name, value in straight[1].weights.items():
        assert torch.allclose(value, other.weights[name], atol=1e-5), name


@pytest.mark.parametrize(
    "choice",
    [
        {"use_kl_in_reward": True, "kl_coef": 1.0, "kl_estimator": "k1"},
        {"kl_estimator": "k3", "kl_coef": 1.0},
        {"streams": "speak", "kl_coef": 0.0, "entropy_coeff": 0.1},
        {"cliprange_value": None, "gamma": 0.9, "lam": 0.5, "value_learning_rate": None},
        {"shuffle_rewards": True},
        {"zero_stage": 2},
    ],
    ids=str,
)
def test_every_choice_of_the_objective_runs_and_matters(straight, tmp_path, choice):
    run = toy_run(tmp_path, replace(CONFIG, iterations=2, **choice), seed=3)
    assert all(torch.isfinite(value).all() for value in run.weights.values())
    before, after = metrics(straight[0])[1], metrics(tmp_path)[1]
    if "zero_stage" in choice:
        for name in ("loss", "loss/value", "value/explained_variance", "grad_norm", "reward"):
            assert after[name] == pytest.approx(before[name], abs=1e-5), name
    else:
        assert after["loss"] != before["loss"]
    if choice.get("kl_coef"):
        assert metrics(tmp_path)[0]["kl"] != 0 or choice.get("use_kl_in_reward")
        assert after["kl"] != 0  # the policy is no longer the start


def test_the_head_follows_its_own_learning_rate(tmp_path):
    """With next to none for the rest, the policy stays what it was and the head learns."""
    run = toy_run(tmp_path, replace(CONFIG, learning_rate=1e-12, kl_coef=0.0), seed=3)
    for name, value in ToyPolicy(3).model.state_dict().items():
        assert torch.allclose(value, run.weights[name], atol=1e-9), name
    lines = metrics(tmp_path)
    assert lines[-1]["loss/value"] < lines[0]["loss/value"]
    assert lines[-1]["value/explained_variance"] > lines[0]["value/explained_variance"]


@pytest.mark.parametrize("world", [1, 2, 3])
def test_minibatches_are_the_same_on_any_number_of_ranks_and_take_every_conversation_once(world):
    drawn = curriculum.draw(SCENARIOS, 1, seed=3, num_groups=12, num_generations=1)
    (whole,) = [ppo._minibatches(CONFIG, 3, 1, 0, drawn)]
    share = 12 // world
    parts = [ppo._minibatches(CONFIG, 3, 1, 0, drawn[r * share : (r + 1) * share]) for r in range(world)]
    joined = [[r * share + row for r in range(world) for row in parts[r][m]] for m in range(2)]
    assert joined == whole
    assert sorted(whole[0] + whole[1]) == list(range(12))
    assert all(len(part[0]) == len(part[1]) for part in parts)
    assert ppo._minibatches(CONFIG, 3, 1, 1, drawn) != whole  # another epoch, another division


def test_a_loss_that_is_not_a_number_is_skipped_counted_and_described(tmp_path):
    policy = ToyPolicy(3)
    policy.broken_scores = 1
    run = toy_run(tmp_path, replace(CONFIG, iterations=1), seed=3, policy=policy)
    assert run.metrics["skipped_updates"] == 1
    assert all(torch.isfinite(value).all() for value in run.weights.values())
    dump = json.loads(next(tmp_path.glob("nan-000000-1-rank0.json")).read_text())
    assert len(dump["rows"]) == 6
    assert len({row["seed"] for row in dump["rows"]}) == 6
    stubborn = ToyPolicy(3)
    stubborn.broken_scores = 10
    with pytest.raises(UptakeError, match=r"1 updates gave .* more than ppo.nan_budget = 0"):
        toy_run(tmp_path / "more", replace(CONFIG, nan_budget=0), seed=3, policy=stubborn)


def test_a_policy_without_a_hidden_state_is_sent_to_grpo(tmp_path):
    policy = ToyPolicy(3)
    policy.spec = replace(policy.spec, hidden=0)
    with pytest.raises(UptakeError, match=r"ppo: this policy shows no hidden state .* train it with grpo"):
        ppo.train(CONFIG, policy, ToyEnv, SCENARIOS, ToyJudge(), tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gamma": 1.1}, r"ppo.gamma = 1.1: must be at most 1"),
        ({"lam": float("nan")}, r"ppo.lam = nan: must be at least 0"),
        ({"cliprange_value": -0.1}, r"ppo.cliprange_value = -0.1: must be at least 0"),
        ({"num_mini_batches": 5}, r"ppo.train_batch_size = 12 cannot be split into ppo.num_mini_batches = 5"),
        ({"num_ppo_epochs": 0}, r"ppo.num_ppo_epochs = 0: must be at least 1"),
        ({"kl_estimator": "sampled"}, r"ppo.kl_estimator = 'sampled': must be one of exact, k1, k2, k3"),
        ({"learning_rate": 0.0}, r"ppo.learning_rate = 0 with a ppo.value_learning_rate"),
        ({"use_kl_in_reward": True}, r"ppo.kl_estimator = 'exact' with ppo.use_kl_in_reward: .* only k1 has"),
        ({"bf16": True}, r"ppo.bf16 = true needs ppo.zero_stage"),
        ({"kl_coef": 0.0, "alarms": AlarmConfig(kl_above=0.1)}, r"ppo.alarms.kl_above = 0.1: there is no KL to watch"),
        ({"max_context_s": 4.0, "context_probability": 0.0}, r"ppo.max_context_s = 4 with ppo.context_probability = 0"),
        ({"vf_coef": 0.0}, r"ppo.vf_coef = 0: the value function would stay at 0"),
        ({"value_learning_rate": 0.0}, r"ppo.value_learning_rate = 0: the value function would stay at 0"),
    ],
)
def test_a_configuration_that_cannot_be_trained_with_is_named(change, message):
    with pytest.raises(UptakeError, match=message):
        replace(CONFIG, **change).check()


def test_conversations_that_cannot_be_split_over_the_ranks_are_named():
    with pytest.raises(UptakeError, match=r"num_mini_batches = 2 on 4 ranks; use a multiple of 8"):
        CONFIG.check(world=4)
