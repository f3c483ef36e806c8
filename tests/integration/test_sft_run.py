"""A warm start from start to end on small recordings: what is written, resume, Ctrl-C, faults, ranks."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from align import checkpoints
from align.policies.base import DuplexPolicy
from align.policies.chunk.policy import ChunkPolicy
from align.policies.moshi.policy import MoshiPolicy
from align.trainers import sft
from align.trainers.sft_config import DataConfig, SftConfig
from envs.errors import UptakeError
from tests import tiny_moshi
from tests.dialogues import write_dialogues
from tests.ranks import run_ranks
from tests.unit.test_policy_chunk import tiny

CONFIG = SftConfig(
    iterations=4, frames=40, train_batch_size=4, per_device_train_batch_size=2, learning_rate=5e-3, save_steps=2,
    eval_steps=2,
)  # fmt: skip
KINDS: dict[str, tuple[Any, SftConfig]] = {
    "moshi": (lambda: tiny_moshi.policy(context=64), replace(CONFIG, max_delay=5, delay=2)),
    "lora": (
        lambda: tiny_moshi.policy(context=64),
        replace(CONFIG, use_peft=True, lora_r=4, lora_alpha=8, max_delay=1, delay=1),
    ),
    "chunk": (lambda: tiny(context=64), CONFIG),
}
CLOCKS = {"time/update"}


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    folder = tmp_path_factory.mktemp("recordings")
    path, dev = write_dialogues(folder / "train", 3, 130), write_dialogues(folder / "dev", 1, 80, seed=1)
    return DataConfig(path=str(path), dev=str(dev))


def run(folder: Path, kind: str, data: DataConfig, resume: bool = False, **changes: Any) -> DuplexPolicy:
    make, config = KINDS[kind]
    policy = make()
    sft.train(replace(config, **changes), policy, data, folder, seed=3, resume=resume, say=lambda line: None)
    return policy


def metrics(folder: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in CLOCKS} for line in lines]


def same(a: DuplexPolicy, b: DuplexPolicy) -> bool:
    ours, theirs = a.model.state_dict(), b.model.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.fixture(scope="module", params=KINDS)
def straight(
    request: pytest.FixtureRequest, recordings: DataConfig, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path, DuplexPolicy]:
    folder = tmp_path_factory.mktemp(request.param)
    return request.param, folder, run(folder, request.param, recordings)


def test_a_run_writes_metrics_checkpoints_and_a_policy_that_loads(straight: tuple[str, Path, DuplexPolicy]) -> None:
    kind, folder, trained = straight
    lines = metrics(folder)
    assert [line["iteration"] for line in lines] == [0, 1, 2, 3]
    terms = {"text", "audio", "control"} if kind == "chunk" else {"text", "audio"}
    assert {f"loss/{term}" for term in terms} | {"loss", "grad_norm", "learning_rate", "epoch"} <= lines[0].keys()
    assert [("dev/text" in line) for line in lines] == [False, True, False, True]
    for line in lines:
        assert line["loss"] == pytest.approx(sum(line[f"loss/{term}"] for term in terms), rel=1e-5)
    assert [p.name for p in checkpoints.list_checkpoints(folder / "checkpoints")] == [
        "iteration-000002", "iteration-000004",
    ]  # fmt: skip
    again: DuplexPolicy
    if kind == "chunk":
        again = ChunkPolicy.load(folder / "policy", codec=tiny_moshi.BlurCodec())
    else:
        again = MoshiPolicy.load(folder / "policy", codec=tiny_moshi.BlurCodec())
    assert same(again, trained) and not same(trained, KINDS[kind][0]())
    start = KINDS[kind][0]().model.state_dict()
    assert trained.model.state_dict().keys() == start.keys(), "adapters are merged, names are the published ones"


def test_a_resumed_run_is_bit_identical_to_one_that_was_not_interrupted(
    straight: tuple[str, Path, DuplexPolicy], recordings: DataConfig, tmp_path: Path
) -> None:
    kind, folder, whole = straight

    class Killed(Exception):
        pass

    real, seen = sft._update, []

    def dying(*args: Any, **options: Any) -> bool:
        seen.append(None)
        if len(seen) == 4:  # one past the checkpoint of iteration 2
            raise Killed
        return real(*args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sft, "_update", dying)
        with pytest.raises(Killed):
            run(tmp_path, kind, recordings)
    assert len(metrics(tmp_path)) == 3
    rest = run(tmp_path, kind, recordings, resume=True)
    assert same(whole, rest) and metrics(folder) == metrics(tmp_path)


def test_ctrl_c_writes_a_checkpoint_and_the_resumed_run_loses_nothing(
    straight: tuple[str, Path, DuplexPolicy], recordings: DataConfig, tmp_path: Path
) -> None:
    kind, folder, whole = straight
    real, seen = sft._update, []

    def pressed(*args: Any, **options: Any) -> bool:
        seen.append(None)
        if len(seen) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return real(*args, **options)

    before = signal.getsignal(signal.SIGINT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sft, "_update", pressed)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, kind, recordings)
    assert signal.getsignal(signal.SIGINT) is before
    assert checkpoints.load_latest(tmp_path / "checkpoints").iteration == 3
    assert same(whole, run(tmp_path, kind, recordings, resume=True)) and metrics(folder) == metrics(tmp_path)


def test_the_size_of_a_forward_pass_changes_no_figure(
    straight: tuple[str, Path, DuplexPolicy], recordings: DataConfig, tmp_path: Path
) -> None:
    kind, folder, _ = straight
    run(tmp_path, kind, recordings, per_device_train_batch_size=3)
    for ours, theirs in zip(metrics(folder), metrics(tmp_path), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize(("kind", "voice"), [("moshi", ("depformer", "linears")), ("chunk", ("talker",))])
def test_without_its_loss_the_voice_stays_bit_for_bit_as_it_was(
    recordings: DataConfig, tmp_path: Path, kind: str, voice: tuple[str, ...]
) -> None:
    trained = run(tmp_path, kind, recordings, audio_weight=0.0, weight_decay=1.0, zero_stage=2, iterations=2)
    before = KINDS[kind][0]().model.state_dict()
    for name, value in trained.model.state_dict().items():
        assert torch.equal(value, before[name]) == name.startswith(voice), name


def test_a_finished_run_can_be_told_another_delay(recordings: DataConfig, tmp_path: Path) -> None:
    two = run(tmp_path, "moshi", recordings, iterations=2)
    none = run(tmp_path, "moshi", recordings, resume=True, iterations=2, delay=0)
    assert not same(two, none)
    changed = [n for n, value in two.model.state_dict().items() if not torch.equal(value, none.model.state_dict()[n])]
    assert changed == ["text_emb.weight"]
    step = none.model.text_emb.weight - two.model.text_emb.weight
    torch.testing.assert_close(step, step[:1].expand_as(step), atol=1e-6, rtol=0)
    saved = load_file(tmp_path / "checkpoints" / "iteration-000002" / "model.safetensors")
    assert saved["delay.linear.weight"].abs().max() > 0, "the model has learned what it is told"


def test_another_run_s_checkpoint_or_recordings_are_refused(recordings: DataConfig, tmp_path: Path) -> None:
    run(tmp_path, "moshi", recordings, iterations=1)
    with pytest.raises(UptakeError, match="already holds a run"):
        run(tmp_path, "moshi", recordings)
    with pytest.raises(UptakeError, match=r"text_padding_weight is 0\.7"):
        run(tmp_path, "moshi", recordings, resume=True, text_padding_weight=0.7)
    fewer = tmp_path / "fewer"
    write_dialogues(fewer, 2, 130)
    with pytest.raises(UptakeError, match="the recordings are not those"):
        run(tmp_path, "moshi", replace(recordings, path=str(fewer)), resume=True)


def test_a_loss_that_is_no_number_is_skipped_counted_and_kept_to_be_looked_at(
    recordings: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, seen = sft.MoshiTeaching.forward, []

    def broken(self: Any, codes: torch.Tensor, delays: torch.Tensor) -> dict[str, torch.Tensor]:
        seen.append(None)
        out = real(self, codes, delays)
        return out | {"sum/text": out["sum/text"] * (float("nan") if len(seen) in (2, 3) else 1.0)}

    monkeypatch.setattr(sft.MoshiTeaching, "forward", broken)
    run(tmp_path, "moshi", replace(recordings, dev=""), iterations=3)
    # The second pass of the first update, and the first of the second.
    assert [line["skipped_updates"] for line in metrics(tmp_path)] == [1, 2, 2]
    dumped = json.loads((tmp_path / "nan-000000-rank0.json").read_text())["rows"]
    assert len(dumped) == 4 and {"recording", "frame", "delay"} == dumped[0].keys()
    assert load_file(tmp_path / "nan-000000-rank0.safetensors")["codes"].shape == (4, 17, 40)
    run(tmp_path, "moshi", replace(recordings, dev=""), resume=True, iterations=4, learning_rate=1e-4)
    assert 0 < metrics(tmp_path)[-1]["learning_rate"] <= 1e-4
    seen.clear()
    with pytest.raises(UptakeError, match=r"more than sft\.nan_budget = 0"):
        run(tmp_path / "strict", "moshi", recordings, nan_budget=0)


def test_recordings_that_cannot_be_used_end_the_run_or_are_left_out(recordings: DataConfig, tmp_path: Path) -> None:
    folder = write_dialogues(tmp_path / "mixed", 2, 130)
    (folder / "talk0.json").unlink()
    data = DataConfig(path=str(folder))
    with pytest.raises(UptakeError, match=r"recording talk0: words: .*talk0\.wav: no word times beside it"):
        run(tmp_path / "a", "moshi", data, iterations=1)
    said: list[str] = []
    make, config = KINDS["moshi"]
    data = replace(data, skip_unusable=True)
    sft.train(replace(config, iterations=1), make(), data, tmp_path / "b", say=said.append)
    assert "1 conversations" in said[0] and "1 left out: recording talk0" in said[0]
    (folder / "talk1.json").unlink()
    with pytest.raises(UptakeError, match="no recording that can be learned from"):
        run(tmp_path / "c", "moshi", data, iterations=1)


RANKS = """
import json, sys
from dataclasses import replace
from pathlib import Path
from align.trainers.sft_config import DataConfig
from tests.integration.test_sft_run import run

folder, path, kind, stage = sys.argv[1:]
policy = run(Path(folder), kind, DataConfig(path=path, dev=path), zero_stage=int(stage), iterations=2)
print(json.dumps({name: value.double().sum().item() for name, value in policy.model.state_dict().items()}))
"""


@pytest.mark.parametrize(("kind", "stage"), [("moshi", 3), ("chunk", 2)])
def test_two_ranks_learn_what_one_does(recordings: DataConfig, tmp_path: Path, kind: str, stage: int) -> None:
    weights = {
        world: run_ranks(RANKS, str(tmp_path / str(world)), recordings.path, kind, str(stage), world=world)
        for world in (1, 2)
    }
    assert weights[2][0] == pytest.approx(weights[2][1], rel=1e-9)
    assert weights[2][0] == pytest.approx(weights[1][0], rel=1e-4, abs=1e-4)
    for one, two in zip(metrics(tmp_path / "1"), metrics(tmp_path / "2"), strict=True):
        assert one == pytest.approx(two, rel=1e-4, abs=1e-6)
    with pytest.raises(UptakeError, match="not a multiple of the 3 ranks"):
        CONFIG.check(3)
