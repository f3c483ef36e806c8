"""Two commands that want one run folder, and a run whose checkpoint or pack is another one when it goes on."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

import pytest

from tests.integration.test_quickstart import ROOT, SMALL, command, figures, stopped, uptake
from tests.packs import SCENARIOS, write_tiny_pack
from tests.tiny_checkpoint import tiny_checkpoint

BRIEF = [*SMALL, "evaluation.baselines=[]", "grpo.save_steps=1", "grpo.log_episodes_steps=0"]
LORA = ["grpo.use_peft=true", "grpo.lora_r=2", "grpo.learning_rate=0.001"]


@pytest.fixture
def world(tmp_path: Path) -> list[str]:
    policy, pack = tiny_checkpoint(tmp_path / "policy"), write_tiny_pack(tmp_path / "pack")
    return ["train", "quickstart", f"policy={policy}", f"pack={pack}", f"runs={tmp_path}", *BRIEF]


def test_a_run_that_is_under_way_is_neither_gone_on_with_nor_started_again(world: list[str], tmp_path: Path) -> None:
    run = tmp_path / "busy"
    metrics = run / "metrics.jsonl"
    refusals = []

    def intruded() -> bool:
        if not (metrics.is_file() and metrics.stat().st_size):
            return False
        for more in (["--resume"], []):
            refusals.append(uptake(*world, "name=busy", "grpo.iterations=1000", *more, expect=2).stderr.strip())
        return True

    status, errors = stopped([*world, "name=busy", "grpo.iterations=1000"], intruded, signal.SIGINT)
    assert status == 130, errors
    assert f"{run} is in use: process " in refusals[0] and "holds a run already" in refusals[1]
    assert all(len(line.splitlines()) == 1 for line in refusals)
    done = [line["iteration"] for line in _metrics(run)]
    assert done == list(range(len(done)))
    uptake(*world, "name=busy", f"grpo.iterations={len(done)}", "--resume")


def test_of_two_that_start_at_once_one_trains(world: list[str], tmp_path: Path) -> None:
    both = [
        subprocess.Popen(
            command(*world, "name=once", "grpo.iterations=2"), cwd=ROOT, text=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )
        for _ in range(2)
    ]  # fmt: skip
    said = [process.communicate(timeout=240)[1] for process in both]
    assert sorted(process.returncode for process in both) == [0, 2], said
    (line,) = said[[process.returncode for process in both].index(2)].splitlines()
    assert "is in use: process " in line or "holds a run already" in line
    uptake(*world, "name=alone", "grpo.iterations=2")
    assert figures(tmp_path / "once") == figures(tmp_path / "alone")


def test_a_run_does_not_go_on_from_another_checkpoint_or_with_another_pack(world: list[str], tmp_path: Path) -> None:
    arguments = [*world, *LORA, "name=mine"]
    uptake(*arguments, "grpo.iterations=1")
    resume = [*arguments, "grpo.iterations=2", "--resume"]
    weights, scenarios = tmp_path / "policy" / "model.safetensors", tmp_path / "pack" / "scenarios" / "all.yaml"
    kept = weights.read_bytes()
    weights.write_bytes((tiny_checkpoint(tmp_path / "other", seed=2) / "model.safetensors").read_bytes())
    (line,) = uptake(*resume, expect=2).stderr.splitlines()
    assert f"mine: model.safetensors of policy {tmp_path / 'policy'} is not what it was when the run was sta" in line
    weights.write_bytes(kept)
    scenarios.write_text(SCENARIOS.replace("at: 0.5", "at: 0.6"))
    (line,) = uptake(*resume, expect=2).stderr.splitlines()
    assert f"mine: pack {tmp_path / 'pack'} is not what it was when the run was started" in line
    assert len(_metrics(tmp_path / "mine")) == 1
    scenarios.write_text(SCENARIOS)
    uptake(*resume)


def _metrics(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
