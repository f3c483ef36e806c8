"""`uptake sft` through the real command: two kinds of policies, a run that goes on, and one line for every mistake."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml

from align.codecs.pocket import PocketCodec
from align.config import load_config as load_train_config
from align.config import names
from align.loading import load_policy
from align.policies.chunk.config import ChunkConfig
from align.policies.chunk.model import ChunkModel
from align.policies.chunk.policy import ChunkPolicy
from align.settings import names as names_of
from align.trainers.sft_config import load_config
from envs.clock import CLOCK
from envs.errors import UptakeError
from launch.errors import guarded
from launch.sft import run_sft
from tests import tiny_moshi
from tests.dialogues import write_dialogues
from tests.integration.test_quickstart import stopped
from tests.tiny_checkpoint import tiny_checkpoint
from tests.unit.test_policy_chunk import SIZES

ROOT = Path(__file__).parents[2]
SHORT = ["sft.iterations=2", "sft.frames=40", "sft.train_batch_size=2", "sft.save_steps=1", "wandb.mode=disabled"]


def uptake(*arguments: str, expect: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "launch.cli", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == expect, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recordings and a checkpoint of either kind."""
    folder = tmp_path_factory.mktemp("world")
    write_dialogues(folder / "recordings", 2, 130)
    tiny_checkpoint(folder / "moshi")
    codec = PocketCodec.load(next((folder / "moshi").glob("*codec*")))
    ChunkPolicy(ChunkModel(ChunkConfig(**SIZES | {"context": 64})), codec, tiny_moshi.tokenizer()).export(
        folder / "chunk"
    )
    return folder


@pytest.mark.parametrize("kind", ["moshi", "chunk"])
def test_a_checkpoint_is_warm_started_goes_on_and_becomes_the_start_of_the_next(
    world: Path, tmp_path: Path, kind: str
) -> None:
    where = [f"data.path={world / 'recordings'}", f"runs={tmp_path}", f"name={kind}"]
    done = uptake("sft", "pocket", f"policy={world / kind}", *where, *SHORT)
    assert "2 conversations" in done.stdout and "iteration 2/2" in done.stdout and "text " in done.stdout
    run = tmp_path / kind
    assert yaml.safe_load((run / "config.yaml").read_text())["sft"]["frames"] == 40
    again = uptake("sft", "pocket", f"policy={world / kind}", *where, *SHORT, "sft.iterations=3", "--resume")
    assert "iteration 3/3" in again.stdout and "iteration 2/3" not in again.stdout
    assert [json.loads(line)["iteration"] for line in (run / "metrics.jsonl").read_text().splitlines()] == [0, 1, 2]
    policy = load_policy(str(run / "policy"))
    policy.reset(np.ones(1, bool), [0])
    assert policy.step(np.zeros((1, CLOCK.frame), np.float32), np.ones(1, bool)).audio.shape == (1, CLOCK.frame)


def test_a_warm_start_does_not_go_on_from_another_checkpoint(world: Path, tmp_path: Path) -> None:
    policy = shutil.copytree(world / "moshi", tmp_path / "policy")
    run = ["pocket", f"policy={policy}", f"data.path={world / 'recordings'}", f"runs={tmp_path}", *SHORT]
    uptake("sft", *run)
    other = tiny_checkpoint(tmp_path / "other", seed=2)
    shutil.copyfile(other / "model.safetensors", policy / "model.safetensors")
    (line,) = uptake("sft", *run, "sft.iterations=3", "--resume", expect=2).stderr.splitlines()
    assert f"warm-start: model.safetensors of policy {policy} is not what it was when the run was started" in line


def test_a_warm_start_that_is_under_way_is_not_gone_on_with(world: Path, tmp_path: Path) -> None:
    run = ["sft", "pocket", f"policy={world / 'moshi'}", f"data.path={world / 'recordings'}", f"runs={tmp_path}"]
    run += [*SHORT, "sft.iterations=100000", "sft.save_steps=100000"]
    folder, refusals = tmp_path / "warm-start", []

    def intruded() -> bool:
        there = (folder / "metrics.jsonl").is_file()
        if there:
            refusals.append(uptake(*run, "--resume", expect=2).stderr)
        return there

    assert stopped(run, intruded, signal.SIGINT)[0] == 130
    assert refusals[0].startswith(f"uptake: {folder} is in use: process ") and len(refusals[0].splitlines()) == 1
    done = [json.loads(line)["iteration"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert done == list(range(len(done)))


def test_what_ships_reads_and_the_large_recipe_runs_small(world: Path, tmp_path: Path) -> None:
    for name in names_of("sft"):
        load_config(name, ["data.path=x"])
        assert f"sft/{name}" not in names()
    run = ["moshi_lora", "small=true", f"policy={world / 'moshi'}", f"data.path={world / 'recordings'}"]
    done = uptake("sft", *run, f"runs={tmp_path}", "sft.train_batch_size=2", "wandb.mode=disabled")
    assert "iteration 2/2" in done.stdout


@pytest.mark.parametrize("kind", ["moshi", "chunk"])
def test_a_dry_run_checks_prints_and_writes_nothing(world: Path, tmp_path: Path, kind: str) -> None:
    where = [f"policy={world / kind}", f"data.path={world / 'recordings'}", f"runs={tmp_path}"]
    done = uptake("sft", "pocket", *where, *SHORT, "--dry-run")
    assert yaml.safe_load(done.stdout)["sft"]["first_codebook_weight"] == 2.0
    assert all(said in done.stdout for said in ("memory of a rank", "an iteration at the pace", "on the disk: "))
    assert "2 conversations with" in done.stdout and not list(tmp_path.iterdir())


def refused(capsys: pytest.CaptureFixture[str], *overrides: str, name: str = "pocket") -> str:
    """The one line that a mistake is answered with."""
    assert guarded(lambda: run_sft(name, [*SHORT, *overrides]) and None) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def spoiled(world: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "spoiled"
    shutil.copytree(world / "recordings", folder)
    return folder


def test_recordings_that_cannot_be_learned_from_are_one_line(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = spoiled(world, tmp_path)
    here = [f"policy={world / 'moshi'}", f"data.path={folder}", f"runs={tmp_path / 'runs'}"]
    audio, rate = soundfile.read(folder / "talk0.wav")
    words = json.loads((folder / "talk0.json").read_text())

    def again() -> str:
        return refused(capsys, *here, f"name=run{len(list((tmp_path / 'runs').glob('*')))}")

    (folder / "talk0.json").unlink()
    assert "talk0.wav: no word times beside it" in again()
    late = {"word": "late", "start": 99.0, "end": 99.5, "channel": 0}
    (folder / "talk0.json").write_text(json.dumps([*words, late]))
    assert "'late' from 99 to 99.5 s" in again()
    (folder / "talk0.json").write_text(json.dumps(words))
    soundfile.write(folder / "talk0.wav", audio[:, 0], rate)
    assert "mono" in again()
    soundfile.write(folder / "talk0.wav", audio, 4_000)
    assert "4000 Hz" in again()
    audio[1000] = np.nan
    soundfile.write(folder / "talk0.wav", audio, rate, subtype="FLOAT")
    assert "not_finite" in again()


def test_a_disk_without_room_for_its_checkpoints_stops_a_warm_start_before_it_reads_a_recording(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage._replace(free=2**30))
    here = [f"policy={world / 'moshi'}", f"data.path={world / 'recordings'}", f"runs={tmp_path}"]
    assert "sft.save_total_limit = 100000; free some space" in refused(capsys, *here, "sft.save_total_limit=100000")
    assert not (tmp_path / "warm-start" / "data").exists()


def test_a_mistake_in_the_configuration_is_one_line(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here = [f"policy={world / 'moshi'}", f"data.path={world / 'recordings'}", f"runs={tmp_path}"]
    assert "did you mean 'sft.learning_rate'" in refused(capsys, *here, "sft.learnin_rate=1")
    assert "data.path = ''" in refused(capsys, here[0])
    assert "no such folder or manifest" in refused(capsys, here[0], here[2], f"data.path={tmp_path / 'gone'}")
    assert "data.agent = 'left'" in refused(capsys, *here, "data.agent=left")
    assert "data.layout = 'fischer'" in (line := refused(capsys, *here, "data.layout=fischer")) and "fisher" in line
    assert "sft.frames" in refused(capsys, *here, "sft.frames=5000")
    assert "zero_stage" in refused(capsys, *here, "sft.bf16=true")
    assert "sft.learning_rate" in refused(capsys, *here, "sft.learning_rate=.nan")
    assert "cannot be warm-started" in refused(capsys, "policy=cascade", *here[1:])
    assert "a chunk policy" in refused(capsys, f"policy={world / 'chunk'}", *here[1:], "sft.max_delay=2")
    with pytest.raises(UptakeError, match="no configuration 'sft/pocket'"):
        load_train_config("sft/pocket")
