"""What a run shows elsewhere than on the terminal: wandb's folder and TensorBoard's, read back as their readers do."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image
from tensorboard.backend.event_processing import event_accumulator as reader

from align.report import stereo, timeline_png
from align.trainers import grpo
from align.trainers.grpo import GrpoConfig
from envs.episode import Episode
from envs.errors import UptakeError
from tests.offline_wandb import finished, history
from tests.toy_duplex import FRAMES, SCENARIOS, ToyEnv, ToyJudge, ToyPolicy

CONFIG = GrpoConfig(
    iterations=3, frames=FRAMES, num_groups=2, num_generations=4, learning_rate=5e-3, save_steps=1,
    log_episodes_steps=2,
)  # fmt: skip


def train(folder: Path, config: GrpoConfig = CONFIG, resume: bool = False, wandb: str = "disabled") -> None:
    grpo.train(
        config, ToyPolicy(3), ToyEnv, SCENARIOS, ToyJudge(), folder, seed=3, resume=resume, wandb_mode=wandb
    )  # fmt: skip


def figures(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def kept(folder: Path, iteration: int) -> Episode:
    return Episode.load(folder / "episodes" / "training" / f"iteration-{iteration:06d}")


def picture(episode: Episode) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(timeline_png(episode)[0])).convert("RGB"))


@pytest.fixture(autouse=True)
def may_write(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)  # conftest turns it off


def test_an_offline_run_of_wandb_holds_every_figure_and_the_sound_and_picture_of_conversations(tmp_path: Path) -> None:
    train(tmp_path, wandb="offline")
    (run,) = (tmp_path / "wandb").glob("offline-run-*")
    (log,) = run.glob("*.wandb")
    logged, lines = history(log), figures(tmp_path)
    assert len(lines) == 3
    for line in lines:
        seen = logged[line.pop("iteration")]
        assert {name: seen[name] for name in line} == line
    assert [step for step in logged if "episode/audio" in logged[step]] == [0, 2]
    for step in (0, 2):
        episode, shown = kept(tmp_path, step), logged[step]
        sound, rate = soundfile.read(run / "files" / shown["episode/audio"]["path"], dtype="float32")
        assert rate == episode.clock.sample_rate
        assert sound.shape == (episode.samples, 2)
        assert np.abs(sound - stereo(episode)).max() <= 2 / 2**15
        assert np.abs(sound).max() > 0.1
        drawn = Image.open(run / "files" / shown["episode/timeline"]["path"]).convert("RGB")
        assert np.array_equal(np.asarray(drawn), picture(episode))
        assert len(np.unique(np.asarray(drawn).reshape(-1, 3), axis=0)) > 10  # not an empty one
        assert shown["episode/audio"]["caption"] == " ".join(word.text for word in episode.transcript)
    config = {
        item.key: json.loads(item.value_json)
        for record in finished(log)
        if record.WhichOneof("record_type") == "run"
        for item in record.run.config.update
    }
    assert (config["learning_rate"], config["num_groups"], config["seed"]) == (5e-3, 2, 3)


def test_a_resumed_run_is_the_same_run_to_wandb(tmp_path: Path) -> None:
    train(tmp_path, replace(CONFIG, iterations=1), wandb="offline")
    train(tmp_path, resume=True, wandb="offline")
    logs = sorted((tmp_path / "wandb").glob("offline-run-*/*.wandb"), key=lambda log: min(history(log)))
    assert [sorted(history(log)) for log in logs] == [[0], [1, 2]]
    (name,) = {log.name for log in logs}
    ids = [r.run.run_id for log in logs for r in finished(log) if r.WhichOneof("record_type") == "run"]
    assert set(ids) == {name.removeprefix("run-").removesuffix(".wandb")}


def test_a_wandb_that_cannot_be_reached_with_the_settings_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    def refused(**settings: object) -> None:
        raise wandb.errors.UsageError("No API key configured. Use `wandb login` to log in.")

    monkeypatch.setattr(wandb, "init", refused)
    with pytest.raises(UptakeError, match=r"wandb.mode = online: No API key configured\..* wandb.mode=offline"):
        train(tmp_path, wandb="online")


def test_the_event_file_of_tensorboard_holds_every_figure_and_the_sound_and_picture_of_conversations(
    tmp_path: Path,
) -> None:
    config = replace(CONFIG, tensorboard=True)
    train(tmp_path, replace(config, iterations=1))
    train(tmp_path, config, resume=True)
    events = reader.EventAccumulator(
        str(tmp_path / "tensorboard"), size_guidance={reader.SCALARS: 0, reader.IMAGES: 0, reader.AUDIO: 0}
    ).Reload()  # fmt: skip
    lines = figures(tmp_path)
    assert len(lines) == 3
    for name in {name for line in lines for name in line if name != "iteration"}:
        seen = {event.step: event.value for event in events.Scalars(name)}
        assert seen == {line["iteration"]: pytest.approx(line[name], rel=1e-6) for line in lines if name in line}, name
    for side in ("user", "agent"):
        heard = events.Audio(f"episode/{side}")
        assert [event.step for event in heard] == [0, 2]
        for event in heard:
            sound, rate = soundfile.read(io.BytesIO(event.encoded_audio_string), dtype="float32")
            episode = kept(tmp_path, event.step)
            assert rate == episode.clock.sample_rate
            assert np.abs(sound - getattr(episode, side)).max() <= 2 / 2**15
    drawn = events.Images("episode/timeline")
    assert [event.step for event in drawn] == [0, 2]
    for event in drawn:
        seen = np.asarray(Image.open(io.BytesIO(event.encoded_image_string)).convert("RGB"))
        assert np.array_equal(seen, picture(kept(tmp_path, event.step)))
