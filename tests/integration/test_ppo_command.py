"""`uptake train recipes/ppo` through the real command, on a tiny random policy and a tiny pack."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import yaml
from safetensors.torch import load_file

from tests.packs import write_tiny_pack
from tests.tiny_checkpoint import tiny_checkpoint

ROOT = Path(__file__).parents[2]
SMALL = [
    "ppo.iterations=2", "ppo.train_batch_size=4", "ppo.frames=40", "evaluation.frames=60", "evaluation.split=train",
    "evaluation.variants=1", "evaluation.resamples=50", "evaluation.conversations=1", "evaluation.baselines=[]",
    "wandb.mode=disabled",
]  # fmt: skip


def uptake(*arguments: str, expect: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "launch.cli", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == expect, done.stdout + done.stderr
    return done


def test_the_recipe_runs_scaled_down_reports_and_refuses_to_go_on_as_grpo(tmp_path: Path) -> None:
    policy, pack = tiny_checkpoint(tmp_path / "policy"), write_tiny_pack(tmp_path / "pack")
    world = [f"policy={policy}", f"pack={pack}", f"runs={tmp_path / 'runs'}", "name=first"]
    done = uptake("train", "recipes/ppo", *world, *SMALL)
    assert "training (ppo): 2 iterations" in done.stdout
    run = tmp_path / "runs" / "first"
    written = yaml.safe_load((run / "config.yaml").read_text())
    assert written["grpo"] is None
    assert written["ppo"]["train_batch_size"] == 4
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == [0, 1]
    assert {"value/explained_variance", "loss/value", "kl"} <= lines[1].keys()
    assert json.loads((run / "eval.json").read_text())["run"]["iterations"] == 2
    assert "value/explained_variance" in (run / "report.html").read_text()
    assert load_file(run / "policy" / "model.safetensors").keys() == load_file(policy / "model.safetensors").keys()
    other = [word for word in SMALL if not word.startswith("ppo.")]
    refused = uptake("train", "quickstart", *world, *other, "--resume", expect=2)
    assert "was started with ppo, now it is grpo; resume it as it was" in " ".join(refused.stderr.split())
