"""What a policy was loaded from is told by its bytes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from align import origin
from align.loading import load_policy
from tests.tiny_checkpoint import tiny_checkpoint


def contents(name: str) -> dict[str, str]:
    return origin.contents(name, load_policy(name))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return tiny_checkpoint(tmp_path / "policy")


def test_every_file_that_a_checkpoint_is_read_from_counts_and_no_other(checkpoint: Path) -> None:
    policy, found = load_policy(str(checkpoint)), contents(str(checkpoint))
    names = ["codec.safetensors", "config.json", "model.safetensors", "tokenizer_spm.model"]
    assert sorted(found) == [f"{name} of policy {checkpoint}" for name in names]
    (checkpoint / "README.md").write_text("mine")
    assert contents(str(checkpoint)) == found
    for name in names:
        content = (checkpoint / name).read_bytes()
        (checkpoint / name).write_bytes(content + b" ")
        now = origin.contents(str(checkpoint), policy)
        assert [label for label in found if now[label] != found[label]] == [f"{name} of policy {checkpoint}"]
        (checkpoint / name).write_bytes(content)


def test_weights_that_lie_elsewhere_count(checkpoint: Path, tmp_path: Path) -> None:
    elsewhere = (checkpoint / "model.safetensors").rename(tmp_path / "base.safetensors")
    values = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(values | {"moshi_name": f"file://{elsewhere}"}))
    assert f"{elsewhere} of policy {checkpoint}" in contents(str(checkpoint))


def test_a_run_folder_counts_as_the_policy_that_it_trained(checkpoint: Path) -> None:
    run = checkpoint.parent
    assert list(contents(str(run)).values()) == list(contents(str(checkpoint)).values())


def test_of_a_cascade_its_file_and_the_pack_that_it_answers_with_count(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("response_s: 0.24\n")
    first = contents(str(file))
    assert sorted(first) == [f"mine.yaml of policy {file}", f"the pack of policy {file}"]
    file.write_text("response_s: 0.4\n")
    second = contents(str(file))
    assert [name for name in first if first[name] != second[name]] == [f"mine.yaml of policy {file}"]
    assert list(contents("cascade")) == ["the pack of policy cascade"]
