"""`docs/environment.md` runs, and names every id, wrapper, mode and clause."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from gymnasium.vector import AutoresetMode
from typer.testing import CliRunner

import envs.wrappers
from envs.contract import QUICK, THOROUGH
from envs.registration import IDS
from launch.cli import app

PAGE = (Path(__file__).parents[2] / "docs" / "environment.md").read_text(encoding="utf-8")


def test_the_code_runs_from_the_first_block_to_the_last(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 5
    for block in blocks:
        exec(block, names)
    assert names["picture"].shape[2] == 3 and -1 <= names["reward"] <= 1
    said = capsys.readouterr().out
    assert "about the weather" in said and "compute_ms" in said and "MultiDiscrete" in said


def test_it_names_what_there_is() -> None:
    assert set(re.findall(r"^\| `(Uptake/[^`]+)` \|", PAGE, re.MULTILINE)) == set(IDS)
    assert set(re.findall(r"^\| `(\w+)\(env", PAGE, re.MULTILINE)) == set(envs.wrappers.__all__)
    for mode in AutoresetMode:
        assert f"| `{mode.value}`" in PAGE
    clauses = PAGE.split("## Checks")[1]
    for clause in (*QUICK, *THOROUGH, "degenerate ranking"):
        assert re.search(rf"^\| [^|]*{clause}", clauses, re.MULTILINE), clause


def test_the_commands_that_it_shows_exist() -> None:
    shown = re.findall(r"^    uptake ([a-z-]+) (\S+)", PAGE, re.MULTILINE)
    assert shown == [("check-env", "Uptake/Duplex-v0")]
    assert CliRunner().invoke(app, ["check-env", "--help"]).exit_code == 0
