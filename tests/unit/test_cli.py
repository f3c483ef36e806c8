"""The command line: quick to answer, complete, and explicit about threads."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from launch.cli import app
from launch.threads import VARIABLES, per_process, set_threads

ROOT = Path(__file__).parents[2]
COMMANDS = (
    "train", "eval", "regrade", "export-episodes", "rollout", "view", "audit", "check-env", "new", "pack", "scenario",
    "segments",
    "fit", "doctor",
)  # fmt: skip


def test_help_names_every_command() -> None:
    done = CliRunner().invoke(app, ["--help"])
    assert done.exit_code == 0
    for name in COMMANDS:
        assert name in done.output
        assert CliRunner().invoke(app, [name, "--help"]).exit_code == 0


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys, launch.cli\n"
        "heavy = {'torch', 'numpy', 'transformers', 'deepspeed', 'matplotlib', 'wandb'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("cores, ranks, share", [(8, 2, 4), (2, 2, 1), (1, 4, 1), (3, 2, 1), (16, 1, 16)])
def test_ranks_on_a_machine_share_its_cores(cores: int, ranks: int, share: int) -> None:
    assert per_process(cores, ranks) == share


def test_the_callers_thread_count_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert set_threads() == 3
    assert {os.environ[name] for name in VARIABLES} == {"3"}


@pytest.mark.parametrize("nonsense", ["", "many", "0", "-2"])
def test_a_thread_count_that_is_none_is_replaced(monkeypatch: pytest.MonkeyPatch, nonsense: str) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", nonsense)
    count = set_threads()
    assert count >= 1
    assert {os.environ[name] for name in VARIABLES} == {str(count)}
