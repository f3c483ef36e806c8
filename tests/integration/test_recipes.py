"""Every recipe runs scaled down with one override, on a tiny random policy and a tiny pack."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from align.config import load_config, names
from align.trainers import grpo
from envs.duplex_vector_env import DuplexVectorEnv
from envs.errors import UptakeError
from envs.pack import Pack
from launch import train
from rewards.compose import Composition
from tests import tiny_moshi
from tests.packs import write_tiny_pack
from tests.tiny_checkpoint import tiny_checkpoint
from tests.toy_duplex import SCENARIOS, ToyEnv, ToyJudge, ToyPolicy

ROOT = Path(__file__).parents[2]
RECIPES = [name for name in names() if name.startswith("recipes/")]
TINY = [
    "evaluation.split=train", "evaluation.frames=40", "evaluation.resamples=20", "evaluation.conversations=1",
    "evaluation.baselines=[]", "evaluation.variants=1", "wandb.mode=disabled", "users=''",
]  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("world")
    return [f"policy={tiny_checkpoint(folder / 'policy')}", f"pack={write_tiny_pack(folder / 'pack')}"]


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_runs_small_to_its_report(name: str, world: list[str], tmp_path: Path) -> None:
    section = load_config(name).algorithm.section
    shorter = [f"{section}.frames=40", f"{section}.max_context_s=0", f"{section}.iterations=1", "prompt.silence_s=0"]
    command = [sys.executable, "-m", "launch.cli", "train", name, "small=true", *world, *TINY, *shorter]
    done = subprocess.run(
        [*command, f"runs={tmp_path}"], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list(tmp_path.glob("*/report.html"))) == 1


def test_the_recipe_that_needs_a_judge_says_so_before_anything_runs(world: list[str], tmp_path: Path) -> None:
    overrides = [*world, *TINY, f"runs={tmp_path}", "grpo.iterations=1", "judge.base_url=http://127.0.0.1:9/v1"]
    with pytest.raises(UptakeError, match=r"127\.0\.0\.1:9"):
        train.run_training("recipes/published_judge", overrides)
    assert not (tmp_path / "published-judge").exists()


def begun_in_the_middle(folder: Path) -> dict[str, float]:
    pack = Pack.load("core")
    ids = {"turn": [scenario.id for scenario in pack.scenarios("train") if scenario.id.startswith("turn/")][:6]}
    config = grpo.GrpoConfig(
        iterations=3, frames=30, num_groups=4, num_generations=2, steps_per_generation=1, learning_rate=1e-3,
        max_context_s=2.0, context_probability=1.0,
    )  # fmt: skip
    policy = tiny_moshi.policy(context=80)
    grpo.train(
        config, policy, lambda rows: DuplexVectorEnv(pack, rows, split="train", frames=30), ids,
        Composition({"turn_taking": 1.0}), folder, seed=1,
    )  # fmt: skip
    return {name: float(weight.double().sum()) for name, weight in policy.model.state_dict().items()}


def test_conversations_that_begin_in_the_middle_are_scored_as_they_were_sampled(tmp_path: Path) -> None:
    first = begun_in_the_middle(tmp_path / "first")
    lines = [json.loads(line) for line in (tmp_path / "first" / "metrics.jsonl").read_text().splitlines()]
    assert all(line["sampling/sampling_logp_difference/max"] < 1e-3 for line in lines)
    assert all(line["ratio/mean"] == pytest.approx(1.0, abs=1e-4) for line in lines), "one update a rollout"
    assert first == begun_in_the_middle(tmp_path / "second")


def test_a_policy_that_cannot_begin_in_the_middle_is_refused(tmp_path: Path) -> None:
    config = grpo.GrpoConfig(iterations=1, frames=20, num_groups=2, num_generations=2, max_context_s=1.0)
    with pytest.raises(UptakeError, match="ToyPolicy cannot begin in the middle of a recording"):
        grpo.train(config, ToyPolicy(3), ToyEnv, SCENARIOS, ToyJudge(), tmp_path)
