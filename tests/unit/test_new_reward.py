"""What third parties write: scaffolded, by path, in a configuration, or offered by a package."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from align.config import load_config
from envs.errors import UptakeError
from launch.cli import app
from launch.scaffold import run_new_reward
from rewards import Composition, get, names
from rewards import registry as registry_module
from tests.unit.test_rewards_episodes import conversation, event

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch, tmp_path):
    names()
    monkeypatch.setattr(registry_module, "_REGISTRY", dict(registry_module._REGISTRY))
    monkeypatch.setattr(registry_module, "_FILES", {})
    monkeypatch.chdir(tmp_path)


def test_a_new_reward_works_at_once_and_its_test_passes(tmp_path):
    done = CliRunner().invoke(app, ["new", "reward", "calm"])
    assert done.exit_code == 0, done.output
    assert "pytest test_calm.py" in done.output and "uptake audit ./calm.py:calm" in done.output
    assert Composition({"./calm.py:calm": 1.0})(conversation([(4.3, 6.3)], [event("A1", 1, 4)])) == 1.0
    env = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1"}
    tested = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_calm.py"],
        cwd=tmp_path, env=env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert tested.returncode == 0 and "7 passed" in tested.stdout, tested.stdout + tested.stderr


def test_a_new_reward_is_as_tidy_as_ours(tmp_path):
    run_new_reward("calm", tmp_path, Console(quiet=True))
    for command in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--config", str(ROOT / "pyproject.toml"), "."],
            cwd=tmp_path, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "name, message",
    [
        ("turn_taking", "a reward already"),
        ("my-reward", "no Python name"),
        ("class", "no Python name"),
        ("../calm", "no Python name"),
        ("", "no Python name"),
    ],
)
def test_a_name_that_cannot_be_one_is_refused_and_nothing_is_written(tmp_path, name, message):
    with pytest.raises(UptakeError, match=message):
        run_new_reward(name, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("there", ["calm.py", "test_calm.py"])
def test_nothing_that_is_there_is_overwritten(tmp_path, there):
    (tmp_path / there).write_text("mine")
    with pytest.raises(UptakeError, match=f"{there} exists"):
        run_new_reward("calm", tmp_path)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [(there, "mine")]


def test_a_path_in_a_configuration_or_in_an_override_is_a_reward(tmp_path):
    run_new_reward("calm", tmp_path, Console(quiet=True))
    (tmp_path / "mine.yaml").write_text("rewards:\n  ./calm.py:calm: 2.0\n  quality: 1.0\n")
    assert Composition(load_config("mine.yaml").rewards).weights == {"calm": 2.0, "quality": 1.0}
    overridden = load_config("quickstart", ["rewards.calm.py:calm=0.5"]).rewards
    assert Composition(overridden).weights["calm"] == 0.5


def test_a_package_offers_rewards_through_the_entry_point_group(tmp_path, monkeypatch):
    run_new_reward("calm", tmp_path, Console(quiet=True))
    (tmp_path / "calm.py").rename(tmp_path / "their_package_of_rewards.py")
    info = tmp_path / "their_package_of_rewards-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-package-of-rewards\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[uptake.rewards]\ncalm = their_package_of_rewards:calm\n")
    assert "calm" not in names()
    monkeypatch.syspath_prepend(tmp_path)
    assert "calm" in names()
    found = get("calm")
    assert found.judge_function.__module__ == "their_package_of_rewards"
    assert Composition({"calm": 1.0})(conversation([(4.3, 6.3)], [event("A1", 1, 4)])) == 1.0


@pytest.mark.parametrize(
    "line, message",
    [
        ("1 / 0", "does not load: ZeroDivisionError"),
        ("open('no such file')", "does not load: FileNotFoundError"),
        ("reward('x', axis='x', events=['A11'], horizon_s=1.0)(print)", "no event type 'A11'; did you mean 'A1'"),
        ("reward('x', axis='x', events='A1', horizon_s=1.0)(print)", "give types and a time"),
        ("reward('x', axis='x', events=['A1'], horizon_s=float('nan'))(print)", "give types and a time"),
    ],
)
def test_a_file_that_does_not_load_is_one_clear_line(tmp_path, line, message):
    (tmp_path / "broken.py").write_text(f"from rewards import reward\n{line}\n")
    with pytest.raises(UptakeError, match=message) as caught:
        get("broken.py:x")
    assert "\n" not in str(caught.value)
