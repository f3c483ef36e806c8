"""The whole of `uptake train`, through the real command, on a tiny random policy and a tiny pack."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import soundfile

from tests.packs import write_tiny_pack
from tests.tiny_checkpoint import tiny_checkpoint

ROOT = Path(__file__).parents[2]
SMALL = [
    "ranks=1", "grpo.num_groups=5", "grpo.num_generations=2", "grpo.steps_per_generation=2", "grpo.frames=40",
    "evaluation.frames=60", "evaluation.split=train", "evaluation.variants=1", "evaluation.resamples=50",
    "evaluation.conversations=2", "wandb.mode=disabled",
]  # fmt: skip


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "launch.cli", *arguments]


def uptake(*arguments: str, expect: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command(*arguments), cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == expect, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("world")
    policy, pack = tiny_checkpoint(folder / "policy"), write_tiny_pack(folder / "pack")
    return [f"policy={policy}", f"pack={pack}", f"runs={folder / 'runs'}", *SMALL]


@pytest.fixture(scope="module")
def finished(world: list[str]) -> tuple[Path, str]:
    """A finished run of two iterations, and what it printed."""
    done = uptake("train", "quickstart", *world, "name=first", "grpo.iterations=2")
    runs = next(word.partition("=")[2] for word in world if word.startswith("runs="))
    return Path(runs) / "first", done.stdout


def test_one_command_measures_trains_measures_again_and_reports(finished: tuple[Path, str]) -> None:
    run, printed = finished
    result = json.loads((run / "eval.json").read_text())
    assert {row["measure"] for row in result["rows"]} >= {
        "pause_takeover", "turn_response", "fto_p50_s", "cut_in", "bc_f1", "bc_random_f1", "stopped", "answered",
        "false_stop", "content_hit", "repetition", "talk_ratio", "paired_score",
    }  # fmt: skip
    assert [system["name"] for system in result["systems"]] == [
        "silent", "always_talking", "vad_200", "vad_700", "oracle",
    ]  # fmt: skip
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 2
    assert (run / "policy" / "model.safetensors").is_file()
    assert result["run"]["seconds"] > 1 and 2**26 < result["run"]["peak_memory_bytes"] < 2**35
    assert "GiB of memory" in printed
    assert "silent 0.000, always talking 0.000: " in printed, "where the constant agents rank"
    report = run / "report.html"
    assert f"report: {report}" in printed
    assert 10_000 < report.stat().st_size < 8 * 2**20
    assert report.read_text().count("<audio") == 4, "two conversations, before and after"


def test_baselines_stand_where_they_must(finished: tuple[Path, str]) -> None:
    result = json.loads((finished[0] / "eval.json").read_text())
    values = {system["name"]: system["values"] for system in result["systems"]}
    assert values["silent"]["talk_ratio"] == 0
    assert values["always_talking"]["talk_ratio"] > 0.9
    assert values["silent"]["turn_response"] == 0
    assert values["oracle"]["turn_response"] == 1


def test_a_run_is_never_overwritten(world: list[str], finished: tuple[Path, str]) -> None:
    before = (finished[0] / "eval.json").read_bytes()
    done = uptake("train", "quickstart", *world, "name=first", expect=2)
    assert "go on with --resume, or start another with name=NAME" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert (finished[0] / "eval.json").read_bytes() == before


def test_a_run_can_be_in_other_acoustics_from_first_to_last(world: list[str], tmp_path: Path) -> None:
    phone = tmp_path / "phone.yaml"
    phone.write_text("mix: {telephone: 1, bad_network: 1}\n")
    done = uptake("train", "quickstart", *world, "name=phone", "grpo.iterations=1", f"acoustics={phone}")
    run = Path(next(word.partition("=")[2] for word in world if word.startswith("runs="))) / "phone"
    for kept in (run / "episodes").rglob("meta.json"):
        heard = json.loads(kept.read_text())["meta"]["acoustics"]
        assert heard["preset"] in ("telephone", "bad_network") and heard["uplink_samples"] > 0
    assert {part.name for part in (run / "episodes").iterdir()} == {"training", "before", "after"}
    assert json.loads((run / "eval.json").read_text())["run"]["acoustics"] == str(phone)
    assert f"acoustics {phone}" in (run / "report.html").read_text() and "acoustics" in done.stdout
    other = ["train", "quickstart", *world, "name=phone", "grpo.iterations=2", "acoustics=clean", "--resume"]
    assert f"was started with acoustics = {phone}, now it is clean" in uptake(*other, expect=2).stderr


def test_the_report_can_be_made_again(finished: tuple[Path, str]) -> None:
    (finished[0] / "report.html").unlink()
    assert uptake("view", str(finished[0])).stdout.strip() == str(finished[0] / "report.html")
    assert (finished[0] / "report.html").is_file()


def test_a_trained_run_can_be_measured_and_listened_to(
    world: list[str], finished: tuple[Path, str], tmp_path: Path
) -> None:
    pack = next(word.partition("=")[2] for word in world if word.startswith("pack="))
    small = ["--pack", pack, "--frames", "40"]
    out = tmp_path / "figures.json"
    uptake("eval", str(finished[0]), *small, "--split", "train", "--variants", "1", "--out", str(out))
    assert json.loads(out.read_text())["rows"]
    folder = tmp_path / "talk"
    uptake("rollout", str(finished[0]), *small, "--scenario", "turn", "--out", str(folder))
    audio, rate = soundfile.read(folder / "stereo.wav")
    assert audio.shape[1] == 2
    assert rate == 24000
    assert (folder / "timeline.png").read_bytes().startswith(b"\x89PNG")


def figures(run: Path) -> tuple[list[dict[str, float]], list[dict[str, object]]]:
    """What a run measured, without what depends on the clock: lines of `metrics.jsonl`, rows of `eval.json`."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    timed = re.compile(r"time|per_second")
    kept = [{key: value for key, value in line.items() if not timed.search(key)} for line in lines]
    return kept, json.loads((run / "eval.json").read_text())["rows"]


def stopped(arguments: list[str], when: Callable[[], object], how: signal.Signals) -> tuple[int, str]:
    """Start the command, send it a signal as soon as `when()` is true, and return its exit status and stderr."""
    process = subprocess.Popen(
        command(*arguments), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    deadline = time.monotonic() + 240
    while not when() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(how)
    _, errors = process.communicate(timeout=120)
    return process.returncode, errors


def test_ctrl_c_writes_a_checkpoint_exits_130_and_resume_gives_what_an_unbroken_run_gives(
    world: list[str], finished: tuple[Path, str]
) -> None:
    arguments = ["train", "quickstart", *world, "name=broken", "grpo.iterations=2"]
    run = finished[0].parent / "broken"
    metrics = run / "metrics.jsonl"
    status, errors = stopped(arguments, lambda: metrics.is_file() and metrics.stat().st_size, signal.SIGINT)
    assert status == 130, errors
    assert "Traceback" not in errors
    assert list((run / "checkpoints").glob("iteration-*"))
    uptake(*arguments, "--resume")
    assert figures(run) == figures(finished[0])


def test_a_run_that_was_killed_after_a_checkpoint_gives_what_an_unbroken_run_gives(
    world: list[str], finished: tuple[Path, str]
) -> None:
    arguments = ["train", "quickstart", *world, "name=killed", "grpo.iterations=2", "grpo.save_steps=1"]
    run = finished[0].parent / "killed"
    first = run / "checkpoints" / "iteration-000001"
    status, errors = stopped(arguments, first.is_dir, signal.SIGKILL)
    assert status == -signal.SIGKILL, errors
    uptake(*arguments, "--resume")
    assert figures(run) == figures(finished[0])


def test_a_run_that_was_killed_at_its_first_checkpoint_starts_from_scratch(
    world: list[str], finished: tuple[Path, str]
) -> None:
    run = finished[0].parent / "early"
    shutil.copytree(finished[0] / "before", run / "before")
    shutil.copy(finished[0] / "config.yaml", run)
    (run / "metrics.jsonl").write_text('{"iteration": 0}\n{"iter')
    (run / "checkpoints" / ".iteration-000001.tmp").mkdir(parents=True)
    shutil.copytree(finished[0] / "episodes" / "before", run / "episodes" / "before")
    uptake("train", "quickstart", *world, "name=early", "grpo.iterations=2", "--resume")
    assert figures(run) == figures(finished[0])
