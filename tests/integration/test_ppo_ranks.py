"""PPO on one rank and on two: the same global batch, whitened as a whole, same losses, same weights."""

from __future__ import annotations

import json

import pytest

from tests.ranks import run_ranks

TRAIN = """
import json, sys
from pathlib import Path
from align.trainers.ppo_config import PpoConfig
from tests.toy_duplex import FRAMES, toy_run

config = PpoConfig(iterations=3, frames=FRAMES, train_batch_size=16, num_mini_batches=2, num_ppo_epochs=2,
                   per_device_train_batch_size=4, learning_rate=5e-3, value_learning_rate=1e-2, kl_coef=0.02,
                   zero_stage=int(sys.argv[2]))
run = toy_run(Path(sys.argv[1]), config, seed=5)
print(json.dumps({"weights": {k: v.double().sum().item() for k, v in run.weights.items()}}))
"""
SAME = ["loss", "loss/policy", "loss/value", "reward", "kl", "entropy", "grad_norm", "ratio/mean", "approx_kl"]
SAME += ["value/explained_variance", "value/mean", "value/returns_mean", "advantages_std", "rewards/answer/std"]


@pytest.mark.parametrize("stage", ["0", "3"])
def test_two_ranks_give_the_loss_of_one_on_the_same_global_batch(tmp_path, stage):
    one = run_ranks(TRAIN, str(tmp_path / "one"), "0")[0]
    two = run_ranks(TRAIN, str(tmp_path / "two"), stage, world=2)
    assert two[0] == two[1]
    first, second = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    )
    assert len(first) == len(second) == 3
    for a, b in zip(first, second, strict=True):
        for name in SAME:
            assert a[name] == pytest.approx(b[name], abs=1e-5), name
    for name, value in one["weights"].items():
        assert two[0]["weights"][name] == pytest.approx(value, abs=1e-4)
