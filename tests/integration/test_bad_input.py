"""Mistakes and shortages, through the real command: one line that names the thing and the fix, exit status 2."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from safetensors.numpy import load_file, save_file

from align.loading import find_folder
from envs.pack import sha256_of
from launch import cli, errors
from tests.packs import SCENARIOS, write_tiny_pack
from tests.tiny_checkpoint import tiny_checkpoint


class Command:
    """`uptake ...` in this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.monkeypatch, self.capsys = monkeypatch, capsys

    def __call__(self, *arguments: str) -> tuple[int, str]:
        """Exit status and stderr."""
        self.monkeypatch.setattr("sys.argv", ["uptake", *arguments])
        self.capsys.readouterr()
        with pytest.raises(SystemExit) as done:
            cli.main()
        return int(done.value.code or 0), self.capsys.readouterr().err

    def refused(self, *arguments: str) -> str:
        """The one line that a mistake is answered with."""
        status, printed = self(*arguments)
        lines = printed.strip().splitlines()
        assert status == 2, printed
        assert len(lines) == 1, printed
        assert lines[0].startswith("uptake: ")
        return lines[0]


@pytest.fixture
def uptake(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(monkeypatch, capsys)


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    return write_tiny_pack(tmp_path / "pack")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return tiny_checkpoint(tmp_path / "checkpoint")


@pytest.fixture
def world(tmp_path: Path, pack: Path, checkpoint: Path) -> list[str]:
    return ["train", "quickstart", "ranks=1", f"policy={checkpoint}", f"pack={pack}", f"runs={tmp_path / 'runs'}"]


def replace_clip(pack: Path, name: str, audio: np.ndarray, rate: int, subtype: str) -> Path:
    """Put other audio behind a clip and record its hash, as a faulty build would."""
    index = json.loads((pack / "pack.json").read_text())
    spec: dict[str, Any] = index["clips"][name]
    file = pack / "audio" / f"{name}-replaced.wav"
    soundfile.write(file, audio, rate, subtype=subtype)
    spec.update(file=f"audio/{file.name}", sha256=sha256_of(file), samples=len(audio))
    (pack / "pack.json").write_text(json.dumps(index))
    return file


def test_an_unknown_config_key_is_answered_with_the_nearest(uptake: Command, world: list[str], tmp_path: Path) -> None:
    assert "did you mean 'grpo.learning_rate'?" in uptake.refused(*world, "grpo.lerning_rate=1")
    file = tmp_path / "mine.yaml"
    file.write_text("name: mine\nevaluation:\n  splt: dev\n")
    assert f"{file}:3: unknown key 'evaluation.splt'; did you mean 'evaluation.split'?" in uptake.refused(
        "train", str(file)
    )


@pytest.mark.parametrize(
    "override, says",
    [
        ("rewards.turn_takin=1.0", "did you mean 'turn_taking'?"),
        ("evaluation.baselines=[silnt]", "did you mean 'silent'?"),
        ("grpo.num_generations=1", "grpo.num_generations = 1: must be at least 2"),
        ("policy=nowhere", "no checkpoint 'nowhere'"),
        ("pack=nowhere", "no pack 'nowhere'"),
        ("acoustics=caffe", "no acoustics 'caffe': neither a preset nor a file; did you mean 'cafe'?"),
        ("acoustics=mixed", "babble and a second speaker need clips of another voice"),
        ("evaluation.split=dev", "no scenario in the split 'dev'"),
    ],
)
def test_a_configuration_that_cannot_run_is_refused_before_anything_starts(
    uptake: Command, world: list[str], override: str, says: str, tmp_path: Path
) -> None:
    assert says in uptake.refused(*world, override)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer_spm.model", "codec.safetensors"])
def test_a_missing_or_truncated_checkpoint_file_is_named(
    uptake: Command, world: list[str], checkpoint: Path, name: str
) -> None:
    content = (checkpoint / name).read_bytes()
    (checkpoint / name).write_bytes(content[: len(content) // 2])
    assert name in uptake.refused(*world)
    (checkpoint / name).unlink()
    assert name in uptake.refused(*world)


def test_a_tokenizer_of_another_model_is_named_with_both_sizes(
    uptake: Command, world: list[str], checkpoint: Path
) -> None:
    values = json.loads((checkpoint / "config.json").read_text())
    file = checkpoint / values["tokenizer_name"]
    shutil.copyfile(find_folder("pocket") / "tokenizer_spm.model", file)
    for command in (world, ["doctor", str(checkpoint)], ["export", str(checkpoint), "--out", str(checkpoint / "out")]):
        assert f"{file}: found 512 pieces, expected 40" in uptake.refused(*command)


def test_a_folder_that_is_no_checkpoint_is_named_with_what_it_holds(uptake: Command, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "cat.jpg").write_bytes(b"")
    line = uptake.refused("doctor", str(folder))
    assert f"{folder}: no checkpoint: found cat.jpg; expected config.json and model.safetensors" in line
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    assert "pytorch_model.bin may be pickled and is never opened" in uptake.refused("doctor", str(folder))


def test_a_context_shorter_than_the_episode_is_refused_with_both_lengths(
    uptake: Command, world: list[str], checkpoint: Path, pack: Path, tmp_path: Path
) -> None:
    played = ["--pack", str(pack), "--frames", "201"]
    says = "looks back 200 frames (16.0 s), an episode has 201 (16.1 s); set it to 200 or less"
    for command in (
        [*world, "grpo.frames=201"],
        [*world, "evaluation.frames=201"],
        ["eval", str(checkpoint), *played],
        ["rollout", str(checkpoint), *played, "--scenario", "turn", "--out", str(tmp_path / "talk")],
    ):
        assert says in uptake.refused(*command)


def test_an_export_that_cannot_be_is_refused(uptake: Command, checkpoint: Path, tmp_path: Path) -> None:
    out = ["--out", str(tmp_path / "out")]
    for arguments, says in (
        ([*out, "--format", "kyutay"], "did you mean 'kyutai'?"),
        ([*out, "--format", "hf"], "found the codec PocketCodec, expected Mimi"),
        ([*out, "--format", "personaplex"], "give it with --base"),
        ([*out, "--format", "kyutai-lora", "--base", "nowhere"], "no checkpoint 'nowhere'"),
        ([*out, "--dtype", "int8"], "--dtype int8"),
        (["--out", str(checkpoint)], "is the policy itself"),
    ):
        assert says in uptake.refused("export", str(checkpoint), *arguments)
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_with_nan_weights_is_named_by_every_command(
    uptake: Command, world: list[str], checkpoint: Path, pack: Path, tmp_path: Path
) -> None:
    file = checkpoint / "model.safetensors"
    save_file({name: value * float("nan") for name, value in load_file(file).items()}, file)
    played = ["--pack", str(pack)]
    for command in (
        world,
        ["eval", str(checkpoint), *played],
        ["rollout", str(checkpoint), *played, "--scenario", "turn", "--out", str(tmp_path / "talk")],
    ):
        assert f"{file}: " in (line := uptake.refused(*command)) and "NaN" in line


def test_a_missing_or_corrupt_clip_is_named(uptake: Command, world: list[str], pack: Path) -> None:
    clip = pack / "audio" / "ask.flac"
    content = clip.read_bytes()
    clip.write_bytes(content[:100] + bytes(100) + content[200:])
    assert str(clip) in uptake.refused(*world)
    clip.unlink()
    for command in (world, ["pack", "check", str(pack)], ["eval", "silent", "--pack", str(pack)]):
        assert str(clip) in uptake.refused(*command)


def test_a_clip_of_another_sample_rate_is_named_with_both_rates(uptake: Command, world: list[str], pack: Path) -> None:
    audio = np.zeros(48_000, np.float32)
    file = replace_clip(pack, "agent-mhm", audio, 16_000, "PCM_16")
    assert f"{file}: sample rate 16000, expected 24000" in uptake.refused(*world)


def test_a_clip_with_nan_is_named(uptake: Command, world: list[str], pack: Path) -> None:
    audio = np.zeros(48_000, np.float32)
    audio[100] = np.nan
    file = replace_clip(pack, "agent-mhm", audio, 24_000, "FLOAT")
    line = uptake.refused(*world)
    assert str(file) in line
    assert "NaN" in line


def test_clips_that_cannot_be_speech_are_found_by_the_check_of_a_pack(
    uptake: Command, pack: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def check(audio: np.ndarray, channels: int = 1) -> str:
        file = replace_clip(pack, "agent-mhm", audio, 24_000, "PCM_16")
        assert file.name == "agent-mhm-replaced.wav"
        return uptake.refused("pack", "check", str(pack))

    spec = json.loads((pack / "pack.json").read_text())["clips"]["agent-mhm"]
    tone = np.sin(np.arange(spec["samples"]) * 0.05)
    assert "clip 'agent-mhm' is digital silence" in check(0 * tone)
    assert "2 channels, expected 1; mix the file to mono" in check(np.column_stack([tone, tone]))
    replace_clip(pack, "agent-mhm", np.clip(3 * tone, -1, 1), 24_000, "PCM_16")
    uptake.monkeypatch.setattr("sys.argv", ["uptake", "pack", "check", str(pack)])
    with pytest.raises(SystemExit):
        cli.main()
    assert "1 clipped in more than 0.1% of their samples: agent-mhm" in capsys.readouterr().out


def test_a_mistake_in_a_scenario_is_named_with_its_line(uptake: Command, world: list[str], pack: Path) -> None:
    file = pack / "scenarios" / "all.yaml"
    broken = SCENARIOS.replace(
        "{event: tell, agent: responds, within: {full: 1.2", "{event: tell, agent: respnds, within: {full: 1.2", 1
    )
    number = next(i for i, line in enumerate(broken.splitlines(), 1) if "respnds" in line)
    file.write_text(broken)
    for command in (world, ["scenario", "check", str(file)]):
        line = uptake.refused(*command)
        assert f"{file}:{number}: " in line
        assert "did you mean 'responds'?" in line


def test_a_scenario_that_is_fine_is_said_to_be(uptake: Command, pack: Path) -> None:
    status, _ = uptake("scenario", "check", str(pack / "scenarios" / "all.yaml"))
    assert status == 0


def test_a_nearly_full_disk_stops_a_run_before_it_starts(
    uptake: Command, world: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage._replace(free=2**20))
    assert "free some space or give another disk with runs=FOLDER" in uptake.refused(*world)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage._replace(free=2**30))
    assert "save_total_limit = 100000; free some space" in uptake.refused(*world, "grpo.save_total_limit=100000")


@pytest.mark.parametrize("runs", ["/proc/x", "/sys/x", "/dev/null/x"])
def test_a_run_folder_that_cannot_be_made_is_one_line(uptake: Command, world: list[str], runs: str) -> None:
    line = uptake.refused(*world, f"runs={runs}")
    assert f"{runs}/quickstart: cannot be made or written (" in line and "give another with runs=FOLDER" in line


@pytest.mark.parametrize(
    "command",
    [
        ["eval", "vad_700", "--variants", "1", "--out", "FILE/x.json"],
        ["eval", "vad_700", "--variants", "1", "--out", "/proc/x.json"],
        ["eval", "vad_700", "--variants", "1", "--out", "FOLDER"],
        ["eval", "vad_700", "--variants", "1", "--episodes", "/proc/talks"],
        ["rollout", "vad_700", "--scenario", "turn", "--out", "FILE"],
        ["audit", "turn_taking", "--out", "FILE/audits"],
    ],
    ids=lambda command: f"{command[0]} {command[-2]} {command[-1]}",
)
def test_a_place_that_cannot_be_written_is_named_before_the_work(
    uptake: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    def work(*arguments: object, **settings: object) -> None:
        raise AssertionError("the work has begun")

    monkeypatch.setattr("envs.pack.Pack.load", work)
    (tmp_path / "FILE").touch()
    (tmp_path / "FOLDER").mkdir()
    monkeypatch.chdir(tmp_path)
    line = uptake.refused(*command)
    assert f" {command[-1]}: " in line and f"with {command[-2]}" in line


def test_a_run_that_is_not_at_its_end_is_no_policy_yet(uptake: Command, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").touch()
    assert "has not trained to its end" in uptake.refused("doctor", str(tmp_path))


def test_a_misspelt_scripted_agent_is_guessed(uptake: Command) -> None:
    assert "'vad_70': no checkpoint and no scripted agent; did you mean 'vad_700'?" in uptake.refused("eval", "vad_70")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
@pytest.mark.parametrize("name", ["events.jsonl", "user.flac", "stereo.wav"])
def test_a_disk_that_fills_up_while_writing_is_one_line(uptake: Command, pack: Path, tmp_path: Path, name: str) -> None:
    out = tmp_path / "talk"
    out.mkdir()
    (out / name).symlink_to("/dev/full")
    line = uptake.refused(
        "rollout", "vad_200", "--pack", str(pack), "--scenario", "turn", "--frames", "60", "--out", str(out)
    )
    assert "no space left on the disk" in line


def test_a_full_disk_is_recognised_through_the_libraries_that_wrap_it() -> None:
    wrapped = RuntimeError("SafetensorError: I/O error: No space left on device (os error 28)")
    assert "no space left" in str(errors.explain(wrapped))


def test_ctrl_c_exits_130(uptake: Command, monkeypatch: pytest.MonkeyPatch, world: list[str]) -> None:
    def interrupted(*arguments: object, **settings: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("launch.train.run_training", interrupted)
    status, printed = uptake(*world)
    assert (status, printed) == (130, "uptake: interrupted\n")


def test_a_bug_keeps_its_traceback() -> None:
    def bug() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        errors.guarded(bug)


def test_acoustics_that_do_not_exist_are_named_and_those_that_do_are_in_the_record(uptake: Command, pack: Path) -> None:
    play = (
        "rollout",
        "silent",
        "--pack",
        str(pack),
        "--scenario",
        "turn",
        "--frames",
        "12",
        "--out",
        str(pack / "out"),
    )
    assert "no acoustics 'telefone'" in uptake.refused(*play, "--acoustics", "telefone")
    street = pack / "street.yaml"
    street.write_text("noise:\n  snr: 3\n")
    assert "street.yaml:2: unknown key 'snr' in noise" in uptake.refused(*play, "--acoustics", str(street))
    assert uptake(*play, "--acoustics", "telephone")[0] == 0
    record = json.loads((pack / "out" / "meta.json").read_text())["meta"]["acoustics"]
    assert record["preset"] == "telephone" and record["uplink_samples"] > 0
