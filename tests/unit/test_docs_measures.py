"""`docs/measures.md` names every figure and every bug, and its commands exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from launch.cli import app
from launch.grading import parse_compat
from rewards.compat import EVALUATORS
from rewards.measures import MEASURES, TIMINGS

PAGE = (Path(__file__).parents[2] / "docs" / "measures.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", [*MEASURES, *TIMINGS])
def test_every_measure_of_ours_is_defined(name: str) -> None:
    text = (MEASURES[name].text if name in MEASURES else TIMINGS[name]).replace("|", "\\|")
    assert re.search(rf"^\| `{name}` \|.*{re.escape(text)}", PAGE, re.MULTILINE)


@pytest.mark.parametrize("evaluator", EVALUATORS)
def test_every_figure_and_bug_of_a_published_evaluator_is_defined(evaluator: str) -> None:
    section = PAGE.split(f"### `{evaluator}`")[1].split("\n### ")[0]
    assert EVALUATORS[evaluator].source in section
    for name, figure in EVALUATORS[evaluator].figures.items():
        assert f"| `{name}` |" in section
        assert figure.text in section
    for bug, text in EVALUATORS[evaluator].bugs.items():
        assert f"| `{bug}` | {text} |" in section


def test_every_command_that_it_shows_exists_with_its_options() -> None:
    shown = re.findall(r"^    uptake ([a-z-]+)([^#\n]*)", PAGE, re.MULTILINE)
    assert len(shown) > 6
    for command, rest in shown:
        done = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"})
        assert done.exit_code == 0, command
        for option in re.findall(r"(--[a-z-]+)", rest):
            assert option in done.output, (command, option)
        parse_compat(re.findall(r"--compat (\S+)", rest))
