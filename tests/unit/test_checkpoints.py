"""Checkpoints: whole or not there, and never pickle."""

from __future__ import annotations

import errno
import json
import random

import numpy as np
import pytest
import torch

from align import checkpoints
from align.checkpoints import list_checkpoints, load_latest, save_checkpoint, verify
from envs.errors import UptakeError


def save(folder, iteration, *, keep=10, value=0.0, rng=None, **more):
    return save_checkpoint(
        folder,
        iteration,
        model={"weight": torch.full((3, 2), value), "half": torch.full((2,), value, dtype=torch.bfloat16)},
        optimizer={
            "weight.start": torch.tensor(0),
            "weight.master": torch.full((6,), value),
            "weight.step": torch.tensor(float(iteration)),
        },
        rng=rng or {"torch": torch.get_rng_state()},
        state={"axis_rewards": {"pause": value}, "iteration": iteration},
        keep=keep,
        **more,
    )


def test_what_is_saved_is_what_is_loaded(tmp_path):
    torch.manual_seed(7)
    path = save(tmp_path, 3, value=0.1)
    found = load_latest(tmp_path)
    assert (found.iteration, found.path, found.state["axis_rewards"]) == (3, path, {"pause": 0.1})
    assert torch.equal(found.model["weight"], torch.full((3, 2), 0.1))
    assert found.model["half"].dtype == torch.bfloat16
    with found.optimizer as optimizer:
        assert optimizer.keys_of("weight") == ["master", "step"]
        assert optimizer.step("weight") == 3.0
        assert torch.equal(optimizer.read("weight", "master", 2, 3), torch.full((3,), 0.1))
    assert found.rng is not None
    assert torch.equal(found.rng["torch"], torch.get_rng_state())


def test_a_checkpoint_holds_json_and_safetensors_only(tmp_path):
    path = save(tmp_path, 1)
    assert sorted(p.name for p in path.iterdir()) == [
        "manifest.json",
        "model.safetensors",
        "optimizer-0.safetensors",
        "rng-0.safetensors",
        "state.json",
    ]
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["version"] == 3
    assert set(manifest["files"]) == {p.name for p in path.iterdir()} - {"manifest.json"}


def test_views_of_one_tensor_are_saved_apart(tmp_path):
    flat = torch.arange(6.0)
    save_checkpoint(
        tmp_path,
        1,
        model={"a": flat[:3], "b": flat[3:]},
        optimizer={"c.master": flat, "c.start": torch.tensor(0)},
        rng={},
        state={},
        keep=1,
    )
    assert torch.equal(load_latest(tmp_path).model["b"], torch.tensor([3.0, 4.0, 5.0]))


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer-0.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_a_damaged_newest_checkpoint_is_reported_and_the_one_before_is_used(tmp_path, capsys, file, damage):
    save(tmp_path, 1, value=1.0)
    newest = save(tmp_path, 2, value=2.0) / file
    content = bytearray(newest.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 0xFF
        newest.write_bytes(content)
    elif damage == "truncate":
        newest.write_bytes(content[:-7])
    else:
        newest.unlink()
    assert load_latest(tmp_path).iteration == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "damaged checkpoint passed over" in said
    assert str(newest) in said


def rewrite(path, change, sealed=True):
    """Change a checkpoint's manifest, with the SHA-256 that fits or without."""
    manifest = json.loads((path / "manifest.json").read_text())
    manifest.pop("sha256", None)
    change(manifest)
    if sealed:
        manifest["sha256"] = checkpoints._seal(manifest)
    (path / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda manifest: manifest.update(iteration=40), "is of iteration 40, not of the one in its name"),
        (lambda manifest: manifest.update(files={}), "model.safetensors is missing"),
        (lambda manifest: manifest["files"].pop("state.json"), "state.json is missing"),
        (lambda manifest: manifest.update(world=2), "optimizer-1.safetensors is missing"),
        (lambda manifest: manifest.update(world=0), "optimizer-0.safetensors is missing, or is none of 0 ranks"),
    ],
)
def test_a_manifest_that_is_not_of_its_checkpoint_is_damage(tmp_path, change, says):
    path = save(tmp_path, 4)
    rewrite(path, change)
    assert says in verify(path)


def test_a_digit_that_has_changed_in_a_manifest_is_damage(tmp_path):
    path = save(tmp_path, 4)
    text = (path / "manifest.json").read_text()
    (path / "manifest.json").write_text(text.replace('"iteration": 4', '"iteration": 5'))
    assert "manifest.json: content differs from what was written (SHA-256)" in verify(path)


def test_a_checkpoint_of_the_format_before_is_read(tmp_path):
    path = save(tmp_path, 4, value=0.5)
    rewrite(path, lambda manifest: manifest.update(version=2), sealed=False)
    assert load_latest(tmp_path).model["weight"][0, 0] == 0.5
    rewrite(path, lambda manifest: manifest.update(version=2, iteration=5), sealed=False)
    assert "is of iteration 5" in verify(path)


def test_when_all_are_damaged_nothing_is_loaded(tmp_path, capsys):
    for iteration in (1, 2):
        (save(tmp_path, iteration) / "model.safetensors").write_bytes(b"")
    with pytest.raises(UptakeError, match="all 2 checkpoints are damaged"):
        load_latest(tmp_path)


def test_an_empty_folder_says_so(tmp_path):
    with pytest.raises(UptakeError, match="no checkpoint to resume from"):
        load_latest(tmp_path / "checkpoints")


def test_the_newest_are_kept_and_numbers_are_not_words(tmp_path):
    for iteration in (9, 10, 999_999, 1_000_000):
        save(tmp_path, iteration, keep=3)
    assert [load.name for load in list_checkpoints(tmp_path)] == [
        "iteration-000010",
        "iteration-999999",
        "iteration-1000000",
    ]


@pytest.mark.parametrize("failing", ["_write", "_write_tensors", "_sync_folder"])
def test_a_full_disk_is_one_line_and_the_last_checkpoint_is_intact(tmp_path, monkeypatch, failing):
    last = save(tmp_path, 4)

    def full(*_args):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, failing, full)
        with pytest.raises(
            UptakeError, match=r"No space left on device; the last one, iteration-000004, is intact"
        ) as e:
            save(tmp_path, 5)
    assert "\n" not in str(e.value)
    assert verify(last) is None
    assert load_latest(tmp_path).iteration == 4
    assert [p.name for p in tmp_path.iterdir()] == [last.name]  # nothing half-written stays
    assert save(tmp_path, 5).name == "iteration-000005"  # and with space again it works


def test_a_kill_while_writing_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    save(tmp_path, 1)

    def killed(*_args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            save(tmp_path, 2)
    assert load_latest(tmp_path).iteration == 1
    assert save(tmp_path, 2).is_dir()


def test_a_damaged_checkpoint_is_replaced_by_the_same_iteration_and_a_whole_one_is_left_alone(tmp_path):
    path = save(tmp_path, 2, value=1.0)
    save(tmp_path, 2, value=5.0)
    assert load_latest(tmp_path).model["weight"][0, 0] == 1.0
    (path / "model.safetensors").write_bytes(b"")
    save(tmp_path, 2, value=5.0)
    assert load_latest(tmp_path).model["weight"][0, 0] == 5.0


def test_a_damaged_checkpoint_is_not_among_those_that_are_kept(tmp_path, capsys):
    for iteration in (1, 2, 3):
        save(tmp_path, iteration, keep=2)
    (tmp_path / "iteration-000003" / "state.json").write_bytes(b"")
    assert load_latest(tmp_path).iteration == 2
    (tmp_path / "iteration-000004").mkdir()  # and an empty one, as a careless copy leaves it
    save(tmp_path, 3, keep=2)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["iteration-000002", "iteration-000003"]


def test_any_number_of_ranks_reads_what_any_number_wrote(tmp_path):
    """Two ranks, the second of which has the end of one parameter and the whole of another."""
    first, second, other = torch.arange(4.0), torch.arange(4.0, 10.0), torch.arange(3.0)
    parts = [
        {"a.start": torch.tensor(0), "a.master": first, "a.step": torch.tensor(5.0)},
        {
            "a.start": torch.tensor(4), "a.master": second, "a.step": torch.tensor(5.0),
            "b.start": torch.tensor(0), "b.master": other,
        },
    ]  # fmt: skip
    for rank, part in enumerate(parts):  # each phase, as the barrier would interleave them
        path = tmp_path / f"optimizer-{rank}.safetensors"
        checkpoints._write_tensors(path, part)
    with checkpoints.SavedOptimizer(sorted(tmp_path.iterdir())) as saved:
        assert torch.equal(saved.read("a", "master", 0, 10), torch.arange(10.0))
        assert torch.equal(saved.read("a", "master", 3, 4), torch.arange(3.0, 7.0))
        assert torch.equal(saved.read("b", "master", 1, 2), torch.arange(1.0, 3.0))
        assert saved.step("a") == 5.0
        with pytest.raises(UptakeError, match=r"'b.master' has 3 elements, 4 are needed"):
            saved.read("b", "master", 1, 3)
        with pytest.raises(UptakeError, match="no optimiser state of parameter 'c'"):
            saved.keys_of("c")


def test_a_rank_that_the_run_did_not_have_finds_no_generators(tmp_path):
    save(tmp_path, 1)
    assert load_latest(tmp_path, rank=1).rng is None


def test_another_version_is_refused(tmp_path, capsys):
    manifest = save(tmp_path, 1) / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"version": 3', '"version": 99'))
    with pytest.raises(UptakeError, match="checkpoint version 99"):
        load_latest(tmp_path)


def test_random_numbers_continue_where_they_were(tmp_path):
    """Of every global generator, in the middle of a pair of normal numbers too."""

    def numbers():
        drawn = (np.random.rand(3), np.random.standard_normal(2), [random.random(), random.gauss(0, 1)])
        return [*torch.rand(4).tolist(), *np.concatenate(drawn).tolist()]

    torch.manual_seed(1)
    np.random.standard_normal(1)
    random.gauss(0, 1)
    states = checkpoints.rng_tensors()
    path = save(tmp_path, 1, rng=states)
    first = numbers()
    checkpoints.set_rng_tensors(checkpoints.load(path).rng)
    assert first == numbers()
