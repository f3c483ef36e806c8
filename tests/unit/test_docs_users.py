"""`docs/users.md` and `docs/acoustics.md`: the scenarios load, the code runs, the commands and presets exist."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml
from typer.testing import CliRunner

from align.config import load_config
from envs.acoustics.config import find_acoustics, presets
from envs.clock import CLOCK
from envs.pack import Pack
from envs.scenario import parse_scenarios
from launch.cli import app

DOCS = Path(__file__).parents[2] / "docs"
PAGE, SOUND = ((DOCS / name).read_text(encoding="utf-8") for name in ("users.md", "acoustics.md"))


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that holds what the pages name."""
    monkeypatch.chdir(tmp_path)
    call = np.zeros((CLOCK.samples(45.0), 2), np.float32)
    call[CLOCK.samples(20.0) : CLOCK.samples(22.0), 0] = 0.1 * np.sin(np.arange(CLOCK.samples(2.0)) * 0.1)
    soundfile.write("call.wav", call, CLOCK.sample_rate)
    Path("call.json").write_text('[["hello", 20.0, 22.0]]')
    return tmp_path


def test_every_scenario_that_it_shows_loads_and_all_drivers_are_shown(here: Path) -> None:
    drivers = set()
    for number, text in enumerate(blocks("yaml")):
        path = here / f"{number}.yaml"
        path.write_text(text)
        drivers |= {one.driver for one in Pack.load("core", users=path).scenarios()}
    assert drivers == {"script", "reactive", "replay", "llm", "policy"}


def test_the_code_runs(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = blocks("python")
    assert len(shown) == 2
    for block in shown:
        exec(block, {})
    assert "turn0" in capsys.readouterr().out
    assert (here / "one-side" / "user.flac").is_file() and (here / "other-side" / "agent.flac").is_file()


@pytest.mark.parametrize("page", [PAGE, SOUND], ids=["users", "acoustics"])
def test_every_command_exists_with_its_options_and_every_override_is_one(page: str) -> None:
    shown = re.findall(r"^    uptake ([^#\n]+)", page, re.MULTILINE)
    assert len(shown) >= 3
    for line in shown:
        words = line.split()
        named = [words[0], words[1]] if words[0] in ("scenario", "pack") else words[:1]
        done = CliRunner().invoke(app, [*named, "--help"], env={"COLUMNS": "200"})
        assert done.exit_code == 0, line
        for option in re.findall(r"(--[a-z-]+)", line):
            assert option in done.output, (line, option)
        if words[0] == "train":
            load_config(words[1], [word for word in words[2:] if "=" in word])


def test_the_acoustics_that_it_shows_are_those_that_there_are(here: Path) -> None:
    table = SOUND.split("| preset |")[1].split("\n\n")[0]
    assert set(re.findall(r"^\| `(\w+)`", table, re.MULTILINE)) == set(presets())
    (here / "street.yaml").write_text("noise: {snr_db: 3}\n")
    examples = re.findall(r"^    acoustics:.*\n(?:      .*\n)*", SOUND, re.MULTILINE)
    assert len(examples) == 3
    for number, example in enumerate(examples):
        section = yaml.safe_load(example)["acoustics"]
        text = {
            "schema": "duplex.scenario/1", "id": "a", "split": "train", "acoustics": section,
            "vars": {"delay": {"dist": "uniform", "a": 20, "b": 90}},
            "user": {"script": [{"id": "ask", "type": "A1", "clip": "x", "at": 1.0}]},
        }  # fmt: skip
        (one,) = parse_scenarios(yaml.safe_dump(text), str(here / f"{number}.yaml"))
        assert one.acoustics is not None and one.acoustics.effects
    assert find_acoustics("mixed").mix
