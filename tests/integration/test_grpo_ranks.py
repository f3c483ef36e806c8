"""The same global batch on one rank and on two: same conversations, same loss, same weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.packs import write_tiny_pack
from tests.ranks import run_ranks

TRAIN = """
import json, sys
from pathlib import Path
import torch
from align.trainers.grpo import GrpoConfig
from tests.toy_duplex import FRAMES, toy_run

config = GrpoConfig(iterations=3, frames=FRAMES, num_groups=4, num_generations=6, steps_per_generation=3,
                    per_device_train_batch_size=3, learning_rate=5e-3, beta=0.02, zero_stage=int(sys.argv[2]),
                    **json.loads(sys.argv[3]))
run = toy_run(Path(sys.argv[1]), config, seed=5)
print(json.dumps({"weights": {k: v.double().sum().item() for k, v in run.weights.items()}}))
"""


MOSHI = """
import json, sys
from pathlib import Path
from align import curriculum
from align.policies.sampling import Sampling
from align.trainers import grpo
from envs.duplex_vector_env import DuplexVectorEnv
from envs.pack import Pack
from rewards.compose import term_values
from rewards.verdict import Verdict
from tests import tiny_moshi

class Quiet:
    terms = weights = {"quiet": 1.0}
    schedules = {}

    def at(self, iteration):
        return self

    def score(self, episode):
        words = sum(24_000 <= word.onset < 48_000 for word in episode.transcript)
        return [Verdict(max(-1.0, 1.0 - words / 8), (24_000, 48_000), {}, "quiet", "second")]

    def start(self, episode):
        return lambda: self.score(episode)

    def total(self, verdicts):
        return term_values(verdicts)["quiet"]

pack = Pack.load(sys.argv[2])
config = grpo.GrpoConfig(iterations=2, frames=40, num_groups=2, num_generations=4, steps_per_generation=2,
                         per_device_train_batch_size=2, learning_rate=2e-3)
policy = tiny_moshi.policy(Sampling(text_top_k=0))
grpo.train(config, policy, lambda rows: DuplexVectorEnv(pack, rows, frames=40),
           curriculum.cards(pack.scenarios("train")), Quiet(), Path(sys.argv[1]), seed=5)
print(json.dumps({"weights": {k: v.double().sum().item() for k, v in policy.model.state_dict().items()}}))
"""


def losses(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


CISPO = {"loss_type": "cispo", "epsilon_high": 5.0, "max_num_gen_batches": 3, "target_kl": 1e-3, "kl_horizon": 50}
REINFORCE = {
    "baseline": "none", "scale_rewards": "none", "credit": "uniform", "normalize_advantages": True,
    "use_kl_in_reward": True, "kl_estimator": "k1", "loss_type": "dr_grpo", "importance_sampling_level": "sequence",
}  # fmt: skip


@pytest.mark.parametrize(("stage", "changes"), [("0", {}), ("3", {}), ("3", CISPO), ("2", REINFORCE)])
def test_two_ranks_give_the_loss_of_one_on_the_same_global_batch(tmp_path, stage, changes):
    one = run_ranks(TRAIN, str(tmp_path / "one"), "0", json.dumps(changes))[0]
    two = run_ranks(TRAIN, str(tmp_path / "two"), stage, json.dumps(changes), world=2)
    assert two[0] == two[1]
    same_losses(tmp_path, 3, ["axis/pause", "rewards/answer/std"])
    for name, value in one["weights"].items():
        assert two[0]["weights"][name] == pytest.approx(value, abs=1e-4)


def test_two_ranks_train_a_moshi_policy_as_one_does(tmp_path):
    pack = str(write_tiny_pack(tmp_path / "pack"))
    run_ranks(MOSHI, str(tmp_path / "one"), pack)
    two = run_ranks(MOSHI, str(tmp_path / "two"), pack, world=2)
    assert two[0] == two[1]
    same_losses(tmp_path, 2, ["rewards/quiet/std"])


def same_losses(folder: Path, iterations: int, names: list[str]) -> None:
    """The runs `one` and `two` in the folder saw the same, iteration by iteration."""
    first, second = losses(folder / "one"), losses(folder / "two")
    assert len(first) == len(second) == iterations
    for a, b in zip(first, second, strict=True):
        for name in ("loss", "reward", "kl", "entropy", "grad_norm", "ratio/mean", *names):
            assert a[name] == pytest.approx(b[name], abs=1e-5), name
    assert any(a["grad_norm"] > 0 for a in first)


RESUME = """
import json, sys
from pathlib import Path
from align.trainers.grpo import GrpoConfig
from tests.toy_duplex import FRAMES, toy_run

config = GrpoConfig(iterations=int(sys.argv[3]), frames=FRAMES, num_groups=4, num_generations=6, learning_rate=5e-3,
                    beta=0.02, steps_per_generation=3, per_device_train_batch_size=3, zero_stage=int(sys.argv[2]))
run = toy_run(Path(sys.argv[1]), config, seed=5, resume=sys.argv[4] == "resume")
print(json.dumps({k: v.double().sum().item() for k, v in run.weights.items()}))
"""


@pytest.mark.parametrize(("before", "after"), [((2, "2"), (1, "0")), ((1, "0"), (2, "3"))])
def test_a_run_that_goes_on_with_another_number_of_ranks_and_another_stage_ends_in_the_same_place(
    tmp_path, before, after
):
    whole = run_ranks(RESUME, str(tmp_path / "one"), "0", "3", "new")[0]
    run_ranks(RESUME, str(tmp_path / "two"), before[1], "2", "new", world=before[0])
    rest = run_ranks(RESUME, str(tmp_path / "two"), after[1], "3", "resume", world=after[0])[0]
    same_losses(tmp_path, 3, ["axis/pause", "rewards/answer/std"])
    for name, value in whole.items():
        assert rest[name] == pytest.approx(value, abs=1e-4)
