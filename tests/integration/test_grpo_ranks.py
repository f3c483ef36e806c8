"""The same global batch on one rank and on two: same conversations, same loss, same weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.ranks import run_ranks

TRAIN = """
import json, sys
from pathlib import Path
import torch
from align.trainers.grpo import GrpoConfig
from tests.toy_duplex import FRAMES, toy_run

config = GrpoConfig(iterations=3, frames=FRAMES, num_groups=4, num_generations=6, steps_per_generation=3,
                    per_device_train_batch_size=3, learning_rate=5e-3, beta=0.02, zero_stage=int(sys.argv[2]))
run = toy_run(Path(sys.argv[1]), config, seed=5)
print(json.dumps({"weights": {k: v.double().sum().item() for k, v in run.weights.items()}}))
"""


def losses(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("stage", ["0", "3"])
def test_two_ranks_give_the_loss_of_one_on_the_same_global_batch(tmp_path, stage):
    one = run_ranks(TRAIN, str(tmp_path / "one"), "0")[0]
    two = run_ranks(TRAIN, str(tmp_path / "two"), stage, world=2)
    assert two[0] == two[1]
    first, second = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert len(first) == len(second) == 3
    for a, b in zip(first, second, strict=True):
        for name in ("loss", "reward", "kl", "entropy", "grad_norm", "ratio/mean", "axis/pause", "rewards/answer/std"):
            assert a[name] == pytest.approx(b[name], abs=1e-5), name
    for name, value in one["weights"].items():
        assert two[0]["weights"][name] == pytest.approx(value, abs=1e-4)
